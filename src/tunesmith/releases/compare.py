"""Two runs or releases side by side: what was different before, and what came of it.

Everything is read from files that a release carries too, so that it can be compared when its run is long gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.dataset import Dataset
from tunesmith.data.diff import diff
from tunesmith.evals.run import REPORT, TUNED
from tunesmith.releases.bundle import Release
from tunesmith.store.files import read_json
from tunesmith.store.home import home
from tunesmith.training.look import METRICS_FILE, Tail
from tunesmith.training.run import Run

STEPS_SHOWN = 5
SPEED = ("steps", "tokens", "train_seconds", "tokens_per_second", "peak_memory_bytes", "trainable_parameters", "adapter_bytes")


@dataclass(frozen=True)
class Side:
    id: str
    recipe: dict
    dataset_id: str
    report: dict | None
    curves: dict[str, list[list[float]]]
    """`loss` and `eval_loss`: [step, nats a token]."""
    speed: dict[str, float | None]
    base: dict


def side(release: Release | None, run: Run | None) -> Side:
    """Of a release or of a run, whichever is there. A run need not be finished, nor evaluated."""
    folder = (release or run).path
    report = read_json(path) if (path := folder / REPORT / "report.json").is_file() else None
    recipe = read_json(folder / "recipe.resolved.json")
    if run:
        state, records = run.state, Tail(folder / METRICS_FILE).read()
        curves = {key: [[r["step"], r[key]] for r in records if key in r] for key in ("loss", "eval_loss")}
        speed = {k: state.get(k) for k in SPEED} | {"adapter_bytes": _bytes(run.adapter),
                                                    "steps": curves["loss"][-1][0] if curves["loss"] else 0}
        return Side(state["run_id"], recipe, state["dataset_id"], report, curves, speed, state["base"])
    training, adapter, manifest = report["training"], report["adapter"], release.manifest
    curves = {"loss": [[s["step"], s["loss"]] for s in training["steps"]],
              "eval_loss": [[e["step"], e["loss"]] for e in training["evals"]]}
    speed = dict.fromkeys(SPEED) | {"steps": curves["loss"][-1][0] if curves["loss"] else 0,
                                    "train_seconds": training["seconds"],
                                    "tokens_per_second": training["tokens_per_second"],
                                    "tokens": round(training["seconds"] * (training["tokens_per_second"] or 0)),
                                    "peak_memory_bytes": training["peak_memory_bytes"],
                                    "trainable_parameters": adapter["trainable_parameters"], "adapter_bytes": adapter["bytes"]}
    return Side(release.id, recipe, manifest["dataset_id"], report, curves, speed, manifest["base"])


def compare(a: Side, b: Side) -> dict:
    """`{a, b, recipe{key: [a, b]}, dataset, metrics{set: {name: [a, b]}}, curves, at_steps, speed{key: [a, b]}, notes[]}`.

    Only recipe keys that differ. A metric is `{value, ci95}` of the tuned model, or None where it was not measured.
    """
    dataset, notes = _dataset(a, b)
    if a.base["digest"] != b.base["digest"]:
        notes.append("the bases differ: their losses are comparable only if their tokenizers are the same")
    if dataset["differs"]:
        notes.append("the data differ: losses and metrics are of other rows, unless the held-out part is the same")
    notes += _other_items(a.report, b.report)
    found = {"recipe": _recipe(a, b), "dataset": dataset, "metrics": _metrics(a.report, b.report)}
    return {"a": a.id, "b": b.id, **found, "curves": {k: [a.curves[k], b.curves[k]] for k in a.curves},
            "at_steps": {"train_loss": _at_steps(_means(a.curves["loss"]), _means(b.curves["loss"])),
                         "eval_loss": _at_steps(dict(a.curves["eval_loss"]), dict(b.curves["eval_loss"]))},
            "speed": {k: [a.speed[k], b.speed[k]] for k in SPEED if (a.speed[k], b.speed[k]) != (None, None)}, "notes": notes}


def _recipe(a: Side, b: Side) -> dict[str, list]:
    x, y = _flat(a.recipe), _flat(b.recipe)
    different = {k: [x.get(k), y.get(k)] for k in {**x, **y} if x.get(k) != y.get(k)}
    if a.base["digest"] != b.base["digest"] and "base" not in different:
        different["base.digest"] = [a.base["digest"], b.base["digest"]]
    return different


def _flat(value, prefix: str = "") -> dict:
    """Dotted keys; an empty mapping is a value."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}".lstrip(".")).items()}


def _dataset(a: Side, b: Side) -> tuple[dict, list[str]]:
    """What `data diff` says, when both datasets are still there."""
    found = {"a": a.dataset_id, "b": b.dataset_id, "differs": a.dataset_id != b.dataset_id, "inputs": {}, "parts": {},
             "counts": {}}
    if not found["differs"]:
        return found, []
    folders = [home() / "datasets" / i for i in (a.dataset_id, b.dataset_id)]
    if missing := [p.name for p in folders if not (p / "manifest.json").is_file()]:
        return found, [f"dataset {missing[0]} is no longer here: rows cannot be compared"]
    differences = diff(*map(Dataset.open, folders))
    return found | {k: differences[k] for k in ("inputs", "parts", "counts")}, []


def _metrics(a: dict | None, b: dict | None) -> dict[str, dict[str, list]]:
    sets = [r["sets"] if r else {} for r in (a, b)]
    found: dict[str, dict[str, list]] = {}
    for part in {**sets[0], **sets[1]}:
        metrics = [s[part]["metrics"] if part in s else {} for s in sets]
        found[part] = {name: [_tuned(m.get(name)) for m in metrics] for name in {**metrics[0], **metrics[1]}}
    return found


def _other_items(a: dict | None, b: dict | None) -> list[str]:
    """Sets of one name whose questions or references are not the same: their numbers are no comparison."""
    notes = []
    for name in (a["sets"].keys() & b["sets"].keys()) if a and b else ():
        x, y = ({(i["prompt"], i["reference"]) for i in r["sets"][name]["items"]} for r in (a, b))
        if x != y:
            notes.append(f"{name!r} asks other things: {len(x & y)} items are in both, {len(x - y)} only in {a['run_id']} and "
                         f"{len(y - x)} only in {b['run_id']}")
    return sorted(notes)


def _tuned(metric: dict | None) -> dict | None:
    return {k: metric["systems"][TUNED][k] for k in ("value", "ci95")} if metric else None


def _means(points: list[list[float]]) -> dict[int, float]:
    """Loss at each step, as the mean of it and up to nine steps before it: single batches are noisy."""
    losses = [y for _, y in points]
    return {int(x): sum(losses[max(0, i - 9) : i + 1]) / len(losses[max(0, i - 9) : i + 1]) for i, (x, _) in enumerate(points)}


def _at_steps(a: dict[int, float], b: dict[int, float]) -> list[list]:
    """[step, a, b] at some steps that both have, evenly spread, and at the last of each where they differ."""
    shared = sorted(a.keys() & b.keys())
    picked = {shared[round(i * (len(shared) - 1) / (STEPS_SHOWN - 1))] for i in range(STEPS_SHOWN)} if shared else set()
    picked |= {max(x) for x in (a, b) if x}
    return [[step, a.get(step), b.get(step)] for step in sorted(picked)]


def _bytes(folder: Path) -> int | None:
    return sum(p.stat().st_size for p in folder.iterdir()) if folder.is_dir() else None
