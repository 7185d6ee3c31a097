"""`client.evals`, its runs and their output items, by the official client.

pytest tests/api/test_evals.py
"""

import json

import openai
import pytest
import sqlalchemy as sa
from tests.api.evals_app import app_over

from tunesmith.jobs import files, queue
from tunesmith.jobs.places import DEFAULT_PROJECT
from tunesmith.jobs.tables import eval_runs, evals, output_items, projects

SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}, "a": {"type": "string"}}, "required": ["q", "a"]}
CUSTOM = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
SAME = {"type": "string_check", "name": "same", "operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.a}}"}
NEAR = {"type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match", "input": "{{sample.output_text}}",
        "reference": "{{item.a}}", "pass_threshold": 0.7}
PROMPT = {"type": "template", "template": [{"role": "developer", "content": "Parse."},
                                           {"role": "user", "content": [{"type": "input_text", "text": "{{item.q}} Street"}]}]}


@pytest.fixture
def app(lively_base, home):
    with app_over(home, lively_base) as made:
        yield made


@pytest.fixture
def api(app):
    return app.client.evals


def row(q: str, a: str, said: str | None = None) -> dict:
    return {"item": {"q": q, "a": a}} | ({"sample": {"output_text": said}} if said is not None else {})


def jsonl(*rows: dict) -> dict:
    return {"type": "jsonl", "source": {"type": "file_content", "content": list(rows)}}


def asking(model: str, *rows: dict, **params) -> dict:
    return {"type": "completions", "model": model, "input_messages": PROMPT, "source": {"type": "file_content",
            "content": list(rows)}, "sampling_params": params}


def worked(app, eval_id: str, source: dict):
    """A run that has been done."""
    run = app.client.evals.runs.create(eval_id, data_source=source)
    assert app.work() == "succeeded"
    return run


# evals

def test_an_eval_is_made_shown_changed_and_deleted(api):
    made = api.create(name="streets", data_source_config=CUSTOM, testing_criteria=[SAME, NEAR], metadata={"team": "maps"})
    assert made.id.startswith("eval_") and made.object == "eval" and made.metadata == {"team": "maps"}
    assert made.data_source_config.schema_["properties"]["item"] == SCHEMA
    assert set(made.data_source_config.schema_["properties"]) == {"item", "sample"}
    assert [c.name for c in made.testing_criteria] == ["same", "near"] and made.testing_criteria[1].pass_threshold == 0.7
    assert api.retrieve(made.id).to_dict() == made.to_dict()
    changed = api.update(made.id, name="roads", metadata={"team": "roads"})
    assert changed.to_dict() == made.to_dict() | {"name": "roads", "metadata": {"team": "roads"}}
    assert api.update(made.id, name="lanes").metadata == {"team": "roads"}, "what is not named stays"
    gone = api.delete(made.id)
    assert (gone.deleted, gone.eval_id) == (True, made.id)
    with pytest.raises(openai.NotFoundError):
        api.retrieve(made.id)
    assert list(api.list()) == []


def test_lists_go_a_page_at_a_time_in_either_order(api):
    made = [api.create(name=f"e{i}", data_source_config=CUSTOM, testing_criteria=[SAME]).id for i in range(5)]
    assert sorted(e.id for e in api.list(limit=2)) == sorted(made), "the pager ends"
    up, down = ([e.id for e in api.list(limit=2, order=order)] for order in ("asc", "desc"))
    assert up == down[::-1]
    assert {e.id for e in api.list(order_by="updated_at")} == set(made)
    assert len(api.list(limit=3).data) == 3
    with pytest.raises(openai.BadRequestError) as refused:
        api.list(after="eval_none")
    assert refused.value.param == "after"


