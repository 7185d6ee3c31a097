"""Answers that teach nothing: empty of content, the prompt over again, or cut in the middle of a sentence."""

from __future__ import annotations

import re

from tunesmith.data.finding import Finding
from tunesmith.data.quality.evidence import Tally, last_answer, point
from tunesmith.data.rows import Row
from tunesmith.data.similar import fold

PLACEHOLDER = re.compile(r"\W*(?:none|null|nil|nan|n/?a|todo|tbd|tba|fixme|undefined|xxx+|lorem ipsum.*|placeholder|no answer|"
                         r"(?:your |the )?(?:answer|response|output|completion)(?: goes)?(?: here)?)\W*",
                         re.IGNORECASE | re.DOTALL)
PUNCTUATION = re.compile(r"[\s!-/:-@\[-`{-~\u2010-\u2027\u3001-\u3003\u00a1-\u00bf]*")
SHORTEST_ECHO = 15
"""Characters from which a prompt that comes back is no accident: `Hello.` is a fair answer to `Hello!`."""
TAIL = 60
"""Characters at its end that show how a line ends."""
PROSE = 80
"""Characters of a last line from which it is a line of prose, not a heading, a signature or a verse."""
ENDED = re.compile(r"""(?:[^\w,\uff0c\u3001]|[\d_]|[#@]\w+|[-\u2013\u2014] ?[A-Z][\w. ]{1,40})\s*\Z""")
"""Any mark but a comma, a number, a hashtag, or the name of who is quoted."""
LISTED = re.compile(r"\s*(?:[-*+\u2022#>|]|\(?\w{1,3}[.):]\s)")
MOST, ENOUGH = 0.9, 20
"""When this share of the answers in prose, and at least so many, end with a mark, one without stands out."""


class Answers:
    """Rows whose answer is trivial, an echo, or cut."""

    def __init__(self) -> None:
        self.trivial, self.echo, self.cut = Tally(), Tally(), Tally()
        self.tallies = {"trivial_answer": self.trivial, "prompt_echo": self.echo, "truncated_answer": self.cut}
        self.prose = 0

    def see(self, row: Row) -> None:
        answer = row.answer
        if row.messages[-1]["role"] != "assistant" or row.messages[-1].get("tool_calls"):
            return
        whole = (0, len(answer))
        if len(answer) <= 200 and (PUNCTUATION.fullmatch(answer) or PLACEHOLDER.fullmatch(answer)):
            self.trivial.add(lambda: point(row, last_answer(row), answer, *whole))
        elif _same(row.prompt, answer):
            self.echo.add(lambda: point(row, last_answer(row), answer, *whole))
        elif (last := _last_line(answer)) is not None:
            self.prose += 1
            if not ENDED.search(last[-TAIL:]):
                self.cut.add(lambda: point(row, last_answer(row), answer, max(0, len(answer) - 30), len(answer)))

    def findings(self) -> list[Finding]:
        found = [
            *self.trivial.finding("trivial_answer", "warning", f"{self.trivial.count} answers say nothing",
                                  "write the answer or drop the row; keep it when it is one of your labels"),
            *self.echo.finding("prompt_echo", "warning", f"{self.echo.count} answers are the prompt over again",
                               "write the answer, or drop the row: the model would learn to repeat"),
        ]
        if self.prose >= ENOUGH and self.prose - self.cut.count >= MOST * self.prose:
            found += self.cut.finding("truncated_answer", "warning",
                                      f"{self.cut.count} of {self.prose} answers in prose end in the middle of a sentence",
                                      "look for a length limit in what made the data: the model would learn to stop there")
        return found


def _same(prompt: str, answer: str) -> bool:
    return len(answer) >= SHORTEST_ECHO and abs(len(prompt) - len(answer)) <= 10 and fold(prompt) == fold(answer)


def _last_line(answer: str) -> str | None:
    """The last line when it is prose; code, lists, signatures and verse may end as they like."""
    if len(answer) < PROSE or "```" in answer:
        return None
    last = answer.rstrip().rpartition("\n")[2]
    return last if len(last) >= PROSE and last.count(" ") >= len(last) / 15 and not LISTED.match(last) else None
