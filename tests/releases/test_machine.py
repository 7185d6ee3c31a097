"""Template, no-op and serving gates: each passes on a good run and refuses its controls.

pytest tests/releases/test_machine.py
"""

import copy
import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

import tunesmith
from tunesmith.evals.run import evaluate, read_report
from tunesmith.recipe.evaluation import Gates, ServingGate
from tunesmith.releases.gates import Evidence, gathered, no_op, serving, template
from tunesmith.training.run import ADAPTER, ORIGIN_FILE, Run


@pytest.fixture
def run(project) -> Run:
    return Run(project.run_dir)


# ---- template --------------------------------------------------------------------------------------------------------


def test_one_template_everywhere_passes(run, project):
    gate = template(gathered(run, project.report))
    assert gate.verdict == "pass"
    prints = gate.evidence["fingerprints"]
    assert prints.keys() == {"run", "dataset", "adapter", "report", "tokenizer"} and len(set(prints.values())) == 1
    assert gate.evidence["answers_end_in"] == gate.evidence["stop_ids"]


@pytest.mark.parametrize("odd", ["adapter", "report"])
def test_a_part_with_another_template_is_refused_and_named(run, project, odd):
    report = project.report
    if odd == "report":
        report["dataset"]["template_fingerprint"] = "sha256:0"
    else:
        path = run.path / ADAPTER / ORIGIN_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | {"template_fingerprint": "sha256:0"}))
    gate = template(gathered(run, report))
    assert gate.verdict == "fail" and f"template of {odd} is not" in gate.evidence["message"]