@pytest.mark.parametrize("changes, param, code", [
    ({"data_source_config": {"type": "logs"}}, "data_source_config.type", "unsupported"),
    ({"data_source_config": {"type": "stored_completions", "metadata": {}}}, "data_source_config.type", "unsupported"),
    ({"data_source_config": {"type": "custom", "item_schema": {"type": 7}}}, "data_source_config.item_schema",
     "invalid_schema"),
    ({"data_source_config": {"type": "custom", "item_schema": {"$ref": "http://x/y"}}}, "data_source_config.item_schema",
     "invalid_schema"),
    ({"data_source_config": {"type": "custom", "item_schema": {"$schema": []}}}, "data_source_config.item_schema",
     "invalid_schema"),
    ({"data_source_config": {"type": "custom", "item_schema": {"patternProperties": {"(a*)*b": {}}}}},
     "data_source_config.item_schema", "invalid_schema"),
    ({"data_source_config": {"type": "custom"}}, "data_source_config.item_schema", "missing_required_parameter"),
    ({"testing_criteria": []}, "testing_criteria", None),
    ({"testing_criteria": [SAME, {"type": "python", "name": "p", "source": "1"}]}, "testing_criteria[1].type", "unsupported"),
    ({"testing_criteria": [{k: v for k, v in NEAR.items() if k != "pass_threshold"}]}, "testing_criteria[0].pass_threshold",
     "missing_required_parameter"),
    ({"testing_criteria": [SAME | {"input": 7}]}, "testing_criteria[0].input", None),
    ({"nane": "x"}, "nane", "unknown_parameter"), ({"metadata": {"k": 1}}, "metadata", None)])
def test_what_is_no_eval_is_refused_by_name(api, changes, param, code):
    body = {"name": "n", "data_source_config": CUSTOM, "testing_criteria": [SAME]} | changes
    with pytest.raises(openai.BadRequestError) as refused:
        api._client.post("/evals", body=body, cast_to=object)
    assert (refused.value.param, refused.value.code) == (param, code), refused.value.message


# runs over samples that are brought along

def test_a_run_counts_what_passes_what_fails_and_what_cannot_be_graded(app, api):
    made = api.create(data_source_config=CUSTOM, testing_criteria=[SAME, NEAR])
    rows = [row("1", "Oak", "Oak"), row("2", "abed", "abcd"), row("3", "Elm", "xyz"), row("4", "Elm")]
    run = api.runs.create(made.id, name="r", metadata={"k": "v"}, data_source=jsonl(*rows))
    assert (run.status, run.object, run.result_counts.total, run.error) == ("queued", "eval.run", 0, None)
    assert app.work() == "succeeded" and app.work() is None
    run = api.runs.retrieve(run.id, eval_id=made.id)
    assert run.status == "completed" and run.metadata == {"k": "v"}
    assert run.result_counts.model_dump() == {"total": 4, "passed": 1, "failed": 2, "errored": 1}
    same, near = run.per_testing_criteria_results
    assert (same.testing_criteria, same.passed, same.failed) == ("same", 1, 2)
    assert (near.testing_criteria, near.passed, near.failed) == ("near", 2, 1)
    assert near.tunesmith["errored"] == 1 and near.tunesmith["pass_rate"] == pytest.approx(2 / 3)
    low, high = near.tunesmith["pass_rate_ci95"]
    assert (low, high) == pytest.approx((0.2077, 0.9385), abs=1e-4), "Wilson's, of 2 of 3"
    assert near.tunesmith["mean_score"] == pytest.approx((1 + 0.75 + 0) / 3)
    items = list(api.runs.output_items.list(run.id, eval_id=made.id, limit=2))
    assert [(i.datasource_item_id, i.status) for i in items] == [(0, "pass"), (1, "fail"), (2, "fail"), (3, "error")]
    assert [(r.name, r.score, r.passed) for r in items[1].results] == [("same", 0.0, False), ("near", 0.75, True)]
    assert items[1].datasource_item == {"q": "2", "a": "abed"} and items[1].sample.output[0].content == "abcd"
    assert items[3].results[0].error["code"] == "invalid_variable_error"
    assert api.runs.output_items.retrieve(items[2].id, eval_id=made.id, run_id=run.id).to_dict() == items[2].to_dict()
    for status, count in (("pass", 1), ("fail", 2)):
        found = api.runs.output_items.list(run.id, eval_id=made.id, status=status)
        assert [i.status for i in found] == [status] * count
    assert [i.id for i in api.runs.output_items.list(run.id, eval_id=made.id, order="desc")] == [i.id for i in items][::-1]


