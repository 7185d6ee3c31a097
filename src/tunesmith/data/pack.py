"""Which rows each optimizer step trains, and in which forward pass. A pure function: resume only needs a step number.

    epoch 0, shuffled        [7][2][9][4][1]...
    steps of tokens_per_step  [7 2 9] [4 1 ...]          in order, full when the next row would not fit
    packs of tokens_per_pack  [9 7][2]                   first-fit decreasing inside a step
"""

from __future__ import annotations

import random
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
               max_steps: int | None = None, seed: int = 0) -> list[Step]:
    """Steps of a whole training. Every row is in exactly one step of each full epoch."""
    steps: list[Step] = []
    for epoch in range(epochs):
        order = list(range(len(lengths)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for rows in _fill(order, lengths, tokens_per_step):
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
