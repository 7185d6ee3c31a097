"""Each gate passes on a good run and refuses its controls.

pytest tests/releases/test_gates.py
"""

import copy
import json

import pytest

import tunesmith
from tunesmith.data.dataset import Dataset
from tunesmith.evals.compare import compare_suite
from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.recipe.load import load
from tunesmith.releases.gates import GATES, Evidence, audit, gathered, judge, leak, target
from tunesmith.training.run import Run

# ---- target ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def evidence(finished) -> Evidence:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(finished.home))
        return gathered(Run(finished.run_dir), finished.report)


def asking(evidence: Evidence, metric: str, min_gain: float, **numbers) -> Evidence:
    """The same evidence with another rule, and other numbers in its report; many rows changed, if nothing else is said."""
    gates = evidence.recipe.gates.model_copy(update={"target": evidence.recipe.gates.target.model_copy(
        update={"metric": metric, "min_gain": min_gain})})
    report = copy.deepcopy(evidence.report)
    report["sets"]["test"]["metrics"][metric] |= {"p_value": 1e-6} | numbers
    return Evidence(evidence.recipe.model_copy(update={"gates": gates}), report, evidence.dataset)


def test_a_good_run_passes_every_gate(evidence):
    gates = judge(evidence)
    assert [g.verdict for g in gates] == ["pass"] * len(GATES)
    facts = gates[0].evidence
    assert facts["gain"] == facts["base"] - facts["tuned"] > 0.1, "a loss gains by falling"
    assert facts["gain_ci95"][0] <= facts["gain"] <= facts["gain_ci95"][1]


@pytest.mark.parametrize("min_gain, numbers, verdict", [
    (0.1, {"base": 0.5, "tuned": 0.8, "delta": 0.3, "ci95": [0.2, 0.4]}, "pass"),
    (0.2, {"base": 0.5, "tuned": 0.8, "delta": 0.3, "ci95": [0.2, 0.4]}, "pass"),
    (0.0, {"base": 0.5, "tuned": 0.8, "delta": 0.3, "ci95": [0.01, 0.6]}, "pass"),
    (0.1, {"base": 0.8, "tuned": 0.5, "delta": -0.3, "ci95": [-0.4, -0.2]}, "fail"),  # worse
    (0.0, {"base": 0.5, "tuned": 0.5, "delta": 0.0, "ci95": [0.0, 0.0]}, "fail"),  # equal
    (0.0, {"base": 0.5, "tuned": 0.6, "delta": 0.1, "ci95": [0.0, 0.3]}, "fail"),  # equal cannot be excluded
    (0.1, {"base": 0.5, "tuned": 0.8, "delta": 0.3, "ci95": [0.05, 0.5]}, "fail"),  # the mean is there, the interval too wide
    (-0.1, {"base": 0.5, "tuned": 0.48, "delta": -0.02, "ci95": [-0.05, 0.01]}, "pass"),  # asked: not much worse
    (-0.1, {"base": 0.5, "tuned": 0.38, "delta": -0.12, "ci95": [-0.2, -0.05]}, "fail"),
    (-0.1, {"base": 0.5, "tuned": 0.5, "delta": 0.0, "ci95": [0.0, 0.0]}, "fail"),  # nothing happened at all
    (0.1, {"base": 0.5, "tuned": float("nan"), "delta": float("nan"), "ci95": [float("nan")] * 2}, "fail"),
])
def test_target_on_a_metric_that_should_rise(evidence, min_gain, numbers, verdict):
    gate = target(asking(evidence, "exact_match", min_gain, **numbers))
    assert gate.verdict == verdict
    assert ("fix" in gate.evidence) == (verdict != "pass")


