"""The choice of dtype.

pytest tests/engine/test_precision.py
"""

from __future__ import annotations

import pytest
import torch

from tunesmith.engine.precision import choose


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_a_dtype_of_the_recipe_is_taken_and_said_so(wanted):
    choice = choose(wanted)
    assert choice.dtype == getattr(torch, wanted)
    assert f"dtype={wanted}" in choice.because
    assert "the recipe says so" in choice.because
    assert choice.flops_per_second > 0


def test_auto_names_the_measurements_it_was_chosen_by():
    choice = choose("auto")
    assert choice.dtype in (torch.float32, torch.bfloat16)
    assert f"dtype={str(choice.dtype).removeprefix('torch.')} " in choice.because
    assert "float32 " in choice.because and "bfloat16 " in choice.because and " ms" in choice.because
