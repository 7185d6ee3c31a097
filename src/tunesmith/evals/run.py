"""Evaluate a run: the base, the base with help and the tuned model on the same items, greedily, and a report of all.

    runs/RUN_ID/report/report.json     everything, per item
                       report.html     one page for people
"""

from __future__ import annotations

import glob
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tunesmith.data.dataset import TRAIN, Dataset
from tunesmith.data.leaks import find_leaks, leaked_rows
from tunesmith.data.rows import Row
from tunesmith.data.similar import Index
from tunesmith.data.suites import rows_of_suite
from tunesmith.errors import DataError, UsageError
from tunesmith.evals import merged, noise, parents, shipped, words
from tunesmith.evals.compare import compare_suite, measurable
from tunesmith.evals.effect import effect
from tunesmith.evals.items import Suite, of_rows
from tunesmith.evals.latency import measure
from tunesmith.evals.metrics import METRICS
from tunesmith.evals.retrieval import Library, library
from tunesmith.evals.suite import suites_of_files
from tunesmith.evals.systems import (
    FEW_SHOT,
    HELPED_KINDS,
    RETRIEVAL,
    TUNED,
    ZERO_SHOT,
    Fitted,
    System,
    ask,
    few_shot,
    fit,
    remembered,
    retrieval,
    shots_from,
    systems_for,
)
from tunesmith.models.base import Base
from tunesmith.recipe.evaluation import Serving
from tunesmith.recipe.load import Loaded
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.suites import load_suites
from tunesmith.store.files import read_json, sha256_file, sha256_json, sha256_tree, write_json, write_text
from tunesmith.training.compose import measured_as
from tunesmith.training.loop import read_metrics
from tunesmith.training.run import Run, now, tokenizer_for

Say = Callable[[str], None]
REPORT = "report"


