"""Every finding that the code can raise is explained in docs/data.md, with its severity, and nothing else is.

    python -m pytest tests/data/test_findings.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

import tunesmith
from tunesmith.data.leaks import PARTIAL, REFUSING
from tunesmith.recipe.schema import Fault

PACKAGE = Path(tunesmith.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "data.md"
RAISE = {"Finding", "finding", "_finding", "_listed"}
COMPUTED = {"{code}:{name}": {*REFUSING, *PARTIAL}, "{name}_missing": {"license_missing", "source_missing"}}
"""Codes that begin with a variable, as they stand in the source, and what they can be."""


def raised(source: str) -> list[tuple[str, str | None]]:
    """`(code, severity)` of each call that makes a finding; a kind after the colon is left out, severity None if it depends."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not call.args:
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        code = ast.unparse(call.args[0])
        if name not in RAISE or not re.match("f?['\"]", code):
            continue
        code = code.lstrip("f")[1:-1]
        severity = call.args[1].value if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) else None
        codes = COMPUTED.get(code, {code.split(":")[0]})
        assert not any("{" in one for one in codes), f"say in COMPUTED what {code} can be"
        found += [(one, severity if severity in ("error", "warning", "info") and codes == {one} else None) for one in codes]
    return found


def explained(page: str) -> dict[str, tuple[str, str]]:
    """Severity and filter of each code of the table."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    table = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    assert all(len(row) == 5 and all(row[:4]) for row in table)
    return {code.split(":")[0]: (row[1], row[4]) for row in table for code in re.findall(r"`([^`]+)`", row[0])}


@pytest.fixture(scope="module")
def in_code():
    return [one for path in sorted(PACKAGE.rglob("*.py")) for one in raised(path.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def on_page():
    return explained(PAGE.read_text(encoding="utf-8"))


def test_every_code_that_is_raised_is_explained_and_every_one_explained_is_raised(in_code, on_page):
    assert {code for code, _ in in_code} == on_page.keys()


def test_severities_are_those_of_the_code(in_code, on_page):
    wrong = {code for code, severity in in_code if severity and severity not in on_page[code][0]}
    assert not wrong and sum(severity is not None for _, severity in in_code) > 20


def test_every_filter_stands_beside_its_finding(on_page):
    assert {code for code, (_, by) in on_page.items() if by.startswith("drop")} == set(get_args(Fault))


@pytest.mark.parametrize("line, code", [
    ('Finding("new_fault", "warning", 1, "m", "f")', ("new_fault", "warning")),
    ('tally.finding(f"family:{kind}", severity, "m", "f")', ("family", None)),
])
def test_a_new_finding_is_seen(line, code):
    assert raised(line) == [code]


def test_a_code_that_cannot_be_read_from_the_source_is_refused():
    with pytest.raises(AssertionError, match="say in COMPUTED"):
        raised('Finding(f"{kind}_lost", "warning", 1, "m", "f")')
