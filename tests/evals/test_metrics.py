"""Each metric against an implementation that was written independently of ours, and by its properties.

pytest tests/evals/test_metrics.py
"""

import collections
import json
import re
import string

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tunesmith.evals.items import Item, Outcome
from tunesmith.evals.metrics import METRICS, accuracy, contains, exact_match, json_f1, rouge_l, token_f1
from tunesmith.recipe.schema import Eval


def squad_f1(a_pred: str, a_gold: str) -> float:
    """F1 of the official SQuAD evaluation script, re-typed from its description."""

    def normalize_answer(s):
        s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
        s = re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", s)
        return " ".join(s.split())

    gold_toks, pred_toks = normalize_answer(a_gold).split(), normalize_answer(a_pred).split()
    num_same = sum((collections.Counter(gold_toks) & collections.Counter(pred_toks)).values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = 1.0 * num_same / len(pred_toks), 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


WORDS = st.lists(st.sampled_from(["the", "a", "An", "cat", "Cat,", "dog", "e-mail", "...", "th", "the's", "42", "é"]),
                 max_size=8).map(" ".join)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from(["", "x", "52401", "é"]))
FLAT = st.dictionaries(st.sampled_from(["number", "street", "city", "zip", "a.b", "a[0]"]), VALUES, max_size=5)
NESTED = st.dictionaries(st.sampled_from(["a", "b", "a.b", "a[0]", "0"]), st.recursive(
    VALUES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "0"]), v, max_size=3), max_leaves=6),
    max_size=3)


# ---- exact match -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer, reference, score", [
    ("Paris", "Paris", 1), (" Paris\n", "Paris", 1), ("Paris", "\tParis ", 1), ("paris", "Paris", 0), ("Paris.", "Paris", 0),
    ("", "Paris", 0), ("", " ", 1), ("a  b", "a b", 0)])
def test_exact_match(answer, reference, score):
    assert exact_match(answer, reference) == score


# ---- accuracy and contains -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer, label, score", [
    ("Positive", "positive", 1), (" positive.\n", "positive", 1), ('"POSITIVE"', "positive", 1),
    ("**positive**", "positive", 1), ("not  positive", "not positive", 1), ("positive!", "negative", 0),
    ("positive and negative", "positive", 0), ("", "yes", 0),
    ("(b)", "B", 1), ("B) because", "B", 0), ("3.5", "35", 0), ("-1", "1", 0), ("STRASSE", "Straße", 1), ("да.", "Да", 1)])
def test_accuracy_folds_case_spaces_and_punctuation_around_a_label(answer, label, score):
    assert accuracy(answer, label) == score


@pytest.mark.parametrize("answer, reference, score", [
    ("The capital is  Paris, of course", "paris", 1), ("Parisian", "Paris", 0), ("Paris", "Paris", 1),
    ("in New\nYork City", "new york", 1),
    ("42", "4", 0), ("it is 4.", "4", 1), ("C++ is it", "C++", 1), ("", "x", 0), ("a.c", "a.c", 1), ("abc", "a.c", 0)])
def test_contains_finds_whole_words(answer, reference, score):
    assert contains(answer, reference) == score


def test_a_reference_of_which_nothing_is_left_is_refused():
    for score in (accuracy, contains, rouge_l):
        with pytest.raises(ValueError, match="needs references"):
            score("", " ")
    with pytest.raises(ValueError, match="needs references"):
        accuracy("?", "!")


# ---- ROUGE-L ---------------------------------------------------------------------------------------------------------


@given(WORDS, WORDS)
@settings(deadline=None)
@example("a b c d", "b d a c")
@example("the cat " * 60, "cat the " * 70)
def test_rouge_l_is_the_rouge_score_packages(answer, reference):
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk: seconds

    answer, reference = (t.replace("é", "e") for t in (answer, reference))  # the package drops every other letter
    assume(re.search("[a-z0-9]", reference.lower()))
    expected = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    assert rouge_l(answer, reference) == pytest.approx(expected, abs=1e-12)


def test_rouge_l_by_hand_in_any_script():
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(3 / 4), "Lin (2004), section 3.1"
    assert rouge_l("the gunman kill police", "police kill the gunman") == pytest.approx(2 / 4)
    assert rouge_l("кот сидит", "Кот лежит") == pytest.approx(1 / 2)


# ---- token F1 --------------------------------------------------------------------------------------------------------


@given(WORDS, WORDS)
@example("", "the")
@example("the cat the cat", "cat")
def test_token_f1_is_squads(answer, reference):
    assert token_f1(answer, reference) == pytest.approx(squad_f1(answer, reference))


