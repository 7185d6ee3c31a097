"""Does a model know what it does not know? Multiple choice: how sure it is of its answer against how often that is right.

The probabilities are the softmax of the choices' log-likelihoods, its confidence that of the likeliest (Guo et al. 2017).

    ece      sum over 15 equal bins of confidence: share of items * |share of right ones - mean confidence|
    brier    mean over items of sum over choices (probability - 1 if correct else 0)^2, 0 to 2 (Brier 1950)

Both are functions of sums over items (ADR 12): the bins' counts, confidences and right answers for the one, the squares for the
other. The calibration error of few items is biased upward, in base and tuned alike: 200 items of a perfectly calibrated model
measure about 0.07. The change is what counts, and the Brier score has no such bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.evals.items import Item, Outcome

BINS = 15


def probabilities(log_likelihoods: Sequence[float]) -> np.ndarray:
    shifted = np.asarray(log_likelihoods, dtype=float) - max(log_likelihoods)
    return np.exp(shifted) / np.exp(shifted).sum()


def brier(outcome: Outcome, item: Item) -> tuple[float, float]:
    """The squared distance of the probabilities from the truth, and 1."""
    wanted = np.zeros(len(outcome.choices))
    wanted[item.correct] = 1.0
    return float(((probabilities(outcome.choices) - wanted) ** 2).sum()), 1.0


def ece_parts(outcome: Outcome, item: Item) -> list[float]:
    """3 * BINS numbers: the item in its bin, its confidence there, whether it is right there."""
    p = probabilities(outcome.choices)
    parts = np.zeros((3, BINS))
    parts[:, bin_of(float(p.max()))] = 1.0, p.max(), float(p.argmax() == item.correct)
    return parts.ravel().tolist()


def ece(sums_RS: np.ndarray) -> np.ndarray:
    """The calibration error of summed parts, [R, 3 * BINS] -> [R]."""
    count_RB, confidence_RB, right_RB = np.split(sums_RS, 3, axis=1)
    return np.abs(right_RB - confidence_RB).sum(1) / count_RB.sum(1)


def bin_of(confidence: float) -> int:
    """Bins are open on the left: 1/15 is in the first, 1 in the last."""
    return max(0, min(BINS - 1, int(np.ceil(confidence * BINS)) - 1))


def reliability(items: Sequence[dict], system: str) -> list[dict]:
    """The bins of a report's items that are not empty: `{low, high, n, confidence, right, ci95}`, for the picture."""
    from tunesmith.evals.statistics import wilson

    parts = [item["parts"]["ece"][system] for item in items if system in item.get("parts", {}).get("ece", {})]
    if not parts:
        return []
    count_B, confidence_B, right_B = np.sum(parts, axis=0).reshape(3, BINS)
    return [{"low": b / BINS, "high": (b + 1) / BINS, "n": int(n), "confidence": confidence_B[b] / n, "right": right_B[b] / n,
             "ci95": list(wilson(round(right_B[b]), int(n)))} for b, n in enumerate(count_B) if n]


def needs_one_correct(item: Item) -> None:
    """Raises ValueError: fewer than two choices, or none of them correct."""
    if len(item.choices) < 2:
        raise ValueError("it has no two choices")
    if item.correct is None or not 0 <= item.correct < len(item.choices):
        raise ValueError("`correct` is not the number of a choice, counted from 0")
