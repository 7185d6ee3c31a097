"""Preferences against TRL 1.16 and against the formulas in float64.

pytest tests/objectives/test_dpo.py
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.tiny import SETTINGS, base_model, fill, pairs

from tunesmith.engine import fast, plain
from tunesmith.engine.loss import IGNORE
from tunesmith.methods import lora
from tunesmith.objectives.dpo import Dpo, Pair
from tunesmith.objectives.families import answer, family, labels, tokens
from tunesmith.objectives.step import evaluate, forward_backward
from tunesmith.recipe.methods import Lora

TRL = json.loads((Path(__file__).parent / "trl.json").read_text())
PATHS = {"plain": plain, "fast": fast}


def model_on(path: str):
    model = lora.attach(base_model(), Lora(rank=4, alpha=8.0), "tiny")
    fill(model, "lora_")
    if path == "fast":
        fast.accelerate(model)
    return model.train()


def rows() -> list:
    """The families of `tiny.pairs`."""
    return [family(*((row["prompt_ids"] + row[side], [False] * len(row["prompt_ids"]) + [True] * len(row[side]))
                     for side in ("chosen_ids", "rejected_ids"))) for row in pairs()]


def with_reference(path, model) -> list[Pair]:
    with torch.inference_mode(), model.disable_adapter():
        logps = path.answer_logps(model, rows()).view(-1, 3)
    return [Pair(r, tuple(found[1:].tolist())) for r, found in zip(rows(), logps, strict=True)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_loss_rewards_and_every_gradient_are_trls(setting, path):
    model, (loss, beta), expected = model_on(path), SETTINGS[setting], TRL[setting]
    objective = Dpo(PATHS[path].answer_logps, beta, loss)
    found = with_reference(PATHS[path], model)
    measured = forward_backward(objective, model, [found[:2], found[2:]])
    assert measured.loss == pytest.approx(expected["loss"], rel=1e-5)
    for ours, theirs in (("reward_chosen", "rewards/chosen"), ("reward_rejected", "rewards/rejected"),
                         ("reward_margin", "rewards/margins")):
        assert measured.extra[ours] == pytest.approx(expected["metrics"][theirs], rel=1e-4, abs=2e-6 * beta / 0.1)
    assert measured.accuracy == pytest.approx(expected["metrics"]["rewards/accuracies"])
    gradients = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.requires_grad}
    assert gradients.keys() == expected["gradient_norms"].keys()
    for name, norm in expected["gradient_norms"].items():
        assert gradients[name] == pytest.approx(norm, rel=2e-4, abs=1e-6), name
    evaluated = evaluate(objective, model, [found])
    assert evaluated.loss == pytest.approx(measured.loss, rel=1e-5) and evaluated.tokens == measured.tokens


@given(st.integers(1, 9), st.floats(0.05, 3), st.floats(0, 0.49), st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_label_smoothing_is_the_expected_loss_over_flipped_labels(count, beta, smoothing, seed):
    """cDPO: -(1 - e) log s(beta h) - e log s(-beta h), written with exp in float64."""
    draw = torch.Generator().manual_seed(seed)
    ratios = torch.randn(count, 2, generator=draw, dtype=torch.float64) * 3
    h = beta * (ratios[:, 0] - ratios[:, 1])
    expected = (1 - smoothing) * torch.log1p(torch.exp(-h)) + smoothing * torch.log1p(torch.exp(h))
    found = Dpo(None, beta, "sigmoid", smoothing).pair_losses(ratios, torch.ones(count, 2))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss, beta, smoothing, first", [
    ("sigmoid", 0.1, 0.0, math.log(2)), ("sigmoid", 5.0, 0.3, math.log(2)), ("ipo", 0.1, 0.0, 25.0), ("ipo", 0.5, 0.0, 1.0)])
@pytest.mark.parametrize("path", PATHS)
def test_a_model_that_is_its_reference_has_the_loss_that_is_known_beforehand(path, loss, beta, smoothing, first):
    model = lora.attach(base_model(), Lora(rank=4), "tiny")  # B is zero
    if path == "fast":
        fast.accelerate(model)
    objective = Dpo(PATHS[path].answer_logps, beta, loss, smoothing)
    assert objective.first_loss([]) == pytest.approx(first)
    measured = evaluate(objective, model, [with_reference(PATHS[path], model)])
    assert measured.loss == pytest.approx(first, rel=1e-5)
    assert measured.extra["reward_margin"] == pytest.approx(0, abs=1e-4)


def test_swapped_answers_mirror_rewards_and_accuracy():
    model = model_on("fast")
    found = with_reference(fast, model)
    swapped = [Pair((p.rows[0], p.rows[2], p.rows[1]), p.reference[::-1]) for p in found]
    objective = Dpo(fast.answer_logps, 0.1)
    one, other = (evaluate(objective, model, [x]) for x in (found, swapped))
    assert one.accuracy == pytest.approx(1 - other.accuracy) and one.accuracy > 0.5 > other.accuracy
    assert one.extra["reward_margin"] == pytest.approx(-other.extra["reward_margin"], rel=1e-4)


def test_pairs_of_a_step_weigh_the_same_however_they_are_packed():
    def gradient(packs) -> torch.Tensor:
        model = model_on("fast")
        found = with_reference(fast, model)
        forward_backward(Dpo(fast.answer_logps, 0.1), model, [[found[i] for i in pack] for pack in packs])
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    whole = gradient([[0, 1, 2, 3, 4, 5]])
    for packs in ([[0], [1, 2, 3], [5, 4]], [[i] for i in range(6)]):
        assert (gradient(packs) - whole).norm() < 1e-5 * whole.norm()


@given(st.integers(2, 30), st.integers(1, 20), st.integers(1, 20), st.integers(0, 3), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_family_predicts_what_each_conversation_trains_and_nothing_else(prompt, chosen, rejected, after, seed):
    draw = random.Random(seed)
    asked = [draw.randrange(50) for _ in range(prompt)]

    def conversation(n: int):
        said = [draw.randrange(50) for _ in range(n + after)]
        return asked + said, [False] * prompt + [True] + [draw.random() < 0.8 for _ in range(n - 1)] + [False] * after

    conversations = [conversation(chosen), conversation(rejected)]
    rows = family(*conversations)
    assert rows[0][0] == asked[:-1] and set(rows[0][1]) <= {IGNORE}
    for (ids, trained), (row, predicted) in zip(conversations, rows[1:], strict=True):
        whole = rows[0][0] + row
        assert whole == ids[: len(whole)]
        found = [(prompt - 1 + i + 1, label) for i, label in enumerate(predicted) if label != IGNORE]
        assert found == [(i, t) for i, (t, on) in enumerate(zip(ids, trained, strict=True)) if on]
        assert predicted[-1] != IGNORE
    assert labels(rows) == sum(sum(trained) for _, trained in conversations)
    assert tokens(rows) == sum(len(row) for row, _ in rows)


def test_answers_to_other_prompts_and_answers_to_nothing_are_refused():
    with pytest.raises(ValueError, match="same prompt"):
        family(([1, 2, 3], [False, False, True]), ([1, 4, 3], [False, False, True]))
    with pytest.raises(ValueError, match="without a prompt"):
        family(([1, 2], [True, True]), ([1, 3], [True, True]))
    with pytest.raises(ValueError):
        answer([1], [1, 2], [False, False])
