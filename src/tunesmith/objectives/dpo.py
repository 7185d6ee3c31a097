"""Preferences: raise the preferred answer over the rejected one, each measured against the base.

    h = (log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected)),   sums over an answer's tokens

    sigmoid   -(1 - e) log s(beta h) - e log s(-beta h)      DPO (arXiv 2305.18290, eq. 7); e = label_smoothing: cDPO
    ipo       (h' - 1 / (2 beta))^2                          IPO (arXiv 2310.12036, eq. 17), h' of means over tokens

IPO takes each log-ratio per token of its answer, as TRL 1.16 does on its authors' word: with sums, the loss would grow with the
square of an answer's length. Rewards are beta times the log-ratios of whole answers, in either case.

The reference is the model without its adapter. Its log p are computed once, before the training, and come with the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from tunesmith.objectives import families
from tunesmith.objectives.families import Family
from tunesmith.objectives.step import Measure


@dataclass(frozen=True, slots=True)
class Pair:
    rows: Family
    """Prompt, preferred answer, rejected answer."""
    reference: tuple[float, float]
    """Log p of the two answers without the adapter, in nats."""


@dataclass(frozen=True, slots=True)
class Dpo:
    answer_logps: Callable
    """The fast or the plain path's."""
    beta: float
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: float = 0.0
    accuracy = "pairs ranked right"

    def first_loss(self, _packs) -> float:
        """Of a model that still is its reference, whatever the data: ln 2, or 1 / (4 beta^2)."""
        return math.log(2) if self.loss == "sigmoid" else 0.25 / self.beta**2

    def begin(self, model, packs: Sequence[Sequence[Pair]]) -> tuple[float, Measure]:
        def measure(pack: Sequence[Pair]):
            logps_P3 = self.answer_logps(model, [pair.rows for pair in pack]).view(-1, 3)
            reference_P2 = torch.tensor([pair.reference for pair in pack], device=logps_P3.device)
            lengths_P2 = torch.tensor([[families.labels((row,)) for row in pair.rows[1:]] for pair in pack],
                                      device=logps_P3.device)
            ratios_P2 = logps_P3[:, 1:] - reference_P2
            rewards_P2 = self.beta * ratios_P2.detach()
            margins_P = rewards_P2[:, 0] - rewards_P2[:, 1]
            return self.pair_losses(ratios_P2, lengths_P2).sum(), {
                "accuracy": (margins_P > 0).sum(), "reward_chosen": rewards_P2[:, 0].sum(),
                "reward_rejected": rewards_P2[:, 1].sum(), "reward_margin": margins_P.sum()}

        return sum(map(len, packs)), measure

    def pair_losses(self, ratios_P2: torch.Tensor, lengths_P2: torch.Tensor) -> torch.Tensor:
        """Of log p - log p_ref of the preferred and the rejected answers, and their numbers of predicted tokens."""
        if self.loss == "ipo":
            chosen_P, rejected_P = (ratios_P2 / lengths_P2).unbind(1)
            return (chosen_P - rejected_P - 0.5 / self.beta).square()
        h_P = self.beta * (ratios_P2[:, 0] - ratios_P2[:, 1])
        return -(1 - self.label_smoothing) * F.logsigmoid(h_P) - self.label_smoothing * F.logsigmoid(-h_P)

    def tokens(self, sample: Pair) -> int:
        return families.tokens(sample.rows)

    def trained(self, sample: Pair) -> int:
        return families.labels(sample.rows)
