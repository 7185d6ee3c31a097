"""A whole training, from recipe to an adapter that plain PEFT loads.

pytest tests/training/test_run.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from tunesmith.data.pack import plan_steps
from tunesmith.engine import fast
from tunesmith.errors import NotFoundError, RecipeError, TrackingError
from tunesmith.methods import lora
from tunesmith.training import checkpoint
from tunesmith.training.run import Run, _tolerant, all_runs, train
from tunesmith.training.schedule import factor

STEP_KEYS = {"step", "epoch", "loss", "accuracy", "grad_norm", "learning_rate", "tokens", "trained_tokens", "seconds",
             "tokens_per_second", "trained_tokens_per_second", "peak_memory_bytes"}
RUN_KEYS = {"run_id", "name", "status", "created", "recipe_path", "run_dir", "adapter_dir", "base", "dataset_id",
            "template_fingerprint", "dtype", "device", "threads", "engine", "trainable_parameters", "total_steps", "error",
            "rows_trained", "mlflow_run_id", "mlflow_model", "steps", "train_loss", "eval_loss", "tokens_per_second",
            "train_seconds", "tokens", "peak_memory_bytes", "adapter_digest", "adapter_step", "warnings",
            "process", "kernels", "gradient_shares"}


@pytest.fixture(autouse=True)
def own_home(home):
    return home


def metrics(state: dict) -> tuple[list[dict], list[dict]]:
    """(records of steps, records of held-out evaluations)"""
    records = [json.loads(line) for line in (Path(state["run_dir"]) / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if "loss" in r], [r for r in records if "eval_loss" in r]


def adapter_of(state: dict) -> dict[str, torch.Tensor]:
    return load_file(Path(state["adapter_dir"]) / "adapter_model.safetensors")


def test_metrics_have_every_step_once_and_in_order(make_recipe):
    state = train(make_recipe())
    steps, evals = metrics(state)
    n = state["total_steps"]
    counts = Run.find(state["run_id"]).dataset().manifest["counts"]
    assert n > 8
    assert [r["step"] for r in steps] == list(range(1, n + 1))
    assert all(r.keys() == STEP_KEYS for r in steps)
    assert [r["epoch"] for r in steps] == sorted(r["epoch"] for r in steps)
    assert {r["epoch"] for r in steps} == {0, 1}
    assert sum(r["tokens"] for r in steps) == 2 * counts["tokens"]
    assert sum(r["trained_tokens"] for r in steps) == 2 * counts["trained_tokens"]
    assert all(0 < r["trained_tokens"] < r["tokens"] <= 256 for r in steps)
    assert all(math.isfinite(v) for r in steps for v in r.values())
    assert [r["learning_rate"] for r in steps] == pytest.approx([0.01 * factor(i, n, 0.03, "cosine") for i in range(n)])
    assert [r["step"] for r in evals] == [0, n]
    assert evals[1]["eval_loss"] < evals[0]["eval_loss"] - 0.3


def test_run_json_has_every_key_and_the_result_agrees_with_the_metrics(make_recipe):
    recipe = make_recipe()
    state = train(recipe)
    steps, evals = metrics(state)
    assert state.keys() == RUN_KEYS
    assert state == json.loads((Path(state["run_dir"]) / "run.json").read_text())
    assert (state["status"], state["engine"], state["error"], state["dtype"]) == ("finished", "fast", None, "float32")
    assert state["steps"] == state["total_steps"] == len(steps)
    assert (state["train_loss"], state["eval_loss"]) == (steps[-1]["loss"], evals[-1]["eval_loss"])
    assert state["tokens"] == sum(r["tokens"] for r in steps)
    assert state["tokens_per_second"] == pytest.approx(state["tokens"] / sum(r["seconds"] for r in steps))
    assert state["rows_trained"] == 40
    assert state["trainable_parameters"] == sum(t.numel() for t in adapter_of(state).values())
    assert state["recipe_path"] == str(recipe)
    assert 50e6 < state["peak_memory_bytes"] < 50e9


def test_what_describes_the_run_is_written_before_step_1(make_recipe):
    recipe = make_recipe(**{"train.learning_rate": 1.0e30})
    with pytest.raises(RuntimeError):
        train(recipe)
    (state,) = all_runs()
    run = Path(state["run_dir"])
    assert (run / "recipe.yaml").read_bytes() == recipe.read_bytes()
    resolved = json.loads((run / "recipe.resolved.json").read_text())
    assert resolved["train"]["clip_norm"] == 1.0  # a default, spelled out
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert all(environment["packages"].values())


def test_adapter_loads_in_plain_peft_with_the_logits_and_the_held_out_loss_of_the_fast_path(make_recipe, tiny_base):
    state = train(make_recipe())
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), state["adapter_dir"]).eval()
    ours = lora.load(AutoModelForCausalLM.from_pretrained(tiny_base), Path(state["adapter_dir"])).eval()
    fast.accelerate(ours)
    tokens = Run.find(state["run_id"]).dataset().tokens("test")
    total = count = 0
    with torch.no_grad():
        for ids, trained in (tokens[i] for i in range(len(tokens))):
            logits_TV = plain(input_ids=torch.tensor([ids])).logits[0]
            plan = fast.layout([len(ids)])
            hidden = ours.get_base_model().model(input_ids=torch.tensor([ids]), packing=plan, use_cache=False,
                                                 position_ids=plan.positions_T[None]).last_hidden_state[0]
            torch.testing.assert_close(ours.get_output_embeddings()(hidden), logits_TV, rtol=1e-5, atol=1e-5)
            mask = torch.tensor(trained[1:])
            total += F.cross_entropy(logits_TV[:-1][mask], torch.tensor(ids[1:])[mask], reduction="sum").item()
            count += int(mask.sum())
    assert state["eval_loss"] == pytest.approx(total / count, rel=1e-5)


def test_losses_and_adapter_are_those_of_a_loop_of_peft_and_torch_alone(make_recipe, tiny_base):
    """Only the order of the rows is taken from the run; model, loss, clipping, AdamW and schedule are theirs."""
    state = train(make_recipe(**{"train.clip_norm": 0.3, "train.weight_decay": 0.1, "train.warmup": 0.2}))
    tokens = Run.find(state["run_id"]).dataset().tokens("train")
    plan = plan_steps(tokens.lengths, tokens_per_step=256, epochs=2)
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base),
                           LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)
    warmup = round(0.2 * len(plan))
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, len(plan))
    losses, norms = [], []
    for number, step in enumerate(plan):
        if number < warmup:
            optimizer.param_groups[0]["lr"] = 0.01 * (number + 1) / (warmup + 1)
        logits, labels = [], []
        for ids, trained in (tokens[row] for row in step.rows):
            mask = torch.tensor(trained[1:])
            logits.append(model(input_ids=torch.tensor([ids])).logits[0, :-1][mask])
            labels.append(torch.tensor(ids[1:])[mask])
        loss = F.cross_entropy(torch.cat(logits), torch.cat(labels))
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 0.3).item())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    steps, _ = metrics(state)
    assert [r["loss"] for r in steps] == pytest.approx(losses, rel=1e-4)
    assert [r["grad_norm"] for r in steps] == pytest.approx(norms, rel=1e-3)
    assert max(norms) > 2 * 0.3
    ours, theirs = adapter_of(state), get_peft_model_state_dict(model)
    assert ours.keys() == theirs.keys()
    assert all((ours[n] - theirs[n]).norm() < 1e-2 * theirs[n].norm() for n in ours)


def test_newest_checkpoints_are_kept_with_exactly_the_documented_files(make_recipe):
    state = train(make_recipe(**{"train.checkpoint": {"every_steps": 4, "keep": 2}}))
    run = Path(state["run_dir"])
    n = state["steps"]
    assert n % 4
    assert sorted(p.name for p in run.iterdir()) == sorted([
        "adapter", f"checkpoint-{n - n % 4}", f"checkpoint-{n}", "environment.json", "events.jsonl", "metrics.jsonl",
        "recipe.resolved.json", "recipe.yaml", "run.json"])
    for path in checkpoint.all_in(run):
        assert sorted(p.name for p in path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors", "optimizer.pt",
                                                          "rng_state.pth", "scheduler.pt", "trainer_state.json"]
        trainer = json.loads((path / "trainer_state.json").read_text())
        assert trainer.keys() == {"global_step", "epoch", "max_steps", "files"}
        assert (trainer["global_step"], trainer["max_steps"]) == (checkpoint.step_of(path), n)
    assert sorted(p.name for p in (run / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors",
                                                                   "tunesmith.json"]


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_does_not(make_recipe):
    one, two = train(make_recipe()), train(make_recipe())
    other = train(make_recipe(**{"train.seed": 1}))
    assert one["run_id"] != two["run_id"]
    assert one["adapter_digest"] == two["adapter_digest"] != other["adapter_digest"]
    assert [s["run_id"] for s in all_runs()][-1] in (one["run_id"], two["run_id"])


def test_smaller_packs_give_the_same_training(make_recipe):
    whole = train(make_recipe())
    cut = train(make_recipe(**{"train.tokens_per_pack": 40}))
    assert cut["engine"] == whole["engine"] == "fast"
    assert [r["loss"] for r in metrics(cut)[0]] == pytest.approx([r["loss"] for r in metrics(whole)[0]], rel=1e-4)
    assert [r["grad_norm"] for r in metrics(cut)[0]] == pytest.approx([r["grad_norm"] for r in metrics(whole)[0]], rel=1e-3)


def test_the_plain_engine_gives_the_same_training(make_recipe):
    said = []
    quick, slow = train(make_recipe()), train(make_recipe(**{"train.engine": "plain"}), say=said.append)
    assert slow["engine"] == "plain"
    assert "chose engine=plain (the recipe says so)" in said
    assert [r["loss"] for r in metrics(slow)[0]] == pytest.approx([r["loss"] for r in metrics(quick)[0]], rel=1e-4)
    assert slow["eval_loss"] == pytest.approx(quick["eval_loss"], rel=1e-3)


def test_dropout_trains_on_the_plain_path_and_says_why(make_recipe):
    said = []
    state = train(make_recipe(**{"method.dropout": 0.1, "train.max_steps": 2}), say=said.append)
    assert state["engine"] == "plain"
    assert any("engine=plain" in line and "dropout" in line for line in said)


def test_engine_fast_refuses_what_it_cannot_train(make_recipe):
    with pytest.raises(RecipeError, match="the fast path cannot train this") as caught:
        train(make_recipe(**{"method.dropout": 0.1, "train.engine": "fast"}))
    assert "dropout" in caught.value.why
    assert [s["status"] for s in all_runs()] == ["failed"]


def test_max_steps_ends_the_training_and_its_schedule(make_recipe):
    state = train(make_recipe(**{"train.max_steps": 3, "train.schedule": "linear", "train.warmup": 0.0}))
    steps, evals = metrics(state)
    assert [r["learning_rate"] for r in steps] == pytest.approx([0.01, 0.01 * 2 / 3, 0.01 / 3])
    assert [r["step"] for r in evals] == [0, 3]


def test_held_out_loss_is_measured_every_so_many_steps_and_does_not_change_the_training(make_recipe):
    often, never = train(make_recipe(**{"train.eval_every_steps": 4})), train(make_recipe())
    n = often["steps"]
    assert [r["step"] for r in metrics(often)[1]] == [0, *range(4, n, 4), n]
    assert often["adapter_digest"] == never["adapter_digest"]


def test_bfloat16_base_has_a_float32_adapter_close_to_the_float32_training(make_recipe):
    exact, rounded = train(make_recipe()), train(make_recipe(**{"train.dtype": "bfloat16"}))
    assert rounded["dtype"] == "bfloat16"
    assert {t.dtype for t in adapter_of(rounded).values()} == {torch.float32}
    assert rounded["eval_loss"] == pytest.approx(exact["eval_loss"], rel=0.05)


def test_runs_are_found_by_the_beginning_of_their_id_and_otherwise_named(make_recipe):
    state = train(make_recipe(**{"train.max_steps": 1}))
    assert Run.find(state["run_id"][:-3]).path == Path(state["run_dir"])
    with pytest.raises(NotFoundError, match="no run 'nonesuch'"):
        Run.find("nonesuch")


def test_a_run_whose_base_has_changed_says_so(make_recipe, tiny_base, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_base.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    run = Run.find(train(make_recipe(base=str(base), **{"train.max_steps": 1}))["run_id"])
    assert run.base().path == base
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    with pytest.raises(RecipeError, match="has changed since this run"):
        run.base()


def test_tracking_that_goes_away_is_told_and_does_not_end_the_training():
    def gone(_step, _values):
        raise TrackingError("the server is gone", why="connection refused")

    said = []
    _tolerant(gone, said.append)(1, {"loss": 1.0})
    assert said == ["tracking: the server is gone (connection refused); going on, metrics.jsonl has everything"]
