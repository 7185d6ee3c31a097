"""Which rows each optimizer step trains, and in which forward pass. A pure function: resume only needs a step number.

    epoch 0, shuffled        [7][2][9][4][1]...
    steps of tokens_per_step  [7 2 9] [4 1 ...]          in order, full when the next row would not fit; or of rows_per_step
    packs of tokens_per_pack  [9 7][2]                   first-fit decreasing inside a step
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    epoch: int
    packs: tuple[tuple[int, ...], ...]
    """Row numbers, one tuple a forward pass."""

    @property
    def rows(self) -> list[int]:
        return [row for pack in self.packs for row in pack]


def plan_steps(lengths: list[int], *, tokens_per_step: int, tokens_per_pack: int | None = None, epochs: int = 1,
               max_steps: int | None = None, seed: int = 0, rows_per_step: int | None = None) -> list[Step]:
    """Steps of a whole training. Every row is in exactly one step of each full epoch.

    With `rows_per_step` a step has so many rows (the last of an epoch what is left), whatever their length.
    """
    steps: list[Step] = []
    for epoch in range(epochs):
        order = list(range(len(lengths)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        groups = ([order[i : i + rows_per_step] for i in range(0, len(order), rows_per_step)] if rows_per_step
                  else _fill(order, lengths, tokens_per_step))
        for rows in groups:
            if max_steps is not None and len(steps) == max_steps:
                return steps
            packs = _first_fit_decreasing(rows, lengths, tokens_per_pack or tokens_per_step)
            steps.append(Step(epoch, tuple(tuple(p) for p in packs)))
    return steps


def _fill(order: list[int], lengths: list[int], limit: int) -> list[list[int]]:
    groups: list[list[int]] = []
    room = 0
    for row in order:
        if lengths[row] > room:
            groups.append([])
            room = limit
        groups[-1].append(row)
        room -= lengths[row]
    return groups


def _first_fit_decreasing(rows: list[int], lengths: list[int], limit: int) -> list[list[int]]:
    packs: list[list[int]] = []
    rooms: list[int] = []
    for row in sorted(rows, key=lambda r: -lengths[r]):
        fits = next((i for i, room in enumerate(rooms) if lengths[row] <= room), None)
        if fits is None:
            packs.append([row])
            rooms.append(limit - lengths[row])
        else:
            packs[fits].append(row)
            rooms[fits] -= lengths[row]
    return packs


def packing_report(lengths: Sequence[int], trained: Sequence[int], steps: Sequence[Step]) -> dict:
    """What packing saves, and what it does to the weight of a row in the loss.

    `padding_saved`: share of the positions that the same forward passes would spend on pads, each row padded to its
    pack's longest. `row_weight`: a row's share of its step's loss, over the share it would have if every step held as
    many trained tokens as the mean step; 1 for all rows when steps are filled alike. `row_weight_padded` is the same for
    as many rows a step in every step, taken in the same order: how it would be without packing.
    """
    packs = [pack for step in steps for pack in step.packs]
    real = sum(lengths[r] for pack in packs for r in pack)
    padded = sum(max(lengths[r] for r in pack) * len(pack) for pack in packs)
    rows = [r for step in steps for r in step.rows]
    per_step = max(1, round(len(rows) / len(steps)))
    unpacked = [rows[i : i + per_step] for i in range(0, len(rows), per_step)]
    if len(unpacked) > 1 and len(unpacked[-1]) < per_step / 2:
        unpacked.pop()  # a last, nearly empty batch says nothing of the others
    return {
        "steps": len(steps), "packs": len(packs), "tokens": real, "padding_saved": 1 - real / padded,
        "fill": real / (len(packs) * max(sum(lengths[r] for r in pack) for pack in packs)),
        "rows_per_pack": _spread([len(p) for p in packs]),
        "row_weight": _spread(_weights([s.rows for s in steps], trained)),
        "row_weight_padded": _spread(_weights(unpacked, trained)),
    }


def _weights(batches: Sequence[Sequence[int]], trained: Sequence[int]) -> list[float]:
    totals = [sum(trained[r] for r in batch) for batch in batches]
    mean = sum(totals) / len(totals)
    return [mean / total for batch, total in zip(batches, totals, strict=True) for _row in batch if total]


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, 5%, median, 95% and largest."""
    ranked = sorted(values)
    at = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: ranked[round(q * (len(ranked) - 1))] for name, q in at.items()} if ranked else dict.fromkeys(at, 0.0)
