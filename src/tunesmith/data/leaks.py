"""Held-out rows that stand in train, in whole or in part, each with its evidence.

A row leaks when its question and its answer both stand in one training row. From the strictest layer to the loosest, and
a held-out row is told once, in the first that finds it:

    leak_exact       character for character
    leak_normalised  after folding case, punctuation, white space and Unicode forms
    leak_numbers     and with numbers in digits: "twelve", "4th", "1,000"
    leak_reordered   the same words in any order
    leak_near        character 5-grams of both sides overlap enough (tunesmith.data.similar)
    leak_contained   a long run of the question's words stands inside a training text (tunesmith.data.runs)

Half a row is a warning, because the trained answer is not the reference and memory does not raise the score; but the
question is not new:

    leak_prompt      the question stands in train with another answer
    leak_answer      a long answer stands in train under another question

Half a row must single out a training row. A text that stands in many different rows (an instruction, a label, a form)
singles out none of them, and is no leak.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tunesmith.data.evidence import evidence
from tunesmith.data.finding import EXAMPLES, Finding
from tunesmith.data.numerals import digits
from tunesmith.data.rows import Row
from tunesmith.data.runs import CERTAIN, contained, run_length
from tunesmith.data.similar import Index, key
from tunesmith.data.style import REQUESTS
from tunesmith.store.files import canonical_json

QUESTION_CHARACTERS = 20
"""A shorter question ("Go on.", "Thanks!") is asked by chance."""
ANSWER_CHARACTERS = 32
"""A shorter answer, not counting the keys of JSON, is given by chance."""
NO_CALLS = canonical_json(None)
FEW, MANY, COMMON = 3, 16, 0.05
"""A text of this share of the rows, but at least 3 and at most 16 of them, no longer singles one out. Sixteen, because
that many answers are sampled to one question at most where answers are sampled."""

REFUSING = {
    "leak_exact": "stand in train",
    "leak_normalised": "stand in train, but for case, punctuation or white space",
    "leak_numbers": "stand in train with numbers written another way",
    "leak_reordered": "stand in train with their words in another order",
    "leak_near": "nearly stand in train",
    "leak_contained": "stand in train inside longer texts",
}
"""Kinds that the leak gate counts, and how a finding says it."""
WHOLE = ("leak_exact", "leak_normalised", "leak_numbers", "leak_reordered", "leak_near")
"""Kinds that need no more of train than the one row."""
PARTIAL = {
    "leak_prompt": "ask what a training row asks, which has another answer: the question is not new",
    "leak_answer": "expect a long answer that a training row gives to another question",
}

_LAYERS: dict[str, Callable[[str], str]] = {
    "leak_normalised": lambda folded: folded,
    "leak_numbers": digits,
    "leak_reordered": lambda folded: " ".join(sorted(folded.split())),
}
_Key = tuple[str, ...]
_ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Leak:
    """A held-out row and the training row that it stands in."""

    set_name: str
    code: str
    """A key of REFUSING or PARTIAL."""
    row: Row
    train: Row


@dataclass(frozen=True, slots=True)
class _Half:
    """A question or an answer in one form, and the training rows that have it."""

    partners: set[int] = field(default_factory=set)
    """Hashes of the other halves of those rows, up to one more than MANY."""
    rows: list[int] = field(default_factory=list)
    """The first row of each partner."""

    def add(self, row: int, partner: int) -> None:
        if len(self.partners) <= MANY + 1 and partner not in self.partners:
            self.partners.add(partner)
            self.rows.append(row)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A held-out row and what has been found of it."""

    row: Row
    set_name: str
    turns: _Key
    forms: dict[str, tuple[str, str]]
    whole: dict[str, int] = field(default_factory=dict)
    """Code of a layer: the first training row that is equal in it."""


def leaked_rows(findings: list[dict], name: str) -> int:
    """Rows of test set `name` that were found in train, question and answer. Each row is counted once."""
    return sum(f["count"] for f in findings if f["code"] in [f"{code}:{name}" for code in REFUSING])


