"""Where things go in the report's figures and how its numbers are written. No markup is made here; the template draws.

Every position is a percentage of the figure (x: 0 = left, y: 0 = top), so a figure stretches to any width
while its text and strokes keep their size. Values that are not finite are left out of the drawing and counted.

    Scale(0, 200).place(50)   ->  25.0
    curve([(1, 2.0), (2, nan), (3, 1.0)], x, y)   ->  two segments, the gap stays a gap
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.evals.calibration import reliability

MOST_POINTS = 800
"""Points of one drawn curve. Longer ones keep the lowest and highest value of each stretch, so spikes stay visible."""

Point = tuple[float, float | None]


@dataclass(frozen=True, slots=True)
class Scale:
    low: float
    high: float

    def place(self, value: float) -> float:
        if self.high == self.low:
            return 50.0
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def ticks(self, intervals: int = 4) -> list[float]:
        """Round numbers inside the scale, about `intervals` + 1 of them."""
        if self.high == self.low:
            return [self.low]
        step = round_step((self.high - self.low) / intervals)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(step * i, 12) for i in range(first, last + 1)]


def is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def round_step(at_least: float) -> float:
    """The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is not below `at_least`."""
    power = 10.0 ** math.floor(math.log10(at_least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= at_least * (1 - 1e-9))


def scale_from_zero(values: Iterable[Any], *, at_least: float | None = None) -> Scale:
    """A scale that contains zero and every finite value and ends on round numbers: no axis is cut to look steep."""
    finite = [v for v in values if is_finite(v)]
    low, high = min([0.0, *finite]), max([0.0 if at_least is None else at_least, *finite])
    if low == high:
        high = low + 1.0
    step = round_step((high - low) / 4)
    if high != at_least:
        high = step * math.ceil(high / step - 1e-9)
    return Scale(step * math.floor(low / step + 1e-9), high)


def metric_scales(sets: dict[str, Any]) -> dict[str, Scale]:
    """One scale for each metric, the same in every set. Shares stand on one axis that reaches 100%, differences of shares on
    another, scores on one to 100."""
    values: dict[str, list[Any]] = {}
    for one_set in sets.values():
        for name, metric in one_set["metrics"].items():
            key = axis_of(name, metric)
            for score in metric["systems"].values():
                values.setdefault(key, []).extend([score["value"], *(score.get("ci95") or [])])
    return {key: scale_from_zero(v, at_least={"share": 1.0, "score": 100.0}.get(key)) for key, v in values.items()}


def axis_of(name: str, metric: dict[str, Any]) -> str:
    if metric["unit"] == "share" and any(score["value"] < 0 for score in metric["systems"].values()):
        return "share, less another"  # below zero there is nothing for the others to show
    return metric["unit"] if metric["unit"] in ("share", "score") else name


def tick_label(tick: float, axis: str) -> str:
    return (f"{100 * tick:g}%" if axis.startswith("share") else f"{tick:,g}").replace("-", "−")


def dots(metric: dict[str, Any], systems: Sequence[str], scale: Scale) -> list[dict[str, Any]]:
    """One dot with its interval for each system that was measured; `lane` is the system's place in the row."""
    drawn = []
    for lane, system in enumerate(systems):
        score = metric["systems"].get(system)
        if score is None or not is_finite(score["value"]):
            continue
        interval = score.get("ci95")
        whisker = None
        if interval is not None and all(map(is_finite, interval)):
            whisker = (scale.place(interval[0]), scale.place(interval[1]))
        drawn.append({"system": system, "lane": lane, "x": scale.place(score["value"]), "whisker": whisker})
    return drawn


