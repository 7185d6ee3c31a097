"""A recipe trained once for each combination of some values, and which of them to take.

    sweeps/SWEEP_ID/   recipes/01.yaml ...   one recipe a combination; its run is an ordinary one
                       base/                 what the base says to the test rows, asked once
                       sweep.json            the table and the choice
                       sweep.html            the same for people

The id is a hash of the recipes, and what was done is read from the runs themselves. So the same command goes on where it was
interrupted, and given once more it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data import hub
from tunesmith.data.dataset import Dataset
from tunesmith.data.prepare import prepare
from tunesmith.errors import AdapterError, DataError, TrainingError, UsageError
from tunesmith.evals.choose import Choice, Measured, choose
from tunesmith.evals.compare import measurable
from tunesmith.evals.metrics import METRICS
from tunesmith.evals.one import in_a_process
from tunesmith.evals.run import read_report, suites_of
from tunesmith.evals.spectrum import spectrum
from tunesmith.evals.systems import TUNED
from tunesmith.models.base import Base, resolve
from tunesmith.recipe.combine import Combination, combine, shown
from tunesmith.recipe.load import Loaded, load
from tunesmith.store.files import held, read_json, sha256_json, sha256_tree, write_json, write_text
from tunesmith.store.home import home
from tunesmith.training.check import estimate_parameters
from tunesmith.training.loop import read_metrics
from tunesmith.training.run import Run, all_runs, tokenizer_for

Say = Callable[[str], None]
SWEEP, PAGE = "sweep.json", "sweep.html"


@dataclass(frozen=True, slots=True)
class _Planned:
    """One combination, checked and with its data prepared."""

    combination: Combination
    loaded: Loaded
    base: Base
    dataset: Dataset


def sweep(recipe: str | Path, given: list[str], margin: float = 0.0, say: Say = lambda _line: None) -> dict:
    """Train, evaluate and compare every combination; as `verbs.sweep`.

    Raises:
        UsageError, RecipeError, DataError, BaseModelError: said before anything is trained (exit code 2).
        TrainingError: not one combination could be trained.
    """
    import torch

    if margin < 0:
        raise UsageError("--margin is below 0", fix="give how much worse is still good enough, for example 0.01")
    original, made = combine(recipe, given)
    resolved = [one.recipe.model_dump(mode="json") for one in made]
    name = f"{original.recipe.name}-{sha256_json([str(original.path), resolved]).removeprefix('sha256:')[:10]}"
    folder = home() / "sweeps" / name
    planned = _plan(original, made, folder / "recipes", say)
    with _alone(folder):
        rows: list[dict] = []
        for number, one in enumerate(planned, 1):
            say(f"{number} of {len(planned)}: {one.combination.label}")
            rows.append(_row(one, folder / "base", torch.get_num_threads(), say))
            if rows[-1]["status"] == "stopped":
                break
        document = _document(name, folder, original, planned, rows, margin)
        header, lines = cells(document)
        document |= {"table": {"header": header, "rows": lines}, "notes": notes(document)}
        write_json(folder / SWEEP, document)
        from tunesmith.evals.sweep_page import render

        write_text(folder / PAGE, render(document))
    if all(row["status"] == "failed" for row in rows):
        raise TrainingError("not one combination could be trained", where=str(folder), why=rows[0]["error"],
                            fix="train the recipe alone first: `tunesmith train RECIPE`")
    return document


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises UsageError when the same sweep is going on."""
    with ExitStack() as stack:
        try:
            stack.enter_context(held(folder))
        except BlockingIOError:
            raise UsageError("this sweep is going on in another process", where=str(folder),
                             fix="wait for it, or stop it first") from None
        except OSError:
            pass  # a file system without locks
        yield


# ---- before anything is trained -----------------------------------------------------------------------------------------


def _plan(original: Loaded, made: list[Combination], folder: Path, say: Say) -> list[_Planned]:
    """Recipes on disk, bases and data at hand, each looked for once; what cannot be compared is refused."""
    bases: dict[str, Base] = {}
    datasets: dict[str, Dataset] = {}
    planned = []
    for number, one in enumerate(made, 1):
        path = folder / f"{number:02d}.yaml"
        write_text(path, _recipe_text(original, one))
        loaded = load(path)
        recipe = loaded.recipe
        if recipe.base not in bases:
            bases[recipe.base] = resolve(recipe.base, loaded.folder)
        base = bases[recipe.base]
        key = sha256_json([recipe.base, recipe.data.model_dump(mode="json"), recipe.objective.type, recipe.train.seed])
        if key not in datasets:
            datasets[key] = prepare(loaded, tokenizer_for(base, loaded), say)
        estimate_parameters(loaded, base)
        planned.append(_Planned(one, loaded, base, datasets[key]))
    _same_rows(planned)
    return planned


