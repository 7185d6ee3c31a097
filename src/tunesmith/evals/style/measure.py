"""The style of one run: base and tuned write to held-out requests, and both are set beside the author. `report["style"]`.

    held-out rows --request--> base, tuned: sampled, with the same seed for both
         |                            |
      the author's passage     their texts, cut to its length ---> profile, distances, two-sample test, copy check

References that give the numbers a meaning: the author against himself (training passages against held-out ones), and another
author, if `eval.style.other` names one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from tunesmith.data.dataset import TRAIN, Dataset
from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.evals.style import distance, profile
from tunesmith.evals.style.copying import COPIED, Source, copied
from tunesmith.evals.style.text import SHORT, even, fit, words_of
from tunesmith.evals.style.twosample import told_apart
from tunesmith.evals.systems import TUNED, ZERO_SHOT
from tunesmith.recipe.schema import Recipe

Say = Callable[[str], None]
MOST_TRAINING = 2_000
"""Training passages that are profiled, drawn with the seed when there are more. The copy check reads all of them."""
FEWEST_PASSAGES = 4
LITTLE_TEXT = 5_000
"""Held-out words below which the report warns: about what attribution by frequent words needs (Eder, "Does Size Matter?",
Digital Scholarship in the Humanities 30, 2015)."""
TRAINING_EXAMPLES = 3
"""Training passages that the report keeps, to show a reader who votes what the author sounds like."""


def measure_style(model, tokenizer, dataset: Dataset, recipe: Recipe, folder: Path, say: Say = lambda _line: None) -> dict:
    """What `report["style"]` holds.

    Raises:
        DataError: too few held-out or training passages to say anything; another author's text that cannot be read.
    """
    settings, seed = recipe.eval.style, recipe.train.seed
    held, train = held_out(dataset, settings.samples, seed), authored(list(dataset.rows(TRAIN)))
    for rows, name in ((held, "held-out"), (train, "training")):
        if len(rows) < FEWEST_PASSAGES:
            raise DataError(f"{len(rows)} {name} passages are too few to say anything of a style", where="eval.style",
                            why=f"at least {FEWEST_PASSAGES} are needed, and some twenty to be sure of anything",
                            fix="hold out more text, or set data.style.chunk_words lower")
    other = other_passages(settings.other, folder, [row.answer for row in held]) if settings.other else None
    say(f"style: {len(held)} passages of {dataset.tests[0]!r}, written by base and tuned")
    said = {ZERO_SHOT: None, TUNED: None}
    for system in said:
        with model.disable_adapter() if system == ZERO_SHOT else nullcontext():
            said[system] = write(model, tokenizer, held, settings, seed)
        say(f"  {system}: {len(held)} passages written")
    found = compare_texts([row.answer for row in held], {s: [text for text, _ in texts] for s, texts in said.items()},
                          [row.answer for row in train], [row.where for row in train], other, seed=seed, say=say)
    found["set"] = dataset.tests[0]
    found["settings"] = settings.model_dump(mode="json") | {"seed": seed}
    found["examples"] = [row.answer for row in random.Random(f"{seed}/examples").sample(train, TRAINING_EXAMPLES)]
    found["items"] = [{"id": row.where, "request": row.prompt, "author": row.answer,
                       "texts": {s: texts[i][0] for s, texts in said.items()},
                       "stopped": {s: texts[i][1] for s, texts in said.items()}} for i, row in enumerate(held)]
    found["verdict"] = verdict(found["distances"])
    found["worry"] = worries(found, settings.copied_words)
    say(found["verdict"])
    return found


def compare_texts(held: Sequence[str], said: dict[str, Sequence[str]], train: Sequence[str], places: Sequence[str],
                  other: Sequence[str] | None = None, *, seed: int = 0, say: Say = lambda _line: None) -> dict:
    """Texts of systems beside the author's: no model is needed. `said[system][i]` answers the request of `held[i]`.

    Returns `{kind, n, words, profile, distances, two_sample, copying, telling}`.
    """
    texts = {s: [fit(text, len(words_of(author))) for text, author in zip(own, held, strict=True)] for s, own in said.items()}
    profiled = list(train) if len(train) <= MOST_TRAINING else random.Random(f"{seed}/train").sample(list(train), MOST_TRAINING)
    frequent = profile.frequent_words(profiled)
    held_NC, train_MC = profile.table(held, frequent), profile.table(profiled, frequent)
    own = {s: profile.table(t, frequent) for s, t in texts.items()}
    other_KC = profile.table(other, frequent) if other else None
    tables = {"author": held_NC, "training": train_MC, **own}
    found = {"kind": "style", "n": len(held), "words": {name: int(t[:, 0].sum()) for name, t in tables.items()}}
    found["profile"] = profile_lines(held_NC, own)
    found["distances"] = {name: distance.compare(name, held_NC, own, train_MC, other_KC, seed) for name in distance.DISTANCES}
    spread_W = distance.spread_of(train_MC)
    found["telling"] = {s: distance.telling(held_NC, t, spread_W, frequent) for s, t in own.items()}
    say("  style: two-sample test")
    drawn = random.Random(f"{seed}/self").sample(profiled, min(len(held), len(profiled)))
    sides = dict(texts) | {"self": drawn} | ({"other": list(other)} if other else {})
    found["two_sample"] = {name: told_apart(*pairs_of(own_texts, held), seed=seed) for name, own_texts in sides.items()}
    say("  style: copies of the training text")
    source = Source(train, places)
    found["copying"] = {name: copied(source, own_texts) for name, own_texts in {"author": held, **texts}.items()}
    found["copying"]["least_words"] = COPIED
    return _finite(found)


def _finite(value):
    """The same with null for what could not be measured: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def profile_lines(held_NC: np.ndarray, own: dict[str, np.ndarray]) -> dict:
    """{feature: {label, unit, note, systems: {author, ...: {value, ci95}}, closer, sure}}.

    `closer` is the system nearer to the author; `sure` whether the interval of the difference of their distances says so.
    """
    weights_RN = distance.resamples(len(held_NC))
    sums = {name: (t.sum(0, keepdims=True), weights_RN @ t) for name, t in {"author": held_NC, **own}.items()}
    lines = {}
    for key, feature in profile.FEATURES.items():
        values = {name: (float(feature.value(one)[0]), feature.value(many)) for name, (one, many) in sums.items()}
        systems = {}
        for name, (value, values_R) in values.items():
            if np.isfinite(value):
                low, high = distance.around(value, values_R, len(held_NC))
                systems[name] = {"value": value, "ci95": [max(0.0, low), high]}
        line = {"label": feature.label, "unit": feature.unit, "note": feature.note, "systems": systems}
        lines[key] = line | _closer(values, len(held_NC))
    return lines