def test_token_f1_by_hand():
    assert token_f1("The quick brown fox.", "quick red fox") == pytest.approx(2 * 2 / (3 + 3))
    assert token_f1("fox fox fox", "fox") == pytest.approx(2 * 1 / (3 + 1)), "a word counts as often as it is on both sides"


# ---- JSON F1 ---------------------------------------------------------------------------------------------------------


@given(FLAT, FLAT)
def test_json_f1_of_flat_objects_is_set_arithmetic(answer, reference):
    given_, wanted = ({(k, json.dumps(v)) for k, v in d.items()} for d in (answer, reference))
    expected = 2 * len(given_ & wanted) / (len(given_) + len(wanted)) if given_ or wanted else 1.0
    assert json_f1(json.dumps(answer), json.dumps(reference)) == pytest.approx(expected)


def strictly_equal(a, b) -> bool:
    """JSON equality: `true` is not 1."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


@given(NESTED, NESTED)
@example({"a": {}}, {})
@example({"a": []}, {"a": {}})
@example({"a": [[]]}, {"a": []})
@example({"a.b": 1}, {"a": {"b": 1}})
@example({"a": {"0": 1}}, {"a": [1]})
@example({"a[0]": 1}, {"a": [1]})
@example({"a": [1, 2]}, {"a": [2, 1]})
@example({"a": True}, {"a": 1})
def test_json_f1_is_one_exactly_for_equal_objects(answer, reference):
    score = json_f1(json.dumps(answer), json.dumps(reference))
    assert (score == 1.0) == strictly_equal(answer, reference)


@given(NESTED, NESTED)
def test_json_f1_is_symmetric_and_a_share(one, other):
    a, b = json.dumps(one), json.dumps(other)
    assert json_f1(a, b) == json_f1(b, a)
    assert 0.0 <= json_f1(a, b) <= 1.0


@given(WORDS, WORDS)
def test_token_f1_is_symmetric_a_share_and_one_for_the_same_bag_of_words(one, other):
    assert token_f1(one, other) == token_f1(other, one)
    assert 0.0 <= token_f1(one, other) <= 1.0
    assert token_f1(one, " ".join(reversed(one.split()))) == 1.0
    assume(squad_f1(one, other) == 0)
    assert token_f1(one, other) == 0


def test_json_f1_ignores_order_of_keys_and_white_space():
    assert json_f1('{ "b":2,\n "a" : 1}', '{"a": 1, "b": 2}') == 1.0


@pytest.mark.parametrize("answer", ["", "no JSON", "[1]", '"text"', "3", "null", '{"a": 1', '{"a": 1} and more', "{'a': 1}",
                                    "[" * 100_000, '{"a":' * 100_000, "1" * 5000])
def test_an_answer_that_is_no_json_object_scores_nothing(answer):
    assert json_f1(answer, '{"a": 1}') == 0.0


@pytest.mark.parametrize("reference", ["", "text", "[1]", "null", "{"])
def test_json_f1_refuses_references_that_nothing_could_match(reference):
    with pytest.raises(ValueError, match="references that are JSON objects"):
        json_f1('{"a": 1}', reference)


# ---- the table -------------------------------------------------------------------------------------------------------


OF_SAFETY = {"refusal", "over_refusal", "obedience", "extraction", "verbatim", "exposure"}
"""Those that mean something only on the suites that ship."""


def test_every_metric_that_a_recipe_can_name_is_there_and_no_other_but_those_of_safety():
    assert set(METRICS) - OF_SAFETY == set(Eval.model_fields["metrics"].annotation.__args__[0].__args__)


def test_what_is_better_and_what_needs_answers():
    assert {n for n, m in METRICS.items() if not m.higher_is_better} == {
        "loss", "perplexity", "ece", "brier", "over_refusal", "extraction", "verbatim", "exposure"}
    assert {n for n, m in METRICS.items() if m.needs == "likelihood"} == {"loss", "perplexity"}


def test_several_references_count_as_the_best_of_them():
    item = Item("f:1", [], ("a cat", "a small dog"))
    assert METRICS["exact_match"].parts(Outcome("a small dog"), item) == (1.0, 1.0)
    assert METRICS["token_f1"].parts(Outcome("a dog"), item)[0] == pytest.approx(2 / 3)


def test_a_metric_refuses_an_item_that_nothing_could_score_on():
    with pytest.raises(ValueError, match="no reference"):
        METRICS["exact_match"].check(Item("f:1", []))
    with pytest.raises(ValueError, match="JSON objects"):
        METRICS["json_f1"].check(Item("f:1", [], ("text",)))
