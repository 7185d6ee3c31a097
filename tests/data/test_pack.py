"""Every row once an epoch, steps and packs within their limits, and a plan that depends on nothing else.

    python -m pytest tests/data/test_pack.py
"""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.data.pack import Step, packing_report, plan_steps

MANY = settings(max_examples=100, deadline=None, database=None)
LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)
LIMIT = st.integers(1, 80)


def groups_within(groups, lengths, limit):
    return all(len(group) == 1 or sum(lengths[r] for r in group) <= limit for group in groups)


@MANY
@given(lengths=LENGTHS, step=LIMIT, pack=st.none() | LIMIT, epochs=st.integers(1, 3), seed=st.integers(0, 5))
@example(lengths=[n * 37 % 50 + 1 for n in range(3000)], step=2048, pack=256, epochs=2, seed=0)
def test_every_row_is_in_one_step_of_each_epoch_and_steps_and_packs_keep_their_limits(lengths, step, pack, epochs, seed):
    steps = plan_steps(lengths, tokens_per_step=step, tokens_per_pack=pack, epochs=epochs, seed=seed)
    for epoch in range(epochs):
        assert sorted(r for s in steps if s.epoch == epoch for r in s.rows) == list(range(len(lengths)))
    assert [s.epoch for s in steps] == sorted(s.epoch for s in steps)
    assert groups_within([s.rows for s in steps], lengths, step)
    assert groups_within([p for s in steps for p in s.packs], lengths, pack or step)
    assert all(s.packs and all(s.packs) for s in steps)


@MANY
@given(lengths=LENGTHS, step=LIMIT, packs=st.lists(LIMIT, min_size=1, max_size=3), seed=st.integers(0, 5))
def test_packs_of_another_size_move_no_row_to_another_step(lengths, step, packs, seed):
    plans = [plan_steps(lengths, tokens_per_step=step, tokens_per_pack=pack, epochs=2, seed=seed) for pack in (None, *packs)]
    assert len({tuple(frozenset(s.rows) for s in plan) for plan in plans}) == 1


@MANY
@given(lengths=LENGTHS, step=LIMIT, pack=LIMIT, seed=st.integers(0, 5), last=st.integers(0, 100))
def test_fewer_steps_or_epochs_are_the_beginning_of_the_longer_plan(lengths, step, pack, seed, last):
    options = {"tokens_per_step": step, "tokens_per_pack": pack, "seed": seed}
    whole = plan_steps(lengths, epochs=3, **options)
    assert plan_steps(lengths, epochs=3, max_steps=last, **options) == whole[:last]
    for epochs in (1, 2, 3):
        shorter = plan_steps(lengths, epochs=epochs, **options)
        assert shorter == whole[: len(shorter)] == [s for s in whole if s.epoch < epochs]


@MANY
@given(lengths=LENGTHS, step=LIMIT, seed=st.integers(0, 5))
def test_a_step_is_closed_only_when_the_next_row_does_not_fit(lengths, step, seed):
    steps = plan_steps(lengths, tokens_per_step=step, seed=seed)
    for one, after in zip(steps, steps[1:], strict=False):
        room = step - sum(lengths[r] for r in one.rows)
        assert any(lengths[r] > room for r in after.rows)


def test_order_changes_with_epoch_and_seed_and_with_nothing_else():
    lengths = [10] * 30

    def order(seed, epoch):
        steps = plan_steps(lengths, tokens_per_step=10, epochs=2, seed=seed)
        return tuple(r for s in steps if s.epoch == epoch for r in s.rows)

    orders = {order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1)}
    assert len(orders) == 6 and order(0, 0) == order(0, 0)
    assert order(0, 0)[:5] == (13, 5, 23, 2, 21)  # a resumed run needs this plan under every Python


def test_rows_fill_a_pack_from_the_longest_down():
    step, = plan_steps([3, 7, 5, 5], tokens_per_step=20, tokens_per_pack=10)
    assert [[[3, 7, 5, 5][r] for r in p] for p in step.packs] == [[7, 3], [5, 5]]


@pytest.mark.parametrize("lengths", [[100], [100, 100]])
def test_row_longer_than_a_step_is_a_step_of_its_own(lengths):
    assert [len(s.rows) for s in plan_steps(lengths, tokens_per_step=10)] == [1] * len(lengths)


def test_packing_report_on_packs_whose_numbers_are_known():
    lengths, trained = [10, 10, 30, 10], [5, 5, 10, 10]
    steps = [Step(0, ((2, 0),)), Step(0, ((1,), (3,)))]
    found = packing_report(lengths, trained, steps)
    assert (found["steps"], found["packs"], found["tokens"]) == (2, 3, 60)
    assert found["padding_saved"] == pytest.approx(1 - 60 / (2 * 30 + 10 + 10))
    assert found["fill"] == pytest.approx(60 / (3 * 40))
    assert found["rows_per_pack"] == {"min": 1, "p5": 1, "median": 1, "p95": 2, "max": 2}
    assert found["row_weight"]["min"] == found["row_weight"]["max"] == 1.0, "both steps hold 15 trained tokens"
    assert packing_report(lengths, [5, 5, 30, 10], steps)["row_weight"] == {
        "min": pytest.approx(25 / 35), "p5": pytest.approx(25 / 35), "median": pytest.approx(25 / 15),
        "p95": pytest.approx(25 / 15), "max": pytest.approx(25 / 15)}


@settings(max_examples=60, deadline=None, database=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80), limit=st.integers(60, 200))
def test_packing_report_is_sound_for_any_lengths(lengths, limit):
    found = packing_report(lengths, lengths, plan_steps(lengths, tokens_per_step=limit))
    assert found["tokens"] == sum(lengths) and 0 <= found["padding_saved"] < 1 and 0 < found["fill"] <= 1
    assert found["row_weight"]["min"] <= found["row_weight"]["median"] <= found["row_weight"]["max"]