def _closer(values: dict[str, tuple[float, np.ndarray]], n: int) -> dict:
    if not {ZERO_SHOT, TUNED} <= values.keys() or not all(np.isfinite(value) for value, _ in values.values()):
        return {"closer": None, "sure": False}
    off = {s: (abs(values[s][0] - values["author"][0]), np.abs(values[s][1] - values["author"][1])) for s in (ZERO_SHOT, TUNED)}
    gap = off[TUNED][0] - off[ZERO_SHOT][0]
    low, high = distance.around(gap, off[TUNED][1] - off[ZERO_SHOT][1], n)
    return {"closer": None if gap == 0 else TUNED if gap < 0 else ZERO_SHOT, "sure": high < 0 if gap < 0 else low > 0}


def pairs_of(texts: Sequence[str], held: Sequence[str]) -> tuple[list[str], list[str]]:
    """Texts and held-out passages, cut in pairs to the same length."""
    pairs = [even(text, author) for text, author in zip(texts, held, strict=False)]
    return [text for text, _ in pairs], [author for _, author in pairs]


def held_out(dataset: Dataset, samples: int, seed: int) -> list[Row]:
    """Rows of the primary test set, drawn with the seed when there are more than `samples`."""
    rows = authored(list(dataset.rows(dataset.tests[0])))
    kept = sorted(random.Random(f"{seed}/style").sample(range(len(rows)), min(samples, len(rows))))
    return [rows[i] for i in kept]


def authored(rows: list[Row]) -> list[Row]:
    """Passages of text where there are any (other rows are replayed ones, say); else all rows with an answer."""
    passages = [row for row in rows if "kind" in row.meta and "chapter" in row.meta]
    return passages or [row for row in rows if row.answer.strip() and row.desirable is not False]


