"""Peak memory as the kernel counts it, and the estimate against what autograd really keeps.

pytest tests/engine/test_memory.py
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tunesmith.engine import estimate, fast
from tunesmith.engine.loss import GRAIN
from tunesmith.engine.memory import peak_bytes
from tunesmith.objectives.sft import forward_backward


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_is_the_kernels_high_water_mark_in_bytes():
    def high_water() -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    before = peak_bytes()
    block = torch.ones(64 << 20, dtype=torch.uint8)
    assert peak_bytes() >= before
    assert peak_bytes() == pytest.approx(high_water(), rel=0.02)
    assert block.sum() == 64 << 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_kept_pages_are_not_cleared_again():
    """Page faults of making and freeing the same 64 MB, before and after, in a process of its own."""
    script = """
import resource, torch
from tunesmith.engine.loss import GRAIN
from tunesmith.engine.memory import keep_pages
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.zeros(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
mapped = faults()
assert keep_pages()
faults()
print(mapped, faults())
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    mapped, kept = map(int, out.split())
    assert kept < mapped / 50


def kept_for_backward(model, rows) -> int:
    """Bytes of the distinct tensors that autograd saves on the fast path, parameters not counted."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss, _ = fast.forward_loss(model, rows)
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_estimate_is_what_autograd_keeps(make_model, make_rows, without_kernels, dtype, kernels):
    """Per token and layer, from the difference of two depths, so that embeddings and the head cancel."""
    lengths = [32] * 32
    rows = make_rows(lengths)
    config = {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    kept, said = [], []
    for layers in (2, 6):
        model = make_model(dtype=dtype, num_hidden_layers=layers, **config)
        fast.accelerate(model)
        if not kernels:
            without_kernels()
        kept.append(kept_for_backward(model, rows))
        shape = estimate.Shape.of(model.get_base_model().config, 0, 0, dtype.itemsize)
        engine = "kernels" if kernels else "torch"
        said.append(estimate.peak_memory_bytes(shape, sum(lengths), max(lengths), engine, 0) / estimate.HEAP[engine])
    assert said[1] - said[0] == pytest.approx(kept[1] - kept[0], rel=0.05)


def test_estimate_counts_weights_and_the_optimizer():
    def bytes_of(**changes) -> int:
        shape = {"layers": 1, "hidden": 8, "inner": 16, "query": 8, "key_value": 4, "heads": 2, "vocabulary": 10,
                 "parameters": 1000, "trainable": 100, "bytes_per_weight": 2}
        return estimate.peak_memory_bytes(estimate.Shape(**shape | changes), 1, 1, "kernels", 0)

    assert bytes_of(parameters=2000) - bytes_of() == 1000 * 2
    assert bytes_of(trainable=200) - bytes_of() == 100 * 16  # float32 weight, gradient, two moments


def test_seconds_follow_the_multiplications_of_a_step(make_model, make_rows):
    """FLOPs of a real step, counted by torch, against those the estimate assumes."""
    from torch.utils.flop_counter import FlopCounterMode

    model, rows = make_model(num_hidden_layers=4, intermediate_size=160), make_rows([32] * 10)
    fast.accelerate(model)
    with FlopCounterMode(display=False) as counter:
        measured = forward_backward(fast.forward_loss, model, [rows])
    parameters = sum(p.numel() for p in model.get_base_model().parameters() if not p.requires_grad)
    embeddings = model.get_input_embeddings().weight.numel()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shape = estimate.Shape.of(model.get_base_model().config, parameters - embeddings, trainable, 4)
    filled = measured.trained_tokens + -measured.trained_tokens % GRAIN
    flops = estimate.seconds(shape, measured.tokens, filled, 1.0, "kernels") * estimate.MATMUL_SHARE["kernels"]
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.1)
