"""A merge takes the memory of a tensor, not of the model.

python -m pytest -m slow tests/exports/test_merge_memory.py
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("merge_8b", Path(__file__).parents[2] / "benchmarks" / "merge_8b.py")
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)
NARROW = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 4,
          "vocab_size": 32000}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_peak_memory_does_not_grow_with_the_model(tmp_path, method):
    """Sixteen times the layers in shards three times as large: the same peak, far under the size of the model."""
    found = []
    for layers, shard in ((1, 200_000_000), (20, 1_200_000_000)):
        folder = tmp_path / str(layers)
        folder.mkdir()
        found.append(benchmark.measure(folder, layers=layers, method=method, shape=NARROW, shard_bytes=shard))
    small, large = found
    assert large["base_bytes"] > 2_500_000_000 > 5 * small["base_bytes"] and large["shards"] > 1
    assert large["peak_bytes"] < small["peak_bytes"] + 400_000_000
    assert large["peak_bytes"] < large["base_bytes"] * 0.75