def test_a_recipe_whose_template_was_changed_since_is_refused(make_recipe, tmp_path, command):
    """The tokenizer that the bundle would hold is not the one that the rows were rendered with."""
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}:\n{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant:\n{% endif %}")
    done = command("run", make_recipe(**{"data.template": "own.jinja", "train.max_steps": 3, "eval.metrics": ["loss"],
                                         "eval.baselines": ["zero_shot"], "gates.target.min_gain": 0.01}), "--json", check=0)
    (tmp_path / "own.jinja").write_text((tmp_path / "own.jinja").read_text().replace(":\n", "\n"))
    refused = command("release", done.json["run_id"], "--json", check=3).json
    (gate,) = [g for g in refused["gates"] if g["verdict"] != "pass"]
    assert gate["name"] == "template" and "template of tokenizer is not" in gate["evidence"]["message"]


def test_answers_that_end_in_no_stop_token_are_refused(run, project):
    found = gathered(run, project.report)
    endless = Evidence(found.recipe, found.report, found.dataset, found.template | {"answers_end_in": [17]})
    gate = template(endless)
    assert gate.verdict == "fail" and "never stop" in gate.evidence["message"]


def test_a_missing_fingerprint_is_not_measured(run, project):
    assert template(gathered(run, None)).verdict == "not_measured"
    (run.path / ADAPTER / ORIGIN_FILE).unlink()
    gate = template(gathered(run, project.report))
    assert gate.verdict == "not_measured" and "in adapter" in gate.evidence["message"]
    assert template(Evidence(gathered(run, None).recipe, None, {})).verdict == "not_measured"


# ---- no-op -----------------------------------------------------------------------------------------------------------


def test_a_trained_adapter_does_something(run, project):
    gate = no_op(gathered(run, project.report))
    assert gate.verdict == "pass" and gate.evidence["ratio"] > 100
    assert 0 < gate.evidence["rounding"] < 1e-3


@pytest.mark.parametrize("scale, verdict", [(0.0, "fail"), (1e-8, "fail"), (0.5, "pass")])
def test_an_adapter_whose_weights_are_lost_is_refused(run, scale, verdict):
    """Measured with the real model: B times nothing, times less than rounding shows, and times a half."""
    path = run.adapter / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({k: v * scale if "lora_B" in k else v for k, v in weights.items()}, path, metadata={"format": "pt"})
    evaluate(run)
    gate = no_op(gathered(run, read_report(run)))
    assert gate.verdict == verdict, gate.evidence
    assert verdict == "pass" or "does nothing" in gate.evidence["message"]


def test_an_older_report_says_nothing_of_it(run, project):
    report = project.report
    del report["effect"]
    gate = no_op(gathered(run, report))
    assert (gate.verdict, gate.evidence["fix"]) == ("not_measured", "tunesmith eval RUN")


# ---- serving ---------------------------------------------------------------------------------------------------------


LOAD = {"clients": 4, "requests": 8, "failed": 0, "errors": [], "tokens": 400, "wall_seconds": 4.0, "tokens_per_second": 100.0,
        "first_token_seconds": {"p50": 0.1, "p95": 0.3, "p50_ci95": [0.1, 0.2], "p95_ci95": [0.2, None]},
        "seconds": {"p50": 1.0, "p95": 2.0, "p50_ci95": [0.9, 1.1], "p95_ci95": [1.5, None]}, "cost_per_million_tokens": None}
SERVING = {"memory_bytes": 2_000_000_000, "stopped": None, "base": [LOAD],
           "tuned": [LOAD | {"overhead": 0.2}, LOAD | {"clients": 1, "overhead": 0.1}]}


@pytest.mark.parametrize("rule, verdict", [
    ({}, "pass"),
    ({"max_overhead": 0.1}, "fail"),
    ({"max_overhead": 0.1, "clients": 1}, "pass"),
    ({"max_first_token_seconds": 0.2}, "fail"),
    ({"max_first_token_seconds": 0.5, "max_seconds": 3.0, "min_tokens_per_second": 50.0}, "pass"),
    ({"max_memory_bytes": 3_000_000_000}, "pass"),
    ({"max_seconds": 1.5}, "fail"),
    ({"min_tokens_per_second": 101.0}, "fail"),
    ({"max_memory_bytes": 1_000_000_000}, "fail"),
    ({"clients": 16}, "not_measured"),
])
def test_serving_thresholds(run, project, rule, verdict):
    found = gathered(run, project.report | {"serving": SERVING})
    gates = Gates(target=found.recipe.gates.target, serving=ServingGate(**rule))
    gate = serving(Evidence(found.recipe.model_copy(update={"gates": gates}), found.report, {}))
    assert gate.verdict == verdict
    assert ("fix" in gate.evidence) == (verdict != "pass")


def test_serving_with_failed_requests_unknown_memory_or_no_numbers(run, project):
    gates = Gates(target=Run(project.run_dir).recipe().recipe.gates.target, serving=ServingGate(max_memory_bytes=10**10))
    recipe = run.recipe().recipe.model_copy(update={"gates": gates})

    def verdict(found):
        return serving(Evidence(recipe, project.report | ({"serving": found} if found else {}), {})).verdict

    assert verdict(SERVING) == "pass"
    failed = copy.deepcopy(SERVING)
    failed["tuned"][0]["failed"] = 1
    assert verdict(failed) == "fail"
    assert verdict(SERVING | {"memory_bytes": None}) == "not_measured"
    assert verdict(SERVING | {"tuned": [], "stopped": "the limit was reached"}) == "not_measured"
    assert verdict(None) == "not_measured"


# ---- overrides -------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(project) -> str:
    """A run whose target gate refuses: it is asked for more than it gained."""
    path = project.run_dir / "recipe.resolved.json"
    recipe = json.loads(path.read_text())
    recipe["gates"]["target"]["min_gain"] = 50.0
    path.write_text(json.dumps(recipe))
    shutil.rmtree(project.home / "releases")
    return project.done["run_id"]


def test_an_override_needs_a_name_and_a_reason_and_is_written_into_the_bundle(refused, project, command):
    assert command("release", refused, "--json", check=3).json["overrides"] == []
    for incomplete in (["--override", "target"], ["--override", "target", "--by", "Ada"], ["--by", "Ada", "--reason", "x"],
                       ["--override", "target", "--by", " ", "--reason", "x"],
                       ["--override", "target", "--by", "Ada", "--reason", ""]):
        command("release", refused, *incomplete, check=2)
    assert not (project.home / "releases").exists()
    done = command("release", refused, "--override", "target", "--by", "Ada", "--reason", "a trial for two users", "--json",
                   check=0).json
    (one,) = done["overrides"]
    assert (done["verdict"], one["gate"], one["by"], one["reason"], one["verdict"]) == \
        ("pass", "target", "Ada", "a trial for two users", "fail")
    manifest = tunesmith.show(done["release_id"])
    assert manifest["overrides"] == done["overrides"]
    assert {g["name"]: g["verdict"] for g in manifest["gates"]}["target"] == "fail", "the gate's verdict stays what it is"
    assert tunesmith.verify_release(done["release_id"])["identical"]


def test_what_refuses_is_said_with_what_would_have_to_change(refused, command):
    said = command("release", refused, check=3).stdout
    assert "fail  target:" in said and "  do: " in said and "refused: nothing was released" in said


@pytest.mark.parametrize("gate, why", [("leak", "passed"), ("taget", "no gate"), ("safety", "no gate")])
def test_a_gate_that_passed_or_was_not_judged_cannot_be_overridden(refused, command, gate, why):
    done = command("release", refused, "--override", gate, "--by", "Ada", "--reason", "x", check=2)
    assert why in done.stderr


def test_one_override_does_not_open_another_gate(refused, project, command):
    path = project.run_dir / "recipe.resolved.json"
    recipe = json.loads(path.read_text())
    recipe["gates"]["safety"] = {}
    path.write_text(json.dumps(recipe))
    one = ["--override", "target", "--by", "Ada", "--reason", "x"]
    assert command("release", refused, *one, "--json", check=3).json["overrides"][0]["gate"] == "target"
    done = command("release", refused, *one, "--override", "safety", "--by", "Bo", "--reason", "no model of language", "--json",
                   check=0).json
    assert [(o["gate"], o["by"], o["verdict"]) for o in done["overrides"]] == [("target", "Ada", "fail"),
                                                                             ("safety", "Bo", "not_measured")]


def test_a_run_without_a_report_is_not_released_whatever_is_overridden(project, command):
    shutil.rmtree(project.run_dir / "report")
    every = [x for gate in ("target", "template", "no_op") for x in ("--override", gate, "--by", "Ada", "--reason", "x")]
    assert "without a report" in command("release", project.done["run_id"], *every, check=2).stderr
