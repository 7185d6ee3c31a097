"""A step that memory does not hold: halves with the same sums, or an error that names the row.

pytest tests/objectives/test_memory.py
"""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from tunesmith.engine import fast, plain
from tunesmith.errors import TrainingError
from tunesmith.methods import lora
from tunesmith.objectives.sft import forward_backward, sample
from tunesmith.recipe.methods import Lora

libc = ctypes.CDLL(None)
libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed leaves the address space, which is what the limit below counts
libc.mallopt(-8, 1)  # M_ARENA_MAX: no thread reserves 64 MB of it for itself
torch.set_num_threads(1)
torch.manual_seed(0)
config = LlamaConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4, vocab_size=300)
model = lora.attach(LlamaForCausalLM(config), Lora(rank=4), "tiny")
path = plain.forward_loss
if sys.argv[1] == "fast":
    fast.accelerate(model)
    path = fast.forward_loss
draw = torch.Generator().manual_seed(1)
lengths = (700, 600, 900, 500, 800, 650, 750, 850) if sys.argv[2] == "halves" else (6000,)
rows = [sample(torch.randint(0, 300, (n,), generator=draw).tolist(), [True] * n) for n in lengths]
few = [sample(ids[:40], [True] * 40) for ids, _ in rows[:2]]
forward_backward(path, model, [few])  # whatever is allocated once

def step(packs):
    model.zero_grad()
    halved = []
    measured = forward_backward(path, model, packs, halved.append)
    return measured, halved, torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

def leave(megabytes):
    libc.malloc_trim(0)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), -1))

if sys.argv[2] == "halves":
    expected, _, gradient = step([[row] for row in rows])
    for megabytes in range(320, 40, -20):
        leave(megabytes)
        measured, halved, found = step([rows])
        if halved:
            break
    assert halved and halved[0] == sum(len(ids) for ids, _ in rows), halved
    assert abs(measured.loss - expected.loss) < 1e-5 * expected.loss
    assert (measured.tokens, measured.trained_tokens) == (expected.tokens, expected.trained_tokens)
    difference = ((found - gradient).norm() / gradient.norm()).item()
    assert difference < 1e-4, difference
    print("halved", len(halved))
else:
    leave(8)
    try:
        step([rows])
    except TrainingError as error:
        print(error.what, "|", error.fix)
"""


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-700:])
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="limits the address space, and gives freed memory back")
@pytest.mark.parametrize("path", ["fast", "plain"])
def test_pack_that_does_not_fit_is_trained_in_halves_with_the_same_gradient(path):
    assert run(path, "halves").startswith("halved")


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="limits the address space, and gives freed memory back")
@pytest.mark.parametrize("path", ["fast", "plain"])
def test_row_that_does_not_fit_alone_is_named(path):
    said = run(path, "alone")
    assert "tokens does not fit into memory" in said and "data.max_tokens" in said