def other_passages(paths: str | list[str], folder: Path, like: Sequence[str]) -> list[str]:
    """Passages of another author's text, as long as the author's own. Raises DataError."""
    from tunesmith.data.chapters import read_book
    from tunesmith.data.passages import passages
    from tunesmith.data.read import read_text

    size = int(np.median([len(words_of(text)) for text in like]))
    found = []
    for name in [paths] if isinstance(paths, str) else paths:
        path = folder / name
        if not path.is_file():
            raise DataError("there is no such file", where=f"eval.style.other: {path}", fix="name a .txt or .md file")
        for chapter in read_book(read_text(path, name)).chapters:
            found += [p.text for p in passages(chapter.paragraphs, max(SHORT, size), lambda text: len(text.split()))]
    if len(found) < FEWEST_PASSAGES:
        raise DataError(f"eval.style.other has only {len(found)} passages", why=f"passages have {size} words, as the author's",
                        fix="give more of that author's text")
    return found


def write(model, tokenizer, rows: Sequence[Row], settings, seed: int) -> list[tuple[str, bool]]:
    """What a model writes to each row's request, and whether it ended by itself. Row i has its own random stream, seed + i."""
    from tunesmith.serving.generate import answers
    from tunesmith.template.render import generation_prompt, stop_ids

    prompts = [generation_prompt(tokenizer, row.question, row.tools) for row in rows]
    return answers(model, tokenizer, prompts, stop_ids(tokenizer), max_new_tokens=settings.max_new_tokens, batch_size=16,
                   temperature=settings.temperature, top_p=settings.top_p, seed=seed)


def verdict(distances: dict) -> str:
    """A sentence about function words, the distance that says least of the topic, and one about the others if they moved."""
    moved = {"closer": [], "farther": []}
    for name, found in distances.items():
        if name != "delta" and None not in found["ci95"] and (found["ci95"][1] < 0 or found["ci95"][0] > 0):
            moved["closer" if found["ci95"][1] < 0 else "farther"].append(found["label"])
    others = [f"{way} in {' and '.join(labels)}" for way, labels in moved.items() if labels]
    return _of_words(distances["delta"]) + (f" The tuned model is {', and '.join(others)}." if others else "")


def _of_words(delta: dict) -> str:
    base, tuned, own = delta["systems"][ZERO_SHOT]["value"], delta["systems"][TUNED]["value"], delta["self"]["value"]
    if None in (base, tuned, own):
        return "The style was not measured: the author's text has too few frequent words."
    numbers = f"(Burrows' Delta {tuned:.2f} against {base:.2f}; the author against himself {own:.2f})"
    low, high = delta["ci95"]
    if high < 0:
        return f"In function words the tuned model is closer to the author than the base {numbers}."
    if low > 0:
        return f"In function words the tuned model is farther from the author than the base {numbers}."
    return f"In function words no difference between tuned and base is shown {numbers}."


def worries(found: dict, copied_words: int) -> list[str]:
    """What a careful reader should look at."""
    out, copies, words = [], found["copying"], found["words"]
    longest, floor = copies[TUNED]["longest"], copies["author"]["longest"]
    if longest and longest["words"] >= copied_words and longest["words"] > (floor["words"] if floor else 0):
        out.append(f"style: a tuned text repeats {longest['words']} words in a row of the training text ({longest['from']}); "
                   f"the author's held-out text at most {floor['words'] if floor else 0}")
    own, natural = copies[TUNED], copies["author"]
    if own["share"] and natural["ci95"] and own["ci95"][0] > natural["ci95"][1]:
        out.append(f"style: {100 * own['share']:.1f}% of the tuned texts stand in copied runs of {COPIED} or more words, "
                   f"{100 * natural['share']:.1f}% of the author's held-out text")
    if words["author"] < LITTLE_TEXT:
        out.append(f"style: there are only {words['author']:,} words of held-out text: below {LITTLE_TEXT:,} only "
                   "large differences of style can be shown")
    for system in (ZERO_SHOT, TUNED):
        if words[system] < words["author"] / 2:
            out.append(f"style: {system} wrote {words[system]:,} words where the author has {words['author']:,}: short samples "
                       "look farther away than they are")
    return out
