"""Everything that can be known before step 1: the estimate agrees with the training, and every problem is listed.

pytest tests/training/test_check.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tunesmith.training import check as room
from tunesmith.training.check import check
from tunesmith.training.run import train

KEYS = {"peak_memory_bytes", "seconds", "trainable_parameters", "adapter_bytes", "steps", "tokens", "matched_layers", "dtype",
        "engine", "longest_row", "smaller_packs", "step_memory_bytes"}


@pytest.fixture(autouse=True)
def own_home(home):
    return home


@pytest.fixture
def base_with(tiny_base, tmp_path):
    """The tiny base with other values in its config.json."""

    def make(**changes) -> str:
        base = tmp_path / "changed-base"
        shutil.copytree(tiny_base, base)
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | changes))
        return str(base)

    return make


def errors(result: dict) -> dict[str, dict]:
    return {p["code"]: p for p in result["problems"] if p["severity"] == "error"}


def test_estimate_says_what_the_training_then_does(make_recipe):
    recipe = make_recipe()
    result = check(recipe)
    assert result["ok"] is True
    assert errors(result) == {}
    estimate = result["estimate"]
    assert estimate.keys() == KEYS
    state = train(recipe)
    assert result["dataset_id"] == state["dataset_id"]
    assert (estimate["steps"], estimate["tokens"]) == (state["steps"], state["tokens"])
    assert estimate["trainable_parameters"] == state["trainable_parameters"]
    assert estimate["dtype"] == state["dtype"]
    assert estimate["matched_layers"] == 14
    file = Path(state["adapter_dir"]) / "adapter_model.safetensors"
    assert estimate["adapter_bytes"] == pytest.approx(file.stat().st_size, rel=0.15)  # and the names in its header


@pytest.mark.parametrize("method", [{"type": "lora", "rank": 1},
                                    {"type": "lora", "rank": 16, "targets": ["q_proj", "down_proj"]}])
def test_trainable_parameters_follow_the_method(make_recipe, method):
    recipe = make_recipe(method=method, **{"train.max_steps": 1})
    assert check(recipe)["estimate"]["trainable_parameters"] == train(recipe)["trainable_parameters"]


def test_template_that_is_not_the_bases_own_is_told(make_recipe, tmp_path, tiny_tokenizer):
    """The control: a copy of the base's own template says nothing."""
    (tmp_path / "own.jinja").write_text(tiny_tokenizer.chat_template)
    (tmp_path / "other.jinja").write_text(tiny_tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>"))
    own, other = (check(make_recipe(**{"data.template": f"{name}.jinja"})) for name in ("own", "other"))
    assert "template_differs" not in {p["code"] for p in own["problems"]}
    problem = next(p for p in other["problems"] if p["code"] == "template_differs")
    assert problem["severity"] == "warning" and problem["where"] == "other.jinja" and other["ok"]


def test_smaller_packs_need_less_memory_and_the_same_steps(make_recipe):
    whole = check(make_recipe())["estimate"]
    cut = check(make_recipe(**{"train.tokens_per_pack": 40}))["estimate"]
    assert cut["peak_memory_bytes"] < whole["peak_memory_bytes"]
    assert cut["steps"] == whole["steps"]


def test_target_that_matches_nothing_is_a_problem_with_the_nearest_name(make_recipe):
    result = check(make_recipe(**{"method.targets": ["q_prj"]}))
    assert result["ok"] is False
    (problem,) = errors(result).values()
    assert "'q_prj' matches no linear layer" in problem["message"]
    assert problem["fix"] == "did you mean 'q_proj'?"
    assert result["dataset_id"] is not None  # the data were fine, and that is known


def test_leak_is_a_problem_that_the_gate_can_allow(make_recipe):
    rows = [{"messages": [{"role": "user", "content": f"{n} Willow Creek Boulevard North, apartment {n}"},
                          {"role": "assistant", "content": f"answer number {n}"}]} for n in range(30)]
    leaked = check(make_recipe(train=rows, test=rows[:2] + [
        {"messages": [{"role": "user", "content": f"something else entirely {n}"}, {"role": "assistant", "content": "yes"}]}
        for n in range(6)]))
    assert leaked["ok"] is False
    (code,) = errors(leaked)
    assert code.startswith("leak")
    allowed = check(make_recipe(train=rows, test=rows[:2], **{"gates.leak.max_rows": 2}))
    assert errors(allowed) == {}
    assert any(p["code"].startswith("leak") and p["severity"] == "warning" for p in allowed["problems"])


def test_all_mistakes_of_a_recipe_are_listed_with_their_lines(make_recipe):
    recipe = make_recipe(**{"train.learning_rte": 1.0, "method.rank": 0})
    result = check(recipe)
    assert result["ok"] is False
    assert len(errors(result)) == 2
    for problem in errors(result).values():
        line = int(problem["where"].rsplit(":", 1)[1])
        assert ("learning_rte" if "learning_rte" in problem["message"] else "rank") in recipe.read_text().splitlines()[line - 1]


def test_missing_base_is_a_problem_and_not_an_exception(make_recipe):
    result = check(make_recipe(base="./nowhere"))
    assert result["ok"] is False
    (problem,) = errors(result).values()
    assert "does not exist" in problem["message"]


@pytest.mark.parametrize("changes", [
    {"model_type": "nonesuch", "architectures": ["Nonesuch"]},
    {"model_type": "vit"},
    {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}},
], ids=["unknown", "no language model", "code of its own"])
def test_architecture_that_cannot_be_loaded_is_a_problem_and_its_code_is_not_offered(make_recipe, base_with, changes, capfd):
    result = check(make_recipe(base=base_with(**changes)))
    assert result["ok"] is False
    (problem,) = errors(result).values()
    assert "cannot be loaded as a causal language model" in problem["message"]
    assert "Do you wish to run the custom code" not in "".join(capfd.readouterr())