def find_leaks(train: list[Row], held_out: dict[str, list[Row]], index: Index | None) -> list[Finding]:
    """One finding for each kind of leak in each held-out set. Without an index, nothing is searched for leak_near."""
    return leak_findings(every_leak(train, held_out, index), held_out)


def leak_findings(leaks: Iterable[Leak], held_out: dict[str, list[Row]]) -> list[Finding]:
    """What `find_leaks` says of leaks that were found."""
    found: dict[tuple[str, str], list[Leak]] = defaultdict(list)
    for leak in leaks:
        found[leak.set_name, leak.code].append(leak)
    return [_finding(code, name, found[name, code], len(rows))
            for name, rows in held_out.items() for code in (*REFUSING, *PARTIAL) if found.get((name, code))]


def every_leak(train: list[Row], held_out: dict[str, list[Row]], index: Index | None) -> Iterator[Leak]:
    """Each held-out row that leaks, once. `index` is one of `train`."""
    keys = [key(row) for row in train]
    asked = [_Asked(row, name, turns, dict(_forms(turns))) for name, rows in held_out.items()
             for row in rows for turns in [key(row)]]
    if not asked:
        return
    halves = _read_train(train, keys, asked)
    rest = []
    for one in asked:
        if hit := _whole(one):
            yield Leak(one.set_name, hit[0], one.row, train[hit[1]])
        else:
            rest.append(one)
    if index:
        searched, rest = rest, []
        for one, hits in zip(searched, index.near_each([one.row for one in searched]), strict=True):
            if hits:
                yield Leak(one.set_name, "leak_near", one.row, train[max(hits, key=lambda hit: hit[1])[0]])
            else:
                rest.append(one)
    limits = {name: min(MANY, max(FEW, int(COMMON * (len(train) + len(rows))))) for name, rows in held_out.items()}
    for one, code, number in _in_part(rest, asked, keys, halves, limits, index):
        yield Leak(one.set_name, code, one.row, train[number])


def _finding(code: str, name: str, leaks: list[Leak], of: int) -> Finding:
    sign = "=" if code in ("leak_exact", "leak_normalised") else "~"
    shown = [evidence(leak.row, leak.train, sign) for leak in leaks[:EXAMPLES]]
    if code in PARTIAL:
        return Finding(f"{code}:{name}", "warning", len(leaks), f"{len(leaks)} of {of} rows of {name!r} {PARTIAL[code]}",
                       "remove them from one side, unless the two rows mean different things", shown)
    return Finding(f"{code}:{name}", "error", len(leaks), f"{len(leaks)} of {of} rows of {name!r} {REFUSING[code]}: "
                   "their score would measure memory", "remove them from one side", shown)


# ---- whole rows


def whole_forms(row: Row) -> list[tuple[str, tuple[str, str]]]:
    """(layer, form) of a row: another row that has one of them stands in it, or it in that row."""
    return list(_forms(key(row)))


def _forms(turns: _Key) -> Iterator[tuple[str, tuple[str, str]]]:
    """(layer, (question, answer)): what a row is compared by. The question is everything before the last answer."""
    last = max(i for i, turn in enumerate(turns) if turn.startswith("assistant\0"))
    parts = [turn.split("\0", 2) for turn in turns]
    for layer, form in _LAYERS.items():
        formed = [f"{role}\0{form(text)}\0{calls}" for role, text, calls in parts]
        yield layer, ("\1".join(formed[:last]), "\1".join(formed[last:]))


