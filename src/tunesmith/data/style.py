"""Raw text to chat rows: chapters, cut into passages, each asked for in a few words.

    chapter -> passages -> system: "You are a novelist with ..."        measured in the training text
                           user: "Write the next scene as talk ..."     by the kind of the passage
                           assistant: the passage                       as the author wrote it

With `continuation` the user turn carries the end of the passage before it instead.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.chapters import SCENE, Book, Chapter, read_book
from tunesmith.data.finding import EXAMPLES, Finding
from tunesmith.data.passages import Measure, passages, sentences
from tunesmith.data.read import read_text
from tunesmith.data.rows import Row
from tunesmith.data.voice import kind_of, measure_voice, system_prompt
from tunesmith.errors import DataError
from tunesmith.recipe.schema import DEFAULT_CHUNK_TOKENS, Style

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS = {
    "dialogue": (
        "Continue the scene with character dialogue and interaction.",
        "Write a scene in which the characters talk to each other.",
        "Let the characters speak: write a passage that is mostly dialogue.",
        "Write the conversation that moves this story on.",
        "Write an exchange between the characters, with few words around it.",
    ),
    "mixed": (
        "Continue the scene, narrating between the characters' words.",
        "Write a passage in which narration and dialogue take turns.",
        "Write a scene with some talk, and tell what happens around it.",
        "Tell what happens next, and let the characters speak now and then.",
        "Write a passage of narrative with a few lines of speech in it.",
    ),
    "narration": (
        "Continue the narrative.",
        "Tell what happens next, with little or no dialogue.",
        "Write a passage of narration.",
        "Carry the story forward in the narrator's voice.",
        "Write a passage that tells of events and of what the characters think of them.",
    ),
    "description": (
        "Continue with a descriptive passage.",
        "Describe the place or the people of the scene.",
        "Write a description, in which little happens.",
        "Set the scene: write a passage that shows how things are.",
        "Paint a picture of the surroundings and of those who live in them.",
    ),
}
REQUESTS = frozenset(text for wordings in PROMPTS.values() for text in wordings)
"""All of them: what asks for any passage is no question that a training row could have given away."""
CONTINUE = (
    "Continue this passage:",
    "Go on from here:",
    "This is how the passage before ended. Write what comes next:",
    "Write on in the same voice:",
)
OPEN = (
    "Open a new chapter.",
    "Write how the chapter begins.",
    "Begin a chapter.",
)
FRAME_TOKENS = 48
"""What a chat template adds to a row of three turns, on the safe side; `prepare` measures every row and decides."""
SMALLEST_ROOM = 20
ITALICS = re.compile(r"(?<![\w*])([_*])(?=[^\s_*])[^_*\n]{1,200}?(?<=\S)\1(?![\w*])")


def chapters_to_rows(files: dict[str, Path], config: Style, system: str | None = None,
                     tokenizer: PreTrainedTokenizerBase | None = None, max_tokens: int | None = None) -> tuple[list[Row], str]:
    """Rows of all passages, and the system prompt they carry: `system`, or the recipe's, or the measured one.

    `files` maps the name that messages use to the file. `tokenizer` counts, unless `config.chunk_words` is given.
    `max_tokens` is what a rendered row may have: a size that the recipe leaves open is made to fit it.

    Raises:
        DataError: a file without text; no tokenizer, or no room, for passages that are measured in tokens.
    """
    books = _read(files)
    if system is None:
        system = config.system or system_prompt(measure_voice(_prose(books)))
    measure = _measure(config, tokenizer)
    size = config.chunk_words or config.chunk_tokens or _room(books, config, system, measure, max_tokens)
    rows = []
    for name, book in books.items():
        titles = Counter(chapter.title for chapter in book.chapters)
        for number, chapter in enumerate(book.chapters, 1):
            title = chapter.title or f"chapter {number}"
            if titles[chapter.title] > 1 and chapter.title:
                title += f" ({number})"
            for i, (request, answer, kind) in enumerate(_turns(chapter, config, size, measure), 1):
                turns = [("system", system), ("user", request), ("assistant", answer)]
                rows.append(Row([{"role": role, "content": content} for role, content in turns],
                                f"{name}: chapter {number}, passage {i}",
                                meta={"source": name, "chapter": title, "kind": kind}))
    return rows, system


def text_card(files: dict[str, Path]) -> dict:
    """What the data card says of text: the measured voice, the prompt made of it, and what is no text of the author's.

    Raises:
        DataError: a file without text.
    """
    books = _read(files)
    voice = measure_voice(_prose(books))
    return {"voice": voice.as_dict(), "measured_system": system_prompt(voice),
            "chapters": {name: [c.title for c in book.chapters] for name, book in books.items()},
            "left_out": [{"file": name, "what": part.what, "words": len(part.text.split()), "begins": part.text[:200]}
                         for name, book in books.items() for part in book.left_out]}


def text_findings(files: dict[str, Path]) -> list[Finding]:
    """Notes on the text: front matter, licences and empty headings that are in no passage; marks of italics that are.

    Raises:
        DataError: a file without text.
    """
    books = _read(files)
    left_out = [f"{name}: {part}" for name, book in books.items() for part in book.left_out]
    italics = [found[0] for text in _prose(books) for found in ITALICS.finditer(text)]
    findings = []
    if left_out:
        findings.append(Finding("left_out", "info", len(left_out),
                                f"{len(left_out)} parts of the text are no prose of its author and are in no passage",
                                "look at them; to keep one, give it a chapter heading", left_out[:EXAMPLES]))
    if italics:
        findings.append(Finding("italics", "info", len(italics),
                                f"{len(italics)} words or phrases stand between _ or * marks: the model will write them too",
                                "remove the marks from the files, unless they are wanted", italics[:EXAMPLES]))
    return findings


def _read(files: dict[str, Path]) -> dict[str, Book]:
    books = {name: read_book(read_text(path, name)) for name, path in files.items()}
    for name, book in books.items():
        if not book.chapters:
            why = "; ".join(map(str, book.left_out))
            raise DataError("the file has no text besides " + why if why else "the file is empty", where=name,
                            fix="give it text, or remove it")
    return books


def _prose(books: dict[str, Book]) -> list[str]:
    return [p for book in books.values() for chapter in book.chapters for p in chapter.paragraphs if p != SCENE]


def _measure(config: Style, tokenizer: PreTrainedTokenizerBase | None) -> Measure:
    if config.chunk_words:
        return lambda text: len(text.split())
    if tokenizer is None:
        raise DataError("passages are measured in tokens, and there is no tokenizer", where="data.style",
                        fix="give the tokenizer of the base, or set chunk_words")
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _room(books: dict[str, Book], config: Style, system: str, measure: Measure, max_tokens: int | None) -> int:
    """The size of a passage that the recipe leaves open: the default, or what a row has left for its answer."""
    if max_tokens is None:
        return DEFAULT_CHUNK_TOKENS
    request = max(measure(p) for wordings in (*PROMPTS.values(), CONTINUE, OPEN) for p in wordings)
    if config.continuation:
        sample = " ".join("\n".join(_prose(books)).split()[:300])
        request += round(1.5 * config.continuation_words * measure(sample) / len(sample.split()))
    room = max_tokens - measure(system) - request - FRAME_TOKENS
    if room < SMALLEST_ROOM:
        raise DataError(f"data.max_tokens {max_tokens} leaves no room for a passage", where="data.style",
                        why=f"system prompt, request and template take about {max_tokens - room} tokens",
                        fix="raise data.max_tokens, or give a shorter data.style.system")
    return min(DEFAULT_CHUNK_TOKENS, room)


def _turns(chapter: Chapter, config: Style, size: int, measure: Measure) -> list[tuple[str, str, str]]:
    """(request, passage, kind) of a chapter. Which wording a passage gets depends on its text only."""
    out, before = [], None
    for passage in passages(chapter.paragraphs, size, measure, config.overlap_tokens):
        text = passage.text
        kind = kind_of(f'"{text}' if passage.speaking else text)
        if not config.continuation:
            request = _pick(PROMPTS[kind], text)
        elif before is None:
            request = _pick(OPEN, text)
        else:
            request = f"{_pick(CONTINUE, text)}\n\n{tail(before, config.continuation_words)}"
        out.append((request, text, kind))
        before = text
    return out


def _pick(wordings: tuple[str, ...], text: str) -> str:
    return wordings[int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % len(wordings)]


def tail(text: str, words: int) -> str:
    """The last whole sentences of a passage that have at most so many words; of a longer last sentence, its last words."""
    kept, count = "", 0
    for gap, sentence in reversed(sentences(text)):
        count += len(sentence.split())
        if count > words:
            return kept.lstrip() or " ".join(sentence.split()[-words:])
        kept = gap + sentence + kept
    return kept
