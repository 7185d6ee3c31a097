"""What each row is: its language, label and source, and how long it is. 16 bytes a row, gathered in the survey's one pass.

With the verdicts they say which rows a filter takes, and from whom (tunesmith.data.bias).
"""

from __future__ import annotations

from array import array

from tunesmith.data.quality.labels import KEPT, LONGEST
from tunesmith.data.quality.language import UNKNOWN
from tunesmith.data.quality.licences import KEPT as SOURCES
from tunesmith.data.rows import Row
from tunesmith.data.split import source

NO_GROUP = 0
NOT_AN_ANSWER = -1


class Groups:
    """A group number for each row, two bytes each. Names beyond the limit, and rows without one, get NO_GROUP."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.numbers: dict[str, int] = {}
        self.of = array("H")

    def add(self, name: str | None) -> None:
        number = self.numbers.get(name, NO_GROUP) if name else NO_GROUP
        if name and not number and len(self.numbers) < self.limit:
            number = self.numbers[name] = len(self.numbers) + 1
        self.of.append(number)

    def name(self, row: int) -> str | None:
        return next((name for name, number in self.numbers.items() if number == self.of[row]), None)


class Facts:
    """Of rows in the order in which they were seen."""

    def __init__(self) -> None:
        self.languages, self.labels, self.sources = Groups(1000), Groups(KEPT), Groups(SOURCES)
        """Language of the answer where it can be told; the answer itself when it is as short as a label; a row's `source`,
        else its file."""
        self.answers = array("i")
        """Characters of the last answer, NOT_AN_ANSWER for a row that does not end in one."""
        self.characters = array("I")
        """Of all turns."""

    def see(self, row: Row, language: str) -> None:
        """Note one row; `language` is that of its answer."""
        answer, last = row.answer, row.messages[-1]
        self.languages.add(None if language == UNKNOWN else language)
        label = answer.strip()
        self.labels.add(label if len(label) <= LONGEST else None)
        self.sources.add(str(row.meta.get("source") or source(row)))
        self.answers.append(NOT_AN_ANSWER if last["role"] != "assistant" or last.get("tool_calls") else len(answer))
        self.characters.append(sum(len(m["content"]) for m in row.messages))
