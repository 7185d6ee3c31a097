"""Distillation: learn what a larger model thinks of every word, not only which word came (arXiv 1503.02531).

    alpha T^2 KL + (1 - alpha) CE,   in the mean over labelled tokens

KL is between the distributions of teacher and student at temperature T: forward, which covers all that the teacher would say;
or reverse, which keeps to what it says most (arXiv 2306.08543). The teacher's most likely words are kept by name, all others
as one (`engine.distill`). They are computed once, before the training, and come with the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tunesmith.engine.distill import Settings
from tunesmith.objectives import sft
from tunesmith.objectives.sft import Sample
from tunesmith.objectives.step import Measure


@dataclass(frozen=True, slots=True)
class Taught:
    sample: Sample
    words_NK: torch.Tensor
    """The teacher's most likely words at each labelled token."""
    logps_NK1: torch.Tensor
    """Their log p at the temperature, and at last that of all other words together."""


@dataclass(frozen=True, slots=True)
class Distill:
    distances: Callable
    """The fast or the plain path's, of `engine.distill`."""
    settings: Settings
    accuracy = "next-token accuracy"

    def begin(self, model, packs: Sequence[Sequence[Taught]]) -> tuple[float, Measure]:
        def measure(pack: Sequence[Taught]):
            loss_N, kl_N, ce_N, hits = self.distances(
                model, [taught.sample for taught in pack], torch.cat([taught.words_NK for taught in pack]),
                torch.cat([taught.logps_NK1 for taught in pack]), self.settings)
            return loss_N.sum(), {"accuracy": hits, "teacher_kl": kl_N.sum(), "cross_entropy": ce_N.sum()}

        return sft.labelled([[taught.sample for taught in pack] for pack in packs]), measure

    def tokens(self, sample: Taught) -> int:
        return len(sample.sample[0])

    def trained(self, sample: Taught) -> int:
        return len(sample.words_NK)
