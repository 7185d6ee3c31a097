"""Two real hands, from the example: Jane Austen's chapters, and Herman Melville's."""

from pathlib import Path

import pytest
from tests.conftest import EXAMPLES

from tunesmith.data.chapters import read_book
from tunesmith.data.passages import passages

WORDS = 120


def passages_of(*files: Path) -> list[str]:
    return [p.text for file in files for chapter in read_book(file.read_text(encoding="utf-8")).chapters
            for p in passages(chapter.paragraphs, WORDS, lambda text: len(text.split()))]


@pytest.fixture(scope="session")
def austen() -> list[str]:
    """Passages of chapters 1 to 4."""
    return passages_of(*sorted((EXAMPLES / "style/data/train").glob("*.txt")))


@pytest.fixture(scope="session")
def held() -> list[str]:
    """Passages of chapter 5."""
    return passages_of(*sorted((EXAMPLES / "style/data/test").glob("*.txt")))


@pytest.fixture(scope="session")
def melville() -> list[str]:
    """Another hand: the first chapters of Moby-Dick."""
    return passages_of(EXAMPLES / "style/data/other/moby_dick.txt")
