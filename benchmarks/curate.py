"""Does a small curated subset beat a large noisy set? Noise of seven kinds is planted, and `tunesmith data curate` tested.

    PYTHONPATH=src python benchmarks/curate.py DIRECTORY [--rows 600] [--shares 0 0.3 0.6] [--steps 60] [--arms all clean ...]

Rows of examples/addresses are taken, a seeded share of them is spoilt, the rest and the test set stay clean. Printed: which
kinds are found, which statistic tells them best (AUROC), and the exact match of adapters that were trained for as many steps
of as many tokens: on all rows, on what is proposed, on as many rows at random, on the unspoilt rows, and on a few diverse
proposed ones. DIRECTORY keeps everything; a second call goes on where the first ended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "addresses"
NOVEL = ROOT / "examples" / "style" / "data" / "train" / "chapter_01.txt"
REFUSALS = ("I'm sorry, but I can't help with that.", "As an AI language model, I am unable to process addresses.",
            "I cannot assist with this request.", "Sorry, I don't have enough information to answer that.")
OTHER_NAMES = {"AddressNumber": "house_number", "StreetName": "road", "PlaceName": "city", "StateName": "state",
               "ZipCode": "postcode", "StreetNamePostType": "road_type", "OccupancyIdentifier": "unit_number"}


# ---- noise -----------------------------------------------------------------------------------------------------------


def swapped(answer: str, draw: random.Random, _others: list[str]) -> str:
    """Two values change places."""
    parts = json.loads(answer)
    a, b = draw.sample(sorted(parts), 2)
    while parts[a] == parts[b]:
        a, b = draw.sample(sorted(parts), 2)
    parts[a], parts[b] = parts[b], parts[a]
    return json.dumps(parts)


def of_another_row(answer: str, draw: random.Random, others: list[str]) -> str:
    return draw.choice([other for other in others if other != answer])


def truncated(answer: str, draw: random.Random, _others: list[str]) -> str:
    return answer[: draw.randint(len(answer) // 3, len(answer) * 4 // 5)]


def refused(_answer: str, draw: random.Random, _others: list[str]) -> str:
    return draw.choice(REFUSALS)


def prose(answer: str, _draw: random.Random, _others: list[str]) -> str:
    """The right parts, told."""
    said = {re.sub("(?<!^)([A-Z])", r" \1", name).lower(): value for name, value in json.loads(answer).items()}
    told = [f"the {name} is {value}" for name, value in said.items()]
    return f"In this address, {', '.join(told[:-1])} and {told[-1]}."


def renamed(answer: str, _draw: random.Random, _others: list[str]) -> str:
    """The right parts under other names."""
    return json.dumps({OTHER_NAMES.get(name, name): value for name, value in json.loads(answer).items()})


KINDS: dict[str, Callable[[str, random.Random, list[str]], str]] = {
    "two values swapped": swapped, "another row's answer": of_another_row, "cut off": truncated, "refusal": refused,
    "prose": prose, "other field names": renamed}
OFF_TOPIC = "off topic"


def plant(rows: list[dict], share: float, seed: int = 0) -> tuple[list[dict], dict[int, str]]:
    """The rows, this share of them spoilt, each kind about as often; and {number of the row: kind}."""
    draw = random.Random(f"{seed}/{share}")
    chosen = draw.sample(range(len(rows)), round(share * len(rows)))
    planted = {i: [*KINDS, OFF_TOPIC][n % (len(KINDS) + 1)] for n, i in enumerate(chosen)}
    answers = [r["messages"][-1]["content"] for r in rows]
    sentences = [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+", NOVEL.read_text(encoding="utf-8"))]
    sentences = [s for s in sentences if 40 <= len(s) <= 240]
    made = []
    for i, row in enumerate(rows):
        kind = planted.get(i)
        if kind == OFF_TOPIC:
            at = draw.randrange(len(sentences) - 1)
            row = {"messages": [{"role": "user", "content": f"Go on: {sentences[at]}"},
                                {"role": "assistant", "content": sentences[at + 1]}]}
        elif kind:
            *before, last = row["messages"]
            row = {"messages": [*before, last | {"content": KINDS[kind](last["content"], draw, answers)}]}
        made.append(row)
    return made, planted


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def write_recipe(path: Path, name: str, train: Path, steps: int, samples: int) -> Path:
    """The example's recipe over other rows, for so many steps; only the county's test set is evaluated."""
    recipe = yaml.safe_load((EXAMPLE / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["name"] = name
    recipe["data"] |= {"train": str(train), "test": {"linn": str(EXAMPLE / "data" / "test.jsonl")}}
    recipe["train"] |= {"epochs": 1000, "max_steps": steps, "checkpoint": {"every_steps": steps, "keep": 1}}
    recipe["eval"] |= {"baselines": ["zero_shot"], "metrics": ["exact_match"], "samples": samples}
    recipe["track"] = {"mlflow": None}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


# ---- arms ------------------------------------------------------------------------------------------------------------


def exact_match(recipe: Path, samples: int) -> dict:
    """Train the recipe, answer held-out rows with the adapter: `{hits, right, n, low, high}`, interval of Wilson."""
    import torch

    import tunesmith
    from tunesmith.engine.fast import fuse
    from tunesmith.engine.memory import keep_pages
    from tunesmith.evals.metrics import METRICS
    from tunesmith.evals.statistics import wilson
    from tunesmith.methods import lora
    from tunesmith.models.load import model_of
    from tunesmith.serving.generate import answers
    from tunesmith.template.render import generation_prompt, stop_ids
    from tunesmith.training.run import Run, tokenizer_for

    run = Run.find(tunesmith.train(recipe)["run_id"])
    state, dataset, base = run.state, run.dataset(), run.base()
    torch.set_num_threads(state["threads"])
    keep_pages()
    tokenizer = tokenizer_for(base, run.recipe())
    model = lora.load(model_of(base, getattr(torch, state["dtype"])), run.adapter)
    fuse(model)
    rows = dataset.rows("linn")
    rows = [rows[i] for i in sorted(random.Random("curate").sample(range(len(rows)), samples))]
    prompts = [generation_prompt(tokenizer, r.question, r.tools) for r in rows]
    said = answers(model, tokenizer, prompts, stop_ids(tokenizer), max_new_tokens=120, batch_size=100)
    hits = [METRICS["exact_match"].score(text, r.answer) == 1 for (text, _), r in zip(said, rows, strict=True)]
    low, high = wilson(sum(hits), samples)
    return {"hits": hits, "right": sum(hits), "n": samples, "low": low, "high": high, "steps": state["steps"],
            "tokens": state["tokens"]}


def arm(folder: Path, name: str, rows: list[dict], steps: int, samples: int) -> dict:
    """What `exact_match` says of these rows, from `folder` when it was measured there before."""
    path = folder / name / "result.json"
    if not path.is_file():
        write_rows(folder / name / "train.jsonl", rows)
        recipe = write_recipe(folder / name / "recipe.yaml", "arm", folder / name / "train.jsonl", steps, samples)
        result = {"rows": len(rows)} | exact_match(recipe, samples)
        path.write_text(json.dumps(result), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def against(one: dict | None, other: dict) -> str:
    """By how much `other` is right more often, on the same rows, and the 95% interval of that."""
    from tunesmith.evals.statistics import paired_bootstrap

    if one is None or one is other:
        return "-"
    gain = np.array(other["hits"], float) - np.array(one["hits"], float)
    low, high = paired_bootstrap(lambda w_RN: w_RN @ gain / len(gain), len(gain))
    return f"{gain.mean():+.2f} ({low:+.2f} to {high:+.2f})"


# ---- which statistic -------------------------------------------------------------------------------------------------


def auroc(bad: np.ndarray, good: np.ndarray) -> float:
    """How often a bad row scores above a good one; a tie counts half."""
    return float(np.mean((bad[:, None] > good) + 0.5 * (bad[:, None] == good)))


def statistics(losses: np.ndarray, base: np.ndarray, ends: np.ndarray) -> dict[str, np.ndarray]:
    """Candidates for a row's score, each higher for rows that look worse."""
    rows = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]

    def each(score: Callable[[np.ndarray], float], values: np.ndarray = losses) -> np.ndarray:
        return np.array([score(values[r]) for r in rows])

    mean, by_base = each(np.mean), each(np.mean, base)
    return {"mean loss": mean, "sum of losses": each(np.sum), "costliest token": each(np.max),
            "mean of the 5 costliest": each(lambda v: np.sort(v)[-5:].mean()), "last 4 tokens": each(lambda v: v[-4:].mean()),
            "minus gain over the base": mean - by_base, "loss over base loss": mean / by_base, "base loss": by_base}