@pytest.mark.parametrize("min_gain, numbers, verdict", [
    (0.1, {"base": 2.0, "tuned": 1.7, "delta": -0.3, "ci95": [-0.4, -0.2]}, "pass"),
    (0.25, {"base": 2.0, "tuned": 1.7, "delta": -0.3, "ci95": [-0.4, -0.2]}, "fail"),
    (0.1, {"base": 1.7, "tuned": 2.0, "delta": 0.3, "ci95": [0.2, 0.4]}, "fail"),
])
def test_target_on_a_metric_that_should_fall(evidence, min_gain, numbers, verdict):
    assert target(asking(evidence, "loss", min_gain, **numbers)).verdict == verdict


def test_a_wide_interval_and_a_small_gain_have_different_remedies(evidence):
    wide = target(asking(evidence, "exact_match", 0.1, delta=0.3, ci95=[0.05, 0.5], base=0.5, tuned=0.8))
    small = target(asking(evidence, "exact_match", 0.1, delta=0.05, ci95=[0.04, 0.06], base=0.5, tuned=0.55))
    assert "more rows" in wide.evidence["fix"] and "train longer" in small.evidence["fix"]


def test_target_is_not_measured_without_a_report_or_the_metric(evidence):
    gate = target(Evidence(evidence.recipe, None, evidence.dataset))
    assert (gate.verdict, gate.evidence["fix"]) == ("not_measured", "tunesmith eval RUN")
    missing = asking(evidence, "exact_match", 0.1)
    del missing.report["sets"]["test"]["metrics"]["exact_match"]
    assert target(missing).verdict == "not_measured"


def test_a_few_lucky_rows_are_no_evidence(evidence):
    """One fixed answer of eight: the mean gains 0.125, and no gain at all is as likely as not."""
    suite = Suite("test", "test", [Item(f"f:{i}", [], ("yes",)) for i in range(8)], ("exact_match",), "f", 8)
    wrong, right = [Outcome("no", True) for _ in range(8)], [Outcome("yes", True)] + [Outcome("no", True) for _ in range(7)]
    measured = compare_suite(suite, {"zero_shot": wrong, "tuned": right})["metrics"]["exact_match"]
    assert measured["delta"] == 0.125
    assert target(asking(evidence, "exact_match", 0.0, **measured)).verdict == "fail"


@pytest.mark.parametrize("rows, verdict", [(1, "fail"), (2, "fail"), (3, "fail"), (5, "fail"), (6, "pass"), (12, "pass")])
def test_rows_that_all_change_for_the_better_show_it_from_six_on(evidence, rows, verdict):
    """Five of five are chance in 3 of 100 cases, and the gate asks for 2.5."""
    suite = Suite("test", "test", [Item(f"f:{i}", [], ("yes",)) for i in range(rows)], ("exact_match",), "f", 8)
    said = {"zero_shot": [Outcome("no", True) for _ in range(rows)], "tuned": [Outcome("yes", True) for _ in range(rows)]}
    measured = compare_suite(suite, said)["metrics"]["exact_match"]
    gate = target(asking(evidence, "exact_match", 0.0, **measured))
    assert gate.verdict == verdict
    assert verdict == "pass" or "more rows" in gate.evidence["fix"]


@pytest.mark.parametrize("rows, verdict", [(1, "fail"), (3, "fail"), (5, "fail"), (12, "pass")])
def test_a_loss_that_falls_alike_on_a_few_rows_is_no_evidence(evidence, rows, verdict):
    suite = Suite("test", "test", [Item(f"f:{i}", [], ("yes",)) for i in range(rows)], ("loss",), "f", 8)
    said = {"zero_shot": [Outcome(nats=20.0, tokens=10) for _ in range(rows)],
            "tuned": [Outcome(nats=10.0, tokens=10) for _ in range(rows)]}
    measured = compare_suite(suite, said)["metrics"]["loss"]
    assert target(asking(evidence, "loss", 0.0, **measured)).verdict == verdict


@pytest.mark.parametrize("floor, verdict", [(0.05, "pass"), (0.31, "fail")])
def test_a_gain_within_the_noise_is_said_to_be_so_and_does_not_pass(evidence, floor, verdict):
    gate = target(asking(evidence, "exact_match", 0.1, base=0.5, tuned=0.8, delta=0.3, ci95=[0.2, 0.4], noise={"floor": floor}))
    assert (gate.verdict, gate.evidence["noise_floor"]) == (verdict, floor)
    assert ("within the noise" in gate.evidence["message"]) == (verdict == "fail")


