"""Keys and values in pages, and attention over them, with torch's operations: for GPUs, and where there is no compiler.

The kernels' `engine.native.decode.Pages` has the same methods and lays the pages out for them.

Shapes: T tokens of a step, H query heads, K key/value heads, D head size, R rows, P most pages of a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tunesmith.engine.native.decode import BLOCK, Rows

NAME = "tunesmith_paged"


class TorchPages:
    """`layers`: (key/value heads, head size) of each. Memory is taken as it is written, not before."""

    def __init__(self, layers: list[tuple[int, int]], blocks: int, dtype: torch.dtype, device):
        def made():
            return [torch.empty(blocks, heads, BLOCK, size, dtype=dtype, device=device) for heads, size in layers]

        self.keys, self.values = made(), made()

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (*self.keys, *self.values))

    def write(self, layer: int, k_1KTD: torch.Tensor, v_1KTD: torch.Tensor, slots_T: torch.Tensor) -> None:
        block, at = slots_T // BLOCK, slots_T % BLOCK
        self.keys[layer][block, :, at] = k_1KTD.squeeze(0).transpose(0, 1)
        self.values[layer][block, :, at] = v_1KTD.squeeze(0).transpose(0, 1)

    def read(self, layer: int, slots_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, K, D] each."""
        block, at = slots_T // BLOCK, slots_T % BLOCK
        return self.keys[layer][block, :, at], self.values[layer][block, :, at]

    def attend(self, layer: int, q_1HTD: torch.Tensor, rows: Rows, scale: float, window: int | None) -> torch.Tensor:
        """[1, T, H, D]: each token over the pages of its row up to itself, the last `window` of them if that is given."""
        starts, lengths = rows.starts_R1.tolist(), rows.lengths_R.tolist()
        found = torch.empty_like(q_1HTD.transpose(1, 2))
        for row, (begin, end, length) in enumerate(zip(starts, starts[1:], lengths, strict=False)):
            table = rows.tables_RB[row, : -(-length // BLOCK)].to(q_1HTD.device)
            k, v = (x[layer][table].transpose(0, 1).flatten(1, 2)[None, :, :length] for x in (self.keys, self.values))
            at = torch.arange(length - (end - begin), length, device=q_1HTD.device)[:, None]
            seen = torch.arange(length, device=q_1HTD.device)[None]
            mask = (seen <= at) & (seen > at - window) if window else seen <= at
            found[:, begin:end] = F.scaled_dot_product_attention(
                q_1HTD[:, :, begin:end], k, v, attn_mask=mask, scale=scale, enable_gqa=True).transpose(1, 2)
        return found


def register() -> None:
    """Make `attn_implementation="tunesmith_paged"` known. Idempotent."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    from tunesmith.engine.attention import no_mask

    AttentionInterface.register(NAME, paged_attention)
    AttentionMaskInterface.register(NAME, no_mask)


def paged_attention(module, query_1HTD, key_1KTD, value_1KTD, attention_mask, scaling=None, dropout=0.0, paged=None,
                    sliding_window: int | None = None, softcap: float | None = None, **_kwargs):
    """What transformers calls in each layer of a step: `paged=runner.Step`.

    Raises ValueError without one, or with a mask, dropout or cap that would be ignored."""
    if paged is None or attention_mask is not None or dropout or softcap:
        raise ValueError("paged attention takes paged=Step, no attention mask, no attention dropout and no soft cap")
    layer = module.layer_idx
    paged.pages.write(layer, key_1KTD, value_1KTD, paged.slots_T)
    scale = query_1HTD.shape[-1]**-0.5 if scaling is None else scaling
    return paged.pages.attend(layer, query_1HTD, paged.rows, scale, sliding_window), None