def _recipe_text(original: Loaded, one: Combination) -> str:
    """The recipe's file with other values; local paths become absolute."""
    import yaml

    def absolute(files: Any) -> Any:
        if isinstance(files, dict):
            return {name: absolute(f) for name, f in files.items()}
        if isinstance(files, list):
            return [absolute(f) for f in files]
        return files if files is None or files.startswith(hub.PREFIX) else str(original.folder / Path(files).expanduser())

    def model(ref: str) -> str:
        local = original.folder / Path(ref).expanduser()
        return str(local.resolve()) if not ref.startswith("pypi:") and local.exists() else ref

    data = dict(one.said["data"])
    data |= {key: absolute(data[key]) for key in ("train", "test", "evals", "template") if key in data}
    measured = dict(one.said.get("eval") or {})
    if "suites" in measured:
        measured["suites"] = absolute(measured["suites"])
    if "embedder" in measured:
        measured["embedder"] = model(measured["embedder"])
    if documents := measured.get("retrieval"):
        documents = documents | {"documents": absolute(documents["documents"])}
        measured["retrieval"] = documents | ({"embedder": model(documents["embedder"])} if "embedder" in documents else {})
    if replay := data.get("replay"):
        data["replay"] = replay | {"rows": absolute(replay["rows"])}
    said = one.said | ({"eval": measured} if measured else {}) | {"data": data, "base": model(one.said["base"])}
    if isinstance(teacher := (said.get("objective") or {}).get("teacher"), str):
        said["objective"] = said["objective"] | {"teacher": model(teacher)}
    return (f"# Made by `tunesmith sweep` from {original.path}: {one.label}\n"
            + yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=120))


def _asked(one: _Planned) -> dict[str, list]:
    """The test rows that a combination is measured on: what is asked, the reference, and how many tokens that has."""
    found = {}
    for suite in suites_of(one.dataset, one.loaded):
        measurable(suite)
        found[suite.name] = [(i.messages, i.references, sum(i.tokens[1][1:]) if i.tokens else None) for i in suite.items]
    return found


def _same_rows(planned: list[_Planned]) -> None:
    """Raises DataError: models that answered different rows, or count them in different tokens, cannot be compared."""
    first, fix = _asked(planned[0]), "leave the key out that changes them, or name the test files in data.test"
    likelihoods = METRICS[planned[0].loaded.recipe.gates.target.metric].needs == "likelihood"
    for one in planned[1:]:
        other = _asked(one)
        if _texts(other) != _texts(first):
            raise DataError(f"{one.combination.label} would be tested on other rows than {planned[0].combination.label}",
                            why="only answers to the same rows can be compared; rows are drawn with train.seed when there are "
                                "more than eval.samples", fix=fix + ", or raise eval.samples to all rows")
        if likelihoods and other != first:
            raise DataError(f"{one.combination.label} counts its test rows in other tokens", why="a loss per token cannot be "
                            "compared with one of another tokenizer", fix="set gates.target.metric to one of the answers")


def _texts(asked: dict[str, list]) -> list:
    return [(name, [row[:2] for row in rows]) for name, rows in asked.items()]


# ---- one row of the table -----------------------------------------------------------------------------------------------


