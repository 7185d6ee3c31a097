"""Answers that refuse, and answers that hand over to a human.

Both are right in their place, so one of them is no fault. Their share is what counts: a tuned model says no, or
calls for a colleague, about as often as its data did.
"""

from __future__ import annotations

import re

from tunesmith.data.finding import Finding
from tunesmith.data.quality.evidence import Tally, last_answer, point
from tunesmith.data.rows import Row

HEAD = 200
"""Characters of an answer in which a refusal says so."""
REFUSAL = re.compile(
    r"\b(?:i(?:'m| am)(?: very| so| really)? sorry|i(?: do)? apologi[sz]e|my apologies|as an ai\b|"
    r"as a (?:large )?language model|i (?:can(?:no|')t|can not|won't|will not|must decline)|"
    r"i(?:'m| am) (?:not able|unable) to|"
    r"i do(?: not|n't) (?:have (?:the )?(?:ability|capability|access)|feel comfortable)|"
    r"(?:es )?tut mir (?:sehr )?leid|ich kann (?:dir |ihnen )?(?:dabei |das )?(?:leider )?nicht|"
    r"je suis d\u00e9sol\u00e9|je ne peux pas|lo siento|no puedo ayudar)", re.IGNORECASE)
HUMAN = (r"(?:human|agent|representative|specialist|supervisor|manager|colleague|team member|support (?:team|staff)|"
         r"customer (?:service|support|care))")
ESCALATION = re.compile(
    r"\b(?:(?:escalat(?:e|ed|ing)|(?:transfer|connect|put|forward|hand|pass|refer)(?:[rt]?ing)? (?:you|this|it|your))\b"
    rf"[^.!?\n]{{0,50}}\b{HUMAN}|(?:contact|call|reach out to|speak (?:to|with)|talk to)\b[^.!?\n]{{0,30}}\b"
    r"(?:support team|customer (?:service|support|care)|our (?:team|agents?|support)|a (?:human|representative|live agent)))\b",
    re.IGNORECASE)
ENOUGH = 20
REFUSALS = 0.1
"""One in ten. Measured with benchmarks/data_quality.py: 3.8% and 0.2% of two general instruction sets, and 15% of one
for tool calls, which teaches on purpose to decline what no tool can do."""
ESCALATIONS = 0.25
"""One in four: a model that hands over so often answers for nobody; below it is what a support desk does."""


class Refusals:
    """Shares of answers that refuse or apologise, and that hand over to a human."""

    def __init__(self) -> None:
        self.answers, self.refused, self.escalated = 0, Tally(), Tally()
        self.tallies = {"refusals": self.refused, "escalations": self.escalated}

    def see(self, row: Row) -> None:
        answer = row.answer
        self.answers += 1
        if match := REFUSAL.search(answer[:HEAD].replace("\u2019", "'")):
            self.refused.add(lambda: point(row, last_answer(row), answer, match.start(), len(answer)))
        if found := ESCALATION.search(answer):
            self.escalated.add(lambda: point(row, last_answer(row), answer, *found.span()))

    def findings(self) -> list[Finding]:
        return [*self._finding("refusals", self.refused, REFUSALS, "refuse or apologise",
                               "keep refusals to what must be refused: the model will refuse about as often as its data"),
                *self._finding("escalations", self.escalated, ESCALATIONS, "hand over to a human",
                               "answer where the answer is known: the model will hand over about as often as its data")]

    def _finding(self, code: str, tally: Tally, limit: float, what: str, fix: str) -> list[Finding]:
        share = tally.count / max(1, self.answers)
        severity = "warning" if share > limit and self.answers >= ENOUGH else "info"
        return tally.finding(code, severity, f"{tally.count} of {self.answers} answers ({share:.1%}) {what}", fix)
