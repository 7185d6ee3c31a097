"""The same records out of every kind of file, each with its place; damaged files are refused, never read in part.

    python -m pytest tests/data/test_containers.py
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from datetime import datetime
from decimal import Decimal

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.normalise import normalise
from tunesmith.data.read import Record, find_files, is_text, read_records, read_text
from tunesmith.data.strict import parse
from tunesmith.errors import DataError, Problem

ROWS = [{"prompt": f"{n} Oak", "completion": "Elm\n" * n + "end"} for n in range(5)]
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def jsonl(rows) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()


def as_csv(rows, delimiter=",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def parquet(rows, schema=None) -> bytes:
    import pyarrow
    from pyarrow import parquet as writer

    out = io.BytesIO()
    writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema), out)
    return out.getvalue()


WRITERS = {".jsonl": jsonl, ".ndjson": jsonl, ".json": lambda rows: json.dumps(rows).encode(), ".csv": as_csv,
           ".parquet": parquet}


def refused(path, **more):
    with pytest.raises(DataError) as error:
        list(read_records(path, "f", **more))
    return error.value


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("ending", WRITERS)
def test_every_kind_of_file_holds_the_same_records(tmp_path, ending, packed):
    path = tmp_path / f"rows{ending}{packed}"
    path.write_bytes(PACK[packed](WRITERS[ending](ROWS)))
    assert find_files(path.name, tmp_path) == [path] and not is_text(path)
    assert [r.value for r in read_records(path, "f")] == ROWS


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("ending", [".txt", ".md", ".TXT"])
def test_text_is_read_whole_and_is_no_file_of_rows(tmp_path, ending, packed):
    path = tmp_path / f"1{ending}{packed}"
    path.write_bytes(PACK[packed](b"\xef\xbb\xbfIt was\r\nnight."))
    assert is_text(path) and read_text(path) == "It was\r\nnight."
    assert refused(path).what == "raw text where rows belong"


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b[:20] + b"\0\xff\0" + b[23:],
                                   lambda b: b"plain text", lambda b: b + b"more"], ids=list("abcde"))
def test_damaged_compressed_file_is_refused_whole(tmp_path, packed, spoil):
    path = tmp_path / f"rows.jsonl{packed}"
    path.write_bytes(spoil(PACK[packed](jsonl(ROWS * 50))))
    error = refused(path)
    assert error.what == "the compressed file is damaged or cut off" and error.where == "f" and error.why and error.fix


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_compressed_parts_put_after_each_other_are_all_read(tmp_path, packed):
    path = tmp_path / f"rows.jsonl{packed}"
    path.write_bytes(PACK[packed](jsonl(ROWS[:3])) + PACK[packed](jsonl(ROWS[3:])))
    assert [r.value for r in read_records(path, "f")] == ROWS


@pytest.mark.parametrize("packed", PACK)
def test_long_file_is_read_in_little_memory(tmp_path, packed):
    line = jsonl([{"prompt": "q" * 500, "completion": "a" * 500}])
    path = tmp_path / f"long.jsonl{packed}"
    path.write_bytes(PACK[packed](line * 20_000))
    tracemalloc.start()
    count = sum(1 for _ in read_records(path, "f"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000 and peak < 12_000_000 < len(line) * 20_000 / 1.5


def test_line_of_many_chunks_is_one_record(tmp_path):
    row = {"prompt": "q" * 300_000, "completion": "é" * 100_000}
    (tmp_path / "a.jsonl").write_bytes(jsonl([ROWS[0], row, ROWS[1]]))
    assert [r.value for r in read_records(tmp_path / "a.jsonl")] == [ROWS[0], row, ROWS[1]]


def test_bytes_that_are_not_utf8_are_a_problem_of_their_line_alone(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(jsonl(ROWS[:2]) + b'{"prompt": "caf\xe9"}\n' + jsonl(ROWS[2:]))
    found = list(read_records(path, "f"))
    assert [r.where for r in found] == [f"f:{n}" for n in range(1, 7)]
    problem, = (r for r in found if isinstance(r, Problem))
    assert problem.where == "f:3" and problem.message.startswith("not UTF-8 text: byte 0xe9") and problem.fix


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".json"])
def test_utf16_is_refused_by_name(tmp_path, ending, encoding):
    path = tmp_path / f"a{ending}"
    path.write_bytes(("\ufeff" if encoding == "utf-16-be" else "").encode(encoding) + "prompt,completion\n".encode(encoding))
    error = refused(path)
    assert error.what == "not UTF-8 text" and error.where == "f:1" and "UTF-16" in error.why


def test_directory_holds_files_of_one_kind(tmp_path):
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "notes.pdf", ".d.csv"):
        (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"{}")
    assert [p.name for p in find_files("d", tmp_path)] == ["a.jsonl", "b.jsonl.gz", "c.json"]
    (tmp_path / "d" / "1.txt").write_text("It was night.")
    with pytest.raises(DataError, match="files of several kinds in one directory") as error:
        find_files("d", tmp_path)
    assert "a.jsonl (JSON)" in error.value.why and "1.txt (text)" in error.value.why
    assert len(find_files("d/*.json*", tmp_path)) == 3


def test_readme_among_chapters_is_not_taken_for_one(tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("1.txt", "2.txt", "README.md"):
        (tmp_path / "d" / name).write_text("It was night.")
    assert [p.name for p in find_files("d", tmp_path)] == ["1.txt", "2.txt"]
    assert [p.name for p in find_files(["d/*.txt", "d/*.md"], tmp_path)] == ["1.txt", "2.txt", "README.md"]


# ---- JSON


@pytest.mark.parametrize("text, where", [
    (json.dumps(ROWS[0], indent=2), ["f: item 1"]), (jsonl(ROWS[:2]).decode(), ["f:1", "f:2"]),
    (json.dumps(ROWS[:2], indent=2), ["f: item 1", "f: item 2"]),
])
def test_json_file_holds_an_array_one_object_or_lines(tmp_path, text, where):
    (tmp_path / "a.json").write_text(text)
    assert [(r.where, r.value) for r in read_records(tmp_path / "a.json", "f")] == list(zip(where, ROWS, strict=False))


@pytest.mark.parametrize("line, why", [
    ('{"prompt": "q", "prompt": "r", "completion": "a"}', "key 'prompt' stands twice"),
    ('{"a": {"b": 1, "c": 2, "b": 1}}', "key 'b' stands twice"),
    ('{"a": NaN}', "NaN is no number"), ('{"a": -Infinity}', "-Infinity is no number"), ('{"a": 1e999}', "1e999 is no number"),
    ('{"a": "\\udc00"}', "surrogates not allowed"), ('{"a": "\x01"}', "Invalid control character"),
    ('{"a": ' + "[" * 64 + "]" * 64 + "}", "more than 64 deep"), ('{"a": 1}{"b": 2}', "Extra data"),
], ids=range(9))
def test_json_that_says_two_things_or_cannot_be_written_again_is_a_problem(tmp_path, line, why):
    (tmp_path / "a.jsonl").write_text(line + "\n" + '{"a": ' + "[" * 63 + "]" * 63 + "}")
    bad, good = read_records(tmp_path / "a.jsonl", "f")
    assert bad.where == "f:1" and why in bad.message and good.where == "f:2"


@settings(max_examples=150, deadline=None, database=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)))
def test_what_is_json_is_read_as_python_reads_it(value):
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)
        assert parse(text) == json.loads(text) == value


# ---- CSV


@settings(max_examples=100, deadline=None, database=None)
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), delimiter=st.sampled_from(",;\t"))
def test_any_text_survives_csv(tmp_path_factory, rows, delimiter):
    rows = [{"prompt": a, "completion": b} for a, b in rows if a.strip() or b.strip()]
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(as_csv(rows or [{"prompt": "q", "completion": "a"}], delimiter))
    assert [r.value for r in read_records(path)] == (rows or [{"prompt": "q", "completion": "a"}])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_csv_row_is_named_by_the_line_on_which_it_begins(tmp_path, end, bom):
    text = end.join([bom + "prompt,completion", '"a', 'b","c', 'd"', "", "q,a", '"x",y'])
    (tmp_path / "a.csv").write_bytes(text.encode())
    assert list(read_records(tmp_path / "a.csv", "f")) == [
        Record({"prompt": f"a{end}b", "completion": f"c{end}d"}, "f:2"), Record({"prompt": "q", "completion": "a"}, "f:6"),
        Record({"prompt": "x", "completion": "y"}, "f:7")]


def test_csv_row_with_too_few_or_too_many_cells_is_a_problem(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion\nq\nq,a\nq,a,more\n")
    found = list(read_records(tmp_path / "a.csv", "f"))
    assert [(r.where, r.message) for r in (found[0], found[2])] == [
        ("f:2", "1 cells under 2 columns"), ("f:4", "3 cells under 2 columns")]
    assert found[1] == Record({"prompt": "q", "completion": "a"}, "f:3")


@pytest.mark.parametrize("text, what, where", [
    ('prompt,completion\nq,a\nq,"a\nq,a\nq,a\n', "not CSV", "f:3"), ('prompt,completion\nq,"a"b\n', "not CSV", "f:2"),
    ("prompt,prompt\nq,a\n", "column 'prompt' stands twice in the header", "f:1"), ("", "the file is empty", "f"),
    ("prompt,completion\n", "the file is empty", "f"),
])
def test_csv_that_would_lose_rows_is_refused(tmp_path, text, what, where):
    (tmp_path / "a.csv").write_text(text)
    error = refused(tmp_path / "a.csv")
    assert (error.what, error.where) == (what, where) and error.fix


def test_csv_cell_longer_than_pythons_limit_is_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(as_csv([{"prompt": "q", "completion": "a" * 200_000}]))
    record, = read_records(tmp_path / "a.csv")
    assert len(record.value["completion"]) == 200_000


def test_csv_cells_of_lists_are_json_and_answers_that_are_json_stay_text(tmp_path):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": json.dumps(messages), "label": "TRUE"}, {"messages": "[{'role': 'user'}]", "label": "good"}]
    (tmp_path / "a.csv").write_bytes(as_csv(rows))
    assert [r.value for r in read_records(tmp_path / "a.csv")] == [{"messages": messages, "label": True}, rows[1]]
    rows = [{"prompt": "q", "completion": '[{"street": "Oak"}]'}, {"prompt": '{"a": 1}', "completion": '{"b": 2}'}]
    (tmp_path / "b.csv").write_bytes(as_csv(rows))
    assert [r.value for r in read_records(tmp_path / "b.csv")] == rows


# ---- Parquet


def test_parquet_row_is_named_by_its_number_and_absent_values_say_nothing(tmp_path):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    rows = [{"messages": [{"role": "user", "content": "q", "tool_calls": None, "weight": None},
                          {"role": "assistant", "content": "a", "tool_calls": None, "weight": 0},
                          {"role": "assistant", "content": None, "tool_calls": [call], "weight": 1}], "n": n}
            for n in range(600)]
    (tmp_path / "a.parquet").write_bytes(parquet(rows))
    read = normalise(read_records(tmp_path / "a.parquet", "f"))
    assert [r.where for r in read] == [f"f:row {n}" for n in range(1, 601)] and read[599].meta == {"n": 599}
    assert read[0].messages[0] == {"role": "user", "content": "q"} and read[0].messages[1]["weight"] == 0
    assert read[0].messages[2]["tool_calls"][0]["function"]["arguments"] == {}


def test_parquet_values_become_json_or_a_problem(tmp_path):
    row = {"prompt": "q", "completion": "a", "at": datetime(2026, 1, 2, 3, 4), "price": Decimal("1.50"), "score": float("nan")}
    (tmp_path / "a.parquet").write_bytes(parquet([row]))
    read, = normalise(read_records(tmp_path / "a.parquet"))
    assert read.meta == {"at": "2026-01-02T03:04:00", "price": "1.50", "score": None}
    (tmp_path / "b.parquet").write_bytes(parquet([ROWS[0] | {"image": {"bytes": b"\xff"}}, ROWS[1] | {"image": None}]))
    bad, good = read_records(tmp_path / "b.parquet", "f")
    assert (bad.where, bad.message) == ("f:row 1", "image.bytes holds bytes, which is no JSON value")
    assert good.where == "f:row 2"


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"PAR1" + b[8:], lambda b: b"prompt,completion\nq,a",
                                   lambda b: b""], ids=["half", "torn", "csv", "nothing"])
def test_damaged_parquet_is_refused(tmp_path, spoil):
    (tmp_path / "a.parquet").write_bytes(spoil(parquet(ROWS * 300)))
    error = refused(tmp_path / "a.parquet")
    assert error.what == "the Parquet file cannot be read" and error.where.startswith("f") and error.why