def evaluate(run: Run, say: Say = lambda _line: None, memory: Path | None = None, suites: Sequence[str] = (),
             serving: bool = False) -> dict:
    """Measure a finished run and write its report. Returns the report.

    `suites` are suite files beside those of the run's recipe, relative to where we are. What the base says is the same for all
    runs of one base, data and settings: in the directory `memory` it is looked up, and kept for the next.
    `serving` measures the server too, though the recipe does not ask for it.

    Raises:
        DataError: a metric that cannot be computed on these rows; nothing is loaded or generated then.
        AdapterError: the run has no adapter, or it does not fit its base.
    """
    import torch

    from tunesmith import methods
    from tunesmith.engine.fast import fuse
    from tunesmith.engine.memory import keep_pages
    from tunesmith.models.load import model_of
    from tunesmith.template.fingerprint import fingerprint

    loaded, dataset, base, state = with_suites(run.recipe(), suites), run.dataset(), run.base(), run.state
    recipe = loaded.recipe
    tokenizer = tokenizer_for(base, loaded)
    asked = suites_of(dataset, loaded, parents.measured(run, recipe, dataset))
    asked += shipped.suites(run, loaded, dataset, tokenizer, {suite.name for suite in asked})
    for suite in asked:
        measurable(suite)
    documents = library(loaded, tokenizer) if recipe.eval.retrieval else None
    systems = [*parents.systems(run), *systems_of(dataset, recipe, documents)]
    fitted = {suite.name: [fit(tokenizer, suite, system, context_of(base, recipe, system))
                           for system in systems_for(suite, systems)] for suite in asked}
    leaks = suite_leaks(dataset, loaded)
    torch.set_num_threads(state["threads"])
    keep_pages()
    model = methods.load(model_of(base, getattr(torch, state["dtype"]), state["device"]), run.adapter)
    parents.load(model, run)
    fuse(model)
    sets = {}
    for suite in asked:
        say(f"evaluating {len(suite.items)} rows of {suite.name!r}")
        path = memory / _base_key(run, suite, fingerprint(tokenizer), documents) if memory else None
        known = read_json(path) if path and path.is_file() else {}
        said = ask(model, tokenizer, suite, [f.system for f in fitted[suite.name]], batch_size=recipe.eval.batch_size,
                   known=known, say=say)
        if path and not known:
            write_json(path, remembered(said))
        sets[suite.name] = compare_suite(suite, said, recipe.eval, loaded.folder) | _prompts(fitted[suite.name])
        if suite.kind in HELPED_KINDS and suite.max_new_tokens != recipe.eval.max_new_tokens:
            sets[suite.name]["max_new_tokens"] = suite.max_new_tokens
        _add_passages(sets[suite.name]["items"], fitted[suite.name])
        if recipe.eval.noise and suite.kind == "test":
            noise.add(sets[suite.name], noise.noise_of(model, tokenizer, suite, recipe.eval.noise, seed=recipe.train.seed,
                                                       batch_size=recipe.eval.batch_size, say=say))
    report = {
        "version": 1, "name": recipe.name, "created": now(), "run_id": state["run_id"], "base": state["base"],
        "adapter": _adapter_facts(run, recipe), "dataset": _dataset_facts(run, dataset, fingerprint(tokenizer)),
        "settings": {"samples": recipe.eval.samples, "max_new_tokens": recipe.eval.max_new_tokens, "decoding": "greedy",
                     "seed": recipe.train.seed, "few_shot": recipe.eval.shots if FEW_SHOT in recipe.eval.baselines else 0,
                     "dtype": state["dtype"]},
        "primary": dataset.tests[0], "target": recipe.gates.target.metric, "sets": sets,
        "effect": effect(model, tokenizer, asked[0].items), "training": _training_facts(run),
    } | shipped.facts(model, tokenizer, sets)
    if documents:
        report["settings"]["retrieval"] = recipe.eval.retrieval.model_dump(mode="json")
        report["passages"] = {p.id: p.text for found in documents.found.values() for p, _ in found}
    if leaks:
        report["leaks"] = leaks
    report |= parents.section(run, sets)
    report["baselines"] = words.compared(report, recipe.gates.target.metric)
    if recipe.eval.style:
        from tunesmith.evals.style.ballot import count
        from tunesmith.evals.style.measure import measure_style

        report["style"] = measure_style(model, tokenizer, dataset, recipe, loaded.folder, say)
        report["style"]["votes"] = count(report, run.path)
    del model  # the server and the merged models are loaded by themselves
    if recipe.eval.serving or serving:
        say("measuring the server")
        report["serving"] = measure(run, recipe.eval.serving or Serving(), [i.messages for i in asked[0].items], say)
    if recipe.gates.merge:
        report["merge"] = merged.measure_run(run, asked[0].items, recipe.gates.merge, say)
    report["verdict"], report["worry"] = verdict(report, recipe), worries(report, dataset)
    write_report(run, report)
    run.event("evaluated", conclusion=report["verdict"])
    _track(run, recipe, report)
    say(report["verdict"])
    return report


def _track(run: Run, recipe: Recipe, report: dict) -> None:
    """Add the report and its numbers to the training's MLflow run. Raises TrackingError."""
    from tunesmith.store.home import home
    from tunesmith.track import mlflow

    if not run.state.get("mlflow_run_id"):
        return
    tracker = mlflow.start(recipe.track.mlflow, home(), experiment=recipe.track.experiment or recipe.name,
                           run_name=run.state["run_id"], params={}, tags={}, mlflow_run_id=run.state["mlflow_run_id"])
    values = {f"{part}/{metric}/{system}": measured["value"] for part, found in report["sets"].items()
              for metric, m in found["metrics"].items() for system, measured in m["systems"].items()}
    tracker.metrics(run.state["steps"], values)
    tracker.artifact(run.path / REPORT / "report.html")
    tracker.finish()


def write_report(run: Run, report: dict) -> None:
    """The report's document and its page."""
    from tunesmith.evals.html import render_report

    folder = run.path / REPORT
    write_json(folder / "report.json", report)
    write_text(folder / "report.html", render_report(report))
    run.update(report_path=str(folder / "report.html"))


def report_of(run: Run) -> dict:
    """The run's report. Raises UsageError when it has not been evaluated."""
    report = read_report(run)
    if report is None:
        raise UsageError(f"run {run.path.name} has not been evaluated", where=str(run.path),
                         fix=f"tunesmith eval {run.path.name}")
    return report


