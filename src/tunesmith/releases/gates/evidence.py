"""What gates look at and what they say; and claims, the part of it that is a test of a hypothesis."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal
from urllib.parse import quote

from tunesmith.evals.statistics import Z95
from tunesmith.recipe.schema import Recipe
from tunesmith.training.run import ADAPTER, ORIGIN_FILE, Run, tokenizer_for

Verdict = Literal["pass", "fail", "not_measured"]
ALPHA = 0.025
"""Of a one-sided claim: it is made when the lower end of the 95% interval reaches what is asked for."""


ROWS = 1000
"""Training rows whose last trained token is looked at."""


@dataclass(frozen=True, slots=True)
class Gate:
    name: str
    verdict: Verdict
    evidence: dict[str, Any]
    """Numbers and thresholds, `message` in words, `see`: where in the report; and `fix`: what would have to change, when it did
    not pass."""

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Evidence:
    recipe: Recipe
    report: dict | None
    """None when the run was never evaluated."""
    dataset: dict
    """The dataset's manifest."""
    template: dict[str, Any] | None = None
    """What each part knows of the chat template (`gathered`)."""
    fallback: dict[str, Any] | None = None
    """What would be gone back to, and its last drill (`releases.drill.evidence`), where the recipe asks for the gate."""
    composed: dict | None = None
    """Of a composed run: how, and of which parents (`training.compose`)."""


def gathered(run: Run, report: dict | None) -> Evidence:
    """All evidence of a run. Raises RecipeError or BaseModelError when its base is not the one it was trained on."""
    from tunesmith.data.dataset import TRAIN
    from tunesmith.store.files import read_json
    from tunesmith.template.fingerprint import fingerprint
    from tunesmith.template.render import stop_ids

    loaded, dataset, state = run.recipe(), run.dataset(), run.state
    tokenizer = tokenizer_for(run.base(), loaded)
    origin = run.path / ADAPTER / ORIGIN_FILE
    tokens = dataset.tokens(TRAIN)
    rows = (tokens[i] for i in range(min(len(tokens), ROWS)))
    ends = {[t for t, on in zip(ids, trained, strict=True) if on][-1] for ids, trained in rows if any(trained)}
    prints = {"run": state["template_fingerprint"], "dataset": dataset.manifest["inputs"]["template"],
              "adapter": read_json(origin)["template_fingerprint"] if origin.is_file() else None,
              "report": report["dataset"]["template_fingerprint"] if report else None, "tokenizer": fingerprint(tokenizer)}
    rule, fallback = loaded.recipe.gates.rollback, None
    if rule is not None:
        from tunesmith.releases.drill import evidence

        fallback = evidence(rule.channel)
    return Evidence(loaded.recipe, report, dataset.manifest, {
        "fingerprints": prints, "stop_ids": sorted(stop_ids(tokenizer)), "answers_end_in": sorted(ends)}, fallback,
        state.get("composed"))


# ---- claims ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """That a metric of a set has gained at least `asked` from base to tuned; losses of it are asked for by negative numbers."""

    set: str
    metric: str
    n: int
    base: float
    tuned: float
    gain: float
    """Positive where the tuned model is better, whichever way the metric goes; in the metric's own unit."""
    ci95: tuple[float, float]
    asked: float
    p: float
    """One-sided: how likely so good a result is when the truth falls short of `asked`."""

    @property
    def holds(self) -> bool:
        return self.p <= ALPHA * (1 + 1e-9)

    @property
    def refuted(self) -> bool:
        """The items show the opposite, a loss, or their mean is worse than what is allowed."""
        return self.ci95[1] < 0 or self.gain < self.asked

    def as_dict(self) -> dict:
        return asdict(self) | {"ci95": list(self.ci95)}


def claim(part: dict, name: str, metric: str, asked: float) -> Claim:
    """Of one set of a report (or one tag of it) and one metric that was measured there."""
    m = part["metrics"][metric]
    sign = 1 if m["higher_is_better"] else -1
    low, high = sorted(sign * end for end in m["ci95"])
    gain = sign * m["delta"]
    return Claim(name, metric, part["n"], m["base"], m["tuned"], gain, (low, high), asked, p_below(gain, low, asked))


def p_below(gain: float, low: float, asked: float) -> float:
    """One-sided p of "at least `asked`", read off the lower half of the 95% interval as if it were half of a normal curve.

    It is 2.5% exactly where the interval begins at `asked`, so a claim never says other than its interval."""
    if not math.isfinite(gain - low):
        return 1.0
    half = max(gain - low, 1e-12)
    return NormalDist().cdf(-Z95 * (gain - asked) / half)


def needed(claim: Claim, allowed: float) -> int:
    """Items with which no loss at all would be told from one of `allowed`, with a power of 80%."""
    from tunesmith.evals.power import items_needed

    low, high = claim.ci95
    sd = (high - low) / (2 * Z95) * claim.n**0.5
    return items_needed(allowed, sd) if allowed > 0 and sd > 0 else claim.n


def points(value: float, unit: str, signed: bool = False) -> str:
    """A difference in words: shares in points."""
    sign = "+" if signed else ""
    if unit == "share":
        return f"{100 * value:{sign}.1f} points"
    return f"{value:{sign}.3g}" + (" nats" if unit == "nats" else "")


def see(name: str) -> str:
    """Where a reader finds a set: the page that travels with run and release, and its part."""
    return "report/report.html#set-" + quote(name)
