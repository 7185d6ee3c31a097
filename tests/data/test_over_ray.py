"""Stages over Ray Data against the stages of one machine: the same rows, findings, pairs and bytes, in 1 block and in 5.

make test-ray
"""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys

import pytest

from tunesmith.data.audit import drop_exact_duplicates
from tunesmith.data.leaks import WHOLE, find_leaks
from tunesmith.data.normalise import normalise
from tunesmith.data.overflow import Overflow
from tunesmith.data.prepare import rendered_row, write_part
from tunesmith.data.read import read_records
from tunesmith.data.similar import Index
from tunesmith.data.split import split
from tunesmith.data.spool import decode, encode
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Data, Split

pytestmark = pytest.mark.ray
PARTS = 2
EXAMPLE = "examples/addresses/data/train.jsonl"


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """A cluster of this machine: two processors, nothing told to anybody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
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


@pytest.mark.parametrize("count", [1, 5])
def test_exact_duplicates_are_those_of_one_machine(ray, dirty, count):
    from tunesmith.data.over_ray import without_exact_duplicates

    kept, findings = drop_exact_duplicates(dirty)
    assert len(kept) < 450 and len(findings) == 2
    ds, found = without_exact_duplicates(blocks_of(ray, dirty, count), PARTS)
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


@pytest.mark.parametrize("count", [1, 5])
def test_near_pairs_are_those_of_one_machine(ray, dirty, pytestconfig, count):
    from tunesmith.data.over_ray import near_pairs

    rows = dirty if count == 5 else example(pytestconfig.rootpath, 400)
    threshold = 0.8 if count == 5 else 0.6
    index = Index(rows, threshold)
    expected = {(i, j): s for j, row in enumerate(rows) for i, s in index.near(row) if i < j}
    assert len(expected) > 20
    found = near_pairs(blocks_of(ray, rows, count), threshold, PARTS).take_all()
    assert len(found) == len(expected)
    assert {(r["at_a"], r["at_b"]): r["similarity"] for r in found} == expected


def test_leaks_are_those_of_one_machine(ray, dirty, chat):
    from tunesmith.data.over_ray import leaks

    held_out = {"one": [chat(row.prompt.upper(), row.answer, f"t:{n}") for n, row in enumerate(dirty[::50])],
                "two": [chat("Which house is 5 Quince Lane?", "a", "u:1"),
                        chat(f"{dirty[3].prompt} Now", dirty[3].answer, "u:2")]}
    expected = [f for f in find_leaks(dirty, held_out, Index(dirty, 0.8)) if f.code.split(":")[0] in WHOLE]
    assert {f.code for f in expected} >= {"leak_normalised:one", "leak_near:two"}
    assert leaks(blocks_of(ray, dirty, 5), held_out, 0.8) == expected


def test_rendered_files_are_those_of_one_machine(ray, tiny_tokenizer, tmp_path, pytestconfig):
    """At 220 tokens some rows of the example are too long and are dropped."""
    from tunesmith.data.over_ray import rendered, write

    limit, rows = 220, example(pytestconfig.rootpath, 200)
    config = Data(train="train.jsonl", max_tokens=limit, on_overflow="drop")
    told = []
    for folder, dropped in ((tmp_path / "here", Overflow(limit)), (tmp_path / "ray", Overflow(limit))):
        folder.mkdir()
        if folder.name == "here":
            counts = write_part("train", ((row, rendered_row(tiny_tokenizer, row)) for row in rows), config, folder, dropped)
        else:
            counts = write(rendered(blocks_of(ray, rows, 5), tiny_tokenizer), folder, "train", config, dropped)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        told.append((counts, [json.dumps(f.as_dict()) for f in dropped.findings()], files))
    assert told[0] == told[1]
    assert len(told[0][2]) == 4 and 0 < told[0][0]["rows"] < len(rows)


def test_without_ray_the_error_says_what_to_install():
    """In a process of its own, where the import fails as it does on a machine without Ray."""
    code = "import sys; sys.modules['ray'] = None; from tunesmith.data.over_ray import read; read({})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UsageError: Ray Data is not installed" in done.stderr and "pip install 'tunesmith[ray]'" in done.stderr
