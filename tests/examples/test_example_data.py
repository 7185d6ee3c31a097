"""The example data that ships with the project is whole, well-formed, and its test rows are not in its train rows.

    python -m pytest tests/examples/test_example_data.py
"""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ADDRESSES = EXAMPLES / "addresses" / "data"
STYLE = EXAMPLES / "style" / "data"
ROWS = {"train": 1500, "test": 300, "hand_train": 714, "hand_test": 714}
PAIRS = [("test", "train"), ("test", "hand_train"), ("hand_test", "train"), ("hand_test", "hand_train")]
SYSTEM = "Split the US address into its parts. Answer with JSON."
GRAM_LIMIT, WORD_LIMIT = 0.8, 0.7


def load(name):
    """Rows as (address line, answer text)."""
    lines = (ADDRESSES / f"{name}.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    chats = [json.loads(line) for line in lines]
    for number, chat in enumerate(chats, 1):
        assert list(chat) == ["messages"], f"{name}.jsonl:{number}: keys {list(chat)}"
        roles = [message["role"] for message in chat["messages"]]
        assert roles == ["system", "user", "assistant"], f"{name}.jsonl:{number}: roles {roles}"
        assert chat["messages"][0]["content"] == SYSTEM, f"{name}.jsonl:{number}: another system prompt"
    return [(chat["messages"][1]["content"], chat["messages"][2]["content"]) for chat in chats]


def normalise(text):
    return " ".join(re.sub(r"[^\w\s]", "", text.casefold()).split())


def words(text):
    return frozenset(normalise(text).split())


def grams(text):
    key = normalise(text)
    return frozenset(key[i : i + 4] for i in range(max(1, len(key) - 3)))


def overlaps(test_texts, train_texts):
    """Every (test line, train line) that is the same or nearly so: by 4-character pieces or by words, Jaccard."""
    found = set()
    for pieces, limit in ((grams, GRAM_LIMIT), (words, WORD_LIMIT)):
        train = [(text, pieces(text)) for text in train_texts]
        for text in test_texts:
            a = pieces(text)
            for other, b in train:
                if min(len(a), len(b)) / max(len(a), len(b)) < limit:
                    continue  # sets this different in size cannot overlap enough
                shared = len(a & b)
                if shared / (len(a) + len(b) - shared) >= limit:
                    found.add((text, other))
    return sorted(found)


@pytest.fixture(scope="module")
def files():
    return {name: load(name) for name in ROWS}


@pytest.mark.parametrize("name", ROWS)
def test_file_has_the_stated_number_of_rows_and_no_line_twice(files, name):
    texts = [text for text, _ in files[name]]
    assert len(texts) == ROWS[name]
    assert len({normalise(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("name", ROWS)
def test_every_answer_is_json_made_of_parts_of_its_line_in_reading_order(files, name):
    for text, content in files[name]:
        answer = json.loads(content)
        assert answer, f"{name}: empty answer for {text!r}"
        assert json.dumps(answer, ensure_ascii=False) == content, f"{name}: not in default json.dumps form: {content}"
        at = 0
        for tag, part in answer.items():
            assert isinstance(part, str) and part, f"{name}: {tag} of {text!r} is {part!r}"
            at = text.find(part, at) + len(part)
            assert at >= len(part), f"{name}: {tag} {part!r} is not in {text!r} after the part before it"


@pytest.mark.parametrize("test, train", PAIRS)
def test_no_test_row_nor_a_near_duplicate_of_one_is_in_train(files, test, train):
    test_texts, train_texts = ([text for text, _ in files[name]] for name in (test, train))
    assert {normalise(text) for text in test_texts}.isdisjoint(normalise(text) for text in train_texts)
    assert overlaps(test_texts, train_texts) == []


def test_overlap_check_fails_when_a_test_row_is_planted_in_train(files):
    """The control: exact, retyped, one letter off, one word off. A check that finds none of these proves nothing."""
    test_texts, train_texts = ([text for text, _ in files[name]] for name in ("test", "train"))
    victim = max(test_texts, key=len)
    number, rest = victim.split(" ", 1)
    for planted in (victim, victim.upper() + ",", victim + "9", f"{int(number) + 1} {rest}"):
        assert overlaps(test_texts, train_texts + [planted]) == [(victim, planted)]


def test_either_bound_alone_finds_a_near_duplicate():
    line = "1600 Pennsylvania Avenue Washington"
    joined = "1600 PennsylvaniaAvenue Washington"  # 2 of 5 words, most of the 4-character pieces
    turned = "Washington Avenue Pennsylvania 1600"  # all of the words, few of the pieces
    assert overlaps([line], [joined, turned]) == [(line, joined), (line, turned)]
    assert overlaps([line], ["1601 Constitution Avenue Washington"]) == []


def test_county_files_share_no_street_name_and_test_has_no_shape_unknown_to_train(files):
    train, test = ([json.loads(content) for _, content in files[name]] for name in ("train", "test"))
    assert {normalise(row["StreetName"]) for row in train}.isdisjoint(normalise(row["StreetName"]) for row in test)
    assert {tuple(row) for row in test} <= {tuple(row) for row in train}


def test_no_two_chapters_share_a_paragraph_and_each_starts_with_its_heading():
    paths = sorted(STYLE.glob("*/chapter_*.txt"))
    assert [f"{path.parent.name}/{path.name}" for path in paths] == [
        "test/chapter_05.txt",
        *(f"train/chapter_{number:02}.txt" for number in (1, 2, 3, 4)),
    ]
    paragraphs = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"Chapter {int(path.stem[-2:])}\n"), f"{path.name} starts with {text[:20]!r}"
        assert len(re.findall(r"(?m)^Chapter \d+$", text)) == 1, f"{path.name} holds more than one chapter"
        assert len(text.split()) > 1500
        paragraphs.append({normalise(paragraph) for paragraph in text.split("\n\n")[1:] if paragraph.strip()})
    assert all(a.isdisjoint(b) for a, b in combinations(paragraphs, 2))


def test_licences_ship_beside_the_data():
    assert "The MIT License" in (ADDRESSES / "usaddress-LICENSE.txt").read_text(encoding="utf-8")
    assert "public domain" in (STYLE / "LICENSE.txt").read_text(encoding="utf-8")