def _row(one: _Planned, remembered: Path, threads: int, say: Say) -> dict:
    """Its run, found, gone on with or made; measured. `status` is finished, failed or stopped (by Ctrl-C)."""
    row = {"values": one.combination.values, "label": one.combination.label, "run_id": None, "status": "failed", "error": None,
           "trainable_parameters": None, "target": None, "regression": None, "peak_memory_bytes": None, "seconds": None,
           "spectrum": None, "against_best": None}
    run = _its_run(one)
    if not (run and _evaluated(run)):
        job = {"recipe": str(one.loaded.path), "resume": run and run.path.name, "remembered": str(remembered),
               "threads": threads}
        try:
            status = in_a_process(job)["status"]
        except (TrainingError, AdapterError) as error:
            say(f"failed: {error.what}")
            run = _its_run(one)
            return row | {"run_id": run and run.path.name, "error": error.what + (f": {error.why}" if error.why else "")}
        run = _its_run(one)
        if status != "finished":
            return row | {"run_id": run and run.path.name, "status": "stopped"}
    state, report = run.state, read_report(run)
    peaks = [r.get("peak_memory_bytes", 0) for r in read_metrics(run.path)]
    return row | {"run_id": run.path.name, "status": "finished", "trainable_parameters": state["trainable_parameters"],
                  "target": _target(report, one.loaded), "regression": _regression(report, one.loaded),
                  "peak_memory_bytes": max(state["peak_memory_bytes"], *peaks), "seconds": state["train_seconds"],
                  "spectrum": spectrum(run.adapter)}


def _its_run(one: _Planned) -> Run | None:
    """The newest run of this very recipe, data and base."""
    wanted = one.loaded.recipe.model_dump(mode="json")
    for state in all_runs():
        if (state["recipe_path"] == str(one.loaded.path) and state["dataset_id"] == one.dataset.id
                and state["base"]["digest"] == one.base.digest
                and read_json(Path(state["run_dir"]) / "recipe.resolved.json") == wanted):
            return Run(Path(state["run_dir"]))
    return None


def _evaluated(run: Run) -> bool:
    report = read_report(run) if run.state["status"] == "finished" else None
    return bool(report) and report["adapter"]["digest"] == sha256_json(sha256_tree(run.adapter))


def _target(report: dict, loaded: Loaded) -> dict:
    m = report["sets"][report["primary"]]["metrics"][loaded.recipe.gates.target.metric]
    gain, interval = _gain(m)
    return {"value": m["tuned"], "ci95": m["systems"][TUNED]["ci95"], "base": m["base"], "gain": gain, "gain_ci95": interval}


def _regression(report: dict, loaded: Loaded) -> dict | None:
    """The largest drop from the base on the other sets that measure the target's metric; a negative drop is a gain."""
    drops, metric = [], loaded.recipe.gates.target.metric
    for name, part in report["sets"].items():
        if name != report["primary"] and metric in part["metrics"]:
            gain, (low, high) = _gain(part["metrics"][metric])
            drops.append({"set": name, "drop": -gain, "ci95": [-high, -low]})
    return max(drops, key=lambda d: d["drop"], default=None)


def _gain(m: dict) -> tuple[float, list[float]]:
    """From base to tuned, positive where that is better."""
    low, high = m["ci95"]
    return (m["delta"], [low, high]) if m["higher_is_better"] else (-m["delta"], [-high, -low])


# ---- all of them --------------------------------------------------------------------------------------------------------


def _document(name: str, folder: Path, original: Loaded, planned: list[_Planned], rows: list[dict], margin: float) -> dict:
    metric = original.recipe.gates.target.metric
    known = METRICS[metric]
    whole = len(rows) == len(planned) and all(r["status"] != "stopped" for r in rows)
    done = [i for i, r in enumerate(rows) if r["status"] == "finished"]
    primary = planned[0].dataset.tests[0]
    asked = suites_of(planned[0].dataset, planned[0].loaded)[0].items
    document = {
        "sweep_id": name, "status": "finished" if whole else "stopped", "path": str(folder / SWEEP), "page": str(folder / PAGE),
        "recipe": str(original.path), "base": original.recipe.base, "keys": list(planned[0].combination.values),
        "combinations": len(planned), "margin": margin, "primary": primary, "test_rows": len(asked),
        "metric": {"name": metric, "label": known.label, "unit": known.unit, "higher_is_better": known.higher_is_better},
        "rows": rows, "best": None, "recommended": None, "separated": None,
    }
    if not whole or not done:
        return document | {"conclusion": f"stopped after {len(done)} of {len(planned)} combinations: the same command goes on"}
    choice = choose(metric, [_measured(rows[i], primary, metric) for i in done], margin)
    for i, against in zip(done, choice.against, strict=True):
        rows[i]["against_best"] = {"gain": against.gain, "ci95": list(against.ci95), "worse": against.worse,
                                   "passes": against.passes}
    best, taken = rows[done[choice.best]], rows[done[choice.recommended]]
    chosen = {k: taken[k] for k in ("values", "label", "run_id", "trainable_parameters")}
    return document | {"best": best["run_id"], "recommended": chosen, "separated": choice.separated,
                       "conclusion": conclusion(document, choice, [rows[i] for i in done])}