def test_runs_are_listed_by_status_and_deleted(app, api):
    made = api.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    first, second = (api.runs.create(made.id, data_source=jsonl(row("1", "a", "a"))).id for _ in range(2))
    app.work()
    ended, = api.runs.list(made.id, status="completed")
    waiting, = api.runs.list(made.id, status="queued")
    assert {ended.id, waiting.id} == {first, second}
    assert sorted(r.id for r in api.runs.list(made.id, limit=1)) == sorted((first, second))
    cancelled = api.runs.cancel(waiting.id, eval_id=made.id)
    assert cancelled.status == "canceled" and app.work() is None
    with pytest.raises(openai.BadRequestError):
        api.runs.cancel(ended.id, eval_id=made.id)
    assert api.runs.delete(ended.id, eval_id=made.id).deleted
    with pytest.raises(openai.NotFoundError):
        api.runs.output_items.list(ended.id, eval_id=made.id)
    with app.database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(output_items)).scalar_one() == 0


def test_an_eval_that_is_deleted_takes_its_runs_along(app, api):
    made = api.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    run = api.runs.create(made.id, data_source=jsonl(row("1", "a", "a")))
    api.delete(made.id)
    assert app.work() is None
    with pytest.raises(openai.NotFoundError):
        api.runs.retrieve(run.id, eval_id=made.id)


def put_file(app, *lines: str) -> str:
    return files.add(app.database, DEFAULT_PROJECT, "rows.jsonl", "evals", "\n".join(lines).encode())["id"]


def test_rows_may_come_from_a_file(app, api):
    made = api.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    id = put_file(app, *(json.dumps(row(str(i), "a", "a" if i % 2 else "b")) for i in range(40)), "", "")
    run = api.runs.create(made.id, data_source={"type": "jsonl", "source": {"type": "file_id", "id": id}})
    assert app.work() == "succeeded"
    assert api.runs.retrieve(run.id, eval_id=made.id).result_counts.model_dump() == {
        "total": 40, "passed": 20, "failed": 20, "errored": 0}
    with pytest.raises(openai.NotFoundError):
        api.runs.create(made.id, data_source={"type": "jsonl", "source": {"type": "file_id", "id": "file-none"}})


def test_a_file_that_is_deleted_under_way_is_read_to_the_end(app, api, monkeypatch):
    from tunesmith.jobs import evaluate
    from tunesmith.jobs.evaluation.rows import kept

    made = api.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    id = put_file(app, *(json.dumps(row(str(i), "a", "a")) for i in range(40)))
    keep = evaluate._write

    def deletes(task, *batch):
        keep(task, *batch)
        files.remove(app.database, DEFAULT_PROJECT, id)
        monkeypatch.undo()

    monkeypatch.setattr(evaluate, "_write", deletes)
    run = worked(app, made.id, {"type": "jsonl", "source": {"type": "file_id", "id": id}})
    assert api.runs.retrieve(run.id, eval_id=made.id).result_counts.passed == 40
    assert not kept(run.id).exists(), "and then nothing is left of it"


def test_rows_of_a_request_that_do_not_fit_fail_the_run(app, api):
    """Patterns that never end, too."""
    schema = {"type": "object", "properties": {"q": {"pattern": "^(a+)+$"}}}
    made = api.create(data_source_config={"type": "custom", "item_schema": schema}, testing_criteria=[SAME])
    run = api.runs.create(made.id, data_source=jsonl(row("a", "a", "a"), row("a" * 60 + "!", "a", "a")))
    assert app.work() == "failed"
    error = api.runs.retrieve(run.id, eval_id=made.id).error
    assert error.code == "invalid_data" and error.message.startswith("content[1]: ")


