"""What a training will take, from shapes and one measured matmul: before anything is loaded.

Memory counts what the fast path keeps for the backward pass, per token and layer (d hidden, f inner, q and kv the
widths of the query and key/value projections, h heads, L the longest row, b bytes of the dtype):

    two norms          2 * 4d          upcast inputs
    linear inputs      b * (2d + q + f)
    attention          4 * (2q + 2kv) + 4hL        float32 rectangles and weights
    SwiGLU             b * 3f

Time counts matmuls: 2 FLOPs a weight and token forward, 2 backward (frozen weights get no gradient), the head only
where there is a label.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def peak_memory_bytes(s: Shape, pack_tokens: int, longest: int) -> int:
    """Resident set at the largest step, in bytes."""
    b = s.bytes_per_weight
    per_token = (8 * s.hidden + b * (2 * s.hidden + s.query + s.inner) + 4 * (2 * s.query + 2 * s.key_value)
                 + 4 * s.heads * longest + 3 * b * s.inner)
    weights = s.parameters * b + s.trainable * (4 + 4 + 8)  # float32 weight, gradient, Adam's two moments
    head = 3 * 4 * 256 * s.vocabulary
    return int(PROCESS_BYTES + weights + per_token * s.layers * pack_tokens + head)


def seconds(s: Shape, tokens: int, trained_tokens: int, flops_per_second: float) -> float:
    """Of training `tokens`, of which `trained_tokens` have a label."""
    head = s.hidden * s.vocabulary
    body = s.parameters - head
    flops = 4 * body * tokens + 4 * head * trained_tokens + 6 * s.trainable * tokens
    return flops / flops_per_second / MATMUL_SHARE