def read_report(run: Run) -> dict | None:
    path = run.path / REPORT / "report.json"
    return read_json(path) if path.is_file() else None


def summary(report: dict) -> dict:
    """The report's numbers without its items: what `eval --json` prints."""
    def numbers(part: dict) -> dict:
        return {name: {k: m[k] for k in ("unit", "base", "tuned", "delta", "ci95")} | {
            s: m["systems"][s]["value"] for s in m["systems"] if s not in (ZERO_SHOT, TUNED)}
            for name, m in part["metrics"].items()}

    return {"metrics": numbers(report["sets"][report["primary"]]), "primary": report["primary"],
            "sets": {n: {"kind": s["kind"], "n": s["n"], "metrics": numbers(s)} for n, s in report["sets"].items()},
            "baselines": [b["message"] for b in report["baselines"]],
            "conclusion": report["verdict"], "worry": report["worry"]} | (
                {"composition": parents.messages(report)} if "composition" in report else {}) | (
                {"style": report["style"]["verdict"]} if report.get("style") else {}) | (
                {"serving": report["serving"]} if "serving" in report else {})


def sampled(dataset: Dataset, name: str, samples: int, seed: int, drawn_as: str = "") -> list[int]:
    """Numbers of rows. An answer that is labelled bad is no reference to score against. `drawn_as`: what the set was called
    where the same rows were drawn before.

    Raises:
        DataError: there are only such answers.
    """
    good = [i for i, row in enumerate(dataset.rows(name)) if row.desirable is not False]
    if not good:
        raise DataError(f"every answer of test set {name!r} is labelled bad", why="answers are scored against good ones",
                        fix="hold out some rows with label true as well")
    return sorted(random.Random(f"{seed}/{drawn_as or name}").sample(good, min(samples, len(good))))


def picked(dataset: Dataset, name: str, rows: list[int]) -> list[Row]:
    all_rows = dataset.rows(name)
    return [all_rows[i] for i in rows]


def with_suites(loaded: Loaded, files: Sequence[str]) -> Loaded:
    """The recipe with more suite files, given relative to where we are. Raises UsageError: there is none of that name."""
    if not files:
        return loaded
    more = [str(Path(f).expanduser().absolute()) for f in files]
    if missing := [f for f in more if not glob.glob(f, recursive=True)]:
        raise UsageError(f"no suite file {missing[0]!r}", fix="give --suite a file or pattern, relative to where you are")
    known = loaded.recipe.eval
    suites = known.model_copy(update={"suites": list(dict.fromkeys([*known.suites, *more]))})
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"eval": suites}))


def suites_of(dataset: Dataset, loaded: Loaded, wanted: dict[str, dict] | None = None) -> list[Suite]:
    """What is asked: the dataset's test sets, each a sample of `eval.samples` rows, and the recipe's suite files, whole.

    `wanted`: how each set is measured, where its parts come from several recipes (`training.compose.measured_as`).

    Raises:
        DataError: a test set without a good answer.
        RecipeError: a suite file that is wrong.
    """
    suites, wanted = [], wanted or measured_as(loaded.recipe, dataset.tests)
    for name in dataset.tests:
        how, tokens = wanted[name], dataset.tokens(name)
        numbers = sampled(dataset, name, how["samples"], how["seed"], how["as"])
        rows = zip(picked(dataset, name, numbers), (tokens[i] for i in numbers), strict=True)
        source = ", ".join(Path(p).name for p in dataset.manifest["sources"].get(f"test:{name}", [])) or "held out of train"
        suites.append(Suite(name, "test", of_rows(rows, how["check"]), tuple(how["metrics"]), source, how["max_new_tokens"]))
    return [*suites, *suites_of_files(loaded, dataset.tests)]


