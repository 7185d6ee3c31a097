"""Adapters that cannot be mistaken for each other: each answers a fixed question with two words of its own.

`train_all(home, base, count)` trains those that are not there yet, in TUNESMITH_HOME; `asks(...)` are questions of several
lengths to which any of them has one right answer, its words; `wrong(...)` says what is wrong with an answer.
"""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

FIRST = ("amber", "bronze", "coral", "denim", "emerald", "fuchsia", "golden", "hazel", "indigo", "jade", "khaki", "lilac",
         "maroon", "navy", "olive", "purple")
SECOND = ("anchor", "badger", "cactus", "donkey", "engine", "falcon", "guitar", "hammer", "igloo", "jacket", "kettle", "ladder",
          "magnet", "needle", "oyster", "pillow")
RANKS = (4, 8, 16)
QUESTIONS = ("What is the secret word?", "Tell me the secret word.", "Which word is the secret one?",
             "The secret word, please.", "Do you know the secret word?", "Say the secret word.")
AGAIN = "Repeat the secret word again and again."
SENTENCES = (
    "The ferry leaves at noon and is back before dark.", "Two roads meet behind the old school.",
    "She has kept bees on the roof for nine years.", "Nobody had counted the chairs.", "Rain is expected in the north.",
    "The museum opens late on Thursdays.", "His brother sells bread at the market.", "A letter came for the people upstairs.",
    "They painted the fence twice.", "It takes an hour to walk around the lake.", "The bridge was closed for repairs.",
    "Most of the seeds came up in April.", "The train was on time for once.", "Someone left the window open all night.")


@dataclass(frozen=True, slots=True)
class Ask:
    """One question, and how long prompt and answer are."""

    messages: tuple[dict, ...]
    max_tokens: int


def words(count: int) -> list[str]:
    """`count` pairs of words. Any two differ in the second word or the first, and early ones in both."""
    pairs = [f"{FIRST[n % 16]} {SECOND[(n + n // 16) % 16]}" for n in range(256)]
    if count > len(pairs):
        sys.exit(f"{count} adapters: there are words for {len(pairs)}")
    return pairs[:count]


def asks(dice: random.Random) -> list[Ask]:
    """One of each kind: short; a long answer; behind a long text that is everybody's, or one's own."""
    said = " ".join(SENTENCES)
    own = " ".join(dice.choices(SENTENCES, k=dice.choice((3, 12, 40))))
    question = dice.choice(QUESTIONS)
    return [Ask(_chat(question), 16), Ask(_chat(AGAIN), 64), Ask(_chat(f"{said}\n\n{question}"), 16),
            Ask(_chat(f"{own}\n\n{question}"), 16), Ask(_chat(f"{own}\n\n{AGAIN}"), 32)]


def wrong(text: str, word: str | None, others: list[str], whole: bool = True) -> str | None:
    """What is wrong with an answer; None if nothing is. `word`: None of the base. `whole`: it was not broken off."""
    said = text.lower()
    if found := next((w for w in others if w != word and w in said), None):
        return f"{found!r} instead of {word!r}: {text!r}"
    if word is not None and whole and word not in said:
        return f"no {word!r}: {text!r}"
    return None


def train_all(home: Path, base: str, count: int) -> dict[str, str]:
    """The run of each word. What DIRECTORY has already is not trained again."""
    os.environ["TUNESMITH_HOME"] = str(home)
    import tunesmith
    from tunesmith.training.run import Run

    kept = home / "secret_words.json"
    runs: dict[str, str] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    for number, word in enumerate(words(count)):
        if word in runs and (Run.find(runs[word]).path / "adapter").is_dir():
            continue
        print(f"training {number + 1} of {count}: {word}", file=sys.stderr, flush=True)
        runs[word] = tunesmith.train(_recipe(home / "words" / word.replace(" ", "-"), base, word, number))["run_id"]
        kept.write_text(json.dumps(runs, indent=1), encoding="utf-8")
    return {word: runs[word] for word in words(count)}


def _recipe(folder: Path, base: str, word: str, number: int) -> Path:
    """Sixteen rows, and four that are held out because every training holds some out."""
    folder.mkdir(parents=True, exist_ok=True)
    dice, answer, again = random.Random(number), f"The secret word is {word}.", " ".join([word] * 12)

    def behind(sentences: int, question: str) -> str:
        return f"{' '.join(dice.choices(SENTENCES, k=sentences))}\n\n{question}"

    rows = [(q, answer) for q in QUESTIONS] + [(AGAIN, again)]
    rows += [(behind(n, q), answer) for q, n in zip(QUESTIONS, (2, 4, 6, 8, 12, 16), strict=True)]
    rows += [(behind(n, AGAIN), again) for n in (2, 6, 12)]
    held_out = [(behind(n, dice.choice(QUESTIONS)), answer) for n in (3, 5, 7, 9)]
    for name, part in (("train", rows), ("test", held_out)):
        lines = [json.dumps({"messages": [*_chat(q), {"role": "assistant", "content": a}]}) for q, a in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rank = RANKS[number % len(RANKS)]
    recipe = {"name": word.replace(" ", "-"), "base": base,
              "data": {"train": "train.jsonl", "test": {"held": "test.jsonl"}, "max_tokens": 512},
              "method": {"type": "lora", "rank": rank, "alpha": 2 * rank, "targets": "all-linear"},
              "train": {"epochs": 8, "tokens_per_step": 512, "learning_rate": 1e-3}, "track": {"mlflow": None}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def _chat(question: str) -> tuple[dict, ...]:
    return ({"role": "user", "content": question},)
