"""Attention over packed rows, registered in transformers' attention-function registry.

Shapes: H = query heads, K = key/value heads, T = tokens of the pack, R x L = rows x longest of a bucket, S = longest that a row
of it sees, itself included (L, unless rows share a prompt), D = head size.
The model is called with `packing=Layout` among its keyword arguments; transformers hands it down to us unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tunesmith.engine.native.build import library_for
from tunesmith.engine.native.functions import LANES, Attention
from tunesmith.engine.packing import Bucket, Layout

NAME = "tunesmith_packed"


def register() -> None:
    """Make `attn_implementation="tunesmith_packed"` known. Idempotent."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, no_mask)


def no_mask(*_args, **_kwargs) -> None:
    """Packed attention needs no mask: see the picture in `packing`."""


def packed_attention(module, query_1HTD, key_1KTD, value_1KTD, attention_mask, scaling=None, dropout=0.0,
                     packing: Layout | None = None, sliding_window: int | None = None, softcap: float | None = None, **_kwargs):
    """Causal attention inside each row of the pack, after the first row of its family; of the last `sliding_window` tokens,
    itself included, if that is given.

    Raises:
        ValueError: without a `packing` layout, or with a mask, dropout or cap that would be ignored.
    """
    if packing is None or attention_mask is not None or dropout or softcap:
        raise ValueError("packed attention takes packing=Layout, no attention mask, no attention dropout and no soft cap")
    if query_1HTD.shape[2] != packing.positions_T.shape[0]:
        raise ValueError(f"the layout has {packing.positions_T.shape[0]} tokens, the pack {query_1HTD.shape[2]}")
    library = library_for(query_1HTD)
    if library and query_1HTD.shape[-1] % LANES == 0:
        scale = query_1HTD.shape[-1]**-0.5 if scaling is None else scaling
        return Attention.apply(library, query_1HTD, key_1KTD, value_1KTD, packing.starts, packing.families, scale,
                               sliding_window), None
    if packing.whole:
        out_1HTD = _masked(query_1HTD, key_1KTD, value_1KTD, scaling, _own(query_1HTD, sliding_window))
        return out_1HTD.transpose(1, 2).contiguous(), None
    parts = [_attend(b, query_1HTD, key_1KTD, value_1KTD, scaling, sliding_window) for b in packing.buckets]
    out_THD = torch.cat(parts) if len(parts) > 1 else parts[0]
    order = torch.cat([b.scatter for b in packing.buckets]) if len(parts) > 1 else packing.buckets[0].scatter
    return torch.empty_like(out_THD).index_copy(0, order, out_THD).unsqueeze(0), None


def _attend(bucket: Bucket, query_1HTD, key_1KTD, value_1KTD, scaling, window) -> torch.Tensor:
    def rectangle(x_1HTD: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        x_THD = x_1HTD.squeeze(0).transpose(0, 1)
        return x_THD.index_select(0, index.flatten()).view(*index.shape, *x_THD.shape[1:]).transpose(1, 2)

    q_RHLD = rectangle(query_1HTD, bucket.gather_RL)
    k_RKSD, v_RKSD = (rectangle(x, bucket.gather_RL if bucket.keys_RK is None else bucket.keys_RK)
                      for x in (key_1KTD, value_1KTD))
    unseen = _own(q_RHLD, window) if bucket.keys_RK is None else _family(bucket, window)
    out_NHD = _masked(q_RHLD, k_RKSD, v_RKSD, scaling, unseen).transpose(1, 2).flatten(0, 1)
    return out_NHD if bucket.full else out_NHD.index_select(0, bucket.keep)


def _own(q_RHLD, window: int | None) -> torch.Tensor | None:
    """[L, L]: keys that come later, or `window` tokens or more before; None: just those that come later."""
    length = q_RHLD.shape[2]
    if not window or window >= length:
        return None
    everything = torch.ones(length, length, dtype=torch.bool, device=q_RHLD.device)
    return everything.triu(1) | everything.tril(-window)


def _family(bucket: Bucket, window: int | None) -> torch.Tensor:
    """[R, L, S]: the same for rows after the first of their families, by position."""
    queries, keys = bucket.positions_RL[:, :, None], bucket.key_positions_RK[:, None, :]
    return (keys > queries) | (keys <= queries - window) if window else keys > queries


def _masked(q_RHLD, k_RKSD, v_RKSD, scaling, unseen) -> torch.Tensor:
    if q_RHLD.device.type == "cpu":
        return _masked_cpu(q_RHLD, k_RKSD, v_RKSD, scaling, unseen)
    seen = None if unseen is None else ~unseen if unseen.ndim == 2 else ~unseen[:, None]
    return F.scaled_dot_product_attention(q_RHLD, k_RKSD, v_RKSD, attn_mask=seen, is_causal=seen is None, scale=scaling,
                                          enable_gqa=q_RHLD.shape[1] != k_RKSD.shape[1])


def _masked_cpu(q_RHLD, k_RKSD, v_RKSD, scaling, unseen) -> torch.Tensor:
    """Explicit matmul, softmax, matmul in float32, the query heads of one KV head folded into its rows.

    On short rows this beats every SDPA kernel of the CPU, and float32 is both faster and closer to exact than
    bfloat16 there (benchmarks/attention_cpu.py).
    """
    rows, heads, length, size = q_RHLD.shape
    kv_heads, keys = k_RKSD.shape[1:3]
    group = heads // kv_heads
    scale = size**-0.5 if scaling is None else scaling
    q = q_RHLD.float().reshape(rows, kv_heads, group * length, size)
    k, v = k_RKSD.float(), v_RKSD.float()
    scores = torch.matmul(q * scale, k.transpose(2, 3)).view(rows, kv_heads, group, length, keys)
    if unseen is None:
        unseen = torch.ones(length, keys, dtype=torch.bool, device=q.device).triu(1)
    hidden = unseen if unseen.ndim == 2 else unseen[:, None, None]
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    out = torch.matmul(weights.view(rows, kv_heads, group * length, keys), v)
    return out.view(rows, heads, length, size).to(q_RHLD.dtype)
