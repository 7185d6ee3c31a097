"""The passes of a base over steps: the model's own modules, with paged attention, adapters by segment and, on a CPU, kernels.

    runner = Runner(model, blocks)
    logits_NV = runner(pieces)       rows of tokens in, logits of the wanted tokens out

A row's tokens are its virtual ones, as negative numbers (-1 is the first), its prompt and its answer. What stands where is the
scheduler's business (`schedule`); which adapter a row uses is data (`adapters`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.engine.attention import no_mask  # noqa: F401 - registered with the attention below
from tunesmith.engine.native import build
from tunesmith.engine.native.decode import BLOCK, Packed, Pages, Rows, linear
from tunesmith.engine.native.replace import replace
from tunesmith.serving import pages
from tunesmith.serving.adapters import Mix
from tunesmith.serving.sites import Sites

if TYPE_CHECKING:
    from tunesmith.serving.schedule import Piece


@dataclass(frozen=True, slots=True)
class Step:
    """What attention has to know of one."""

    pages: Any
    rows: Rows
    slots_T: torch.Tensor


class Runner:
    """A base that is ready for steps. It takes the model over: with kernels, weights are laid out anew *instead of* theirs.

    `blocks`: pages of 32 tokens that there are. Not safe for two threads.
    """

    def __init__(self, model, blocks: int):
        self.model = model
        self.device, self.dtype = model.device, model.dtype
        reason = build.start() if self.device.type == "cpu" else "no kernels for this device"
        with build.used():
            self.library = None if reason else build.library_for(torch.empty(0, dtype=self.dtype))
        self._decoder = getattr(model, model.base_model_prefix)
        self._words, head = model.get_input_embeddings(), model.get_output_embeddings()
        self.vocabulary = self._words.weight.shape[0]
        layers = shapes(model)
        if self.library:
            replace(model)
            self._head, self._bias = Packed(self.library, head.weight), head.bias
            self.pages = Pages(self.library, layers, blocks)
        else:
            self._head, self._bias = head, None
            self.pages = pages.TorchPages(layers, blocks, self.dtype, self.device)
        pages.register()
        model.set_attn_implementation(pages.NAME)
        self.sites = Sites(model, self.library)

    @torch.inference_mode()
    def __call__(self, pieces: Sequence[Piece], mixes: Sequence[Mix], wanted: Sequence[int]) -> torch.Tensor:
        """Logits, float32, [len(wanted), V], of the tokens at these places of the step. `mixes[i]` is what piece i uses;
        pieces of one mix stand beside each other.

        Raises:
            IndexError: a token that the base does not have.
        """
        ids, positions, slots, lengths, starts = [], [], [], [], [0]
        for piece in pieces:
            row = piece.row
            ids += row.tokens[piece.begin : piece.end]
            positions += range(piece.begin, piece.end)
            slots += slots_of(row.table, piece.begin, piece.end)
            starts.append(len(ids))
            lengths.append(piece.end)
        most = max(-(-n // BLOCK) for n in lengths)
        tables = [[*p.row.table[:most], *[0] * (most - len(p.row.table))] for p in pieces]
        rows = Rows(torch.tensor(starts), torch.tensor(lengths), torch.tensor(tables))
        step = Step(self.pages, rows, torch.tensor(slots, device=self.device))
        words_1TD = self._embedded(ids, pieces, mixes, starts)
        bounds, used = _segments(starts, mixes)
        with build.used(), self.sites.segments(bounds, used):
            hidden_TD = self._decoder(inputs_embeds=words_1TD, position_ids=torch.tensor([positions], device=self.device),
                                      use_cache=False, paged=step).last_hidden_state.squeeze(0)
        if not wanted:
            return hidden_TD.new_empty(0, self.vocabulary, dtype=torch.float32)
        wanted_ND = hidden_TD[torch.tensor(wanted, device=self.device)]
        if self.library:
            return linear(self.library, wanted_ND, self._head, self._bias, None, None).float()
        return self._head(wanted_ND).float()

    @torch.inference_mode()
    def give(self, table: list[int], begin: int, end: int, mix: Mix) -> None:
        """Write the trained keys and values of a prefix adapter, from token `begin` to `end`, into pages of a row."""
        (adapter, _), = mix
        slots = torch.tensor(slots_of(table, begin, end), device=self.device)
        for layer, (k_KND, v_KND) in enumerate(adapter.keys_values):
            k, v = (x[None, :, begin:end].to(self.device, self.dtype) for x in (k_KND, v_KND))
            self.pages.write(layer, k, v, slots)

    def _embedded(self, ids: list[int], pieces, mixes, starts: list[int]) -> torch.Tensor:
        """[1, T, D]: words of the base, and of soft prompts where numbers are negative."""
        if max(ids) >= self.vocabulary:
            raise IndexError(f"token {max(ids)} is beyond the {self.vocabulary} that the base has")
        words_TD = self._words(torch.tensor(ids, device=self.device).clamp(min=0))
        for piece, mix, at in zip(pieces, mixes, starts, strict=False):
            end = min(piece.end, mix[0][0].virtual_tokens if mix else 0)
            if piece.begin < end:
                words_TD[at : at + end - piece.begin] = mix[0][0].words[piece.begin : end].to(words_TD)
        return words_TD[None]


def slots_of(table: list[int], begin: int, end: int) -> list[int]:
    """Where tokens [begin, end) of a row with these pages are."""
    return [table[p // BLOCK] * BLOCK + p % BLOCK for p in range(begin, end)]


def _segments(starts: list[int], mixes: Sequence[Mix]) -> tuple[list[int], list[Mix]]:
    """Neighbours of one mix made one."""
    bounds, used = [0], []
    for (_, end), mix in zip(pairwise(starts), mixes, strict=True):
        if used and used[-1] == mix:
            bounds[-1] = end
        else:
            used.append(mix)
            bounds.append(end)
    return bounds, used


def shapes(model) -> list[tuple[int, int]]:
    """(key/value heads, head size) of each layer."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return [(getattr(config, "num_key_value_heads", None) or heads, size)] * config.num_hidden_layers