def difference(delta: Any, interval: Sequence[float] | None, reach: float, sign: int) -> dict[str, Any] | None:
    """Where a difference and its interval are drawn, on a scale from -reach to reach; `sign` turns it: right is better."""
    if not is_finite(delta):
        return None
    scale = Scale(-reach, reach)
    ends = None
    if interval is not None and all(map(is_finite, interval)):
        ends = tuple(sorted(scale.place(sign * end) for end in interval))
    return {"x": scale.place(sign * delta), "whisker": ends}


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred running mean, so the smoothed curve does not lag behind the raw one; the window shrinks at both ends."""
    half = window // 2
    out = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        stretch = values[i - reach : i + reach + 1]
        out.append(sum(stretch) / len(stretch))
    return out


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Keep the lowest and the highest point of each stretch, in their order."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most // 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [p for p in stretch if is_finite(p[1])]
        if len(finite) < len(stretch):
            kept.append(next(p for p in stretch if not is_finite(p[1])))
        if finite:
            kept.extend(sorted({min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])}))
    return sorted(kept, key=lambda p: p[0])


def curve(points: Sequence[Point], x: Scale, y: Scale) -> list[list[tuple[float, float]]]:
    """Segments of placed points; a value that is not finite ends a segment."""
    segments: list[list[tuple[float, float]]] = [[]]
    for step, value in thin(points):
        if is_finite(value):
            segments[-1].append((x.place(step), round(100 - y.place(value), 2)))
        elif segments[-1]:
            segments.append([])
    return [segment for segment in segments if segment]


def training_figure(training: dict[str, Any]) -> dict[str, Any]:
    """Loss, learning rate and gradient norm over the same steps, each on its own scale from zero."""
    steps, evals = training["steps"], training["evals"]
    at = [row["step"] for row in [*steps, *evals]] or [0]
    x = Scale(min(at), max(at))
    loss = [(row["step"], row["loss"]) for row in steps]
    finite = [point for point in loss if is_finite(point[1])]
    window = (len(finite) // 12) | 1
    y = scale_from_zero([row["loss"] for row in [*steps, *evals]])
    held_out = [(row["step"], row["loss"]) for row in evals]
    figure = {
        "steps": [(x.place(tick), int(tick)) for tick in x.ticks(5) if tick == int(tick)],
        "loss_ticks": [(round(100 - y.place(tick), 2), tick) for tick in y.ticks()],
        "loss": curve(loss, x, y),
        "held_out": curve(held_out, x, y),
        "window": window if window >= 3 else None,
        "smoothed": [],
        "left_out": len(loss) - len(finite),
        "strips": [],
    }
    if figure["window"]:
        means = smooth([value for _, value in finite], window)
        figure["smoothed"] = curve([(step, mean) for (step, _), mean in zip(finite, means, strict=True)], x, y)
    for key in ("learning_rate", "grad_norm"):
        points = [(row["step"], row.get(key)) for row in steps]
        if measured := [value for _, value in points if is_finite(value)]:
            scale = Scale(min([0.0, *measured]), max(measured) or 1.0)
            strip = {"key": key, "curve": curve(points, x, scale), "highest": max(measured), "last": measured[-1]}
            figure["strips"].append(strip)
    return figure


def shown(value: Any, unit: str, *, signed: bool = False, bare: bool = False) -> str:
    """A metric's value as the reader sees it; `bare` leaves the unit away, `signed` is for differences."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{100 * value:.1f}" if unit == "share" else f"{value:.1f}" if unit == "score" else decimals(value)
    sign = "" if float(text.replace(",", "")) == 0 else "−" if value < 0 else "+" if signed else ""
    suffix = "" if bare else " points" if signed and unit in ("share", "score") else "%" if unit == "share" else ""
    return sign + text.lstrip("-") + suffix


def decimals(value: float) -> str:
    if 0 < abs(value) < 0.01:
        return f"{value:.2g}" if abs(value) >= 1e-4 else f"{value:.1e}"
    return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def span(interval: list[float] | None, unit: str) -> str:
    return "" if interval is None else " to ".join(shown(end, unit, bare=True) for end in interval)


def reliability_figure(one_set: dict[str, Any]) -> list[dict[str, Any]]:
    """For base and tuned: how sure (x) against how often right (y), a dot for each bin with its interval, and the diagonal that
    a calibrated model follows. Empty for a set without the metric `ece`."""
    drawn = []
    for system in ("zero_shot", "tuned") if "ece" in one_set["metrics"] else ():
        bins = reliability(one_set["items"], system)
        dots = [{"x": round(100 * b["confidence"], 2), "y": round(100 - 100 * b["right"], 2), "n": b["n"],
                 "whisker": tuple(round(100 - 100 * end, 2) for end in b["ci95"])} for b in bins]
        error = one_set["metrics"]["ece"]["systems"][system]
        drawn.append({"system": system, "dots": dots, "error": shown(error["value"], "share", bare=True),
                      "interval": span(error["ci95"], "share")})
    return drawn