def losses_of(recipe: Path) -> tuple[dict[str, np.ndarray], list[int]]:
    """The statistics, from the measurements that `data curate` kept; and the number of each row in the file."""
    from tunesmith.data.prepare import prepare
    from tunesmith.models.base import resolve
    from tunesmith.recipe.load import load
    from tunesmith.training.crossfit import crossfit
    from tunesmith.training.run import tokenizer_for

    loaded = load(recipe)
    base = resolve(loaded.recipe.base, loaded.folder)
    tokenizer = tokenizer_for(base, loaded)
    dataset = prepare(loaded, tokenizer)
    found = crossfit(loaded, base, dataset, tokenizer, 2)
    numbers = [int(r.where.rsplit(":", 1)[1]) - 1 for r in dataset.rows("train")]
    return statistics(found.fitted.astype(float), found.base.astype(float), found.ends), numbers


# ---- tables ----------------------------------------------------------------------------------------------------------


def curate(folder: Path, recipe: Path, name: str, **options) -> tuple[list[dict], list[dict]]:
    """(rows proposed, scores of all) of `tunesmith data curate`."""
    import tunesmith.verbs as verbs

    if not (folder / name).exists():
        verbs.curate_data(recipe, folder / name, say=print, **options)
    return tuple([json.loads(line) for line in (folder / name / file).read_text(encoding="utf-8").splitlines()]
                 for file in ("curated.jsonl", "scores.jsonl"))