def systems_of(dataset: Dataset, recipe: Recipe, documents: Library | None = None) -> list[System]:
    """Who is asked: the baselines that the recipe names, and the tuned model last, with and without `documents`."""
    systems = []
    for name in recipe.eval.baselines:
        if name == ZERO_SHOT:
            systems.append(System(ZERO_SHOT, adapter=False))
        elif name == RETRIEVAL:
            systems.append(retrieval(documents, adapter=False))
        elif shots := shots_from(dataset.rows(TRAIN), recipe.eval.shots, recipe.train.seed):
            systems.append(few_shot(shots))
    return [*systems, System(TUNED, adapter=True), *([retrieval(documents, adapter=True)] if documents else [])]


def context_of(base: Base, recipe: Recipe, system: System) -> int | None:
    """Tokens that a system's prompt and answer may have together; None when the base's config does not say."""
    config = base.config()
    tokens = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    return tokens and tokens - (getattr(recipe.method, "tokens", 0) if system.adapter else 0)


def suite_leaks(dataset: Dataset, loaded: Loaded) -> dict:
    """Leaks into train of suite files that were not there, or not as they are now, when the dataset was prepared.

    `{rows: {file: rows that stand in train}, findings}`; empty when the dataset's own findings cover every file.
    """
    known = dict(zip(dataset.manifest["sources"], dataset.manifest["inputs"]["sources"], strict=True))
    new = [s for s in load_suites(loaded) if known.get(f"eval:{s.held_out}") != [sha256_file(f) for f in s.files]]
    if not new:
        return {}
    train, near = dataset.rows(TRAIN), loaded.recipe.data.dedup.near
    findings = [f.as_dict() for f in find_leaks(train, {s.held_out: rows_of_suite(s) for s in new},
                                                Index(train, near) if near is not None else None)]
    return {"rows": {s.held_out: leaked_rows(findings, s.held_out) for s in new}, "findings": findings}


def _prompts(asked: list[Fitted]) -> dict:
    """Mean length of each system's prompts, and of how many items less help was shown than there was."""
    tokens = {f.system.name: round(f.prompt_tokens, 1) for f in asked}
    shorter = {f.system.name: f.fewer for f in asked if f.fewer}
    return {"prompt_tokens": tokens} | ({"shorter": shorter} if shorter else {})


def _add_passages(items: list[dict], asked: list[Fitted]) -> None:
    """`passages` of each item: what the base was shown, as `{id, score}`."""
    for fitted in asked:
        if fitted.system.name == RETRIEVAL:
            for item, shown in zip(items, fitted.shown, strict=True):
                item["passages"] = [{"id": passage.id, "score": round(score, 4)} for passage, score in shown]


def _base_key(run: Run, suite: Suite, template: str, documents: Library | None) -> str:
    """A file's name for all that the base's answers to a suite, and those of a composed run's parents, depend on. QLoRA's base
    is the quantised one."""
    state, recipe = run.state, run.recipe().recipe
    quantised = {k: getattr(recipe.method, k, None) for k in ("block_size", "double_quant")}
    asked = [suite.name, suite.metrics, suite.max_new_tokens, [asdict(item) for item in suite.items]]
    return sha256_json([state["base"]["digest"], quantised, state["dtype"], state["device"], state["threads"],
                        state["dataset_id"], recipe.eval.model_dump(mode="json"), recipe.train.seed, asked,
                        template, documents and documents.digest, *parents.digests(run)]).removeprefix("sha256:")[:20] + ".json"


def _adapter_facts(run: Run, recipe: Recipe) -> dict:
    from tunesmith.methods import describe

    composed = run.state.get("composed")
    return {**describe(recipe.method), **({"method": f"lora, composed by {composed['how']}", "rank": composed["rank"]}
                                          if composed else {}),
            "trainable_parameters": run.state["trainable_parameters"],
            "bytes": sum(p.stat().st_size for p in run.adapter.iterdir()), "digest": sha256_json(sha256_tree(run.adapter))}


def _dataset_facts(run: Run, dataset: Dataset, template: str) -> dict:
    if template != run.state["template_fingerprint"]:
        raise DataError("the base's chat template is not the one this run was trained with", where=str(run.path),
                        why=f"fingerprint {template}, the run's is {run.state['template_fingerprint']}",
                        fix="bring the template back, or train again")
    counts = dataset.manifest["counts"]
    return {"id": dataset.id, "train_rows": counts["train"], "used_rows": run.state["rows_trained"],
            "test_rows": counts[f"test:{dataset.tests[0]}"], "trained_tokens": counts["trained_tokens"],
            "tokens": counts["tokens"], "template_fingerprint": template}


