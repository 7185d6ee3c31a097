"""Graders by themselves: templates, formulas, similarities, judges.

pytest tests/evals/test_graders.py
"""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tunesmith.errors import NotFoundError
from tunesmith.evals.graders import formula, judges, template
from tunesmith.evals.graders.grade import FLAGS, check, grade
from tunesmith.evals.graders.schema import Grader, threshold
from tunesmith.evals.graders.similarity import NAMES, rouge_n, similarity

GRADER = TypeAdapter(Grader)
NAMESPACE = {"item": {"answer": "Oak", "turns": [{"content": "hi"}], "two words": "2", "n": 3, "yes": True, "nothing": None},
             "sample": {"output_text": '{"street": "Oak"}', "output_json": {"street": "Oak"}}}
VOCABULARY = ("the", "cat", "sat", "on", "a", "mat", "The", "running", "runs", "oak", "street", "42")
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)
LETTERS = st.text("abcdef ", max_size=12)


def nobody(name):
    raise NotFoundError(f"The model `{name}` does not exist or you do not have access to it.")


def one(grader: dict, namespace: dict = NAMESPACE, find=nobody):
    graded, = grade(GRADER.validate_python(grader), [namespace], find)
    return graded


def string_check(operation: str, text: str, reference: str) -> dict:
    return {"type": "string_check", "name": "check", "operation": operation, "input": text, "reference": reference}


# templates

@pytest.mark.parametrize("text, expected", [
    ("{{item.answer}}", "Oak"), ("<{{ sample.output_json.street }}>", "<Oak>"), ("{{item.turns[0].content}}", "hi"),
    ("{{item.turns.0.content}}", "hi"), ("{{item['two words']}}", "2"), ('{{item["two words"]}}', "2"), ("{{item.n}}", "3"),
    ("{{item.yes}} {{item.nothing}}", "true null"), ("no variable } }} {", "no variable } }} {"),
    ("{{item.answer", "{{item.answer"), ("{{item.turns}}", '[{"content": "hi"}]')])
def test_variables_are_looked_up(text, expected):
    assert template.render(text, NAMESPACE) == expected


@pytest.mark.parametrize("text", ["{{answer}}", "{{item.answer | upper}}", "{{item.__class__()}}", "{{ 7*7 }}", "{{}}",
                                  "{{secrets.key}}", "{{item..answer}}", "{{item.answer}} {{os.environ}}"])
def test_what_is_no_path_is_refused(text):
    with pytest.raises(ValueError, match="no variable"):
        template.paths(text)


@pytest.mark.parametrize("path", ["item.missing", "item.turns[1]", "item.answer.more", "item.answer.__class__",
                                  "sample.choices", "item.turns[99999999999]"])
def test_a_variable_that_is_not_there_is_missing(path):
    with pytest.raises(template.MissingVariable):
        template.render(f"{{{{{path}}}}}", NAMESPACE)


def test_a_text_does_not_grow_without_end():
    space = {"item": {"x": "a" * 100_000}}
    assert one(string_check("eq", "{{item.x}}" * 11, "a"), space).error == "other_error"
    assert one(judge("label_model", labels=["a"], passing_labels=["a"], input=[
        {"role": "user", "content": "{{item.x}}" * 11}]), space).error == "other_error"
    assert one(string_check("like", "{{item.x}}" * 9, "a"), space).score == 1.0


@given(st.text())
def test_a_value_is_never_read_again(value):
    assert template.render("a {{item.x}} b", {"item": {"x": value}}) == f"a {value} b"


# formulas

@pytest.mark.parametrize("text, expected", [
    ("a", 0.5), ("0.5 * a + 0.5 * b", 0.625), ("2^3^2", 512), ("2**-1", 0.5), ("-2^2", -4), ("-(a - b) / 2", 0.125),
    ("min(a, b, 0.1)", 0.1), ("max(a, b)", 0.75), ("abs(-a)", 0.5), ("floor(b) + ceil(b)", 1), ("exp(log(b))", 0.75),
    ("sqrt(a * a)", 0.5), (" a\n", 0.5)])
def test_arithmetic(text, expected):
    assert formula.value(text, {"a": 0.5, "b": 0.75}) == pytest.approx(expected)


@pytest.mark.parametrize("text", [
    "__import__('os').system('true')", "a.__class__", "a if a else b", "[a]", "a == b", "lambda: a", "a; b", "print(a)", "'a'",
    "True", "a @ b", "a // b", "min()", "abs(a, b)", "min(a, key=b)", "min", "f'{a}'", "(a:=1)", "a, b", "", "1j", "a and b",
    "9" * 400, "a" * 2000, "(" * 300 + "a" + ")" * 300, "-" * 999 + "a"])