@pytest.mark.parametrize("line, words", [("{", "line 2 is no JSON"), ('{"q": "1"}', "line 2 is no object with an `item`"),
                                         ('{"item": {"q": 1, "a": ""}}', "line 2: item.q does not match"),
                                         ('{"item": {"q": "\\ud800", "a": ""}}', "half of a character"),
                                         ('{"item": {"q": "1", "a": "", "n": NaN}}', "no JSON")])
def test_a_file_that_does_not_fit_fails_the_run_before_anything_is_written(app, api, line, words):
    made = api.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    id = put_file(app, json.dumps(row("1", "a", "a")), line)
    run = api.runs.create(made.id, data_source={"type": "jsonl", "source": {"type": "file_id", "id": id}})
    assert app.work() == "failed"
    run = api.runs.retrieve(run.id, eval_id=made.id)
    assert (run.status, run.error.code, run.result_counts.total) == ("failed", "invalid_data", 0)
    assert words in run.error.message


# runs that ask a model

def test_samples_are_what_chat_answers_and_are_the_same_again(app, api, lively_base):
    made = api.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    rows = [row(f"{n} Oak", "x") for n in range(20)]
    greedy = asking(str(lively_base), *rows, temperature=0, max_completion_tokens=8)
    seeded = asking("gpt-4o-mini", *rows, temperature=0.8, top_p=0.9, seed=7, max_completion_tokens=8)
    runs = [worked(app, made.id, source) for source in (greedy, greedy, seeded, seeded)]
    said = [[i.sample.output[0].content for i in api.runs.output_items.list(r.id, eval_id=made.id, limit=100)] for r in runs]
    assert said[0] == said[1] and said[2] == said[3] and said[0] != said[2]
    for source, answers in ((greedy, said[0]), (seeded, said[2])):
        chat = app.client.chat.completions.create(
            model=source["model"], **source["sampling_params"],
            messages=[{"role": "system", "content": "Parse."}, {"role": "user", "content": "3 Oak Street"}])
        assert chat.choices[0].message.content == answers[3], "the served model is the one that is measured"
    run = api.runs.retrieve(runs[0].id, eval_id=made.id)
    assert run.model == str(lively_base) and run.result_counts.total == run.result_counts.failed == 20
    usage, = run.per_model_usage
    assert (usage.run_model_name, usage.invocation_count) == (str(lively_base), 20)
    item = api.runs.output_items.list(runs[2].id, eval_id=made.id).data[3]
    assert item.sample.input[1].content == "3 Oak Street" and (item.sample.seed, item.sample.top_p) == (7, 0.9)
    assert item.sample.usage.prompt_tokens == chat.usage.prompt_tokens


def test_a_seed_by_chance_is_written_down(app, api, lively_base):
    made = api.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    first = api.runs.create(made.id, data_source=asking(str(lively_base), row("3 Oak", "x"), max_completion_tokens=8))
    app.work()
    sample = api.runs.output_items.list(first.id, eval_id=made.id).data[0].sample
    assert sample.temperature == 1.0
    again = api.runs.create(made.id, data_source=asking(str(lively_base), row("3 Oak", "x"), max_completion_tokens=8,
                                                        seed=sample.seed))
    app.work()
    assert api.runs.output_items.list(again.id, eval_id=made.id).data[0].sample.output == sample.output


def test_a_conversation_may_stand_in_the_item(app, api, lively_base):
    config = {"type": "custom", "item_schema": {"type": "object"}}
    made = api.create(data_source_config=config, testing_criteria=[SAME | {"operation": "ne", "reference": ""}])
    source = asking(str(lively_base), {"item": {"talk": [{"role": "user", "content": "5 Elm Street"}]}}, {"item": {}},
                    {"item": {"talk": [{"role": "user", "content": "Elm " * 600}]}}, temperature=0, max_completion_tokens=8)
    source["input_messages"] = {"type": "item_reference", "item_reference": "item.talk"}
    run = api.runs.create(made.id, data_source=source)
    app.work()
    items = api.runs.output_items.list(run.id, eval_id=made.id).data
    assert items[0].sample.input[0].content == "5 Elm Street" and items[0].status != "error"
    assert [i.status for i in items[1:]] == ["error", "error"], "no prompt, and one that does not fit"
    assert "item.talk" in items[1].sample.error.message and "context length" in items[2].sample.error.message
    assert api.runs.retrieve(run.id, eval_id=made.id).result_counts.errored == 2


