"""Merged, written and loaded again: the same model passes, every planted fault is refused, and nothing of it is left.

pytest tests/releases/test_merge.py
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

import tunesmith
from tunesmith import methods
from tunesmith.evals import merged
from tunesmith.evals.html import render_report
from tunesmith.evals.merged import Subject, measure
from tunesmith.exports import merge as on_files
from tunesmith.exports.merging import changes
from tunesmith.models.base import resolve
from tunesmith.models.load import tokenizer_of
from tunesmith.recipe.evaluation import Gates, MergeGate
from tunesmith.recipe.methods import Lora, Prompt, Qlora
from tunesmith.releases.gates import Evidence, gathered, merge
from tunesmith.releases.merge import FIGURES
from tunesmith.training.run import Run

SHORT = MergeGate(questions=4, new_tokens=12)


@pytest.fixture
def run(project) -> Run:
    return Run(project.run_dir)


@pytest.fixture
def subject(run):
    """`subject()`: the finished project's adapter and its test questions."""
    from tunesmith.evals.run import suites_of

    def make(**changed) -> Subject:
        items = suites_of(run.dataset(), run.recipe())[0].items
        return Subject(**({"base": run.base(), "adapter": run.adapter, "tokenizer": tokenizer_of(run.base()), "items": items,
                           "dtype": "float32"} | changed))

    return make


def judge(run: Run, found: dict | None, rule: MergeGate = SHORT):
    report = json.loads((run.path / "report" / "report.json").read_text())
    evidence = gathered(run, report | ({"merge": found} if found else {}))
    gates = Gates(target=evidence.recipe.gates.target, merge=rule)
    return merge(Evidence(evidence.recipe.model_copy(update={"gates": gates}), evidence.report, {}))


# ---- the gate --------------------------------------------------------------------------------------------------------


def test_a_correct_merge_passes_in_every_dtype_and_stands_in_report_and_page(run, subject, project):
    found = measure(subject(), SHORT)
    assert [m["dtype"] for m in found["models"]] == ["float32", "bfloat16"] and found["onto"] is None
    assert all(m["ratio"] <= 4 and m["broken"] == [] and m["chosen"] and m["bytes"] > 0 for m in found["models"])
    exact = found["models"][0]
    assert exact["top1_agreement"] == exact["same_texts"] == 1 and exact["mean_kl"] < 1e-8
    of = {dtype: rounding["same_dtype"]["mean_abs_logit_diff"] for dtype, rounding in found["rounding"].items()}
    assert of["float32"] < of["bfloat16"] / 100
    gate = judge(run, found)
    assert gate.verdict == "pass" and set(gate.evidence["models"]) == {"float32", "bfloat16"}
    page = render_report(project.report | {"merge": found})
    assert 'id="merge"' in page and "the same model" in page and gate.evidence["see"].endswith("#merge")
    assert not [p for p in run.path.parent.parent.iterdir() if p.name.startswith(".merge")]


def alpha_a_tenth_more(found):
    return [changes.Change(c.parameter, c.tensors, lambda w, a, b, c=c: w + 1.1 * (c.apply(w, a, b) - w)) for c in found]


def a_layer_lost(found):
    return [changes.Change(c.parameter, c.tensors, (lambda w, a, b: w) if ".0.mlp." in c.parameter else c.apply) for c in found]


def a_delta_of_eight_bits(found):
    def rounded(c):
        def apply(w, a, b):
            delta = c.apply(w, a, b) - w
            scale = delta.abs().max() / 127
            return w + (delta / scale).round() * scale

        return apply

    return [changes.Change(c.parameter, c.tensors, rounded(c)) for c in found]


def keys_for_values(found):
    of = {c.parameter: c.apply for c in found}
    return [changes.Change(c.parameter, c.tensors, of[c.parameter.replace("v_proj", "k_proj")]) for c in found]


def without_the_adapter(found):
    return [changes.Change(c.parameter, c.tensors, lambda w, a, b: w) for c in found]


@pytest.mark.parametrize("fault", [alpha_a_tenth_more, a_layer_lost, a_delta_of_eight_bits, keys_for_values,
                                   without_the_adapter])
