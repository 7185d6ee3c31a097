"""The proofs succeed on a sound engine, and fail on one that is broken on purpose.

pytest tests/training/test_prove.py
"""

from __future__ import annotations

import pytest
import torch.nn.functional as F

import tunesmith
from tunesmith.engine import attention
from tunesmith.errors import RecipeError
from tunesmith.training import checkpoint
from tunesmith.training.run import all_runs


@pytest.fixture(autouse=True)
def own_home(home):
    return home


@pytest.fixture
def leaking_attention(monkeypatch):
    """One causal mask over the whole pack."""

    def leak(module, query, key, value, attention_mask, scaling=None, dropout=0.0, packing=None, **_kwargs):
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None

    with monkeypatch.context() as patch:
        patch.setattr(attention, "packed_attention", leak)
        yield
    attention.register()


def test_packed_rows_are_proven_equal_to_each_row_alone(make_recipe):
    proof = tunesmith.verify_packing(make_recipe())
    assert proof["identical"] is True
    assert proof["rows"] == 12
    assert 0 <= proof["largest_loss_difference"] < 1e-5
    assert 0 < proof["largest_gradient_difference"] < proof["tolerance"]
    assert "12 rows packed against each alone" in proof["message"]


def test_control_leaking_attention_is_not_identical(make_recipe, leaking_attention):
    proof = tunesmith.verify_packing(make_recipe())
    assert proof["identical"] is False
    assert proof["largest_gradient_difference"] > 0.01


def test_packing_is_proven_for_a_recipe_with_dropout_by_leaving_it_out(make_recipe):
    assert tunesmith.verify_packing(make_recipe(**{"method.dropout": 0.5}))["identical"] is True


def test_rows_that_are_never_packed_are_said_to_be_so(make_recipe, tiny_base, tmp_path):
    import json
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}))
    proof = tunesmith.verify_packing(make_recipe(base=str(base)))
    assert proof["identical"] is True
    assert "never packed on the plain path (the base is set to attention_dropout = 0.1)" in proof["message"]


def test_resume_is_proven_bit_for_bit_and_leaves_no_run(make_recipe):
    proof = tunesmith.verify_resume(make_recipe(), steps=5)
    assert (proof["identical"], proof["first_difference"]) == (True, None)
    assert (proof["steps"], proof["resumed_after"]) == (5, 2)
    assert all_runs() == []


def restore_without_optimizer(path, model, optimizer, scheduler):
    fresh = optimizer.state_dict()
    state = restore(path, model, optimizer, scheduler)
    optimizer.load_state_dict(fresh)
    return state


restore = checkpoint.restore


def test_control_resume_without_the_optimizer_is_not_identical(make_recipe, monkeypatch):
    monkeypatch.setattr(checkpoint, "restore", restore_without_optimizer)
    proof = tunesmith.verify_resume(make_recipe(), steps=4)
    assert proof["identical"] is False
    assert proof["first_difference"].startswith("adapter:")
    assert f"{proof['first_difference']} differs" in proof["message"]
    assert all_runs() == []


def test_a_training_of_one_step_has_no_half_way(make_recipe):
    with pytest.raises(RecipeError, match="one step"):
        tunesmith.verify_resume(make_recipe(**{"train.tokens_per_step": 100_000, "train.epochs": 1}))
    assert all_runs() == []


def test_both_verbs_at_the_command_line(make_recipe, command):
    recipe = make_recipe()
    code, out, _ = command("verify", "packing", recipe)
    assert code == 0 and out.startswith("identical: 12 rows packed")
    code, out, _ = command("verify", "resume", recipe, "--steps", 4)
    assert code == 0 and out.startswith("identical: 4 steps straight")


def test_control_a_proof_that_fails_is_exit_code_1(make_recipe, command, leaking_attention):
    code, out, _ = command("verify", "packing", make_recipe())
    assert code == 1 and out.startswith("DIFFERENT: ")
