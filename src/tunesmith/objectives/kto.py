"""Answers that are labelled good or bad, one at a time (KTO, arXiv 2402.01306, eq. 7 and 8).

    r = log p(answer) - log p_ref(answer),  summed over the answer's tokens
    z = max(0, mean of r over mismatched answers)           how far the model is from its base; no gradient

    good   w_d (1 - s(beta (r - z)))
    bad    w_u (1 - s(beta (z - r)))

A mismatched answer is another row's, to this row's prompt. TRL takes the neighbour's in the batch; here each row has one
partner for good, drawn with the seed among the rows with another prompt (`data.pairs.Labelled`): so its reference is computed
once, a step of one row has one too, and the two halves of a pair, which stand side by side, are not taken for a mismatch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tunesmith.objectives import families
from tunesmith.objectives.families import Family
from tunesmith.objectives.step import Measure


@dataclass(frozen=True, slots=True)
class Labelled:
    rows: Family
    """Prompt, answer."""
    other: Family
    """Prompt, another row's answer."""
    desirable: bool
    reference: tuple[float, float]
    """Log p of both answers without the adapter, in nats."""


@dataclass(frozen=True, slots=True)
class Kto:
    answer_logps: Callable
    """The fast or the plain path's."""
    beta: float
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    accuracy = "rows on their side of the KL"

    def first_loss(self, packs: Sequence[Sequence[Labelled]]) -> float:
        """Of a model that still is its reference: half of the mean weight."""
        weights = [self._weight(sample) for pack in packs for sample in pack]
        return 0.5 * sum(weights) / len(weights)

    def _weight(self, sample: Labelled) -> float:
        return self.desirable_weight if sample.desirable else self.undesirable_weight

    def begin(self, model, packs: Sequence[Sequence[Labelled]]) -> tuple[float, Measure]:
        count = sum(map(len, packs))
        good = sum(sample.desirable for pack in packs for sample in pack)
        kl = self._kl(model, packs)

        def measure(pack: Sequence[Labelled]):
            ratios_R = self._ratios(model, [s.rows for s in pack], [s.reference[0] for s in pack])
            good_R = torch.tensor([s.desirable for s in pack], device=ratios_R.device)
            weights_R = torch.tensor([self._weight(s) for s in pack], device=ratios_R.device)
            over_R = self.beta * (ratios_R - kl)
            losses_R = weights_R * (1 - torch.sigmoid(torch.where(good_R, over_R, -over_R)))
            rewards_R = self.beta * ratios_R.detach()
            sums = {"accuracy": ((over_R > 0) == good_R).sum(), "kl": kl * len(pack)}
            for name, which_R, rows in (("reward_desirable", good_R, good), ("reward_undesirable", ~good_R, count - good)):
                if rows:  # a mean over these rows alone
                    sums[name] = rewards_R[which_R].sum() * (count / rows)
            return losses_R.sum(), sums

        return count, measure

    def _kl(self, model, packs: Sequence[Sequence[Labelled]]) -> torch.Tensor:
        with torch.no_grad():
            ratios = [self._ratios(model, [s.other for s in pack], [s.reference[1] for s in pack]) for pack in packs]
        return torch.cat(ratios).mean().clamp(min=0)

    def _ratios(self, model, rows: Sequence[Family], reference: Sequence[float]) -> torch.Tensor:
        logps_R = self.answer_logps(model, rows).view(-1, 2)[:, 1]
        return logps_R - torch.tensor(reference, device=logps_R.device)

    def tokens(self, sample: Labelled) -> int:
        return families.tokens(sample.rows)

    def trained(self, sample: Labelled) -> int:
        return families.labels(sample.rows)
