"""The data card: one page on which a person sees what a dataset is, before anything is trained on it.

    datasets/ID/card.html        counts, findings with evidence, lengths, rows that resemble each other, shares of labels,
                                 languages, licences and sources, the mix, packing, sample rows as the model sees them

The page is drawn by `card.html.jinja` and its parts `card_*.html.jinja`. It runs no script and fetches nothing. Whatever it
shows of rows is masked: a page is read by more people than the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data import charts
from tunesmith.data.dataset import TRAIN, Dataset
from tunesmith.data.pack import packing_report, plan_steps
from tunesmith.data.quality.evidence import mask
from tunesmith.recipe.schema import Recipe
from tunesmith.store.files import write_text
from tunesmith.template.roles import roles

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BINS = 28
SAMPLES = 4
SHOWN_TOKENS = 600
"""Of a sample row: the page stays readable, and says how many more there are."""
RANK = {"error": 0, "warning": 1, "info": 2}


def write_card(dataset: Dataset, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Draw the card beside the dataset and return its path."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    page = Environment(loader=PackageLoader("tunesmith.data", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
                       undefined=StrictUndefined)
    path = dataset.path / "card.html"
    write_text(path, page.get_template("card.html.jinja").render(card=card(dataset, recipe, tokenizer)))
    return path


def card(dataset: Dataset, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Everything the page shows."""
    manifest = dataset.manifest
    parts = [_part(dataset, name) for name in (TRAIN, *dataset.tests)]
    top = max(p["longest"] for p in parts)
    for part in parts:
        part["bins"] = _bins(part.pop("lengths"), part.pop("trained_lengths"), top)
    filters = manifest.get("filters", [])
    files = [file for part in manifest["sources"].values() for file in part]
    statistics, drawn = manifest["statistics"], manifest["pictures"]
    return {
        "name": recipe.name, "id": dataset.id, "base": recipe.base, "counts": manifest["counts"], "parts": parts, "top": top,
        "limit": recipe.data.max_tokens, "findings": sorted(manifest["findings"], key=lambda f: RANK[f["severity"]]),
        "diversity": manifest["diversity"],
        "text": manifest["text"], "packing": packing(dataset, recipe), "system": mask(manifest["system"] or ""),
        "roles": statistics["roles"], "characters": charts.bars({k: r["characters"] for k, r in statistics["roles"].items()}),
        "shares": charts.shares(statistics, manifest["mix"]), "mix": charts.mix(manifest["mix"], files),
        "near": charts.near(drawn["near"]), "leaks": [charts.leak(kind) for kind in drawn["leaks"]],
        "overlong": charts.overlong(manifest["overlong"], files), "filters": filters, "funnel": charts.funnel(filters),
        "samples": [_sample(dataset, tokenizer, i) for i in _evenly(len(dataset.tokens(TRAIN)), SAMPLES)],
        "sources": manifest["sources"], "inputs": manifest["inputs"],
    }


def packing(dataset: Dataset, recipe: Recipe) -> dict:
    """`pack.packing_report` of the steps that this recipe would train."""
    tokens, train = dataset.tokens(TRAIN), recipe.train
    lengths = tokens.lengths
    steps = plan_steps(lengths, tokens_per_step=train.tokens_per_step, tokens_per_pack=train.tokens_per_pack,
                       rows_per_step=train.rows_per_step, epochs=1, max_steps=train.max_steps, seed=train.seed)
    return packing_report(lengths, tokens.trained_lengths(), steps)


def _part(dataset: Dataset, name: str) -> dict[str, Any]:
    tokens = dataset.tokens(name)
    lengths, trained = tokens.lengths, tokens.trained_lengths()
    return {"name": name, "rows": len(lengths), "tokens": sum(lengths), "trained": sum(trained), "longest": max(lengths),
            "median": sorted(lengths)[len(lengths) // 2], "lengths": lengths, "trained_lengths": trained}


def _bins(lengths: Sequence[int], trained: Sequence[int], top: int) -> list[dict[str, float]]:
    """Rows by length up to `top`: count, height in percent of the fullest bin, and the trained share of its tokens."""
    width = max(1, -(-(top + 1) // BINS))
    count, tokens, on = ([0] * BINS for _ in range(3))
    for length, t in zip(lengths, trained, strict=True):
        at = length // width
        count[at] += 1
        tokens[at] += length
        on[at] += t
    most = max(count)
    return [{"from": i * width, "to": (i + 1) * width - 1, "rows": n, "height": 100 * n / most,
             "trained": on[i] / tokens[i] if tokens[i] else 0.0} for i, n in enumerate(count) if i * width <= top]


def _sample(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, i: int) -> dict[str, Any]:
    """Row `i` as runs of tokens of one role that are trained, or are not: `(trained, role, text)`, masked."""
    (ids, trained), row = dataset.tokens(TRAIN)[i], dataset.rows(TRAIN)[i]
    runs: list[tuple[bool, str, list[int]]] = []
    for token, on, role in zip(ids[:SHOWN_TOKENS], trained, roles(tokenizer, row.messages, row.tools), strict=False):
        if not runs or runs[-1][:2] != (on, role):
            runs.append((on, role, []))
        runs[-1][2].append(token)
    return {"where": row.where, "tokens": len(ids), "trained": sum(trained), "more": len(ids) - SHOWN_TOKENS,
            "runs": [(on, role, mask(tokenizer.decode(part))) for on, role, part in runs]}


def _evenly(count: int, wanted: int) -> list[int]:
    return sorted({i * (count - 1) // max(1, wanted - 1) for i in range(wanted)})