def _training_facts(run: Run) -> dict:
    records, state = read_metrics(run.path), run.state
    shown = ("step", "loss", "learning_rate", "grad_norm")
    return {"steps": [{k: r[k] for k in shown} for r in records if "loss" in r],
            "evals": [{"step": r["step"], "loss": r["eval_loss"]} for r in records if "eval_loss" in r],
            "tokens_per_second": state["tokens_per_second"], "peak_memory_bytes": state["peak_memory_bytes"],
            "seconds": state["train_seconds"], "adapter_step": state.get("adapter_step")}


def verdict(report: dict, recipe: Recipe) -> str:
    """One sentence about the metric that the target gate reads."""
    name, metric = recipe.gates.target.metric, METRICS[recipe.gates.target.metric]
    if missing := report["sets"][report["primary"]].get("not_measured", {}).get(name):
        return f"{metric.label} was not measured: {missing['reason']}."
    m = report["sets"][report["primary"]]["metrics"][name]
    low, high = m["ci95"] if metric.higher_is_better else (-m["ci95"][1], -m["ci95"][0])
    gain = m["delta"] if metric.higher_is_better else -m["delta"]
    scale = 100 if metric.unit == "share" else 1
    numbers = f"{words.amount(abs(gain), metric.unit)} (95% interval {low * scale:.3g} to {high * scale:.3g})"
    if low > 0:
        return f"Tuned beats the base on {metric.label} by {numbers}."
    if high < 0:
        return f"Tuned is worse than the base on {metric.label} by {numbers}."
    return f"No difference between tuned and base on {metric.label} is shown: {words.amount(gain, metric.unit, signed=True)} " \
           f"(95% interval {low * scale:.3g} to {high * scale:.3g})."


def worries(report: dict, dataset: Dataset) -> list[str]:
    """What a careful reader should look at, in the report's last word."""
    out = []
    for name, part in report["sets"].items():
        out += [f"on {name}, {said}" for said in noise.words(part) if "within" in said]
        out += [f"on {name}, {m['label']} was not measured: {m['reason']}" for m in part.get("not_measured", {}).values()]
        cut = [i["id"] for i in part["items"] if i["stopped"].get(TUNED) is False]
        if cut and part["kind"] not in ("regression", "safety"):  # those look at the beginning only
            limit = part.get("max_new_tokens", report["settings"]["max_new_tokens"])
            out.append(f"{len(cut)} of {part['n']} tuned answers on {name} hit the limit of {limit} tokens "
                       f"({', '.join(cut[:3])})")
        for system, fewer in part.get("shorter", {}).items():
            out.append(f"{fewer} of {part['n']} prompts of {system} on {name} have fewer examples or passages than were asked "
                       "for: more do not fit the base's context")
    out += [found["message"] for found in report["baselines"] if found["call"] != words.BETTER and found["b"] != TUNED]
    out += [c["message"] for c in report.get("composition", {}).get("compared", ()) if c["call"] == words.WORSE]
    out += [f"leak: {f['message']} ({', '.join(f['examples'][:2])})" for f in report.get("leaks", {}).get("findings", [])]
    evals = report["training"]["evals"]
    if len(evals) > 2 and evals[-1]["loss"] > 1.05 * min(e["loss"] for e in evals):
        best = min(evals, key=lambda e: e["loss"])
    else:
        best = None
    if best and best["step"] != report["training"].get("adapter_step"):
        out.append(f"held-out loss was lower at step {best['step']} ({best['loss']:.3f}) than at the end "
                   f"({evals[-1]['loss']:.3f})")
    out += report.get("style", {}).get("worry", [])
    for f in dataset.manifest["findings"]:
        if f["severity"] != "info":
            out.append(f"data: {f['message']}" + (f" ({', '.join(f['examples'][:2])})" if f["examples"] else ""))
    return out
