"""What a training will take, from shapes and a few measured matmuls: before anything is loaded.

Memory counts what is kept for the backward pass, per token and layer (d hidden, f inner, q and kv the widths of the query
and key/value projections, h heads, L the longest row, b bytes of the dtype), with LoRA on every linear layer:

                       fast, kernels in C   fast, torch's operations   plain
    two norms          2bd + 8              8d                         8d                upcast inputs
    linear inputs      b(2d + q + f)        b(2d + q + f)              4(5d + q + f)     PEFT's float32 copies; 4(2d + q + f)
                                                                                         where b is 4; nothing where the
                                                                                         layers carry no adapter
    attention          b(q + 2kv) + 4h      4(2q + 2kv) + 4hL          4bq
    gate               2bf                  3bf                        3bf

and the logits: of one chunk of labelled tokens on the fast path, of all padded tokens, several times over, on the plain one.
What torch and its libraries take by themselves is measured, not assumed: it is this process's memory at the moment.

Time counts matmuls: 2 FLOPs a weight and token forward, 2 backward (frozen weights get no gradient), the head only
where there is a label, at the rate measured at the model's own shapes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from tunesmith.engine.loss import CHUNK_TOKENS

Engine = Literal["kernels", "torch", "plain"]
"""The fast path with kernels in C, the fast path without them, the plain path."""
MATMUL_SHARE: dict[Engine, float] = {"kernels": 0.65, "torch": 0.5, "plain": 0.36}
"""Of a step's time; the rest is memory traffic. As measured on two CPU cores by benchmarks/estimate.py."""
HEAP: dict[Engine, float] = {"kernels": 1.08, "torch": 1.35, "plain": 1.4}
"""What the heap grows to over what layers keep in it: temporaries, and room between pieces. As measured there too."""
LIBRARY_BYTES = 150_000_000
"""What a training loads that is not in memory before it: PEFT, the matrix library's buffers, pieces of the heap."""
TOKENS, REPEATS = 1024, 4
"""Of the measured matmuls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder and how it is trained."""

    layers: int
    hidden: int
    inner: int
    query: int
    key_value: int
    heads: int
    vocabulary: int
    parameters: int
    trainable: int
    bytes_per_weight: int
    adapted: bool = True
    """Linear layers carry adapters, whose gradients need the layers' inputs."""

    @classmethod
    def of(cls, config, parameters: int, trainable: int, bytes_per_weight: int, adapted: bool = True) -> Shape:
        """From a transformers config."""
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv = getattr(config, "num_key_value_heads", None) or heads
        return cls(layers=config.num_hidden_layers, hidden=config.hidden_size,
                   inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size, query=heads * size,
                   key_value=kv * size, heads=heads, vocabulary=config.vocab_size, parameters=parameters,
                   trainable=trainable, bytes_per_weight=bytes_per_weight, adapted=adapted)


def peak_memory_bytes(s: Shape, pack_tokens: int, longest: int, engine: Engine, process_bytes: int,
                      kept_bytes_per_token: int = 0) -> int:
    """Resident set at the largest step, in bytes.

    `pack_tokens`: of the largest pack, with padding on the plain path. `process_bytes`: of this process before the base is
    loaded. `kept_bytes_per_token`: by a method that keeps more than LoRA does.
    """
    b, d, f, q, kv = s.bytes_per_weight, s.hidden, s.inner, s.query, s.key_value
    match engine:
        case "kernels":
            layer = b * (2 * d + q + f) + 2 * b * d + 8 + b * (q + 2 * kv) + 4 * s.heads + 2 * b * f
            head = b * CHUNK_TOKENS * s.vocabulary
        case "torch":
            layer = b * (2 * d + q + f) + 8 * d + 8 * (q + kv) + 4 * s.heads * longest + 3 * b * f
            head = 12 * CHUNK_TOKENS * s.vocabulary
        case "plain":
            layer = s.adapted * 4 * ((2 if b == 4 else 5) * d + q + f) + 8 * d + 4 * b * q + 3 * b * f
            head = 12 * pack_tokens * s.vocabulary
    weights = s.parameters * b + s.trainable * (4 + 4 + 8)  # float32 weight, gradient, Adam's two moments
    kept = layer * s.layers + kept_bytes_per_token
    return int(process_bytes + LIBRARY_BYTES + weights + HEAP[engine] * kept * pack_tokens + head)


def seconds(s: Shape, tokens: int, trained_tokens: int, flops_per_second: float, engine: Engine) -> float:
    """Of training `tokens`, of which `trained_tokens` have a label (on the plain path, the head sees all of them)."""
    head = s.hidden * s.vocabulary
    body = s.parameters - head
    flops = 4 * body * tokens + 4 * head * (tokens if engine == "plain" else trained_tokens) + 6 * s.trainable * tokens
    return flops / flops_per_second / MATMUL_SHARE[engine]


def flops_per_second(s: Shape, dtype, device: str) -> float:
    """Of the products of one layer's widest matrix, forward and backward, at their best of a few."""
    import torch

    x, w = (torch.randn(*shape, device=device).to(dtype) for shape in ((TOKENS, s.hidden), (s.inner, s.hidden)))
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        y = (x @ w.T) @ w
        y[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 4 * TOKENS * s.hidden * s.inner / best
