"""Rows that share a prompt, against each of them behind a copy of it.

pytest tests/engine/test_families.py
"""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.engine import fast, plain
from tunesmith.engine.attention import packed_attention
from tunesmith.engine.loss import IGNORE
from tunesmith.engine.native import build
from tunesmith.engine.packing import layout

SIZE, KV_HEADS, GROUP = 16, 2, 3
ARCHITECTURES = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "phi": {}, "phi3": {},
    "mistral": {"sliding_window": 7}, "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention",
                                                                                          "full_attention"]}}
FAMILIES = [[9, 12, 5], [3, 1, 8], [20], [1, 4, 30], [6, 7, 7, 2, 11]]
"""Lengths of the rows of each family, the prompt first."""


def behind_a_copy(q, k, v, families, window) -> torch.Tensor:
    """Every row after a copy of its family's first, every score; [1, T, H, D]."""
    outs, start = [], 0
    for lengths in families:
        ends = torch.tensor([0, *lengths]).cumsum(0) + start
        for i, n in enumerate(lengths):
            shared = range(start, start + lengths[0]) if i else range(0)
            at = torch.tensor([*shared, *range(int(ends[i]), int(ends[i]) + n)], dtype=torch.long)
            place = torch.arange(len(at))
            unseen = place[None] > place[:, None]
            if window:
                unseen |= place[None] <= place[:, None] - window
            keys, values = (x[:, :, at].repeat_interleave(GROUP, 1) for x in (k, v))
            scores = (q[:, :, at] @ keys.transpose(2, 3)) * SIZE**-0.5
            outs.append((scores.masked_fill(unseen, -torch.inf).softmax(-1) @ values)[:, :, len(shared) :])
        start = int(ends[-1])
    return torch.cat(outs, dim=2).transpose(1, 2)


@pytest.mark.parametrize("kernels", [False, True], ids=["torch", "kernels"])
@settings(max_examples=30, deadline=None)
@given(families=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=4), min_size=1, max_size=3),
       window=st.sampled_from([None, None, 1, 8, 13, 40]), seed=st.integers(0, 99))
def test_attention_and_its_gradients_equal_each_row_behind_a_copy_of_the_prompt(kernels, families, window, seed):
    assert build.start() is None
    draw = torch.Generator().manual_seed(seed)
    tokens = sum(map(sum, families))
    x = [torch.randn(1, h, tokens, SIZE, generator=draw).requires_grad_() for h in (KV_HEADS * GROUP, KV_HEADS, KV_HEADS)]
    doubles = [t.detach().double().requires_grad_() for t in x]
    want = behind_a_copy(*doubles, families, window)
    plan = layout([n for f in families for n in f], families=[len(f) for f in families])
    if kernels:
        with build.used():
            got, _ = packed_attention(None, *x, None, packing=plan, sliding_window=window)
    else:
        got, _ = packed_attention(None, *x, None, packing=plan, sliding_window=window)
    up = torch.randn(got.shape, generator=draw)
    found, wanted = torch.autograd.grad(got, x, up), torch.autograd.grad(want, doubles, up.double())
    for ours, exact in zip((got, *found), (want, *wanted), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=2e-5)


def test_positions_go_on_after_the_prompt_and_an_empty_prompt_is_none():
    assert layout([3, 2, 4, 5], families=[3, 1]).positions_T.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 0, 1, 2, 3, 4]
    alone = layout([0, 2, 4], families=[3])
    assert alone.positions_T.tolist() == [0, 1, 0, 1, 2, 3]
    assert all(bucket.keys_RK is None for bucket in alone.buckets)


def test_families_that_do_not_cover_the_rows_are_refused():
    with pytest.raises(ValueError, match="families of 2 rows, and 3 rows"):
        layout([3, 2, 4], families=[2])


def make_families(seed: int = 0) -> list[list[tuple[list[int], list[int]]]]:
    draw = random.Random(seed)

    def row(n: int, first: bool) -> tuple[list[int], list[int]]:
        ids = [draw.randrange(97) for _ in range(n)]
        return ids, [IGNORE if first or draw.random() < 0.2 else draw.randrange(97) for _ in ids]

    return [[row(n, i == 0 and len(lengths) > 1) for i, n in enumerate(lengths)] for lengths in FAMILIES]


def logps_and_gradients(path, model, families):
    logps_R = path(model, families)
    weights_R = torch.linspace(-2, 3, len(logps_R))
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad((logps_R * weights_R).sum(), list(parameters.values()))
    return logps_R.detach(), dict(zip(parameters, gradients, strict=True))


@pytest.mark.parametrize("kernels", [False, True], ids=["torch", "kernels"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probabilities_and_every_gradient_equal_full_copies_on_the_plain_path(make_model, architecture, kernels, request):
    model, families = make_model(architecture, **ARCHITECTURES[architecture]), make_families()
    want, wanted = logps_and_gradients(plain.answer_logps, model, families)
    if not kernels:
        without = request.getfixturevalue("without_kernels")
    fast.accelerate(model)
    if not kernels:
        without()
    got, found = logps_and_gradients(fast.answer_logps, model, families)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert (want < 0).sum() == 11
    largest = max(g.norm() for g in wanted.values())
    for name, g in wanted.items():
        assert (found[name] - g).norm() < 2e-5 * g.norm() + 1e-6 * largest, name


def test_an_answer_sees_its_prompt_and_no_other_answer(make_model):
    model, families = make_model().eval(), make_families()
    fast.accelerate(model)

    def changed(family: int, row: int) -> list[int]:
        """Rows whose log p moves when the first token of this one is another."""
        others = [[(list(ids), labels) for ids, labels in f] for f in families]
        others[family][row][0][0] = (others[family][row][0][0] + 1) % 97
        with torch.no_grad():
            before, after = (fast.answer_logps(model, f) for f in (families, others))
        return (before != after).nonzero().squeeze(1).tolist()

    assert changed(0, 1) == [1]
    assert changed(4, 3) == [13]
    assert changed(0, 0) == [1, 2]
    assert changed(2, 0) == [6]