def test_too_little_memory_names_the_setting_that_helps_and_what_it_then_takes(make_recipe, monkeypatch):
    estimate = check(make_recipe())["estimate"]
    smaller = estimate["smaller_packs"]
    assert [pack["tokens_per_pack"] for pack in smaller] == sorted({p["tokens_per_pack"] for p in smaller}, reverse=True)
    assert smaller[-1]["tokens_per_pack"] >= estimate["longest_row"]
    monkeypatch.setattr(room, "_available_bytes", lambda: smaller[0]["peak_memory_bytes"])
    (problem,) = room._memory_problems(estimate)
    assert problem.severity == "warning"
    assert problem.fix.startswith(f"train.tokens_per_pack: {smaller[0]['tokens_per_pack']} takes about ")


def test_memory_too_little_for_one_row_names_what_else_would_help(make_recipe, monkeypatch):
    monkeypatch.setattr(room, "_available_bytes", lambda: 1000)
    result = check(make_recipe(**{"train.dtype": "float32"}))
    assert result["ok"] is True
    (problem,) = [p for p in result["problems"] if p["code"] == "memory"]
    assert "data.max_tokens" in problem["fix"] and "train.dtype: bfloat16" in problem["fix"]


@pytest.mark.parametrize(("changes", "engine"), [
    ({}, "kernels"), ({"train.engine": "plain"}, "plain"), ({"method.dropout": 0.1}, "plain"),
    ({"method": {"type": "prompt", "tokens": 4}}, "plain"), ({"method": {"type": "ia3"}}, "kernels"),
])
def test_engine_that_is_estimated_is_the_one_that_trains(make_recipe, changes, engine):
    recipe = make_recipe(**changes)
    assert check(recipe)["estimate"]["engine"] == engine
    assert train(recipe)["engine"] == ("plain" if engine == "plain" else "fast")


def test_free_memory_is_known_and_enough_here(make_recipe):
    assert room._available_bytes() > 50e6
    assert "memory" not in {p["code"] for p in check(make_recipe())["problems"]}


def test_a_mask_that_trains_next_to_nothing_is_a_warning(make_recipe):
    rows = [{"messages": [{"role": "user", "content": f"{n} Oak Street " * 80 + f"row {n}"},
                          {"role": "assistant", "content": "4"}]} for n in range(20)]
    result = check(make_recipe(train=rows, **{"data.max_tokens": 1024, "data.dedup": {"exact": True, "near": None}}))
    (problem,) = [p for p in result["problems"] if p["code"] == "mask_share"]
    assert "of the tokens are trained" in problem["message"]
