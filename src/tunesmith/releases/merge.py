"""Hand on a run or a release as one model: merged, written, loaded again, and kept only if it is the same model.

    DIR/   config.json  model*.safetensors  generation_config.json     as the merge wrote them
           tokenizer.json  tokenizer_config.json  chat_template.jinja  as the adapter was prompted

A run is asked rows of its primary test set, a release the questions that it carries.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tunesmith.errors import UsageError
from tunesmith.evals.items import Item
from tunesmith.evals.merged import Subject, compared, judged, measure, reference_of, unmerged_in
from tunesmith.recipe.evaluation import MergeGate
from tunesmith.recipe.load import Loaded
from tunesmith.recipe.schema import Recipe
from tunesmith.releases.bundle import Release
from tunesmith.store.files import publish_directory, read_json, write_json
from tunesmith.training.run import Run, tokenizer_for

Say = Callable[[str], None]
FIGURES = ("max_abs_logit_diff", "mean_abs_logit_diff", "mean_kl", "max_kl", "top1_agreement", "same_texts", "max_margin",
           "ratio")


def subject(made: Run | Release) -> tuple[Subject, MergeGate]:
    """What is merged and asked, and the recipe's rule for it, or the usual one."""
    if isinstance(made, Release):
        recipe = Recipe.model_validate_json((made.path / "recipe.resolved.json").read_text(encoding="utf-8"))
        items = [Item(f"golden-{i}", one["messages"], tools=one["tools"])
                 for i, one in enumerate(read_json(made.path / "golden.json"))]
        what = Subject(made.base(), made.adapter, made.tokenizer(), items, made.manifest["dtype"])
        return what, recipe.gates.merge or MergeGate()
    from tunesmith.evals.run import suites_of

    loaded: Loaded = made.recipe()
    base, state = made.base(), made.state
    items = suites_of(made.dataset(), loaded)[0].items
    return (Subject(base, made.adapter, tokenizer_for(base, loaded), items, state["dtype"], state["device"]),
            loaded.recipe.gates.merge or MergeGate())


def merge(made: Run | Release, out: Path, *, dtype: str | None = None, onto: str | None = None,
          say: Say = lambda _line: None) -> dict:
    """As `verbs.merge`. Nothing is at `out` unless the verdict is pass."""
    from tunesmith.exports.merge import write

    out = out.expanduser().absolute()
    if out.exists():
        raise UsageError("the directory is there already", where=str(out), why="nothing is overwritten",
                         fix="give a new one, or remove it")
    what, rule = subject(made)
    say("asking the adapter on its base")
    reference = reference_of(what, rule)
    found: dict = {}
    try:
        with publish_directory(out) as staging:
            say("merging")
            facts = write(what.base.path, what.adapter, staging, dtype=dtype, onto=onto)
            what.tokenizer.save_pretrained(staging)
            _same_stops(staging, reference.stops)
            known = _dtype_of(staging)
            say(f"loading it again, in {known}, and asking it the same")
            unmerged = unmerged_in(reference, known)
            found = judged(compared(reference, unmerged, staging), unmerged.rounding, rule)
            found["broken"] += _prompts_otherwise(staging, reference)
            if found["broken"]:
                raise _Another
    except _Another:
        pass
    verdict = "fail" if found["broken"] else "pass"
    said = (f"it is another model: {'; '.join(found['broken'])}" if found["broken"] else
            f"it is the same model, up to rounding: logits {found['ratio']:.2g} times as far away as rounding puts them, "
            f"{found['top1_agreement']:.1%} of {found['tokens']} tokens and {found['same_texts']:.0%} of "
            f"{found['questions']} texts the same")
    return {"path": str(out) if verdict == "pass" else None, "verdict": verdict, "message": said,
            **{k: facts[k] for k in ("method", "onto", "tensors", "changed", "bytes", "shards", "tied", "untied")},
            "dtype": known, **{k: found[k] for k in FIGURES},
            "probe": {"runtime": _runtime(), "questions": found["questions"], "tokens": found["tokens"],
                      "parted": found["parted"], "broken": found["broken"], "reference_dtype": what.dtype}}


def verify(made: Run | Release, say: Say = lambda _line: None) -> dict:
    """As `verbs.verify_merge`."""
    what, rule = subject(made)
    found = measure(what, rule, say)
    chosen = [m for m in found["models"] if m["chosen"]]
    odd = [f"in {m['dtype']} {'; '.join(m['broken'])}" for m in chosen if m["broken"]]
    onto = f" onto the {found['onto']} base" if found["onto"] else ""
    return {"ok": not odd, **found, "message": f"merged{onto} into {', '.join(m['dtype'] for m in chosen)}, written and loaded "
            "again, " + (f"it is another model: {'. '.join(odd)}" if odd else "it is the same model, up to rounding")}


class _Another(Exception):
    """The merged model is not the adapter on its base: what was written goes."""


def _dtype_of(folder: Path) -> str:
    """That of the written weights, as their config says; float32 where it says nothing."""
    config = read_json(folder / "config.json")
    return config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype") or "float32"


def _same_stops(folder: Path, stops: set[int]) -> None:
    """Whoever generates with transformers or vLLM stops where the adapter's server does: at the template's stop tokens."""
    path = folder / "generation_config.json"
    known = read_json(path) if path.is_file() else {}
    was = known.get("eos_token_id")
    if set(was if isinstance(was, list) else [was]) != stops:
        write_json(path, known | {"eos_token_id": sorted(stops)})


def _prompts_otherwise(folder: Path, reference) -> list[str]:
    """What the tokenizer that was written beside the model does otherwise."""
    from transformers import AutoTokenizer

    from tunesmith.exports.probe import questions
    from tunesmith.template.render import stop_ids

    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    asked = questions(again, reference.subject.items, len(reference.asked))
    odd = [] if [q.prompt for q in asked] == [q.prompt for q in reference.asked] else ["its tokenizer renders other prompts"]
    return odd + ([] if stop_ids(again) == reference.stops else ["its tokenizer knows other stop tokens"])


def _runtime() -> str:
    from importlib.metadata import version

    return f"transformers {version('transformers')}, torch {version('torch')}"
