"""`client.fine_tuning.alpha.graders`, by the official client.

pytest tests/api/test_graders.py
"""

import json

import openai
import pytest
from tests.api.evals_app import app_over


@pytest.fixture(scope="module")
def app(lively_base, tmp_path_factory):
    home = tmp_path_factory.mktemp("graders") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(home))
        with app_over(home, lively_base) as made:
            yield made


@pytest.fixture(scope="module")
def graders(app):
    return app.client.fine_tuning.alpha.graders


SAME = {"type": "string_check", "name": "same", "operation": "eq", "input": "{{sample.output_text}}",
        "reference": "{{item.reference_answer}}"}
NEAR = {"type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match", "input": "{{sample.output_text}}",
        "reference": "{{item.reference_answer}}"}


def test_a_reward_with_all_its_metadata(graders):
    done = graders.run(grader=SAME, item={"reference_answer": "Oak"}, model_sample="Oak")
    assert (done.reward, done.sub_rewards, done.api_model_grader_token_usage_per_model) == (1.0, {}, {})
    assert (done.metadata.name, done.metadata.type, done.metadata.scores) == ("same", "string_check", {})
    assert done.metadata.execution_time >= 0 and done.metadata.token_usage is None
    flags = done.metadata.errors.model_dump(by_alias=True)
    assert set(flags) == {f.alias or name for name, f in type(done.metadata.errors).model_fields.items()} and len(flags) == 14
    assert not any(flags.values()), "every flag of the client's type, all of them down"
    assert graders.run(grader=SAME, item={"reference_answer": "Elm"}, model_sample="Oak").reward == 0.0, "and the control"


def test_a_formula_over_parts(graders):
    both = {"type": "multi", "name": "both", "graders": {"same": SAME, "near": NEAR}, "calculate_output": "(same + near) / 2"}
    done = graders.run(grader=both, item={"reference_answer": "abed"}, model_sample="abcd")
    assert done.reward == pytest.approx(0.375) and done.sub_rewards == {"same": 0.0, "near": 0.75}


@pytest.mark.parametrize("grader, sample, flag", [
    (SAME | {"reference": "{{item.nothing}}"}, "x", "invalid_variable_error"),
    (SAME | {"input": "{{sample.output_json.street}}"}, "no JSON", "sample_parse_error"),
    ({"type": "multi", "name": "m", "graders": {"a": SAME}, "calculate_output": "1 / a"}, "x", "formula_parse_error")])
def test_what_cannot_be_graded_says_so_by_its_flag(graders, grader, sample, flag):
    done = graders.run(grader=grader, item={"reference_answer": "y"}, model_sample=sample)
    raised = [name for name, value in done.metadata.errors.model_dump(by_alias=True).items() if value]
    assert done.reward == 0.0 and raised == [flag]


def test_a_model_that_is_served_judges(app, graders, lively_base):
    grader = {"type": "label_model", "name": "kind", "model": str(lively_base), "labels": ["yes", "no"],
              "passing_labels": ["yes", "no"], "input": [{"role": "user", "content": "Is {{sample.output_text}} a street?"}]}
    done = graders.run(grader=grader, model_sample="Oak")
    assert done.reward == 1.0 and done.metadata.sampled_model_name == str(lively_base)
    assert done.api_model_grader_token_usage_per_model == {str(lively_base): done.metadata.token_usage}
    with pytest.raises(openai.NotFoundError) as refused:
        graders.run(grader=grader | {"model": "gpt-9"}, model_sample="Oak")
    assert refused.value.code == "model_not_found"


def test_validate_returns_what_is_a_grader(graders):
    assert graders.validate(grader=SAME).grader.model_dump(exclude_none=True) == SAME


@pytest.mark.parametrize("change, param, words", [
    ({"operation": "equals"}, "grader.operation", "'eq', 'ne', 'like' or 'ilike'"),
    ({"refrence": "x"}, "grader.refrence", "Did you mean 'reference'?"),
    ({"input": "{{7*7}}"}, "grader.input", "no variable"), ({"type": "unheard"}, "grader", "unheard"),
    ({"name": "\x00"}, "grader.name", "pattern"), ({"name": "\ud800"}, None, "")])
def test_validate_names_what_is_wrong(app, change, param, words):
    # Sent by hand: the official client would not say half a character.
    body = json.dumps({"grader": SAME | change})
    reply = app.client._client.post("/v1/fine_tuning/alpha/graders/validate", content=body,
                                    headers={"Content-Type": "application/json"})
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == param and words in error["message"]


def test_python_is_never_executed(graders, tmp_path):
    mark = tmp_path / "executed"
    grader = {"type": "python", "name": "code", "source": f"open({str(mark)!r}, 'w')\ndef grade(sample, item):\n    return 1.0"}
    for ask in (lambda g: graders.run(grader=g, model_sample="x"), lambda g: graders.validate(grader=g)):
        for asked in (grader, {"type": "multi", "name": "m", "graders": {"a": grader}, "calculate_output": "a"}):
            with pytest.raises(openai.BadRequestError) as refused:
                ask(asked)
            assert refused.value.code == "unsupported" and "python" in str(refused.value)
    assert not mark.exists()