def _read_train(train: list[Row], keys: list[_Key], asked: list[_Asked]) -> dict[tuple[str, int], dict[str, _Half]]:
    """Fills in which rows are equal in whole; returns halves by (layer, 0 for questions or 1 for answers) and form."""
    wholes: dict[str, dict[tuple[str, str], list[_Asked]]] = {layer: defaultdict(list) for layer in _LAYERS}
    halves: dict[tuple[str, int], dict[str, _Half]] = {(layer, side): {} for layer in _LAYERS for side in (0, 1)}
    for one in asked:
        for layer, form in one.forms.items():
            wholes[layer][form].append(one)
            for side in (0, 1):
                halves[layer, side].setdefault(form[side], _Half())
    for number, (row, turns) in enumerate(zip(train, keys, strict=True)):
        plain: tuple[str, str] | None = None
        for layer, form in _forms(turns):
            plain = plain or form
            for side in (0, 1):
                if half := halves[layer, side].get(form[side]):
                    half.add(number, hash(plain[1 - side]))
            for one in wholes[layer].get(form, ()):
                one.whole.setdefault(layer, number)
                if layer == "leak_normalised" and _said(row) == _said(one.row):
                    one.whole.setdefault("leak_exact", number)
    return halves


def _said(row: Row) -> list[tuple]:
    return [(m["role"], m["content"], m.get("tool_calls")) for m in row.messages if m["role"] != "system"]


def _whole(one: _Asked) -> tuple[str, int] | None:
    return next(((code, one.whole[code]) for code in REFUSING if code in one.whole), None)


# ---- questions and answers by themselves


def _in_part(rest: list[_Asked], asked: list[_Asked], keys: list[_Key], halves: dict, limits: dict[str, int],
             index: Index | None) -> Iterator[tuple[_Asked, str, int]]:
    """(held-out row, code, training row) of leak_contained, leak_prompt and leak_answer."""
    held = _partners_held_out(asked)
    passages = _passages(rest, asked, keys, limits, index)
    for one in rest:
        questions = [*_equal(one, 0, halves, held, limits), *passages.get((id(one), 0), [])]
        answers = [*_equal(one, 1, halves, held, limits), *passages.get((id(one), 1), [])]
        both = next((n for n in questions if n in answers or _holds_answer(keys[n], one)), None)
        if both is not None:
            yield one, "leak_contained", both
        elif questions:
            yield one, "leak_prompt", questions[0]
        elif answers:
            yield one, "leak_answer", answers[0]


def _partners_held_out(asked: list[_Asked]) -> dict[tuple[str, str, int, str], set[int]]:
    """Other halves of the held-out rows that share a half: an instruction is one on either side."""
    partners: dict[tuple[str, str, int, str], set[int]] = defaultdict(set)
    for one in asked:
        plain = one.forms["leak_normalised"]
        for layer, form in one.forms.items():
            for side in (0, 1):
                partners[one.set_name, layer, side, form[side]].add(hash(plain[1 - side]))
    return partners


def _equal(one: _Asked, side: int, halves: dict, held: dict, limits: dict[str, int]) -> list[int]:
    """Training rows with the same question (0) or answer (1), in the strictest layer, if that singles them out."""
    if not _tells(one.row, side):
        return []
    own = hash(one.forms["leak_normalised"][1 - side])
    for layer, form in one.forms.items():
        half = halves[layer, side][form[side]]
        if half.rows:
            others = (half.partners | held[one.set_name, layer, side, form[side]]) - {own}
            return half.rows if len(others) <= limits[one.set_name] else []
    return []


def _tells(row: Row, side: int) -> bool:
    """Whether a question or an answer is long enough, and its own enough, not to be equal by chance."""
    if side == 0:
        return len(row.prompt.strip()) >= QUESTION_CHARACTERS and row.prompt not in REQUESTS
    return len(" ".join(_values(row.answer))) >= ANSWER_CHARACTERS


def _values(answer: str) -> Iterator[str]:
    """The words of an answer that are its own: of JSON the values, since the keys are everybody's."""
    def leaves(value: object) -> Iterator[str]:
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from leaves(inner)
        else:
            yield str(value)

    record = _record(answer)
    if record is None:
        yield answer.strip()
    else:
        yield from leaves(record)


def _record(answer: str) -> dict | list | None:
    """The JSON object or list that an answer is; None when it is text."""
    if not answer.strip().startswith(("{", "[")):
        return None
    try:
        return json.loads(answer)
    except ValueError:
        return None