# ---- leak ------------------------------------------------------------------------------------------------------------


def talk(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


TRAIN = [talk(f"{n * 977 + 13} Oak Street?", f"It is number {n * 7919}.") for n in range(12)]
TEST = [talk("Where does the sheriff live?", "On the hill, beside the old mill."),
        talk("How many bridges cross the river?", "Nine, and one of them is a ruin."),
        talk("Who paved the road to town?", "A company from another county did."),
        talk("Which diner opens before five on Mondays?", "The one with a red door and no sign.")]
EXACT = talk("WHERE does the sheriff live", "on the hill beside the old mill")
NEAR = talk("And which diner opens before five on Mondays?", "The one with a red door, and no sign.")


@pytest.fixture
def leak_gate(make_recipe, home, evidence):
    """The leak gate's verdict on data as given, with the report of a good run."""

    def judged(train=TRAIN, test=TEST, **changes):
        recipe = make_recipe(train=train, test=test, **changes)
        made = tunesmith.prepare(recipe)
        manifest = Dataset.open(home / "datasets" / made["dataset_id"]).manifest
        return leak(Evidence(load(recipe).recipe, evidence.report, manifest))

    return judged


def test_clean_data_passes(leak_gate):
    gate = leak_gate()
    assert (gate.verdict, gate.evidence["rows"]) == ("pass", {"test": 0})


@pytest.mark.parametrize("planted, sign", [(EXACT, " = "), (NEAR, " ~ ")])
def test_one_planted_row_is_refused_with_its_place_on_both_sides(leak_gate, planted, sign):
    gate = leak_gate(train=[*TRAIN, planted])
    assert (gate.verdict, gate.evidence["rows"]) == ("fail", {"test": 1})
    (place,) = gate.evidence["examples"]
    assert place.startswith(f"test.jsonl:{1 if planted is EXACT else 4}{sign}train.jsonl:13")
    assert place in gate.evidence["fix"]


def test_leaks_within_the_allowed_number_pass_and_say_so(leak_gate):
    gate = leak_gate(train=[*TRAIN, EXACT], **{"gates.leak": {"max_rows": 1}})
    assert gate.verdict == "pass" and "1 leaked rows are within the 1 allowed" in gate.evidence["message"]
    assert leak_gate(train=[*TRAIN, EXACT, NEAR], **{"gates.leak": {"max_rows": 1}}).verdict == "fail"


def test_near_leaks_that_nobody_looked_for_are_not_measured(leak_gate):
    gate = leak_gate(**{"data.dedup": {"near": None}})
    assert (gate.verdict, gate.evidence["fix"]) == ("not_measured", "set data.dedup.near, for example 0.8")
    assert leak_gate(train=[*TRAIN, EXACT], **{"data.dedup": {"near": None}}).verdict == "fail"


def test_a_leak_into_a_second_test_set_is_refused(leak_gate, make_recipe, tmp_path):
    (tmp_path / "more.jsonl").write_text(json.dumps(EXACT) + "\n")
    gate = leak_gate(train=[*TRAIN, TEST[0]], test=TEST[1:], **{"data.test": {"first": "test.jsonl", "second": "more.jsonl"}})
    assert (gate.verdict, gate.evidence["rows"]) == ("fail", {"first": 0, "second": 1})


def test_a_leak_into_a_file_that_must_never_be_trained_on_is_refused(leak_gate, tmp_path):
    (tmp_path / "regression.jsonl").write_text(json.dumps(EXACT) + "\n")
    gate = leak_gate(train=[*TRAIN, TEST[0]], test=TEST[1:], **{"data.evals": ["regression.jsonl"]})
    assert (gate.verdict, gate.evidence["rows"]) == ("fail", {"test": 0, "regression.jsonl": 1})
    assert leak_gate(test=TEST[1:], **{"data.evals": ["regression.jsonl"]}).verdict == "pass"


# ---- audit -----------------------------------------------------------------------------------------------------------


FINDING = {"code": "thing", "severity": "warning", "count": 2, "message": "2 rows are odd", "fix": "mend them",
           "examples": ["train.jsonl:3"]}


def audited(evidence, *findings, **rule):
    gates = evidence.recipe.gates.model_copy(update={"audit": evidence.recipe.gates.audit.model_copy(update=rule)})
    return audit(Evidence(evidence.recipe.model_copy(update={"gates": gates}), evidence.report,
                          evidence.dataset | {"findings": list(findings)}))


def test_the_audit_gate_refuses_errors_and_what_the_recipe_names(evidence):
    assert audited(evidence, FINDING).verdict == "pass"
    gate = audited(evidence, FINDING | {"severity": "error"})
    assert (gate.verdict, gate.evidence["fix"], gate.evidence["examples"]) == ("fail", "mend them", ["train.jsonl:3"])
    assert audited(evidence, FINDING, refuse=["thing"]).verdict == "fail"
    assert audited(evidence, FINDING | {"code": "thing:test"}, refuse=["thing"]).verdict == "fail"
    assert audited(evidence, FINDING, refuse=["other"]).verdict == "pass"
    leaky = FINDING | {"code": "leak_exact:test", "severity": "error"}
    assert audited(evidence, leaky).verdict == "pass", "leaks are the leak gate's, with its own threshold"


def test_a_key_in_the_training_rows_is_refused_by_default(make_recipe, home, evidence):
    secret = talk("What is the token of the build?", "It is ghp_" + "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY1zA2" + ", keep it safe.")
    for train, verdict in ((TRAIN, "pass"), ([*TRAIN, secret], "fail")):
        made = tunesmith.prepare(make_recipe(train=train, test=TEST))
        manifest = Dataset.open(home / "datasets" / made["dataset_id"]).manifest
        gate = audit(Evidence(evidence.recipe, evidence.report, manifest))
        assert gate.verdict == verdict, gate.evidence["findings"]


# ---- the way there ---------------------------------------------------------------------------------------------------


def test_a_planted_row_ends_the_check_and_is_never_released(make_recipe, command, home, tmp_path):
    """`check` says so; who trains and evaluates all the same is refused a release, and nothing is written."""
    recipe = make_recipe(**{"train.max_steps": 2, "eval.metrics": ["loss"], "eval.baselines": ["zero_shot"],
                            "gates.target.min_gain": -9.0})
    with open(tmp_path / "train.jsonl", "a", encoding="utf-8") as train:
        train.write((tmp_path / "test.jsonl").read_text(encoding="utf-8").splitlines()[4] + "\n")
    checked = command("check", recipe, "--json", check=2).json
    assert checked["ok"] is False
    (problem,) = [p for p in checked["problems"] if p["severity"] == "error"]
    assert problem["code"] == "leak_exact:test" and problem["where"].startswith("test.jsonl:5 = train.jsonl:41")
    assert command("run", recipe, "--json", check=2).json["problems"][0]["code"] == "leak_exact:test"
    assert not (home / "runs").exists(), "nothing was trained"

    trained = command("train", recipe, "--json", check=0).json
    command("eval", trained["run_id"], "--json", check=0)
    refused = command("release", trained["run_id"], "--json", check=3).json
    assert (refused["verdict"], refused["release_id"], refused["path"]) == ("refused", None, None)
    (gate,) = [g for g in refused["gates"] if g["verdict"] != "pass"]
    assert (gate["name"], gate["verdict"]) == ("leak", "fail")
    (place,) = gate["evidence"]["examples"]
    assert place.startswith("test.jsonl:5 = train.jsonl:41 ")
    assert not (home / "releases").exists()
    assert "refused: nothing was released" in command("release", trained["run_id"], check=3).stdout
