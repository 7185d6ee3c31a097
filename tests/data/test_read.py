"""Records out of files: which files, which lines, and what a broken one is called.

    python -m pytest tests/data/test_read.py
"""

from __future__ import annotations

import gzip
import json

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.read import Record, find_files, read_records, read_text
from tunesmith.errors import DataError, Problem

ROW = {"prompt": "Oak", "completion": "Elm"}


def found(patterns, folder):
    return [p.relative_to(folder).as_posix() for p in find_files(patterns, folder)]


def test_paths_globs_and_directories_name_files_in_a_stable_order(write, tmp_path):
    for name in ("b.jsonl", "a.jsonl", "d/2.txt", "d/1.txt", "d/.hidden.txt", "d/notes.docx", "d/notes.pdf", "e/f/x.ndjson"):
        write(name, ROW)
    assert found("*.jsonl", tmp_path) == ["a.jsonl", "b.jsonl"]
    assert found("d", tmp_path) == ["d/1.txt", "d/2.txt"]
    assert found(["b.jsonl", "**/*.ndjson"], tmp_path) == ["b.jsonl", "e/f/x.ndjson"]
    assert find_files(str(tmp_path / "a.jsonl"), tmp_path / "d") == [tmp_path / "a.jsonl"]


def test_markdown_in_a_directory_is_text_unless_it_is_about_the_data(write, tmp_path):
    for name in ("book/2.md", "book/1.txt", "book/README.md", "rows/about.md", "rows/a.jsonl"):
        write(name, ROW)
    assert found("book", tmp_path) == ["book/1.txt", "book/2.md"]
    assert found("rows", tmp_path) == ["rows/a.jsonl"]
    assert found("rows/about.md", tmp_path) == ["rows/about.md"]


def test_glob_works_in_a_folder_whose_name_looks_like_a_glob(write, tmp_path):
    write("run[1]/a.jsonl", ROW)
    assert found("*.jsonl", tmp_path / "run[1]") == ["a.jsonl"]


@pytest.mark.parametrize("pattern, what", [
    ("none.jsonl", "data file 'none.jsonl' does not exist"),
    ("none/*.jsonl", "data file 'none/*.jsonl' does not exist"),
    ("rows.xlsx", "not a kind of file that is read"),
    ("*.xlsx", "not a kind of file that is read"),
    ("empty", "no data file in 'empty'"),
    ([], "no data file in []"),
])
def test_pattern_that_names_no_data_is_an_error(write, tmp_path, pattern, what):
    write("rows.xlsx", "a,b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as error:
        find_files(pattern, tmp_path)
    assert error.value.what == what and error.value.exit_code == 2
    assert error.value.where.startswith(str(tmp_path)) and error.value.fix


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_byte_order_mark_line_ends_and_blank_lines_change_nothing_but_line_numbers(write, end, encoding):
    path = write("a.jsonl", ROW, "", ROW, "   ", end=end, encoding=encoding)
    assert list(read_records(path, "a")) == [Record(ROW, "a:1"), Record(ROW, "a:3")]


def test_line_separators_inside_of_text_end_no_line(write):
    row = {"prompt": "a\u2028b\u0085c", "completion": "d\u2029"}
    assert list(read_records(write("a.jsonl", row), "a")) == [Record(row, "a:1")]


def test_array_of_objects_is_read_whole(write):
    path = write("a.json", json.dumps([ROW, ROW], indent=2))
    assert [r.where for r in read_records(path, "a.json")] == ["a.json: item 1", "a.json: item 2"]


def test_every_line_that_is_no_object_becomes_a_problem_with_its_place(write):
    path = write("a.jsonl", ROW, '{"prompt": ', [1], "null", '"text"', "12", ROW)
    records = list(read_records(path, "a"))
    problems = [r for r in records if isinstance(r, Problem)]
    assert [p.where for p in problems] == ["a:2", "a:3", "a:4", "a:5", "a:6"]
    assert [p.message for p in problems][1:] == [f"a {kind} where a JSON object belongs" for kind in (
        "list", "null", "text", "number")]
    assert problems[0].message.startswith("not JSON: Expecting value") and problems[0].code == "malformed_json"
    assert len(records) == 7


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"prompt": "\\ud800"}'],
                         ids=["lists", "objects", "digits", "half a surrogate pair"])
def test_json_that_python_cannot_hold_is_a_problem_and_not_a_crash(write, line):
    try:
        record, = read_records(write("a.jsonl", line), "a")
    except DataError as error:  # what begins like an array is read as one
        assert error.where == "a:1"
    else:
        assert record.where == "a:1" and record.code == "malformed_json"


@pytest.mark.parametrize("text", ["", "\n\n", "  \t\r\n", "\ufeff", "[]", " [ ] "])
def test_file_without_rows_is_empty(write, text):
    with pytest.raises(DataError, match="the file is empty") as error:
        list(read_records(write("a.jsonl", text), "a.jsonl"))
    assert error.value.where == "a.jsonl"


def test_file_that_is_not_utf8_is_refused_with_the_line(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": "caf\xe9"}\n')
    with pytest.raises(DataError, match="not UTF-8 text") as error:
        read_text(path, "latin.jsonl")
    assert error.value.where == "latin.jsonl:3" and "0xe9" in error.value.why


@settings(max_examples=300, deadline=None, database=None)
@given(data=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode),
                      st.text('{}[]":,\n\r\0 ab\ufeff1e', max_size=40).map(str.encode)),
       ending=st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]), pack=st.sampled_from(["", ".gz", ".zst", "torn.gz"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data, ending, pack):
    path = tmp_path_factory.getbasetemp() / f"any{ending}{pack}".replace("torn", "")
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, "torn.gz": bytes}[pack](data))
    try:
        records = list(read_records(path, "any"))
    except DataError as error:
        assert error.where.startswith("any") and str(error)
    else:
        assert records and all(r.where.startswith("any:") for r in records)
