"""The loss of a row is what transformers' own loss says of that row alone.

pytest tests/evals/test_likelihood.py
"""

import pytest
import torch

from tunesmith.evals.likelihood import BATCH_ROWS, row_losses
from tunesmith.objectives.sft import sample


@pytest.fixture(scope="module")
def model(tiny_base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


def test_row_losses_are_transformers_losses_whatever_their_company(model):
    random = torch.Generator().manual_seed(0)
    rows = []
    for length in (5, 60, 2, 31, 17, 8, 9, 44, 23, 3, 12):
        ids = torch.randint(3, 500, (length,), generator=random).tolist()
        trained = [False] + (torch.rand(length - 1, generator=random) < 0.5).tolist()
        trained[-1] = True
        rows.append((ids, trained))
    assert len(rows) > BATCH_ROWS, "more than one batch"
    sums, counts = row_losses(model, [sample(ids, trained) for ids, trained in rows])
    for (ids, trained), total, count in zip(rows, sums, counts, strict=True):
        labels = [t if on else -100 for t, on in zip(ids, trained, strict=True)]  # transformers shifts them itself
        with torch.inference_mode():
            mean = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
        assert count == sum(trained)
        assert total / count == pytest.approx(mean, rel=1e-5)


def test_a_row_without_labels_weighs_nothing(model):
    assert row_losses(model, [sample([5, 6, 7], [False] * 3)]) == ([0.0], [0])