def test_what_is_no_arithmetic_is_refused(text):
    with pytest.raises(ValueError, match="calculate_output"):
        formula.value(text, {"a": 0.5, "b": 0.75})


@pytest.mark.parametrize("text", ["a / 0", "log(0)", "sqrt(-1)", "9^9^9^9", "exp(1000)", "(0-8)^0.5", "c", "1e999",
                                  "1e308 * 10"])
def test_what_has_no_value_is_refused(text):
    with pytest.raises(ValueError):
        formula.value(text, {"a": 0.5})


@given(st.floats(-100, 100), st.floats(-100, 100), st.floats(0.1, 100))
def test_a_formula_is_what_python_says_it_is(a, b, c):
    assert formula.value("(a - b * 2) / c + min(a, b) ^ 2", {"a": a, "b": b, "c": c}) == (a - b * 2) / c + min(a, b) ** 2


# string checks

@pytest.mark.parametrize("operation, text, reference, expected", [
    ("eq", "Oak", "Oak", 1), ("eq", "Oak", "oak", 0), ("eq", "Oak ", "Oak", 0), ("ne", "Oak", "oak", 1),
    ("ne", "Oak", "Oak", 0), ("like", "an Oak tree", "Oak", 1), ("like", "an Oak tree", "oak", 0),
    ("ilike", "an Oak tree", "oAK", 1),
    ("ilike", "Elm", "oak", 0), ("like", "100% sure", "%", 1), ("like", "sure", "s%e", 0), ("ilike", "STRASSE", "straße", 1)])
def test_string_checks(operation, text, reference, expected):
    assert check(operation, text, reference) == expected
    graded = one(string_check(operation, text, reference))
    assert (graded.score, graded.passed, graded.error) == (expected, bool(expected), None)


# similarities

def test_by_hand():
    """Worked out on paper: 'the cat sat' against 'the cat sat down'."""
    given_, wanted = "the cat sat", "the cat sat down"
    assert similarity("fuzzy_match", "abcd", "abed") == 2 * 3 / 8
    assert similarity("gleu", given_, wanted) == 6 / 10  # n-grams: 3+2+1 of 4+3+2+1
    assert similarity("rouge_1", given_, wanted) == pytest.approx(2 * 3 / 7)
    assert similarity("rouge_2", given_, wanted) == pytest.approx(2 * 2 / 5)
    assert similarity("rouge_l", given_, wanted) == pytest.approx(2 * 3 / 7)
    assert similarity("rouge_5", given_, wanted) == 0
    assert similarity("bleu", given_, wanted) == pytest.approx(math.exp(1 - 4 / 3))  # no 4-gram: three orders, all met
    # one chunk of three matches: F = 10PR/(R+9P), penalty 0.5 * (1/3)^3
    assert similarity("meteor", given_, wanted) == pytest.approx(10 * 0.75 / (0.75 + 9) * (1 - 0.5 / 27))
    assert similarity("meteor", "running", "runs") == pytest.approx(0.5)  # a stem: one chunk of one, penalty 0.5


@given(WORDS, WORDS, st.integers(1, 5))
def test_rouge_is_the_rouge_score_package_s(answer, reference, n):
    from rouge_score.rouge_scorer import RougeScorer

    theirs = RougeScorer([f"rouge{n}", "rougeL"]).score(reference, answer)
    assert rouge_n(n, answer, reference) == pytest.approx(theirs[f"rouge{n}"].fmeasure)
    assert similarity("rouge_l", answer, reference) == pytest.approx(theirs["rougeL"].fmeasure)


@given(LETTERS, LETTERS)
def test_fuzzy_match_is_the_share_of_the_longest_common_subsequence(answer, reference):
    table = [[0] * (len(reference) + 1) for _ in range(len(answer) + 1)]
    for i, a in enumerate(answer):
        for j, b in enumerate(reference):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    both = len(answer) + len(reference)
    assert similarity("fuzzy_match", answer, reference) == pytest.approx(2 * table[-1][-1] / both if both else 1)


@pytest.mark.parametrize("metric", [m for m in NAMES if m != "cosine"])
@given(WORDS, WORDS)
def test_every_similarity_is_a_share_and_the_same_is_the_most(metric, answer, reference):
    score = similarity(metric, answer, reference)
    assert 0 <= score <= 1
    if reference.split():
        assert score <= similarity(metric, reference, reference)


@pytest.mark.parametrize("metric", [m for m in NAMES if m != "cosine"])
def test_what_has_nothing_in_common_scores_nothing(metric):
    """The control: no measure may find a likeness where no letter is shared."""
    assert similarity(metric, "oak elm", "123 456") < 0.2


