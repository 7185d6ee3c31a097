"""A training is the same curve however it is computed: cut into packs or not, packed or padded, on one thread or two, with the
kernels in C or without; on every architecture of the fast path.

pytest tests/engine/test_curves.py

Same means: within what rounding in float32 becomes after that many steps of AdamW. The controls show how far off the usual
mistakes are.
"""

from __future__ import annotations

import copy

import pytest
import torch

from tunesmith.data.pack import plan_steps
from tunesmith.engine import fast, plain
from tunesmith.engine.native import build
from tunesmith.objectives.sft import forward_backward

ARCHITECTURES = sorted(fast.KNOWN_ARCHITECTURES)
LENGTHS = [7 + (11 * i) % 34 for i in range(40)]
TOKENS_PER_STEP = 180
TOLERANCE = 2e-5
"""Relative, of any loss of up to 20 steps. Rounding makes up to 3e-6 of it, the smallest mistake below 1.7e-3."""


@pytest.fixture(params=["kernels", "torch"])
def arithmetic(request, without_kernels):
    """What is called when a model has been accelerated: then the kernels do their work, or torch's own operations."""
    def chosen() -> None:
        if request.param == "torch":
            without_kernels()
        assert (build.digest() == "torch") == (request.param == "torch")

    return chosen


@pytest.fixture
def rows(make_rows):
    return make_rows(LENGTHS, seed=5)


def curve(model, rows, steps: int, path=fast, *, arithmetic=lambda: None, tokens_per_pack: int | None = None,
          naive: bool = False) -> list[float]:
    """Losses of so many steps on a copy of the model. `naive`: the mean of the packs' means, as gradient accumulation often
    is."""
    model = copy.deepcopy(model)
    if path is fast:
        fast.accelerate(model)
        arithmetic()
    plan = plan_steps(LENGTHS, tokens_per_step=TOKENS_PER_STEP, tokens_per_pack=tokens_per_pack, epochs=9, max_steps=steps)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    losses = []
    for step in plan:
        packs = [[rows[i] for i in pack] for pack in step.packs]
        if naive:
            losses.append(sum(forward_backward(path.forward_loss, model, [p]).loss for p in packs) / len(packs))
            for p in parameters:
                p.grad /= len(packs)
        else:
            losses.append(forward_backward(path.forward_loss, model, packs).loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert len(losses) == steps and losses[-1] < losses[0]
    return losses


def apart(one: list[float], other: list[float]) -> float:
    """The largest relative difference of two losses of the same step."""
    return max(abs(a - b) / b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ten_steps_do_not_depend_on_how_many_tokens_a_pack_has(make_model, rows, arithmetic, architecture):
    """Batch x accumulation: one pack a step, about four, and one a row."""
    model = make_model(architecture)
    whole = curve(model, rows, 10, arithmetic=arithmetic)
    for tokens_per_pack in (50, 1):
        assert apart(curve(model, rows, 10, arithmetic=arithmetic, tokens_per_pack=tokens_per_pack), whole) < TOLERANCE


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_twenty_packed_steps_are_twenty_padded_ones_of_the_plain_path(make_model, rows, arithmetic, architecture):
    model = make_model(architecture)
    padded = curve(model, rows, 20, plain)
    assert apart(curve(model, rows, 20, arithmetic=arithmetic), padded) < TOLERANCE


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ten_steps_do_not_depend_on_the_number_of_threads(make_model, rows, arithmetic, architecture):
    model = make_model(architecture)
    one = curve(model, rows, 10, arithmetic=arithmetic)
    torch.set_num_threads(2)
    assert apart(curve(model, rows, 10, arithmetic=arithmetic), one) < TOLERANCE


def test_nor_does_the_plain_path(make_model, rows):
    one = curve(make_model(), rows, 10, plain)
    torch.set_num_threads(2)
    assert apart(curve(make_model(), rows, 10, plain), one) < TOLERANCE


def test_control_mean_of_the_packs_means_is_another_curve(make_model, rows):
    model = make_model()
    assert apart(curve(model, rows, 10, tokens_per_pack=50, naive=True), curve(model, rows, 10)) > 100 * TOLERANCE


def test_control_one_label_of_one_row_is_another_curve(make_model, rows):
    model = make_model()
    ids, labels = rows[3]
    at = next(i for i, label in enumerate(labels) if label >= 0)
    other = [*rows[:3], (ids, [*labels[:at], (labels[at] + 1) % 97, *labels[at + 1 :]]), *rows[4:]]
    assert apart(curve(model, other, 10), curve(model, rows, 10)) > 10 * TOLERANCE


def test_the_same_curve_twice_is_the_same_to_the_last_bit(make_model, rows, arithmetic):
    model = make_model()
    assert curve(model, rows, 10, arithmetic=arithmetic) == curve(model, rows, 10, arithmetic=arithmetic)
