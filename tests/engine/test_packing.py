"""Layouts: every token goes into a rectangle once and comes back to its place.

pytest tests/engine/test_packing.py
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.engine.packing import BUCKET_GROWTH, layout

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def starts(lengths: list[int]) -> list[int]:
    return [sum(lengths[:i]) for i in range(len(lengths))]


@given(LENGTHS)
@settings(max_examples=60, deadline=None)
def test_every_token_is_kept_once_and_scattered_back_to_its_place(lengths):
    plan = layout(lengths)
    tokens_T = torch.arange(sum(lengths))
    back_T = torch.full_like(tokens_T, -1)
    for bucket in plan.buckets:
        rectangle_N = tokens_T[bucket.gather_RL].flatten()
        back_T[bucket.scatter] = rectangle_N[bucket.keep]
    assert torch.equal(back_T, tokens_T)
    assert sum(len(b.keep) for b in plan.buckets) == sum(lengths)


@given(LENGTHS)
@settings(max_examples=60, deadline=None)
def test_a_rectangle_row_is_one_row_followed_by_copies_of_its_last_token(lengths):
    plan = layout(lengths)
    found = []
    for bucket in plan.buckets:
        for indices in bucket.gather_RL.tolist():
            begin, end = indices[0], indices[-1] + 1
            found.append((begin, end - begin))
            assert indices == [*range(begin, end), *[end - 1] * (len(indices) - (end - begin))]
    assert sorted(found) == list(zip(starts(lengths), lengths, strict=True))


@given(LENGTHS)
@settings(max_examples=60, deadline=None)
def test_positions_start_at_zero_in_every_row(lengths):
    plan = layout(lengths)
    assert plan.positions_T.tolist() == [i for n in lengths for i in range(n)]
    assert plan.lengths == tuple(lengths)
    assert plan.whole == (len(lengths) == 1)


@given(LENGTHS)
@settings(max_examples=60, deadline=None)
def test_rectangles_are_never_much_longer_than_their_shortest_row(lengths):
    plan = layout(lengths)
    for bucket in plan.buckets:
        rows, longest = bucket.gather_RL.shape
        kept = torch.zeros(rows * longest, dtype=torch.long).index_fill(0, bucket.keep, 1).view(rows, longest).sum(1)
        assert longest <= BUCKET_GROWTH * kept.min()
        assert bucket.full == bool((kept == longest).all())
