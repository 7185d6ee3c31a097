"""The report's `drift`: how far the tuned model has moved from its base on neutral text (training/drift.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.evals.statistics import paired_bootstrap
from tunesmith.training.drift import TEXT, Moved


def drift_of(model, tokenizer) -> dict:
    """What `summed_up` says of a model with its adapter on."""
    from tunesmith.engine import plain
    from tunesmith.training.drift import moved, neutral

    return summed_up(moved(model, neutral(tokenizer), plain.answer_logits))


def summed_up(found: Sequence[Moved]) -> dict:
    """`kl` and `loss` in nats a token, with 95% intervals over passages: another text of this kind could have been taken."""
    parts_NS = np.array([[m.kl, m.base_nats, m.tuned_nats, m.tokens] for m in found], dtype=float)

    def of(numerator: int, less: int | None = None):
        def statistic(weights_RN: np.ndarray) -> np.ndarray:
            sums_RS = weights_RN @ parts_NS
            return (sums_RS[:, numerator] - (0 if less is None else sums_RS[:, less])) / sums_RS[:, 3]

        value = float(statistic(np.ones((1, len(found))))[0])
        return value, list(paired_bootstrap(statistic, len(found)))

    (kl, kl95), (base, _), (tuned, _), (delta, delta95) = of(0), of(1), of(2), of(2, 1)
    return {"text": TEXT.name, "passages": len(found), "tokens": sum(m.tokens for m in found),
            "kl": {"label": "KL(base || tuned)", "unit": "nats", "value": kl, "ci95": kl95},
            "loss": {"label": "loss on neutral text", "unit": "nats", "base": base, "tuned": tuned, "delta": delta,
                     "ci95": delta95}}