def test_responses_are_asked_as_completions(app, api, lively_base):
    made = api.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    source = asking(str(lively_base), row("3 Oak", "x"), temperature=0, max_completion_tokens=8)
    as_responses = source | {"type": "responses", "sampling_params": source["sampling_params"] | {
        "text": {"format": {"type": "text"}}}}
    said = [api.runs.output_items.list(worked(app, made.id, s).id, eval_id=made.id).data[0].sample.output
            for s in (source, as_responses)]
    assert said[0] == said[1]


def test_answers_can_be_held_to_a_form(app, api, lively_base):
    schema = {"type": "object", "properties": {"street": {"enum": ["Oak", "Elm"]}}, "required": ["street"],
              "additionalProperties": False}
    graded = SAME | {"operation": "ne", "input": "{{sample.output_json.street}}", "reference": ""}
    made = api.create(data_source_config=CUSTOM, testing_criteria=[graded])
    source = asking(str(lively_base), row("3 Oak", "x"), row("4 Elm", "x"), temperature=1.5, seed=1)
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}
    as_text = {"text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}}
    for kind, more in (("completions", form), ("responses", as_text)):
        run = worked(app, made.id, source | {"type": kind, "sampling_params": source["sampling_params"] | more})
        assert api.runs.retrieve(run.id, eval_id=made.id).result_counts.passed == 2
        for item in api.runs.output_items.list(run.id, eval_id=made.id):
            assert json.loads(item.sample.output[0].content)["street"] in ("Oak", "Elm")
    control = worked(app, made.id, source)
    assert api.runs.retrieve(control.id, eval_id=made.id).result_counts.errored == 2, "without the form it is no JSON"


@pytest.mark.parametrize("change, param, code", [
    ({"source": {"type": "stored_completions"}}, "data_source.source.type", "unsupported"),
    ({"type": "responses", "source": {"type": "responses", "model": "x"}}, "data_source.source.type", "unsupported"),
    ({"input_messages": None}, "data_source.input_messages", "missing_required_parameter"),
    ({"model": None}, "data_source.model", "missing_required_parameter"),
    ({"sampling_params": {"response_format": {"type": "json_schema", "json_schema": {
        "name": "n", "schema": {"minProperties": 3}}}}}, "data_source.sampling_params", "invalid_schema"),
    ({"sampling_params": {"response_format": {"type": "xml"}}}, "data_source.sampling_params.response_format.type", None),
    ({"sampling_params": {"tools": [{"type": "function"}]}}, "data_source.sampling_params.tools", "unsupported"),
    ({"sampling_params": {"temprature": 1}}, "data_source.sampling_params.temprature", "unknown_parameter"),
    ({"input_messages": {"type": "template", "template": [{"role": "user", "content": "{{sample.output_text}}"}]}},
     "data_source.input_messages", "invalid_template"),
    ({"source": {"type": "file_content", "content": [{"item": 1}]}}, "data_source.source.content[0].item", None),
    ({"source": {"type": "file_content", "content": [{"sample": {}}]}}, "data_source.source.content[0].item",
     "missing_required_parameter")])
def test_what_a_run_cannot_do_is_refused_by_name(api, lively_base, change, param, code):
    made = api.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    with pytest.raises(openai.BadRequestError) as refused:
        api.runs.create(made.id, data_source=asking(str(lively_base), row("1", "a")) | change)
    assert (refused.value.param, refused.value.code) == (param, code), refused.value.message


def test_a_model_that_is_not_served_is_not_found_before_anything_is_queued(app, api):
    made = api.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    with pytest.raises(openai.NotFoundError) as refused:
        api.runs.create(made.id, data_source=asking("gpt-9", row("1", "a")))
    assert refused.value.code == "model_not_found" and app.work() is None


# what keeps it in order

def test_a_worker_that_takes_over_does_what_is_missing_and_nothing_twice(app, api, lively_base, monkeypatch):
    """It dies between two batches, as a killed one does: nothing of its last batch is there."""
    from tunesmith.jobs import evaluate

    made = api.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    source = asking(str(lively_base), *(row(f"{n} Oak", "x") for n in range(40)), temperature=0.9, seed=3,
                    max_completion_tokens=6)
    whole, broken = worked(app, made.id, source), api.runs.create(made.id, data_source=source)
    written = []
    keep = evaluate._write

    def dies(task, *batch):
        if written:
            raise SystemExit
        written.append(1)
        keep(task, *batch)

    monkeypatch.setattr(evaluate, "_write", dies)
    with pytest.raises(SystemExit):
        app.work()
    monkeypatch.undo()
    assert api.runs.retrieve(broken.id, eval_id=made.id).result_counts.total == 16
    with app.database.read() as connection:
        row_ = connection.execute(sa.select(queue.work).where(queue.work.c.id == broken.id)).mappings().one()
    queue.abandon(app.database, queue.Claim(broken.id, "eval_run", row_["project_id"], row_["attempt"], 0))
    assert app.work() == "succeeded"
    both = [[(i.datasource_item_id, i.sample.output) for i in api.runs.output_items.list(r.id, eval_id=made.id, limit=100)]
            for r in (whole, broken)]
    assert both[0] == both[1] and len(both[0]) == 40
    counts = [api.runs.retrieve(r.id, eval_id=made.id) for r in (whole, broken)]
    assert counts[0].result_counts == counts[1].result_counts and counts[0].per_model_usage == counts[1].per_model_usage


def test_a_run_that_is_deleted_under_way_writes_nothing_more(app, api, monkeypatch):
    from tunesmith.jobs import evaluate

    made = api.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    run = api.runs.create(made.id, data_source=jsonl(*(row(str(n), "a", "a") for n in range(40))))
    keep = evaluate._write

    def deletes(task, *batch):
        keep(task, *batch)
        api.runs.delete(run.id, eval_id=made.id)
        monkeypatch.undo()

    monkeypatch.setattr(evaluate, "_write", deletes)
    assert app.work() == "failed"
    with app.database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(output_items)).scalar_one() == 0


