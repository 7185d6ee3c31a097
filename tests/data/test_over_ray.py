"""Stages over Ray Data against the stages of one machine: the same rows, findings, pairs and bytes, in 1 block and in 5.

make test-ray
"""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys

import numpy as np
import pytest

from tunesmith.data.audit import drop_exact_duplicates
from tunesmith.data.boilerplate import commonest, decided, holders, meetings, widespread
from tunesmith.data.leaks import WHOLE, find_leaks
from tunesmith.data.normalise import normalise
from tunesmith.data.overflow import Overflow
from tunesmith.data.prepare import rendered_row, write_part
from tunesmith.data.read import read_records
from tunesmith.data.shingles import TABLE_BITS, sets
from tunesmith.data.similar import Index, fold
from tunesmith.data.split import split
from tunesmith.data.spool import decode, encode
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Data, Split

pytestmark = pytest.mark.ray
PARTS = 2
INSTRUCTION = ("Split this address line into its fields, answer with JSON and with nothing else around it, "
               "and say none for a field that is not there: {}")
EXAMPLE = "examples/addresses/data/train.jsonl"


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """A cluster of this machine: two processors, nothing told to anybody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15 otherwise: beside other programs they would hardly get a turn
        pytest.importorskip("ray", reason="make test-ray installs it")
        import ray
        import ray.data

        logging.getLogger("ray.data").setLevel("WARNING")
        ray.data.DataContext.get_current().enable_progress_bars = False
        place = tmp_path_factory.mktemp("r")
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False,
                 logging_level="warning", _temp_dir=str(place))
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def dirty(chat):
    """500 rows of four files: copies, near copies, other systems, equal turns, and answers of three kinds."""
    chance = random.Random(0)
    rows = []
    for n in range(500):
        where = f"{'abcd'[n // 125]}.jsonl:{n % 125 + 1}"
        street = " ".join(chance.choices(("Oak", "Elm", "Main", "Bever", "Stone", "Hedge", "Cottage", "Grove"), k=3))
        question = f"Which house is {chance.randint(1, 300)} {street} Street in the town?"
        row = chat(question, chance.choice(("a", "b", "c")), where)
        if rows and chance.random() < 0.4:
            old = chance.choice(rows)
            question = old.prompt if chance.random() < 0.6 else old.prompt.replace("Which", "What").upper()
            row = chat(question + "!" * chance.randint(0, 2), old.answer, where, chance.choice((None, None, "Be brief.")))
        row.meta["author"] = str(n % 37)
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def templated(chat):
    """An instruction with a slot of one word, 150 times; near copies with it; and 18 variants of a question, four times each.

    Variants as few as that are no instruction, while 72 different ones would be.
    """
    chance = random.Random(1)

    def words(n):
        return [f"{chance.randrange(10**6):06d}" for _ in range(n)]

    said = [(INSTRUCTION.format(" ".join(words(1))), "abcdefghijklmno"[n % 15]) for n in range(150)]
    question = "Please tell me everything that you know of the house at the corner, and who has lived there: "
    said += [(question + variant, answer) for variant in words(18) for answer in ("nobody", "a baker", "two sisters", "we did")]
    for _ in range(40):
        slot = words(30)
        said += [(INSTRUCTION.format(" ".join(slot)), "a"), (INSTRUCTION.format(" ".join([*slot[:-1], *words(1)])), "a")]
    last = said.pop()
    chance.shuffle(said)
    return [chat(prompt, answer, f"a.jsonl:{n + 1}") for n, (prompt, answer) in enumerate([*said, last])]


def blocks_of(ray, rows, count: int):
    """The rows in so many blocks, which come in any order; the place of a row is its number."""
    import pyarrow as pa

    bounds = [len(rows) * n // count for n in range(count + 1)]
    tables = [pa.table({"at": pa.array(range(a, b), pa.int64()), "row": pa.array(map(encode, rows[a:b]), pa.large_string())})
              for a, b in zip(bounds, bounds[1:], strict=False)]
    random.Random(count).shuffle(tables)
    return ray.data.from_arrow(tables)


def numbers(ds):
    return sorted(record["at"] for record in ds.take_all())


def example(root, count: int):
    return normalise(read_records(root / EXAMPLE, "train.jsonl"))[:count]


def test_files_are_read_into_the_rows_of_one_machine(ray, pytestconfig, write):
    from tunesmith.data.over_ray import read

    here = pytestconfig.rootpath / EXAMPLE
    other = write("b.csv", "prompt,completion", "one,two", "three,four")
    expected = [row for path in (here, other) for row in normalise(read_records(path, path.name))]
    found = sorted(read({here.name: here, other.name: other}).take_all(), key=lambda record: record["at"])
    assert [decode(record["row"]) for record in found] == expected


def test_problems_are_those_of_one_machine(ray, write):
    from tunesmith.data.normalise import rows_of
    from tunesmith.data.over_ray import read
    from tunesmith.data.prepare import Problems
    from tunesmith.data.rows import Row

    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    files = {"a.jsonl": write("a.jsonl", good, "{broken", {"messages": []}, good), "empty.jsonl": write("empty.jsonl"),
             "c.jsonl": write("c.jsonl", *[{"prompt": "q"}] * 30)}
    problems = Problems()
    for name, path in files.items():
        problems.add(*(one for one in rows_of(path, name) if not isinstance(one, Row)))
    with pytest.raises(DataError) as expected:
        problems.refuse()
    with pytest.raises(DataError) as found:
        read(files)
    assert str(found.value) == str(expected.value)
    assert problems.count == 33


def test_exact_duplicates_are_those_of_one_machine(ray, dirty):
    from tunesmith.data.over_ray import without_exact_duplicates

    kept, findings = drop_exact_duplicates(dirty)
    assert len(kept) < 450 and len(findings) == 2
    ds, found = without_exact_duplicates(blocks_of(ray, dirty, 5), PARTS)
    assert numbers(ds) == kept
    assert found == findings


@pytest.mark.parametrize("count, config", [
    (1, {"by": "random", "test": 0.15}),
    (5, {"by": "author", "test": 0.2, "stratify": "answer"}),
])
def test_split_is_that_of_one_machine(ray, dirty, count, config):
    from tunesmith.data.over_ray import split as over_ray

    similar = Index(dirty, 0.8).groups() if config["by"] == "random" else ()
    train, held_out = over_ray(blocks_of(ray, dirty, count), Split(**config), 7, similar, PARTS)
    assert (numbers(train), numbers(held_out)) == split(dirty, Split(**config), 7, similar)


def test_rows_that_cannot_be_split_are_refused_as_on_one_machine(ray, chat):
    from tunesmith.data.over_ray import split as over_ray

    rows = [chat(f"question {n}", "a", f"book.md:{n}") for n in range(3)]
    for row in rows:
        row.meta["chapter"] = "One"
    with pytest.raises(DataError) as expected:
        split(rows, Split(by="source", test=0.3), 7)
    with pytest.raises(DataError) as found:
        over_ray(blocks_of(ray, rows, 1), Split(by="source", test=0.3), 7, (), PARTS)
    assert "by: chapter" in str(expected.value) and str(found.value) == str(expected.value)


def pairs_of(index, rows):
    return {(i, j): s for j, hits in enumerate(index.near_each(rows)) for i, s in hits if i < j}


def told_from_all_rows(rows):
    """Boilerplate of prompts as it would be if a text counted as often as it stands there."""
    texts = [fold(row.prompt) for row in rows]
    common = widespread(holders(sets(texts, np.zeros(1 << TABLE_BITS, np.uint8), 0).numbers), len(texts))
    met = meetings(texts, common)
    return decided(common, met, commonest(texts, common, met), len(texts))


@pytest.mark.parametrize("count, threshold", [(1, 0.5), (5, 0.8)])
def test_near_pairs_are_those_of_one_machine(ray, templated, monkeypatch, count, threshold):
    """Which are other ones when boilerplate is not left out, or is told from rows instead of different texts."""
    from tunesmith.data.over_ray import near_pairs, shared

    if count > 1:  # a text that stands in several blocks is to be counted once, and counts of blocks are to be added
        monkeypatch.setattr(shared, "COUNTED_ROWS", 100)
    expected = pairs_of(Index(templated, threshold), templated)
    assert len(expected) > 20
    assert pairs_of(Index(templated, threshold, (None, None)), templated).keys() > expected.keys()
    assert pairs_of(Index(templated, threshold, (told_from_all_rows(templated), None)), templated) != expected
    found = near_pairs(blocks_of(ray, templated, count), threshold, PARTS).take_all()
    assert len(found) == len(expected)
    assert {(r["at_a"], r["at_b"]): r["similarity"] for r in found} == expected


def test_leaks_are_those_of_one_machine(ray, templated, chat):
    """Rows of the same instruction are none, which neither the few rows held out nor those they touch can tell."""
    from tunesmith.data.over_ray import leaks

    def whole(index):
        return [f for f in find_leaks(templated, held_out, index) if f.code.split(":")[0] in WHOLE]

    held_out = {"one": [chat(templated[-1].prompt.upper(), templated[-1].answer, "t:1")],
                "two": [chat(INSTRUCTION.format("quince"), "b", "u:1"),
                        chat(f"{templated[-1].prompt} now", templated[-1].answer, "u:2")]}
    expected = whole(Index(templated, 0.8))
    assert {f.code: f.count for f in expected}.items() >= {"leak_near:two": 1}.items()
    assert "leak_normalised:one" in {f.code for f in expected}
    assert whole(Index(templated, 0.8, (None, None))) != expected
    assert leaks(blocks_of(ray, templated, 5), held_out, 0.8, PARTS) == expected


def test_rendered_files_are_those_of_one_machine(ray, tiny_tokenizer, tmp_path, pytestconfig):
    """At 220 tokens some rows of the example are too long and are dropped."""
    from tunesmith.data.over_ray import rendered, write

    limit, rows = 220, example(pytestconfig.rootpath, 200)
    config = Data(train="train.jsonl", max_tokens=limit, on_overflow="drop")
    told = []
    for folder, dropped in ((tmp_path / "here", Overflow(limit)), (tmp_path / "ray", Overflow(limit))):
        folder.mkdir()
        if folder.name == "here":
            counts = write_part("train", ((row, rendered_row(tiny_tokenizer, row)) for row in rows), config, folder, dropped,
                                tiny_tokenizer)
        else:
            counts = write(rendered(blocks_of(ray, rows, 5), tiny_tokenizer), folder, "train", config, dropped, tiny_tokenizer)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        told.append((counts, [json.dumps(f.as_dict()) for f in dropped.findings()], files))
    assert told[0] == told[1]
    assert len(told[0][2]) == 4 and 0 < told[0][0]["rows"] < len(rows)


def test_without_ray_the_error_says_what_to_install():
    """In a process of its own, where the import fails as it does on a machine without Ray."""
    code = "import sys; sys.modules['ray'] = None; from tunesmith.data.over_ray import read; read({})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UsageError: Ray Data is not installed" in done.stderr and "pip install 'tunesmith[ray]'" in done.stderr
