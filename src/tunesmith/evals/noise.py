"""How much a score moves when nothing has changed: the base answers the same items again, sampling, with other seeds.

What is decoded greedily repeats itself exactly, and so has no noise of its own; but models are used with a temperature. A gain
that is no larger than what two samplings of the base differ by is one that nobody will notice.

Shapes: K = seeds, N = items.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tunesmith.evals.compare import parts_of, value
from tunesmith.evals.items import Outcome, Suite
from tunesmith.evals.metrics import METRICS
from tunesmith.evals.statistics import Z95, interval, items_of
from tunesmith.evals.systems import System, ask
from tunesmith.evals.words import amount
from tunesmith.recipe.evaluation import Noise

APART = 1_000_003
"""Between two seeds: each item takes one of its own, counted up from here."""


def noise_of(model, tokenizer, suite: Suite, settings: Noise, *, batch_size: int, seed: int = 0,
             say: Callable[[str], None] = lambda _line: None) -> dict[str, dict]:
    """{metric: `{seeds, temperature, values, floor, ci95}`} of the base on this suite; its items in another order each time."""
    outcomes = []
    for k in range(settings.seeds):
        order = list(range(len(suite.items)))
        random.Random(f"{seed}/noise/{k}").shuffle(order)
        system = System(f"base again, seed {k}", adapter=False, temperature=settings.temperature, seed=seed + (k + 1) * APART)
        said = ask(model, tokenizer, replace(suite, items=[suite.items[i] for i in order]), [system], batch_size=batch_size,
                   known={}, say=say)[system.name]
        found: list[Outcome] = [Outcome()] * len(order)
        for at, outcome in zip(order, said, strict=True):
            found[at] = outcome
        outcomes.append(found)
    return {name: floor(name, suite, outcomes) | {"seeds": settings.seeds, "temperature": settings.temperature}
            for name in suite.metrics if METRICS[name].prepare is None}


def add(part: dict, found: dict[str, dict]) -> None:
    """Put it into the report's set: `noise` of each metric, and a sentence about all of them into the set's `note`."""
    for name, noise in found.items():
        part["metrics"][name]["noise"] = noise
    if found:
        metrics = [part["metrics"][name] for name in found]
        moved = [f"{m['label']} by up to {amount(m['noise']['floor'], m['unit'])}" for m in metrics]
        part["note"] = (f"Sampling twice at temperature {metrics[0]['noise']['temperature']:g} moves the base's "
                        + " and ".join(filter(None, (", ".join(moved[:-1]), moved[-1]))))


def words(part: dict) -> list[str]:
    """What the noise of a set's metrics means for their changes, a sentence each; none where it was not measured."""
    said = []
    for m in part["metrics"].values():
        if noise := m.get("noise"):
            most = amount(noise["floor"], m["unit"])
            within = abs(m["delta"]) <= noise["floor"]
            said.append(f"sampling twice at temperature {noise['temperature']:g} moves the base's {m['label']} by up to {most}"
                        + (": the change is within that noise" if within else ""))
    return said


def floor(name: str, suite: Suite, outcomes: list[list[Outcome]]) -> dict:
    """`{values, floor, ci95}` of a metric: 95 of 100 times, two evaluations of one model differ by less than `floor`.

    It is estimated item by item, from how each item's own value varies over the seeds, so two seeds are enough:
    floor = 1.96 * sqrt(2 * mean of the items' variances / N).
    """
    metric, n = METRICS[name], len(suite.items)
    parts = parts_of(metric, suite.items, {str(k): o for k, o in enumerate(outcomes)})
    of_items_KN = np.stack([items_of(metric.value, p_NS)[0] for p_NS in parts.values()])
    variances_N = of_items_KN.var(0, ddof=1)

    def most(sums_RS: np.ndarray) -> np.ndarray:
        return Z95 * np.sqrt(2 * sums_RS[:, 0] / sums_RS[:, 1] / n)

    low, high = interval(most, np.stack([variances_N, np.ones(n)], 1), mean=False, bounds=(0.0, None))
    return {"values": [value(metric, p_NS) for p_NS in parts.values()],
            "floor": Z95 * math.sqrt(2 * float(variances_N.mean()) / n), "ci95": [low, high]}
