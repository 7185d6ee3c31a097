"""Every page can be followed: its commands exist with their options, and each thing it quotes is made to happen by a test.

pytest tests/runbooks
"""

import re
import shlex
from pathlib import Path

import pytest
import typer

from tunesmith.cli.app import app

HERE = Path(__file__).parent
PAGES = sorted((HERE.parent.parent / "docs" / "runbooks").glob("*.md"))
COMMAND = re.compile(r"`(tunesmith [^`]+)`|^(tunesmith .+)$", re.M)
PARTS = ("## What you see", "## Three minutes", "## Not again")


def commands(text: str) -> list[str]:
    found = (a or b for a, b in COMMAND.findall(text.replace("\n   ", " ").replace("production`,\n", "production`, ")))
    return [re.sub(r"\s+", " ", c.partition("#")[0]).strip() for c in found]


def unknown(line: str) -> str | None:
    """What of a command line the program does not have."""
    command = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while words and hasattr(command, "commands"):
        verb = words.pop(0)
        if verb not in command.commands:
            return f"{line}: no verb {verb}"
        command = command.commands[verb]
    options = {o for p in command.params for o in p.opts} | {"--help"}
    return next((f"{line}: no option {w}" for w in words if w.startswith("--") and w not in options), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_command_of_a_page_exists(page):
    text = page.read_text(encoding="utf-8")
    found = commands(text)
    assert found or page.stem == "README"
    assert [u for c in found if (u := unknown(c))] == []


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "README"], ids=lambda p: p.stem)
def test_every_page_has_its_parts_and_a_test_for_each_quotation(page):
    text = page.read_text(encoding="utf-8")
    assert all(part in text for part in PARTS)
    labels = re.findall(r"^```text (\w+)$", text, re.M)
    tests = (HERE / f"test_{page.stem.replace('-', '_')}.py").read_text(encoding="utf-8")
    assert labels and [label for label in labels if f'missing("{label}"' not in tests] == []


def test_the_list_of_pages_is_whole():
    text = (PAGES[0].parent / "README.md").read_text(encoding="utf-8")
    assert {p.name for p in PAGES} - {"README.md"} == set(re.findall(r"\]\(([\w-]+\.md)\)", text))


def test_control_what_is_not_there_is_seen(page):
    assert unknown("tunesmith rollbak production") and unknown("tunesmith rollback production --drills")
    assert unknown("tunesmith verify reply X") and unknown("tunesmith rollback production --drill") is None
    assert page("out-of-memory").missing("row", "error: a row of 7 tokens does not fit into the drawer")