def test_control_every_fault_of_a_merge_is_refused(run, subject, monkeypatch, fault):
    right = changes.changes
    monkeypatch.setattr(changes, "changes", lambda *a: fault(right(*a)))
    found = measure(subject(), SHORT.model_copy(update={"dtypes": ["float32"]}))
    assert found["models"][0]["broken"] and found["models"][0]["ratio"] > 10
    gate = judge(run, found, SHORT.model_copy(update={"dtypes": ["float32"]}))
    assert gate.verdict == "fail" and "another model" in gate.evidence["message"] and gate.evidence["fix"]


def test_control_the_right_model_that_loses_a_shard_on_its_way_to_the_disk(subject, monkeypatch):
    """What counts is what is loaded: the merge was right and the files are not."""
    from safetensors.torch import load_file, save_file

    right = on_files.merge

    def spoiled(*args, **options):
        facts = right(*args, **options)
        path = Path(facts["path"]) / "model.safetensors"
        tensors = load_file(path)
        tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.01
        save_file(tensors, path, metadata={"format": "pt"})
        return facts

    monkeypatch.setattr(on_files, "merge", spoiled)
    found = measure(subject(), SHORT.model_copy(update={"dtypes": ["float32"]}))
    assert found["models"][0]["broken"]


@pytest.mark.parametrize("figure, value, words", [
    ("mean_abs_logit_diff", 1.0, "as far away as rounding"), ("mean_kl", 0.02, "mean KL"), ("mean_kl", float("nan"), "mean KL"),
    ("top1_agreement", 0.9, "likeliest"), ("max_margin", 0.6, "prefers its own token"),
    ("mean_abs_logit_diff", float("nan"), "as far away as rounding")])
def test_each_threshold_refuses_by_itself(run, subject, figure, value, words):
    found = measure(subject(), SHORT.model_copy(update={"dtypes": ["float32"]}))
    one = found["models"][0]
    (one["same_dtype"] if figure == "mean_abs_logit_diff" else one)[figure] = value
    gate = judge(run, found, SHORT.model_copy(update={"dtypes": ["float32"]}))
    assert gate.verdict == "fail" and words in gate.evidence["message"]


def test_not_measured_is_no_pass(run, subject):
    assert judge(run, None).verdict == "not_measured"
    found = measure(subject(), SHORT.model_copy(update={"dtypes": ["float32"]}))
    gate = judge(run, found)
    assert gate.verdict == "not_measured" and "bfloat16" in gate.evidence["message"]
    gate = judge(run, {"not_measured": {"reason": "a prompt adapter cannot be merged", "fix": "serve it"}})
    assert gate.verdict == "not_measured" and "leave gates.merge out" in gate.evidence["fix"]


# ---- QLoRA, ties, what cannot be merged ------------------------------------------------------------------------------


@pytest.fixture
def adapter_of(tmp_path):
    def make(base: Path, method) -> Path:
        from tunesmith.models.load import model_of

        folder = tmp_path / "adapter"
        folder.mkdir()
        torch.manual_seed(1)
        model = methods.attach(model_of(resolve(str(base)), torch.float32), method, "tiny")
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p += 0.05 * torch.randn(p.shape)
        methods.save(model, folder)
        return folder

    return make


def test_under_qlora_the_closer_base_is_chosen_and_the_other_recorded(run, subject, adapter_of, lively_base, monkeypatch):
    what = subject(adapter=adapter_of(lively_base, Qlora(rank=4, alpha=8.0)))
    rule = SHORT.model_copy(update={"dtypes": ["float32"]})
    found = measure(what, rule)
    near, far = found["models"]
    assert found["onto"] == "dequantised" and (near["onto"], near["chosen"], far["chosen"]) == ("dequantised", True, False)
    assert near["broken"] == [] and far["broken"] and far["mean_kl"] > 100 * near["mean_kl"]
    assert judge(run, found, rule).verdict == "pass"
    only_far = copy.deepcopy(found)
    only_far["models"] = [m | {"chosen": m["onto"] == "original"} for m in only_far["models"]]
    assert judge(run, only_far, rule).verdict == "fail"


def test_a_merge_onto_the_other_base_than_it_says_is_refused(subject, adapter_of, lively_base, monkeypatch):
    what = subject(adapter=adapter_of(lively_base, Qlora(rank=4, alpha=8.0)))
    monkeypatch.setattr(changes, "quantised", lambda *_: [])
    found = measure(what, SHORT.model_copy(update={"dtypes": ["float32"]}))
    assert all(m["broken"] for m in found["models"])


