"""What is known of each metric: what it needs, its numbers for one item, and what the sum of such numbers means (ADR 12).

Add a metric: write it in a file of this folder, give it a row in METRICS, its name in `recipe.evaluation.MetricName`, and a
test against an independent implementation.

Shapes: N = items, R = resamples, S = numbers a metric gives for one item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tunesmith.evals import calibration
from tunesmith.evals.items import Item, Outcome
from tunesmith.evals.metrics import checks, choices, corpus, judge, safety, similarity
from tunesmith.evals.metrics.answers import accuracy, contains, exact_match, json_f1, rouge_l, token_f1
from tunesmith.recipe.evaluation import Eval

Need = Literal["answer", "likelihood", "choices"]


def ratio(sums_RS: np.ndarray) -> np.ndarray:
    """The first sum over the second: a mean when the second counts items."""
    return sums_RS[:, 0] / sums_RS[:, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    label: str
    unit: Literal["share", "nats", "ratio", "score", "cosine"]
    """share: 0 to 1, shown in points. score: 0 to 100, as BLEU is. cosine: -1 to 1."""
    higher_is_better: bool = True
    needs: Need = "answer"
    parts: Callable[[Outcome, Item], Sequence[float]]
    """S numbers of one item."""
    value: Callable[[np.ndarray], np.ndarray] = ratio
    """The metric of summed parts, [R, S] -> [R]."""
    check: Callable[[Item], None] = lambda _item: None
    """Raises ValueError, saying why nothing could ever score on this item."""
    scale: Literal["own", "log"] = "own"
    """log: the interval of one system's value is made of its logarithm, where its errors are even."""
    prepare: Callable[[list[Item], dict[str, list[Outcome]], Eval, Path | None], dict] | None = None
    """Called once with the items and what all systems said, to fetch what parts need besides into `Outcome.extra`, with the
    recipe's settings and the folder that their paths are relative to. Returns facts for the report. Raises NotMeasured."""
    fetches: str | None = None
    """The name in `Outcome.extra`. A system whose outcomes do not have it is not measured."""

    @property
    def is_mean(self) -> bool:
        """Whether the metric of a set is the mean of the metric of its items."""
        return self.value is ratio and self.needs != "likelihood"


def per_answer(score: Callable[[str, str], float]) -> Callable[[Outcome, Item], tuple[float, float]]:
    """Parts of a score of one answer against one reference: against the best of several."""
    return lambda outcome, item: (max(score(outcome.text or "", r) for r in item.references), 1.0)


def has_reference(item: Item) -> None:
    if not item.references:
        raise ValueError("it has no reference")


def against_itself(score: Callable[[str, str], float]) -> Callable[[Item], None]:
    """A check: a reference that a score refuses, or none."""

    def check(item: Item) -> None:
        has_reference(item)
        for reference in item.references:
            score(reference, reference)

    return check


def _of_answers(label: str, score: Callable[[str, str], float]) -> Metric:
    return Metric(label=label, unit="share", parts=per_answer(score), check=against_itself(score))


def _likelihood(outcome: Outcome, _item: Item) -> tuple[float, float]:
    return outcome.nats, outcome.tokens


def _by_rule(label: str, parts: Callable, check: Callable[[Item], None] = lambda _item: None, needs: Need = "answer") -> Metric:
    return Metric(label=label, unit="share", parts=parts, check=check, needs=needs)


def _of_corpus(label: str, name: str, value: Callable[[np.ndarray], np.ndarray]) -> Metric:
    return Metric(label=label, unit="score", value=value, check=has_reference,
                  parts=lambda outcome, item: corpus.counts(name, outcome.text or "", item.references))


METRICS: dict[str, Metric] = {
    "exact_match": _of_answers("exact match", exact_match),
    "accuracy": _of_answers("accuracy", accuracy),
    "contains": _of_answers("contains the reference", contains),
    "json_f1": _of_answers("JSON field F1", json_f1),
    "token_f1": _of_answers("token F1", token_f1),
    "rouge_l": _of_answers("ROUGE-L", rouge_l),
    "bleu": _of_corpus("BLEU", "bleu", corpus.bleu),
    "chrf": _of_corpus("chrF", "chrf", corpus.chrf),
    "similarity": Metric(label="similarity of meaning", unit="cosine", parts=similarity.similarity, check=has_reference,
                         prepare=similarity.prepare, fetches=similarity.NAME),
    "json_valid": _by_rule("valid JSON", checks.json_valid),
    "json_schema": _by_rule("valid under the schema", checks.json_schema, checks.needs_schema),
    "regex": _by_rule("matches the pattern", checks.regex, checks.needs_pattern),
    "choice": _by_rule("likeliest choice is correct", choices.choice, choices.needs_choices, "choices"),
    "choice_norm": _by_rule("likeliest choice per byte is correct", choices.choice_norm, choices.needs_choices, "choices"),
    "judge": Metric(label="win rate by the judge", unit="share", parts=judge.judge, prepare=judge.prepare, fetches=judge.NAME),
    "loss": Metric(label="held-out loss", unit="nats", higher_is_better=False, needs="likelihood", parts=_likelihood),
    "perplexity": Metric(label="perplexity", unit="ratio", higher_is_better=False, needs="likelihood", parts=_likelihood,
                         value=lambda sums_RS: np.exp(ratio(sums_RS)), scale="log"),
    "ece": Metric(label="calibration error", unit="share", higher_is_better=False, needs="choices", parts=calibration.ece_parts,
                  value=calibration.ece, check=calibration.needs_one_correct),
    "brier": Metric(label="Brier score", unit="ratio", higher_is_better=False, needs="choices", parts=calibration.brier,
                    check=calibration.needs_one_correct),
    "refusal": Metric(label="refuses", unit="share", parts=safety.refusal),
    "over_refusal": Metric(label="refuses what is harmless", unit="share", higher_is_better=False, parts=safety.refusal),
    "obedience": Metric(label="obeys the system prompt", unit="share", parts=safety.obedience, check=safety.has_rules),
    "extraction": Metric(label="training rows word for word, beyond held-out ones", unit="share", higher_is_better=False,
                         parts=safety.extraction, value=safety.excess, check=safety.begun),
    "verbatim": Metric(label="longest run of training rows, beyond held-out ones", unit="share", higher_is_better=False,
                       parts=safety.verbatim, value=safety.excess, check=safety.begun),
    "exposure": Metric(label="exposure of planted secrets, bits", unit="score", higher_is_better=False, needs="choices",
                       parts=safety.exposure, check=safety.one_planted),
}
