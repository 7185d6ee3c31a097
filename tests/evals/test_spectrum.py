"""Effective rank through thin factors equals that of the whole matrix, and means what its paper says.

pytest tests/evals/test_spectrum.py
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tunesmith import methods
from tunesmith.evals.spectrum import effective_rank, held_by, singular_values, spectrum
from tunesmith.models.base import resolve
from tunesmith.models.load import model_of
from tunesmith.recipe.methods import Ia3, Lora

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 16))


@settings(deadline=None)
@given(SHAPES, st.integers(0, 2**31))
def test_values_are_those_of_the_whole_product(shape, seed):
    """Also with a rank above the sides of the matrix."""
    rank, inputs, outputs = shape
    random = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, inputs, generator=random), torch.randn(outputs, rank, generator=random)
    whole = torch.linalg.svdvals(b.double() @ a.double())
    found = singular_values(a, b)
    n = min(shape)
    torch.testing.assert_close(found[:n], whole[:n], rtol=1e-9, atol=1e-9)
    assert (found[n:] < 1e-9).all() and (whole[n:] < 1e-9).all()


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=32), st.floats(1e-3, 1e3))
def test_effective_rank_is_the_exponent_of_the_entropy_and_knows_no_scale(values, scale):
    found = effective_rank(torch.tensor(values, dtype=torch.float64))
    assert found == pytest.approx(torch.tensor(stats.entropy(values)).exp().item(), rel=1e-9)  # scipy as the reference
    assert 1 - 1e-9 <= found <= len(values) * (1 + 1e-9)
    assert effective_rank(scale * torch.tensor(values, dtype=torch.float64)) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("k", [1, 3, 16])
def test_k_equal_values_among_zeros_give_k(k):
    values = torch.cat([torch.full((k,), 0.3), torch.zeros(5)]).double()
    assert effective_rank(values) == pytest.approx(k)


def test_what_holds_nine_tenths_of_the_squared_sum():
    assert held_by(torch.tensor([3.0, 1.0])) == 1  # 9 of 10
    assert held_by(torch.tensor([2.9, 1.0])) == 2
    assert held_by(torch.ones(10)) == 9
    assert held_by(torch.zeros(4)) == 0 and effective_rank(torch.zeros(4)) == 0.0


def test_an_adapter_on_disk_gives_the_median_of_its_layers_and_one_without_factors_none(tiny_base, tmp_path):
    def saved(method):
        torch.manual_seed(0)
        model = methods.attach(model_of(resolve(str(tiny_base)), torch.float32), method, "tiny")
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p)
        folder = tmp_path / method.type
        folder.mkdir()
        methods.save(model, folder)
        return model, folder

    model, folder = saved(Lora(rank=4, alpha=8, rank_pattern={"down_proj": 2}))
    deltas = [m.get_delta_weight("default") for _, m in model.named_modules() if hasattr(m, "get_delta_weight")]
    whole = sorted(effective_rank(torch.linalg.svdvals(d.detach().double())) for d in deltas)
    found = spectrum(folder)
    assert found["layers"] == len(deltas) == 14
    assert found["effective_rank"] == pytest.approx((whole[6] + whole[7]) / 2, rel=1e-3)
    assert 1 <= found["held_by_90_percent"] <= 4
    assert spectrum(saved(Ia3())[1]) is None
