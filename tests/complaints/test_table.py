"""The table of complaints stays true: eighteen rows, and every test that it names is there.

pytest tests/complaints/test_table.py
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TABLE = (ROOT / "docs" / "complaints.md").read_text(encoding="utf-8")
ROWS = {int(number): cells for number, cells in re.findall(r"^\| (\d+) \|(.+)\|$", TABLE, re.M)}
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def names_in(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    return {n.name for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)}


def missing(table: str) -> list[str]:
    return [f"{file}::{name}" for file, name in NAMED.findall(table) if name not in names_in(ROOT / file)]


def test_there_are_eighteen_complaints_and_each_has_a_check_and_a_test():
    assert sorted(ROWS) == list(range(1, 19))
    for number, cells in ROWS.items():
        complaint, threads, check, tests = (c.strip() for c in cells.split(" | "))
        assert complaint and check and re.search(r"#\d+", threads), number
        assert NAMED.findall(tests) and not NAMED.sub("", tests).strip(" ,"), f"row {number}: {tests}"


def test_every_test_that_is_named_is_there():
    assert missing(TABLE) == []


def test_every_test_of_this_folder_is_in_the_table():
    here = {f"tests/complaints/test_complaints.py::{n}" for n in names_in(Path(__file__).with_name("test_complaints.py"))
            if n.startswith("test_")}
    assert here <= {f"{file}::{name}" for file, name in NAMED.findall(TABLE)}


def test_control_a_test_that_is_gone_is_seen():
    assert missing("`tests/complaints/test_table.py::test_gone` `tests/none.py::test_x`") == [
        "tests/complaints/test_table.py::test_gone", "tests/none.py::test_x"]
