"""The learning rate against torch's and transformers' own schedules.

pytest tests/training/test_schedule.py
"""

from __future__ import annotations

import math

import pytest
import torch
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from tunesmith.training.schedule import factor

TOTAL = 40


def theirs(make, *arguments) -> list[float]:
    """Factors that a transformers schedule gives to steps 0, 1, ..."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer, *arguments)
    factors = []
    for _ in range(TOTAL + 2):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("name", "make"), [("cosine", get_cosine_schedule_with_warmup),
                                            ("linear", get_linear_schedule_with_warmup)])
def test_after_the_warm_up_it_is_transformers_schedule(name, make, share):
    warmup = round(share * TOTAL)
    expected = theirs(make, warmup, TOTAL)
    for step in range(warmup, TOTAL):
        assert factor(step, TOTAL, share, name) == pytest.approx(expected[step], abs=1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_warm_up_is_transformers_moved_by_one_so_that_the_first_step_moves(name, share):
    warmup = round(share * TOTAL)
    expected = theirs(get_constant_schedule_with_warmup, warmup + 1)
    got = [factor(step, TOTAL, share, name) for step in range(warmup)]
    assert got == pytest.approx(expected[1 : warmup + 1], abs=1e-12)
    assert got[0] > 0.0


def test_constant_stays_at_one():
    assert {factor(step, TOTAL, 0.0, "constant") for step in range(TOTAL)} == {1.0}


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_last_step_still_moves_and_the_one_after_it_would_not(name):
    assert factor(TOTAL - 1, TOTAL, 0.1, name) > 1e-4
    assert factor(TOTAL, TOTAL, 0.1, name) == pytest.approx(0.0, abs=1e-15)


def test_cosine_is_at_half_height_half_way():
    assert factor(20, 40, 0.0, "cosine") == pytest.approx(0.5)
    assert factor(10, 40, 0.0, "cosine") == pytest.approx(0.5 * (1 + math.sqrt(0.5)))


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_short_trainings_move_in_every_step(total, share, name):
    factors = [factor(step, total, share, name) for step in range(total + 1)]
    assert all(0.0 < f <= 1.0 for f in factors[:total])
    assert all(math.isfinite(f) for f in factors)