def test_another_project_s_evals_are_not_there(app, api):
    made = api.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    run = api.runs.create(made.id, data_source=jsonl(row("1", "a", "a")))
    with app.database.write() as connection:
        connection.execute(projects.insert().values(id="proj_other", name="other", created_at=0))
        connection.execute(eval_runs.update().values(project_id="proj_other"))
    with pytest.raises(openai.NotFoundError):
        api.runs.retrieve(run.id, eval_id=made.id)
    with app.database.write() as connection:
        connection.execute(evals.update().values(project_id="proj_other"))
    for ask in (lambda: api.retrieve(made.id), lambda: api.update(made.id, name="x"), lambda: api.delete(made.id),
                lambda: api.runs.list(made.id), lambda: api.runs.create(made.id, data_source=jsonl(row("1", "a")))):
        with pytest.raises(openai.NotFoundError) as refused:
            ask()
        assert refused.value.body["message"] == f"No such eval: {made.id}"
    assert list(api.list()) == []


@pytest.mark.parametrize("path", ["/evals/%00", "/evals/" + "x" * 300, "/evals?limit=0", "/evals?order=up", "/evals?after=%00",
                                  "/evals/eval_x/runs?status=done", f"/evals/x/runs/y/output_items?limit={10**30}"])
def test_strange_requests_are_answered_and_not_stumbled_over(api, path):
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
        api._client.get(path, cast_to=object)
    assert refused.value.body["type"] == "invalid_request_error"
