"""A blind vote: one page for a reader who does not know which text is whose, and counting what came back.

    make(run)   ->  runs/RUN/votes/BALLOT.html        to be read by anybody, anywhere: one file, no network
                    runs/RUN/votes/BALLOT.key.json    which text is whose: this one stays here
    read(files) ->  runs/RUN/votes/BALLOT.READER.votes.json, and the count in the report

Order and sides are drawn with a seed that only the key has. The page holds texts under random names; nothing in it says
where a text comes from. Both texts of a pair are cut to the same length, so that a limit of tokens gives nobody away.
A pair is won by the text that most readers chose. Wins against losses: the sign test (ties are left out), and the share of
wins with its 95% interval: Wilson's for one reader, resampled pairs for several.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import secrets
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from tunesmith.errors import DataError, NotFoundError, UsageError
from tunesmith.evals.style.text import ENDS, even, fit
from tunesmith.store.files import read_json, sha256_json, write_json, write_text

VOTES = "votes"
TUNED = "tuned"
CHOICES = ("first", "second", "tie")
EXAMPLES, EXAMPLE_WORDS = 2, 90
QUESTIONS = {"zero_shot": "Which of the two sounds more like the author?", "author": "Which of the two did the author write?"}


def make(report: dict, folder: Path, against: str = "zero_shot", pairs: int = 20, seed: int | None = None) -> dict:
    """Write page and key. Returns `{ballot, page, key, pairs, left_out}`; equal pairs are left out: there is nothing to choose.

    `folder` is the run's. The same seed gives the same page.

    Raises:
        UsageError: the report has no style section, or every pair is equal.
    """
    style = _style(report)
    seed = secrets.randbits(62) if seed is None else seed
    rng = random.Random(f"{seed}/{against}")
    texts = [(item["id"], *even(item["texts"][TUNED], _of(item, against))) for item in style["items"]]
    different = [t for t in texts if t[1] != t[2]]
    if not different:
        raise UsageError(f"all {len(texts)} pairs are equal", why=f"the tuned model wrote what the {_word(against)} wrote",
                         fix="look at the report: tuning changed nothing")
    drawn = rng.sample(different, min(pairs, len(different)))
    shown, key = [], []
    for number, (item, tuned, other) in enumerate(drawn):
        first = rng.random() < 0.5
        name = hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()[:10]
        sides = (tuned, other) if first else (other, tuned)
        shown.append({"name": name} | {side: _ended(text) for side, text in zip(("first", "second"), sides, strict=True)})
        key.append({"name": name, "item": item, "first": TUNED if first else against, "second": against if first else TUNED,
                    "texts": sha256_json([tuned, other])})
    ballot = sha256_json([report["run_id"], against, seed, shown]).removeprefix("sha256:")[:12]
    page, kept = (folder / VOTES / f"{ballot}{end}" for end in (".html", ".key.json"))
    examples = [_ended(fit(text, EXAMPLE_WORDS)) for text in style["examples"][:EXAMPLES]]
    write_json(kept, {"ballot": ballot, "run_id": report["run_id"], "against": against, "seed": seed, "pairs": key})
    write_text(page, _template().render(ballot=ballot, question=QUESTIONS[against], pairs=shown, examples=examples))
    return {"ballot": ballot, "page": str(page), "key": str(kept), "pairs": len(drawn), "left_out": len(texts) - len(different)}


def read(files: list[Path], report: dict, folder: Path) -> dict:
    """Keep exported votes with the run, and count all that it has: `{against: {pairs, wins, losses, ties, ...}}`.

    A reader's votes on a ballot replace the ones he gave before.

    Raises:
        DataError: a file that is not what the page exports.
        UsageError: the report has no style section.
        NotFoundError: votes on a ballot that this run has no key for.
    """
    _style(report)
    for path in files:
        votes = _checked(path, folder)
        write_json(folder / VOTES / f"{votes['ballot']}.{_safe(votes['reader'])}.votes.json", votes)
    return count(report, folder)


def count(report: dict, folder: Path) -> dict:
    """All votes that a run has on the texts of its report, by what the tuned text stood against. Others are left out."""
    items = {item["id"]: item for item in report["style"]["items"]}
    given: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    readers: dict[str, set[str]] = defaultdict(set)
    sides: dict[str, Counter] = defaultdict(Counter)
    for path in sorted((folder / VOTES).glob("*.votes.json")):
        votes = read_json(path)
        key = read_json(folder / VOTES / f"{votes['ballot']}.key.json")
        against = key["against"]
        for pair in key["pairs"]:
            choice, item = votes["votes"].get(pair["name"]), items.get(pair["item"])
            if choice is None or item is None:
                continue
            if sha256_json(list(even(item["texts"][TUNED], _of(item, against)))) != pair["texts"]:
                continue  # the run was evaluated again since, and writes otherwise now
            given[against][pair["item"]].append("tie" if choice == "tie" else pair[choice])
            readers[against].add(votes["reader"])
            sides[against][choice] += 1
    return {against: tally(list(pairs.values()), against) | {
        "readers": len(readers[against]), "first": sides[against]["first"], "second": sides[against]["second"]}
        for against, pairs in given.items()}


def tally(pairs: list[list[str]], against: str) -> dict:
    """`{pairs, votes, wins, losses, ties, share, ci95, p_value}` of the choices on each pair: "tuned", `against` or "tie".

    share is the mean, over pairs with a choice, of the readers' share for the tuned text; None without such a pair.
    """
    from tunesmith.evals.statistics import mean_interval

    own = [(votes.count(TUNED), votes.count(against)) for votes in pairs]
    decided = [won / (won + lost) for won, lost in own if won + lost]
    wins, losses = sum(w > x for w, x in own), sum(w < x for w, x in own)
    return {"pairs": len(pairs), "votes": sum(map(len, pairs)), "wins": wins, "losses": losses,
            "ties": len(pairs) - wins - losses, "share": sum(decided) / len(decided) if decided else None,
            "ci95": list(mean_interval(decided)) if decided else None, "p_value": sign_test(wins, losses)}


def sign_test(wins: int, losses: int) -> float | None:
    """Exact two-sided p-value of "both are chosen equally often"; None without a decided pair."""
    n = wins + losses
    if not n:
        return None
    tail = sum(math.comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n
    return min(1.0, 2 * tail)


def _style(report: dict) -> dict:
    if not report.get("style"):
        raise UsageError("the run's report has no texts to vote on", why="its recipe does not set eval.style",
                         fix="add `style: {}` to `eval`, and train or evaluate a run with it")
    return report["style"]


def _ended(text: str) -> str:
    """The text with a mark where it was cut."""
    return text if not text.strip() or text.endswith(ENDS) else f"{text} …"


def _of(item: dict, system: str) -> str:
    return item["author"] if system == "author" else item["texts"][system]


def _word(system: str) -> str:
    return {"zero_shot": "base"}.get(system, system)


def _safe(reader: str) -> str:
    return re.sub(r"[^\w-]", "_", reader)[:40] or "reader"


def _checked(path: Path, folder: Path) -> dict[str, Any]:
    fix = "give the file that the page's last screen saves"
    try:
        votes = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError("the votes cannot be read", where=str(path), why=str(error), fix=fix) from error
    except ValueError as error:
        raise DataError("this is no file of votes", where=str(path), why=str(error), fix=fix) from error
    if not isinstance(votes, dict) or not isinstance(votes.get("votes"), dict) \
            or not all(isinstance(votes.get(k), str) for k in ("ballot", "reader")):
        raise DataError("this is no file of votes", where=str(path), why="it has no `ballot`, `reader` and `votes`", fix=fix)
    kept = folder / VOTES / f"{votes['ballot']}.key.json"
    if not re.fullmatch(r"[0-9a-f]{12}", votes["ballot"]) or not kept.is_file():
        raise NotFoundError(f"this run has no ballot {votes['ballot'][:40]!r}", where=str(path), why=f"there is no {kept.name}",
                            fix="name the run that the page was made from")
    names = {pair["name"] for pair in read_json(kept)["pairs"]}
    for name, choice in votes["votes"].items():
        if name not in names or choice not in CHOICES:
            raise DataError(f"no vote on this ballot: {name!r}: {choice!r}", where=str(path),
                            why="pairs have the names of the page, votes are first, second or tie", fix=fix)
    return {key: votes[key] for key in ("ballot", "reader", "votes")}


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("vote.html.jinja")
