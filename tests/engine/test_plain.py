"""The reference path against one row at a time, and the two numbers that describe a machine.

pytest tests/engine/test_plain.py
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tunesmith.engine import plain
from tunesmith.engine.loss import IGNORE


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_padded_batch_gives_the_sum_of_rows_alone(make_model, make_rows, architecture):
    model, rows = make_model(architecture).eval(), make_rows([13, 1, 30, 2, 7])
    with torch.no_grad():
        loss, hits = plain.forward_loss(model, rows)
        logits = [model(input_ids=torch.tensor([ids])).logits[0] for ids, _ in rows]
    labels = [torch.tensor(labels) for _, labels in rows]
    expected = F.cross_entropy(torch.cat(logits), torch.cat(labels), ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0.0)
    assert hits == sum(int((x.argmax(-1) == y).sum()) for x, y in zip(logits, labels, strict=True))


def test_what_stands_in_the_padding_does_not_matter(make_model, make_rows):
    model, rows = make_model().eval(), make_rows([3, 30])
    with torch.no_grad():
        short = plain.forward_loss(model, rows[:1])[0]
        both = plain.forward_loss(model, rows)[0] - plain.forward_loss(model, rows[1:])[0]
    torch.testing.assert_close(both, short, rtol=1e-4, atol=1e-4)
