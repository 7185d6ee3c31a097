"""What a text sounds like, in numbers that can be counted by hand: no model, no list longer than a screen.

    kind_of("...")       dialogue, mixed, description or narration: what a request for the passage asks for
    measure_voice([...]) vocabulary, sentences, talk, person and tense of the training text: what the system prompt says
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from tunesmith.data.passages import sentences

SPEECH = re.compile(
    r"\A[^\"“”\n]*?(?<=[\w.,!?;'’])[\"”](?=\s|--|—|$)"  # a passage may begin inside of a speech
    r"|[\"“„][^\"“”„\n]*(?:[\"”“]|$)|«[^»\n]*(?:»|$)|^[—–][^\n]*|‘[^‘\n]*?[.,!?…—-]’(?!\w)", re.MULTILINE)
"""A speech that goes on in the next paragraph has no closing mark: it ends with its line."""
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
MOSTLY, SOME = 0.5, 0.1
"""Shares of a passage inside quotation marks from which it counts as dialogue, or as a mix."""

PAST = re.compile(
    r"was|were|had|did|went|came|took|saw|said|ran|made|got|gave|told|knew|thought|found|left|felt|heard|kept|held|"
    r"stood|sat|lay|began|became|brought|bought|caught|fell|flew|grew|led|lost|met|put|read|rose|sent|shook|spoke|threw|"
    r"turned|woke|won|wrote|drew|drove|rode|sang|sank|slept|spent|struck|swore|wore|could|would|.{2,}ed")
PRESENT = re.compile(
    r"is|are|am|has|have|does|do|goes|comes|takes|sees|says|runs|makes|gets|gives|tells|knows|thinks|finds|leaves|feels|"
    r"hears|keeps|holds|stands|sits|lies|begins|looks|turns|walks|seems|can|will")
STILL = re.compile(
    r"was|were|is|are|am|seem|seemed|seems|appeared|looked|looks|lay|lies|stood|stands|hung|rested|contained|consisted|resembled")
"""Verbs that say how things are; all others in the past tense say what happened."""
HELPING = re.compile(r"be|been|being|had|has|have|did|does|do|could|would|can|will")
"""Verbs that say neither without another."""
PLACES = re.compile(
    r"under|above|below|beside|beneath|between|behind|near|around|across|along|beyond|among|amongst|inside|outside|"
    r"side|front|top|corner|distance|room|house|door|window|hill|road|street|sea|sky|wall|garden|wood|tree|trees|park|country")
QUALITIES = re.compile(
    r"old|young|new|small|little|large|great|long|short|high|low|wide|narrow|dark|bright|light|pale|white|black|red|"
    r"blue|green|grey|gray|brown|yellow|golden|cold|warm|hot|wet|dry|soft|hard|heavy|thin|thick|deep|quiet|silent|loud|"
    r"rough|smooth|sweet|bitter|clear|empty|full|good|bad|fine|fair|pretty|handsome|elegant|ugly|rich|poor|clever|proud|"
    r"gentle|plain|strong|weak|tall|broad|.{3,}(?:ful|ous|ish|less|able|ible|ive|ant|ent|ic|ical|ial)")
FIRST = re.compile(r"i|me|my|mine|myself|we|us|our|ours")
THIRD = re.compile(r"he|him|his|she|hers?|himself|herself|they|them|theirs?")
MTLD_RATIO = 0.72
MTLD_WORDS = 100
"""A text shorter than this has no vocabulary richness that means anything."""


@dataclass(frozen=True, slots=True)
class Voice:
    """A style in numbers, for the data card. Person and tense are those of the narrator: speeches are not counted."""

    words: int
    words_per_sentence: float
    mtld: float | None
    """Mean words until the share of distinct ones falls to 0.72, read in both directions (McCarthy and Jarvis 2010)."""
    dialogue: float
    """Share of the characters inside quotation marks."""
    first_person: float | None
    """Share of first-person pronouns among those of the first and third person."""
    past: float | None
    """Share of past-tense forms among the verbs that are told apart."""

    def as_dict(self) -> dict:
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def measure_voice(paragraphs: list[str]) -> Voice:
    words = [w.lower() for p in paragraphs for w in WORD.findall(p)]
    told = [w.lower() for p in paragraphs for w in WORD.findall(SPEECH.sub(" ", p))]
    counts = {"first": _count(told, FIRST), "third": _count(told, THIRD), "past": _count(told, PAST),
              "present": _count(told, PRESENT)}
    characters = sum(map(len, paragraphs))
    return Voice(len(words), len(words) / max(1, sum(len(sentences(p)) for p in paragraphs)), mtld(words),
                 sum(dialogue_share(p) * len(p) for p in paragraphs) / max(1, characters),
                 _share(counts["first"], counts["third"]), _share(counts["past"], counts["present"]))


def mtld(words: list[str]) -> float | None:
    if len(words) < MTLD_WORDS:
        return None
    return (_mtld_one_way(words) + _mtld_one_way(words[::-1])) / 2


def _mtld_one_way(words: list[str]) -> float:
    factors, seen, length = 0.0, set(), 0
    for word in words:
        seen.add(word)
        length += 1
        if len(seen) / length <= MTLD_RATIO:
            factors, seen, length = factors + 1, set(), 0
    if length:  # the rest counts for as much of a factor as its ratio has fallen
        factors += (1 - len(seen) / length) / (1 - MTLD_RATIO)
    return len(words) / factors if factors else float(len(words))


def _count(words: list[str], of: re.Pattern) -> int:
    return sum(of.fullmatch(w) is not None for w in words)


def _share(one: int, other: int) -> float | None:
    return one / (one + other) if one + other else None


def dialogue_share(text: str) -> float:
    """Share of the characters inside quotation marks, the marks counted in."""
    return sum(len(m[0]) for m in SPEECH.finditer(text)) / max(1, len(text))


def densities(text: str) -> dict[str, float]:
    """Of 100 words outside of speeches: those that tell what happened, and those that say how things are."""
    words = [w.lower() for w in WORD.findall(SPEECH.sub(" ", text))]
    still = _count(words, STILL)
    others = [w for w in words if not STILL.fullmatch(w) and not HELPING.fullmatch(w)]
    happened, described = _count(others, PAST), still + _count(others, PLACES) + _count(others, QUALITIES)
    per = 100 / max(1, len(words))
    return {"happened": happened * per, "described": described * per}


DESCRIBED_PER_HAPPENED = 2.5
"""From so many describing words for each that tells an event, a passage counts as description."""


def kind_of(text: str) -> str:
    """dialogue, mixed, description or narration."""
    talk = dialogue_share(text)
    if talk > MOSTLY:
        return "dialogue"
    if talk > SOME:
        return "mixed"
    found = densities(text)
    return "description" if found["described"] > DESCRIBED_PER_HAPPENED * max(found["happened"], 1.0) else "narration"


def system_prompt(voice: Voice) -> str:
    """The measured style in the words of a prompt. What could not be measured is not said."""
    n = voice.words_per_sentence
    sentence = "short, plain" if n < 12 else "flowing" if n < 20 else "long, balanced"
    vocabulary = "" if voice.mtld is None else ("a simple" if voice.mtld < 70 else "a varied" if voice.mtld < 100 else "a rich")
    talk = "mostly dialogue" if voice.dialogue > MOSTLY else (
        "narration and dialogue" if voice.dialogue > SOME else "mostly narration")
    told = []
    if voice.first_person is not None:
        told.append("the first person" if voice.first_person > 0.5 else "the third person")
    if voice.past is not None:
        told.append("the past tense" if voice.past > 0.5 else "the present tense")
    both = f" in {' and '.join(told)}" if told else ""
    richness = f"{vocabulary} vocabulary and " if vocabulary else ""
    return f"You are a novelist with {richness}{sentence} sentences, writing {talk}{both}."
