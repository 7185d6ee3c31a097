"""A thousand spoiled files of all formats: each is read or refused with places, and no row of it gets lost.

The same thousand every time. Rows that a file has are counted here by its lines or by what was put into it, not by the reader.

    python -m pytest tests/data/test_mutated.py
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import random
import re
from collections import Counter

import pytest
import zstandard

from tunesmith.data.formats import FORMATS
from tunesmith.data.messages import Bad
from tunesmith.data.normalise import normalise
from tunesmith.data.read import read_records
from tunesmith.data.rows import Row
from tunesmith.data.write import write_row
from tunesmith.errors import DataError

USER, SAID = {"role": "user", "content": "Où?"}, {"role": "assistant", "content": "Là."}
FUNCTION = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1.5}'}}
CALLING = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
           {"role": "tool", "tool_call_id": "c1", "content": "2"}, SAID | {"weight": 1}]
GOOD = {
    "openai": [{"messages": CALLING, "tools": [{"type": "function", "function": FUNCTION}], "source": {"page": 3}},
               {"messages": [{"role": "developer", "content": [{"type": "text", "text": "s"}]}, USER, SAID | {"weight": 0},
                             USER, SAID | {"function_call": {"name": "add", "arguments": "{}"}}], "functions": [FUNCTION]}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(FUNCTION)},
                                    {"from": "observation", "value": "2"}, {"from": "gpt", "value": "a"}],
                  "system": "s", "tools": json.dumps([FUNCTION])}],
    "alpaca": [{"instruction": "q", "input": "x", "output": "a", "system": "s", "history": [["q0", "a0"]], "n": 1e3}],
    "prompt_completion": [{"prompt": "q", "completion": "a", "at": None}, {"prompt": CALLING, "completion": [SAID]}],
    "openai_preference": [{"input": {"messages": [USER, SAID, USER], "tools": [], "parallel_tool_calls": True},
                           "preferred_output": [SAID], "non_preferred_output": [SAID | {"content": "Ici."}]}],
    "chosen_rejected": [{"prompt": "q", "chosen": "a", "rejected": "b"},
                        {"prompt": "Où?", "chosen": [USER, SAID], "rejected": [USER, SAID | {"content": "Ici."}], "score": 1}],
    "kto": [{"prompt": "q", "completion": "a", "label": True}, {"messages": CALLING, "label": False}],
}
JUNK = [None, True, 0, -1, 10**400, 1.5, "", " ", "\0", "\u2028", [], {}, [[]], [None], {"a": {"b": []}}, "assistant", [1, "a"],
        {"role": "user"}, [{"role": "user"}], "[]", "{}", "[{", "9" * 50, {"type": "text", "text": None}, ["q", "a"]]
RAW = ["\\ud800", "\\udfff\\ud83d", "\\u0000"]
"""Spelled as JSON escapes, inside of a string."""
NUMBERS = ["1e999", "-1e999", "NaN", "Infinity", "9" * 5000, "-0", "1e-400", "00", "[" * 3000, "[" * 100 + "]" * 100,
           '{"a":' * 2000, '{"a": 1, "a": 2}']
"""In the place of a value, where a JSON writer would not put them."""


def places(value, path=()):
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in inside:
        yield from places(child, (*path, name))


def changed(record: dict, rng: random.Random, change) -> dict:
    """The record with one place in it changed: `change(container, key)`."""
    record = copy.deepcopy(record)
    *above, last = rng.choice([p for p in places(record) if p])
    target = record
    for name in above:
        target = target[name]
    change(target, last)
    return record


def swap_type(record, rng):
    return changed(record, rng, lambda target, key: target.__setitem__(key, copy.deepcopy(rng.choice(JUNK))))


def delete_key(record, rng):
    return changed(record, rng, lambda target, key: target.__delitem__(key))


def nest(record, rng):
    def deeper(target, key):
        for _ in range(rng.choice([1, 2, 40, 90])):
            target[key] = [target[key]] if rng.random() < 0.5 else {rng.choice(["content", "messages", "x"]): target[key]}
    return changed(record, rng, deeper)


def null(record, rng):
    return changed(record, rng, lambda target, key: target.__setitem__(key, None))


def move(record, rng):
    """A value where another stood."""
    found = rng.choice([p for p in places(record) if p])
    value = record
    for name in found:
        value = value[name]
    return changed(record, rng, lambda target, key: target.__setitem__(key, copy.deepcopy(value)))


def another_format(record, rng):
    return copy.deepcopy(rng.choice(GOOD[rng.choice(list(FORMATS))]))


RECORDS = [swap_type, delete_key, nest, null, move, another_format]


def escape(line: bytes, rng) -> bytes:
    return re.sub(rb'": "', lambda m: m[0] + rng.choice(RAW).encode(), line, count=rng.randint(1, 2))


def number(line: bytes, rng) -> bytes:
    return re.sub(rb'(: )("[^"\\]*"|\d+|null|true|false)', lambda m: m[1] + rng.choice(NUMBERS).encode(), line, count=1)


def cut(line: bytes, rng) -> bytes:
    begin, end = sorted(rng.randrange(len(line) + 1) for _ in range(2))
    return line[:end] if rng.random() < 0.5 else line[:begin] + line[end:]


def flip(line: bytes, rng) -> bytes:
    spoiled = bytearray(line)
    for _ in range(rng.choice([1, 1, 3, 20])):
        spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
    return bytes(spoiled)


def zero(line: bytes, rng) -> bytes:
    at = rng.randrange(len(line))
    return line[:at] + b"\0" * rng.choice([1, 4, 100]) + line[at + 1 :]


LINES = [escape, number, cut, flip, zero]


def spoiled(n: int) -> tuple[str, bytes, int | None]:
    """(name, bytes, rows in it, when it can be told) of file number n."""
    rng = random.Random(n)
    fmt = list(FORMATS)[n % len(FORMATS)]
    records = [copy.deepcopy(rng.choice(GOOD[fmt])) for _ in range(rng.randint(1, 5))]
    mutation = (RECORDS + LINES)[n // len(FORMATS) % (len(RECORDS) + len(LINES))]
    at = rng.randrange(len(records))
    ending = rng.choice([".jsonl", ".jsonl", ".jsonl", ".json", ".csv", ".parquet"])
    if mutation in RECORDS:
        records[at] = mutation(records[at], rng)
    data = pack(records, ending)
    if data is None:  # Arrow holds one type a column
        ending, data = ".jsonl", pack(records, ".jsonl")
    rows = len(records)
    if mutation in LINES and ending == ".jsonl":
        lines = data.split(b"\n")
        lines[at] = mutation(lines[at], rng)
        data = b"\n".join(lines)
        rows = sum(1 for line in data.split(b"\n") if line.strip())
    elif mutation in LINES:
        data, rows = mutation(data, rng), None
    packed = rng.choice(["", "", ".gz", ".zst"])
    data = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packed](data)
    if packed and rng.random() < 0.2:
        data, rows = flip(data, rng), None
    return f"{n}{ending}{packed}", data, rows


def pack(records: list[dict], ending: str) -> bytes | None:
    if ending == ".parquet":
        return parquet(records)
    if ending == ".json":
        return json.dumps(records, ensure_ascii=False).encode()
    if ending == ".jsonl":
        return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(dict.fromkeys(k for r in records for k in r)))
    writer.writeheader()
    writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in r.items()} for r in records)
    return out.getvalue().encode()


def parquet(records: list[dict]) -> bytes | None:
    import pyarrow
    from pyarrow import parquet as writer

    out = io.BytesIO()
    try:
        writer.write_table(pyarrow.Table.from_pylist(records), out)
    except (pyarrow.ArrowException, OverflowError):
        return None
    return out.getvalue()


def outcome(path, rows: int | None) -> str:
    """read, told or refused; anything else fails."""
    try:
        read = normalise(read_records(path, "f"))
    except DataError as error:
        assert all(p.where.startswith("f") and p.message for p in error.problems), error.problems
        if not error.problems:
            assert error.where.startswith("f") and error.what
            return "refused"
        told = re.fullmatch(r"(\d+) of (\d+) rows cannot be used", error.what)
        assert int(told[1]) == len(error.problems) == len({re.split(r": (?!item)", p.where)[0] for p in error.problems})
        assert rows is None or int(told[2]) == rows
        str(error).encode()
        return "told"
    assert rows is None or len(read) == rows
    for row in read:
        holds_together(row)
    return "read"


def holds_together(row: Row) -> None:
    """What is read can be kept, read again, and written in every format or refused by it."""
    kept = json.dumps(row.as_record(), ensure_ascii=False)
    assert Row.from_record(json.loads(kept)) == row and kept.encode()
    assert row.messages[-1]["role"] == "assistant" and (row.answer.strip() or row.messages[-1]["tool_calls"])
    for messages in (row.messages, row.rejected or []):
        assert all(isinstance(m["content"], str) and m["role"] in ("system", "user", "assistant", "tool") for m in messages)
    for fmt in FORMATS:
        try:
            json.dumps(write_row(row, fmt), ensure_ascii=False).encode()
        except Bad as bad:
            assert bad.args[1]


@pytest.mark.parametrize("first", range(0, 1000, 100))
def test_spoiled_file_is_read_whole_or_refused_with_places(tmp_path, first):
    seen = Counter()
    for n in range(first, first + 100):
        name, data, rows = spoiled(n)
        path = tmp_path / name
        path.write_bytes(data)
        try:
            seen[outcome(path, rows)] += 1
        except Exception as error:
            raise AssertionError(f"file {n} ({name}): {data[:300]}") from error
    assert min(seen["read"], seen["told"], seen["refused"]) >= 3, seen


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_file_that_nobody_spoiled_is_read_whole(tmp_path, fmt, ending):
    """The control: what is refused above is refused for what was done to it."""
    for n, record in enumerate(GOOD[fmt]):
        path = tmp_path / f"{n}{ending}"
        data = pack([record] * 3, ending)
        if data is None:
            assert ending == ".parquet" and isinstance(record["messages"][0]["content"], list)
            continue
        path.write_bytes(data)
        assert outcome(path, 3) == "read"