def _holds_answer(turns: _Key, one: _Asked) -> bool:
    """Whether a training row says the held-out answer: anywhere if it is long, as its own answer if it is short.

    An answer that calls tools, or says nothing, must be there as it is.
    """
    answer = next(turn for turn in reversed(one.turns) if turn.startswith("assistant\0"))
    _, wanted, calls = answer.split("\0", 2)
    if not wanted or calls != NO_CALLS:
        return answer in turns
    if len(wanted) >= QUESTION_CHARACTERS:
        return any(f" {wanted} " in f" {turn.split(chr(0), 2)[1]} " for turn in turns)
    return f"{_text(turns, 'assistant')} ".startswith(f"{wanted} ")


def _text(turns: _Key, role: str) -> str:
    """The last thing that `role` said, folded."""
    return next((turn.split("\0", 2)[1] for turn in reversed(turns) if turn.startswith(f"{role}\0")), "")


def _passages(rest: list[_Asked], asked: list[_Asked], keys: list[_Key], limits: dict[str, int], index: Index | None,
              ) -> dict[tuple[int, int], list[int]]:
    """Training rows that hold a long run of a held-out question (0) or answer (1) and of few other rows.

    Of the whole text, and enough of what is its own in it, without the instructions and forms that many training rows share;
    or of what is its own by itself.
    """
    wanted = [(one, side) for one in rest for side in (0, 1)
              if _tells(one.row, side) and not (side == 1 and _record(one.row.answer))]
    held = [_text(one.turns, _ROLES[side]) for one, side in wanted]
    own = _own_words(index, [(side, text) for (_, side), text in zip(wanted, held, strict=True)])
    for n in range(len(wanted)):
        alone = " ".join(word for word, mine in zip(held[n].split(), own[n], strict=True) if mine)
        if not all(own[n]) and len(alone) >= QUESTION_CHARACTERS:
            wanted.append(wanted[n])
            held.append(alone)
            own.append([True] * len(alone.split()))
    every = [*keys, *(one.turns for one in asked)]
    texts = [(number, turn.split("\0", 2)[1]) for number, turns in enumerate(every) for turn in turns]
    runs: dict[tuple[int, int], set[int]] = defaultdict(set)
    for text, window, holders in contained(held, (text for _, text in texts)):
        runs[text, window].update(texts[holder][0] for holder in holders)
    windows: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for (text, window), holders in runs.items():
        one, _side = wanted[text]
        others = {every[n] for n in holders if n < len(keys) or asked[n - len(keys)].set_name == one.set_name} - {one.turns}
        if len(others) <= limits[one.set_name]:
            for number in sorted(n for n in holders if n < len(keys)):
                windows[text][number].append(window)
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for text, holders in windows.items():
        (one, side), words = wanted[text], held[text].split()
        found[id(one), side] += [n for n, starts in sorted(holders.items()) if _holds_own(words, own[text], starts)]
    return found


def _own_words(index: Index | None, texts: list[tuple[int, str]]) -> list[list[bool]]:
    """Of each word of texts, given with their side, whether it is more than what many training rows share."""
    masks = [[True] * len(text.split()) for _, text in texts]
    for side in (0, 1) if index else ():
        numbers = [n for n, (spoken, _) in enumerate(texts) if spoken == side]
        for n, mask in zip(numbers, index.own_words([texts[n][1] for n in numbers], side), strict=True):
            masks[n] = mask
    return masks


def _holds_own(words: list[str], own: list[bool], starts: list[int]) -> bool:
    """Whether runs that start there, which cover enough of a text, cover enough of its own words as well."""
    if all(own):
        return True
    length = run_length(len(words))
    covered = {at for start in starts for at in range(start, start + length)}
    mine = [words[at] for at in sorted(covered) if own[at]]
    return len(mine) >= min(sum(own), CERTAIN) and len(" ".join(mine)) >= QUESTION_CHARACTERS
