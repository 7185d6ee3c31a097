"""What a training will take, from shapes and one measured matmul: before anything is loaded.

Memory counts what the fast path keeps for the backward pass, per token and layer (d hidden, f inner, q and kv the
widths of the query and key/value projections, h heads, L the longest row, b bytes of the dtype):

                       with kernels in C            without
    two norms          2bd + 8                      8d              upcast inputs
    linear inputs      b(2d + q + f)                b(2d + q + f)
    attention          b(q + 2kv) + 4h              4(2q + 2kv) + 4hL    float32 rectangles and weights
    gate               2bf                          3bf

Time counts matmuls: 2 FLOPs a weight and token forward, 2 backward (frozen weights get no gradient), the head only
where there is a label.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.engine.loss import CHUNK_TOKENS

MATMUL_SHARE = 0.4
"""Of a step's time; the rest is memory traffic. As measured on two CPU cores; benchmarks/step.py prints what it is on yours."""
PROCESS_BYTES = 900_000_000
"""Python, torch, transformers and oneDNN's own buffers, before any weight."""


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

    @classmethod
    def of(cls, config, parameters: int, trainable: int, bytes_per_weight: int) -> Shape:
        """From a transformers config."""
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv = getattr(config, "num_key_value_heads", None) or heads
        return cls(layers=config.num_hidden_layers, hidden=config.hidden_size,
                   inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size, query=heads * size,
                   key_value=kv * size, heads=heads, vocabulary=config.vocab_size, parameters=parameters,
                   trainable=trainable, bytes_per_weight=bytes_per_weight)


def peak_memory_bytes(s: Shape, pack_tokens: int, longest: int, kernels: bool) -> int:
    """Resident set at the largest step, in bytes; `kernels`: tunesmith.engine.native is used."""
    b = s.bytes_per_weight
    inputs = b * (2 * s.hidden + s.query + s.inner)
    if kernels:
        between = 2 * b * s.hidden + 8 + b * (s.query + 2 * s.key_value) + 4 * s.heads + 2 * b * s.inner
        head = b * CHUNK_TOKENS * s.vocabulary
    else:
        between = 8 * s.hidden + 8 * (s.query + s.key_value) + 4 * s.heads * longest + 3 * b * s.inner
        head = 3 * 4 * CHUNK_TOKENS * s.vocabulary
    weights = s.parameters * b + s.trainable * (4 + 4 + 8)  # float32 weight, gradient, Adam's two moments
    return int(PROCESS_BYTES + weights + (inputs + between) * s.layers * pack_tokens + head)


def seconds(s: Shape, tokens: int, trained_tokens: int, flops_per_second: float) -> float:
    """Of training `tokens`, of which `trained_tokens` have a label."""
    head = s.hidden * s.vocabulary
    body = s.parameters - head
    flops = 4 * body * tokens + 4 * head * trained_tokens + 6 * s.trainable * tokens
    return flops / flops_per_second / MATMUL_SHARE