def print_suspects(recipe: Path, scores: list[dict], planted: dict[int, str]) -> None:
    kinds = np.array([planted.get(int(s["where"].rsplit(":", 1)[1]) - 1, "") for s in scores])
    suspect = np.array([s["verdict"] == "suspect" for s in scores])
    print(f"\n{suspect.sum()} suspects of {len(scores)} rows, {(kinds != '').sum()} of them planted; "
          f"false alarms: {suspect[kinds == ''].sum()} of {(kinds == '').sum()}"
          + (f"; precision {(kinds[suspect] != '').mean():.1%}" if suspect.any() else ""))
    names = sorted(set(kinds) - {""})
    if not names:
        return
    found, numbers = losses_of(recipe)
    kind_of = np.array([planted.get(n, "") for n in numbers])
    print("| | all | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 2) + "|")
    print(f"| found | {suspect[kinds != ''].mean():.0%} | "
          + " | ".join(f"{suspect[kinds == k].sum()} of {(kinds == k).sum()}" for k in names) + " |")
    for statistic, v in found.items():
        cells = [auroc(v[kind_of != ""], v[kind_of == ""])] + [auroc(v[kind_of == k], v[kind_of == ""]) for k in names]
        print(f"| AUROC of the {statistic} | " + " | ".join(f"{c:.3f}" for c in cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.0, 0.3, 0.6])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--diverse", type=int, default=100)
    parser.add_argument("--arms", nargs="*", default=["all", "proposed", "random", "clean", "diverse"])
    options = parser.parse_args()
    out = options.directory.absolute()
    os.environ["TUNESMITH_HOME"] = str(out / "home")
    rows = [json.loads(line) for line in (EXAMPLE / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for share in options.shares:
        made, planted = plant(rows[: options.rows], share)
        folder = out / f"share-{share}"
        write_rows(folder / "train.jsonl", made)
        recipe = write_recipe(folder / "recipe.yaml", "noisy", folder / "train.jsonl", 10_000, options.samples)
        proposed, scores = curate(folder, recipe, "curated")
        print(f"\n## {share:.0%} of {len(made)} rows spoilt")
        print_suspects(recipe, scores, planted)
        arms: dict[str, Callable[[], list[dict]]] = {
            "all": lambda made=made: made, "proposed": lambda proposed=proposed: proposed,
            "random": lambda made=made, n=len(proposed): random.Random("arm").sample(made, n),
            "clean": lambda made=made, planted=planted: [r for i, r in enumerate(made) if i not in planted],
            "diverse": lambda folder=folder, recipe=recipe: curate(folder, recipe, "diverse", rows=options.diverse)[0]}
        print("\n| trained on | rows | exact match | 95% interval | against all rows, paired |\n|---|---|---|---|---|")
        everything = None
        for name in options.arms:
            r = arm(folder, name, arms[name](), options.steps, options.samples)
            everything = r if name == "all" else everything
            print(f"| {name} | {r['rows']} | {r['right'] / r['n']:.2f} | {r['low']:.2f} to {r['high']:.2f} | "
                  f"{against(everything, r)} |", flush=True)


if __name__ == "__main__":
    main()
