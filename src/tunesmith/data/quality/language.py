"""Which language a text is in, and rows that stand out by theirs.

py3langid is a table of byte n-grams for 130 languages: 4 MB, offline, about 60 microseconds for 120 characters.
It gives a confidence that holds across lengths, so short and mixed texts are `unknown` here instead of a guess.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

from tunesmith.data.finding import Finding
from tunesmith.data.quality.evidence import EXAMPLES, Tally, finding, last_answer, point
from tunesmith.data.rows import Row

UNKNOWN = "unknown"
SAMPLE = 120
"""Characters that are looked at: 200 of them cost half as much again and know the same texts. What comes later is unseen."""
SAMPLE_IDEOGRAMS = 80
"""Each of them says as much as a short word, in three bytes."""
SHORTEST = 30
"""Letters below which a text in a Latin alphabet is unknown."""
SHORTEST_IDEOGRAMS = 10
SURE = 0.8
"""With 0.8, 12 of the 13,000 texts of benchmarks/data_quality.py that get a language get a wrong one, most because they
open with words in another script."""
NO_LANGUAGE = {"zxx", "und"}
ENOUGH, MOST = 20, 0.8
"""Known answers from which shares mean something, and the share from which one language is the data set's own."""
ALIKE = ({"no", "nb", "nn", "da", "sv"}, {"hr", "bs", "sr", "sh", "sl"}, {"id", "ms", "jv", "su"}, {"cs", "sk"},
         {"es", "pt", "gl", "ast", "ca", "oc", "an"}, {"en", "sco"}, {"ru", "uk", "be", "bg", "mk"}, {"nl", "af", "fy", "li"},
         {"hi", "mr", "ne", "bho", "mai"}, {"zh", "yue", "wuu", "ja"}, {"de", "nds", "lb", "als", "bar"}, {"tr", "az"},
         {"it", "la", "lmo", "scn", "vec"}, {"fa", "ps", "ur", "ar", "arz"}, {"tl", "ceb", "fil"})
"""Languages that are mistaken for each other in short texts: no finding tells them apart."""
OTHER = re.compile(r"\b(?:(?i:translat\w*|language|latin)|(?:in|into|to) [A-Z]\w+(?:ese|ish|ian|an|ic|ench|eek|utch)|"
                   r"French|German|Spanish|Italian|Chinese|Japanese|Portuguese|Russian|Arabic|Korean|Dutch|Polish|Turkish|"
                   r"Hindi|Thai|Tamil|Urdu)\b|\u00fcbersetz|\btradu[cisz]|\u7ffb\u8bd1|\u7ffb\u8b6f")
"""Rows that ask for another language are right to answer in it."""
MARKED = re.compile(r"```|[{}<>\\]|=>|\(\)|\bdef |\bfunction\b|\bSELECT\b|;\n")
"""Code and JSON: their keywords are English, and only their names have a language."""
LETTERS = re.compile(r"[^\W\d_]")
IDEOGRAM = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def language_of(text: str) -> str:
    """ISO 639 code, or `unknown` for what is short, mixed or not prose."""
    sample = text[:SAMPLE_IDEOGRAMS if IDEOGRAM.search(text, 0, SAMPLE) else SAMPLE]
    if MARKED.search(sample):
        return UNKNOWN
    letters = len(LETTERS.findall(sample))
    if letters < (SHORTEST_IDEOGRAMS if IDEOGRAM.search(sample) else SHORTEST) or letters < len(sample) / 2:
        return UNKNOWN
    language, confidence = _identifier().classify(sample)
    return language if confidence >= SURE and language not in NO_LANGUAGE else UNKNOWN


def known_languages() -> list[str]:
    """Codes that `language_of` may give."""
    return sorted(set(_identifier().nb_classes) - NO_LANGUAGE)


def alike(one: str, other: str) -> bool:
    return one == other or any(one in group and other in group for group in ALIKE)


class Languages:
    """Languages of answers, and answers in another language than their question."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.unasked: Counter[str] = Counter()
        """Of them, those whose prompt did not ask for a language."""
        self.examples: dict[str, list[str]] = {}
        self.crossed = Tally()
        self.tallies = {"answer_language": self.crossed}
        self.last = UNKNOWN
        """Language of the answer of the row seen last."""

    def see(self, row: Row) -> None:
        answer, prompt = row.answer, row.prompt
        language = self.last = language_of(answer)
        self.answers[language] += 1
        if language == UNKNOWN:
            return
        asked_for = OTHER.search(prompt) or any(OTHER.search(m["content"]) for m in row.messages if m["role"] == "system")
        if asked_for:
            return
        self.unasked[language] += 1
        shown = self.examples.setdefault(language, [])
        if len(shown) < EXAMPLES:
            shown.append(f"{point(row, last_answer(row), answer, 0, len(answer))} ({language})")
        asked = language_of(prompt)
        if asked != UNKNOWN and not alike(asked, language):
            self.crossed.add(lambda: f"{point(row, last_answer(row), answer, 0, len(answer))} ({asked} question, {language})")

    def findings(self) -> list[Finding]:
        return [*self._minority(), *self.crossed.finding(
            "answer_language", "warning", f"{self.crossed.count} answers are in another language than their question",
            "answer in the language of the question, or say in the prompt which one is wanted")]

    def _minority(self) -> list[Finding]:
        known = {name: n for name, n in self.answers.items() if name != UNKNOWN}
        total = sum(known.values())
        if total < ENOUGH:
            return []
        own, most = max(known.items(), key=lambda item: item[1])
        others = {name: n for name, n in self.unasked.most_common() if not alike(own, name)}
        if not others or most < MOST * total:
            return []
        shares = ", ".join(f"{name} {n}" for name, n in others.items())
        shown = [example for name in others for example in self.examples[name]]
        return [finding("minority_language", "warning", sum(others.values()),
                        f"{sum(others.values())} answers stand out from {most} in {own}: {shares}",
                        "drop or translate them, or add enough of each language to learn it", shown[:EXAMPLES])]


@cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
