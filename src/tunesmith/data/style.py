"""Raw chapters to chat rows: unwrap, cut into passages at paragraph borders, ask for each in a few words.

The system prompt names the style that was measured in the training chapters, so that serving can ask for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.read import read_text
from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Style

HEADING = re.compile(r"^\s*(chapter|part|book)\s+([ivxlcdm]+|\d+|[a-z]+)\.?\s*$", re.IGNORECASE)
"""Only as the first line of its paragraph: inside one, "part gladly." is the end of a wrapped sentence."""
SPEECH = re.compile("[\"“][^\"“”\n]*(?:[\"”]|$)", re.MULTILINE)
"""A speech that goes on in the next paragraph has no closing mark: it ends with its line."""
SENTENCE_END = re.compile(r"[.!?][\"”')]*(?:\s|$)")
MOSTLY, SOME = 0.5, 0.1
"""Shares of a passage inside quotation marks from which it counts as dialogue, or as a mix."""
PROMPTS = {
    "dialogue": "Continue the scene with character dialogue and interaction.",
    "mixed": "Continue the scene, narrating between the characters' words.",
    "narration": "Continue the narrative.",
}


@dataclass(frozen=True, slots=True)
class Profile:
    words_per_sentence: float
    distinct_words: float
    """Distinct words among the first 1,000 (vocabulary richness that does not depend on length)."""
    dialogue: float
    """Share of the characters inside quotation marks."""


def paragraphs(text: str) -> list[str]:
    """Unwrapped paragraphs without headings."""
    blocks = (b.strip().splitlines() for b in re.split(r"\n\s*\n", text.replace("\r\n", "\n")) if b.strip())
    bodies = (lines[1:] if HEADING.match(lines[0]) else lines for lines in blocks)
    return [" ".join(line.strip() for line in lines) for lines in bodies if lines]


def passages(paras: list[str], words: int) -> list[str]:
    """Consecutive paragraphs gathered into passages of about `words` words; a long paragraph stays whole."""
    out: list[list[str]] = [[]]
    size = 0
    for p in paras:
        n = len(p.split())
        if out[-1] and size + n / 2 > words:
            out.append([])
            size = 0
        out[-1].append(p)
        size += n
    return ["\n\n".join(p) for p in out if p]


def profile(text: str) -> Profile:
    words = re.findall(r"[\w’']+", text.lower())
    sentences = max(1, len(SENTENCE_END.findall(text)))
    return Profile(len(words) / sentences, len(set(words[:1000])) / max(1, len(words[:1000])), dialogue_share(text))


def dialogue_share(text: str) -> float:
    return sum(len(m) for m in SPEECH.findall(text)) / max(1, len(text))


def system_prompt(p: Profile) -> str:
    """The measured style in the words of a prompt."""
    sentences = "short, plain" if p.words_per_sentence < 14 else "flowing" if p.words_per_sentence < 22 else "long, balanced"
    vocabulary = "a simple" if p.distinct_words < 0.4 else "a varied" if p.distinct_words < 0.5 else "a rich"
    talk = "mostly dialogue" if p.dialogue > MOSTLY else "narration and dialogue" if p.dialogue > SOME else "mostly narration"
    return f"You are a novelist with {vocabulary} vocabulary and {sentences} sentences, writing {talk}."


def chapters_to_rows(files: dict[str, Path], config: Style, system: str | None = None) -> tuple[list[Row], str]:
    """Rows of all passages, and the system prompt they carry: `system`, or the recipe's, or the measured one.

    `files` maps the name that messages use to the file.

    Raises:
        DataError: a chapter without text.
    """
    texts = {name: paragraphs(read_text(path, name)) for name, path in files.items()}
    for name, paras in texts.items():
        if not paras:
            raise DataError("the file is empty", where=name, fix="give it text, or remove it")
    system = system or config.system or system_prompt(profile("\n\n".join(p for ps in texts.values() for p in ps)))
    rows = []
    for name, paras in texts.items():
        for i, passage in enumerate(passages(paras, config.chunk_words), 1):
            share = dialogue_share(passage)
            kind = "dialogue" if share > MOSTLY else "mixed" if share > SOME else "narration"
            rows.append(Row([{"role": "system", "content": system}, {"role": "user", "content": PROMPTS[kind]},
                             {"role": "assistant", "content": passage}], f"{name}: passage {i}"))
    return rows, system