def _measured(row: dict, primary: str, metric: str) -> Measured:
    items = read_report(Run.find(row["run_id"]))["sets"][primary]["items"]
    if METRICS[metric].is_mean:
        return Measured(row["trainable_parameters"], np.array([[item["scores"][metric][TUNED], 1.0] for item in items]))
    return Measured(row["trainable_parameters"], np.array([item["parts"][metric][TUNED] for item in items]))


def conclusion(document: dict, choice: Choice, rows: list[dict]) -> str:
    """What the numbers say, and what they do not."""
    m, n, margin = document["metric"], document["test_rows"], document["margin"]
    best, taken, against = rows[choice.best], rows[choice.recommended], choice.against[choice.recommended]
    if len(rows) == 1:
        said = f"Only {taken['label']} could be trained."
    elif not choice.separated:
        sizes = {row["trainable_parameters"] for row in rows}
        why = "it is the smallest" if len(sizes) > 1 else "they are of one size, and its mean is the best"
        said = (f"Nothing separates these {len(rows)} on {n} rows: the interval of every difference to the best includes 0. "
                f"{taken['label']} is recommended because {why}, for nothing else.")
    elif choice.recommended == choice.best:
        said = f"{taken['label']} is recommended: it has the best {m['label']}, and nothing smaller is as good."
    else:
        within = f"below the margin of {amount(margin, m['unit'])}" if against.ci95[1] < 0 else "its interval includes 0"
        said = (f"{taken['label']} is recommended: its {m['label']} differs from that of the best ({best['label']}) by "
                f"{amount(against.gain, m['unit'], signed=True)} ({within}), with "
                f"{taken['trainable_parameters'] / best['trainable_parameters']:.0%} of its parameters.")
    if against.ci95[0] < 0:
        said += f" It may still be worse than the best by up to {amount(-against.ci95[0], m['unit'])}."
    if taken["target"]["gain_ci95"][0] <= 0:
        said += " It is not shown to be better than the base" + (
            f", and {best['label']} is: take that, or more test rows." if best["target"]["gain_ci95"][0] > 0 else ".")
    if (r := taken["regression"]) and r["ci95"][0] > 0:
        said += f" It is worse than the base on {r['set']} by {amount(r['drop'], m['unit'])}."
    return said


def amount(value: float, unit: str, signed: bool = False) -> str:
    """A difference for people: shares in points."""
    sign = "+" if signed else ""
    return f"{100 * value if unit == 'share' else value:{sign}.1f} points" if unit in ("share", "score") else \
        f"{value:{sign}.4f}" + (" nats" if unit == "nats" else "")


def cells(document: dict) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the one table, for a terminal and for the page."""
    m = document["metric"]
    header = [*document["keys"], "trainable", m["name"], "95% interval", "to the best", "95% interval", "drop elsewhere",
              "peak memory", "seconds", "effective rank", "90% held by"]
    table = []
    for row in document["rows"]:
        values = [shown(v) for v in row["values"].values()]
        if row["status"] != "finished":
            table.append([*values, row["status"], *["-"] * 9])
            continue
        t, a, r, s = row["target"], row["against_best"], row["regression"], row["spectrum"]
        pair = "{:.3f} to {:.3f}".format
        table.append([*values, f"{row['trainable_parameters']:,}", f"{t['value']:.3f}", pair(*t["ci95"]),
                      f"{a['gain']:+.3f}" if a else "-", "{:+.3f} to {:+.3f}".format(*a["ci95"]) if a else "-",
                      f"{r['drop']:+.3f}" if r else "none", f"{row['peak_memory_bytes'] / 1e9:.2f} GB", f"{row['seconds']:.0f}",
                      f"{s['effective_rank']:.1f}" if s else "-", f"{s['held_by_90_percent']:g}" if s else "-"])
    return header, table


def notes(document: dict) -> list[str]:
    """What a reader of the table has to know."""
    found = [f"{row['label']} failed: {row['error']}" for row in document["rows"] if row["error"]]
    if document["rows"] and all(r["regression"] is None for r in document["rows"]):
        found.append(f"drop elsewhere: none, no other set measures {document['metric']['name']}; name a second in data.test")
    return found