def test_texts_without_end_are_an_error_and_not_a_wait():
    for metric in NAMES:
        with pytest.raises(ValueError):
            similarity(metric, "a " * 60_000, "a b")
    with pytest.raises(ValueError, match="meteor"):
        similarity("meteor", "a " * 5000, "a b")


@pytest.mark.real
def test_cosine_is_near_what_means_the_same():
    near = similarity("cosine", "a cat sat on the mat", "a kitten lay on the rug")
    far = similarity("cosine", "a cat sat on the mat", "the tax law of 1992")
    assert near > 0.5 > 0.2 > far and similarity("cosine", "a cat", "a cat") == pytest.approx(1) and similarity(
        "cosine", " ", "a cat") == 0.0
    graded = one({"type": "text_similarity", "name": "n", "evaluation_metric": "cosine", "input": "Oak", "reference": "Oak"})
    assert graded.score == pytest.approx(1) and "embedder" in graded.note


# graders

def test_what_a_sample_lacks_is_told_apart_from_json_that_is_none():
    lacking = one(string_check("eq", "{{item.missing}}", "x"))
    assert (lacking.error, lacking.score, lacking.passed) == ("invalid_variable_error", 0.0, False)
    unread = one(string_check("eq", "{{sample.output_json.street}}", "Oak"), {"item": {}, "sample": {"output_text": "no JSON"}})
    assert unread.error == "sample_parse_error"
    assert one(string_check("eq", "{{sample.output_json.city}}", "Oak")).error == "invalid_variable_error"
    flags = lacking.flags
    assert [name for name in FLAGS if flags[name]] == ["invalid_variable_error"] and len(flags) == 14


def multi(formula_: str, **graders) -> dict:
    return {"type": "multi", "name": "both", "calculate_output": formula_, "graders": graders}


SAME = string_check("eq", "{{item.answer}}", "Oak")
OTHER = string_check("eq", "{{item.answer}}", "Elm")


def test_multi_adds_up_its_parts():
    graded = one(multi("0.25 * same + 0.75 * other", same=SAME, other=OTHER))
    assert (graded.score, graded.passed, graded.error) == (0.25, False, None)
    assert {name: part.score for name, part in graded.parts.items()} == {"same": 1.0, "other": 0.0}
    assert one(multi("same - other", same=SAME, other=OTHER)).passed
    alone = {**multi("same", same=SAME), "graders": SAME | {"name": "same"}}
    assert one(alone).score == 1.0, "one grader by itself, as the client's types have it"


def test_multi_says_what_went_wrong():
    assert one(multi("same / other", same=SAME, other=OTHER)).error == "formula_parse_error"
    assert one(multi("same", same=string_check("eq", "{{item.no}}", ""))).error == "invalid_variable_error"


@pytest.mark.parametrize("grader", [
    string_check("equals", "a", "b"), string_check("eq", "{{nothing}}", "b"), string_check("eq", "a", "b") | {"regex": "x"},
    multi("a + b", a=SAME), multi("open('x')", a=SAME), multi("a", a=multi("b", b=SAME)), multi("1"),
    {"type": "text_similarity", "name": "n", "input": "a", "reference": "b", "evaluation_metric": "bertscore"},
    {"type": "label_model", "name": "n", "model": "m", "input": [{"role": "user", "content": "x"}], "labels": ["a"],
     "passing_labels": ["b"]},
    {"type": "score_model", "name": "n", "model": "m", "input": [{"role": "user", "content": "x"}], "range": [1, 0]},
    {"type": "score_model", "name": "n", "model": "m", "input": [{"role": "user", "content": [
        {"type": "input_image", "image_url": "http://x"}]}]}, {"type": "unheard"}])
def test_what_is_no_grader_is_refused(grader):
    with pytest.raises(ValidationError):
        GRADER.validate_python(grader)


@pytest.mark.parametrize("text, finish, expected", [
    ("0.5", "stop", 0.5), ("1", "stop", 1), ("0.3333", "length", 0.3333), ("0.", "length", 0), ("1", "length", None),
    ("1.5", "stop", None), ("-0.1", "stop", None), ("", "length", None), ("about 1", "stop", None), ("nan", "stop", None)])
def test_only_a_number_of_the_range_is_a_score(text, finish, expected):
    assert judges.number(judges.Said(text, finish=finish), 0, 1) == expected