def test_a_tied_base_says_so(subject, adapter_of, tiny_base):
    base = resolve(str(tiny_base))
    what = subject(base=base, tokenizer=tokenizer_of(base), adapter=adapter_of(tiny_base, Lora(rank=4, alpha=8.0)))
    found = measure(what, SHORT.model_copy(update={"dtypes": ["bfloat16"]}))
    assert found["tied"] == {"lm_head.weight": "model.embed_tokens.weight"} and found["untied"] == []
    assert found["models"][0]["broken"] == []


def test_what_has_no_merged_form_is_not_measured(run, adapter_of, lively_base, monkeypatch):
    adapter = adapter_of(lively_base, Prompt(tokens=3))
    monkeypatch.setattr(Run, "adapter", adapter)
    found = merged.measure_run(run, [], SHORT)
    assert "prompt adapter cannot be merged" in found["not_measured"]["reason"]
    assert judge(run, found).verdict == "not_measured"


# ---- the recipe, the verbs -------------------------------------------------------------------------------------------


def test_evaluating_a_recipe_with_the_gate_measures_it(run):
    tunesmith.evaluate(gated(run, dtypes=["bfloat16"]))
    released = tunesmith.release(run.path.name)
    gate = next(g for g in released["gates"] if g["name"] == "merge")
    assert gate["verdict"] == "pass" and released["verdict"] == "pass"
    report = json.loads((run.path / "report" / "report.json").read_text())
    assert report["merge"]["reference"]["questions"] == 3 and 'id="merge"' in (run.path / "report" / "report.html").read_text()


def test_merge_writes_a_model_that_transformers_runs_alone(command, project, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = command("merge", project.done["release_id"], tmp_path / "m" / "model", "--dtype", "bfloat16", "--json", check=0).json
    assert done["verdict"] == "pass" and done["path"] == str(tmp_path / "m" / "model") and done["dtype"] == "bfloat16"
    assert done.keys() >= {"message", "probe", "method", "tied", "untied", *FIGURES} and done["probe"]["questions"] == 8
    model, tokenizer = AutoModelForCausalLM.from_pretrained(done["path"]), AutoTokenizer.from_pretrained(done["path"])
    assert model.dtype == torch.bfloat16 and tokenizer.chat_template
    asked = json.loads((project.release_dir / "golden.json").read_text())[0]
    ids = tokenizer.apply_chat_template(asked["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=asked["max_new_tokens"], do_sample=False)[0, ids["input_ids"].shape[1]:]
    assert tokenizer.decode(answer, skip_special_tokens=True) == asked["answer"]
    refused = command("merge", project.done["release_id"], tmp_path / "m" / "model", check=2)
    assert "there already" in refused.stderr


def test_merge_of_a_run_for_people(command, run, tmp_path):
    said = command("merge", gated(run), tmp_path / "model", check=0).stdout
    assert said.startswith("pass: it is the same model") and f"merged model  {tmp_path / 'model'}" in said


def test_merge_of_another_model_is_exit_code_3_and_nothing_is_left(command, run, tmp_path, monkeypatch):
    right = changes.changes
    monkeypatch.setattr(changes, "changes", lambda *a: a_layer_lost(right(*a)))
    done = command("merge", gated(run), tmp_path / "model", "--json", check=3).json
    assert done["verdict"] == "fail" and done["path"] is None and done["probe"]["broken"]
    assert "nothing was written" in command("merge", run.path.name, tmp_path / "model", check=3).stdout
    assert not list(tmp_path.glob("*model*")) and not list(tmp_path.glob(".model*"))


def gated(run: Run, **rule) -> str:
    """The run's id, once its recipe asks for the gate."""
    path = run.path / "recipe.resolved.json"
    recipe = json.loads(path.read_text())
    recipe["gates"]["merge"] = {"questions": 3, "new_tokens": 8} | rule
    path.write_text(json.dumps(recipe))
    return run.path.name


def test_verify_merge(command, run, monkeypatch):
    proof = command("verify", "merge", gated(run), "--json", check=0).json
    assert proof["ok"] is True and [m["dtype"] for m in proof["models"]] == ["float32", "bfloat16"]
    name = gated(run, dtypes=["float32"])
    assert command("verify", "merge", name, check=0).stdout.splitlines()[-1].startswith("ok: merged into float32")
    right = changes.changes
    monkeypatch.setattr(changes, "changes", lambda *a: alpha_a_tenth_more(right(*a)))
    assert "DIFFERENT" in command("verify", "merge", name, check=1).stdout