def test_thresholds():
    def of(grader: dict) -> float:
        return threshold(GRADER.validate_python(grader))

    judge = {"type": "score_model", "name": "n", "model": "m", "input": [{"role": "user", "content": "x"}]}
    assert of(SAME) == 1 and of(judge) == 0.5 and of(judge | {"range": [1, 7]}) == 4
    assert of(judge | {"pass_threshold": 0.9}) == 0.9


# judges

@pytest.fixture(scope="module")
def engine(lively_base):
    from tunesmith.models.base import resolve
    from tunesmith.models.load import tokenizer_of
    from tunesmith.serving.engine import Engine

    base = resolve(str(lively_base))
    made = Engine(base, tokenizer_of(base), "float32", "cpu", 0)
    yield made
    made.close()


def judge(kind: str, **more) -> dict:
    asked = [{"role": "user", "content": "Street of {{item.answer}}"}]
    return {"type": kind, "name": "judge", "model": "m", "input": asked} | more


def test_the_label_is_the_likeliest_whole_answer(engine, lively_base, tiny_tokenizer):
    """Against transformers alone: the sum of log-probabilities of each label and its stop token."""
    import torch
    from transformers import AutoModelForCausalLM

    from tunesmith.template.render import generation_prompt

    names, find = ["Oak", "Elm Street", "5"], lambda _name: (engine, engine.find(engine.base.ref))
    graded = one(judge("label_model", labels=names, passing_labels=names[:1]), find=find)
    model = AutoModelForCausalLM.from_pretrained(lively_base, dtype=torch.float32).eval()
    prompt, nats = generation_prompt(tiny_tokenizer, [{"role": "user", "content": "Street of Oak"}]), []
    for name in names:
        label = [*tiny_tokenizer(name, add_special_tokens=False)["input_ids"], tiny_tokenizer.eos_token_id]
        with torch.inference_mode():
            logp = model(torch.tensor([prompt + label])).logits[0].log_softmax(-1)
        nats.append(sum(float(logp[len(prompt) + i - 1, token]) for i, token in enumerate(label)))
    assert graded.sample["label"] == names[nats.index(max(nats))]
    theirs = torch.tensor(nats).softmax(0).tolist()
    assert list(graded.sample["label_shares"].values()) == pytest.approx(theirs, rel=1e-3)
    assert graded.score == float(graded.sample["label"] == "Oak") and graded.usage["m"].prompt > 0
    passes = one(judge("label_model", labels=names, passing_labels=names), find=find)
    fails = one(judge("label_model", labels=names, passing_labels=[]), find=find)
    assert passes.passed and not fails.passed, "the control: nothing passes where no label does"


@pytest.mark.parametrize("low, high", [(0, 1), (1, 7), (-5, -2.5), (10, 1000)])
def test_a_score_is_a_number_of_its_range_whatever_the_judge_would_say(engine, low, high):
    """A random model, which never says a number by itself."""
    def find(_name):
        return engine, engine.find(engine.base.ref)

    scores = set()
    for seed in range(6):
        graded = one(judge("score_model", range=[low, high], sampling_params={"temperature": 1.5, "seed": seed}), find=find)
        assert graded.error is None and low <= graded.score <= high, graded.sample
        assert graded.passed == (graded.score >= (low + high) / 2)
        scores.add(graded.score)
    assert len(scores) > 1 and "one number from" in json.dumps(graded.sample["input"]) and graded.usage["m"].completion > 0


def test_a_judge_that_cannot_be_asked_gives_no_score(engine):
    def find(_name):
        return engine, engine.find(engine.base.ref)

    long = one(judge("score_model"), {"item": {"answer": "Oak " * 2000}}, find=find)
    assert long.error == "model_grader_server_error" and "context" in long.flags["model_grader_server_error_details"]
    cut = one(judge("score_model", range=[1000, 9999], sampling_params={"max_completions_tokens": 1}), find=find)
    assert (cut.error, cut.score, cut.passed) == ("model_grader_parse_error", 0.0, False), cut.sample
    assert one(judge("score_model")).error == "model_grader_server_error", "and one that is not served, too"


def test_many_at_once_are_graded_as_each_alone(engine):
    def find(_name):
        return engine, engine.find(engine.base.ref)

    grader = GRADER.validate_python(judge("label_model", labels=["Oak", "Elm"], passing_labels=["Oak"]))
    spaces = [{"item": {"answer": f"{n} Oak"}} for n in range(20)] + [{"item": {}}]
    together = grade(grader, spaces, find)
    assert [g.error for g in together] == [None] * 20 + ["invalid_variable_error"]
    for space, graded in zip(spaces[:5], together[:5], strict=True):
        alone, = grade(grader, [space], find)
        assert alone.sample["label_shares"] == pytest.approx(graded.sample["label_shares"], rel=1e-4)
