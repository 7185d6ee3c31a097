"""Going on from another training's adapter: `train.start_from`.

    run, release or directory  ->  its tensors in a model that was attached in the same way  ->  step 0 is what it was

What it began from is part of a run: its place and digest stand in run.json, in the adapter's tunesmith.json and in a release's
manifest. Once there is a checkpoint, a resumed run needs it no more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import AdapterError, NotFoundError, RecipeError
from tunesmith.models.base import Base
from tunesmith.recipe.load import Loaded
from tunesmith.store.files import read_json, sha256_json, sha256_tree
from tunesmith.store.home import find

if TYPE_CHECKING:
    from tunesmith.training.run import Run

MEANING = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "num_virtual_tokens",
           "feedforward_modules", "size", "activation", "after")
"""Settings of an adapter that say what its tensors do. Which layers they are of, their names say."""


def place(loaded: Loaded) -> Path | None:
    """The directory of the adapter that a recipe goes on from.

    Raises:
        RecipeError: there is none of that name.
    """
    from tunesmith.methods.files import CONFIG_FILE

    ref = loaded.recipe.train.start_from
    if ref is None:
        return None
    if (loaded.resolve(ref) / CONFIG_FILE).is_file():
        return loaded.resolve(ref)
    for kind in ("runs", "releases"):
        try:
            if ((found := find(kind, ref) / "adapter") / CONFIG_FILE).is_file():
                return found
        except NotFoundError:
            continue
    raise RecipeError(f"train.start_from: no adapter {ref!r}", where=str(loaded.path),
                      why="no run, release or directory of that name has one", fix="see `tunesmith runs`")


def facts(loaded: Loaded, base: Base) -> dict | None:
    """`{ref, path, digest}` for run.json.

    Raises:
        RecipeError: there is no such adapter, or it was trained on another base.
    """
    path = place(loaded)
    if path is None:
        return None
    origin = path / "tunesmith.json"
    was = read_json(origin)["base"]["digest"] if origin.is_file() else base.digest
    if was != base.digest:
        raise RecipeError(f"train.start_from: {loaded.recipe.train.start_from!r} was trained on another base",
                          where=str(loaded.path), why=f"its base is {was}, the recipe's is {base.digest}",
                          fix="name that base, or leave train.start_from out")
    return {"ref": loaded.recipe.train.start_from, "path": str(path), "digest": sha256_json(sha256_tree(path))}


def begin(run: Run, loaded: Loaded, model, say: Callable[[str], None]) -> dict | None:
    """Put the tensors into the model, in place, and return run.json's facts of them.

    Raises:
        RecipeError: they are of another method or shape, or not those that the run was made with.
    """
    from tunesmith import methods
    from tunesmith.training import checkpoint

    known = run.state.get("started_from")
    if known is None:
        return None
    path = Path(known["path"])
    if not path.is_dir() or sha256_json(sha256_tree(path)) != known["digest"]:
        if checkpoint.all_in(run.path):
            say(f"{path} is not as it was; there are checkpoints, which need it no more")
            return known
        raise RecipeError("the adapter that this run goes on from has changed or is gone", where=str(path),
                          fix="bring it back, or start a new run")
    refuse_another_kind(loaded, path, model)
    try:
        methods.restore(model, path)
    except ValueError as error:
        raise _other(loaded, str(error)) from error
    say(f"going on from the adapter {known['ref']} ({known['digest'][:19]})")
    return known


def refuse_another_kind(loaded: Loaded, path: Path, model) -> None:
    """Raises RecipeError: tensors of the same shapes would mean something else in this model."""
    from tunesmith import methods
    from tunesmith.methods.files import read_config

    method = loaded.recipe.method
    try:
        kind, theirs = methods.kind(path), read_config(path)
    except AdapterError as error:
        raise _other(loaded, error.what) from error
    if kind != method.type:
        raise _other(loaded, f"it is of {kind}, and method.type is {method.type}")
    ours = model.peft_config["default"]
    ours = ours if isinstance(ours, dict) else ours.to_dict()
    if getattr(method, "init", None) == "pissa":
        from tunesmith.methods import pissa

        ours = pissa.saved_config(ours)
    for name in MEANING:
        if name in ours and _plain(ours[name]) != _plain(theirs.get(name)):
            raise _other(loaded, f"its {name} is {_plain(theirs.get(name))!r}, the recipe's {_plain(ours[name])!r}")
    quantised = path / methods.QUANTISATION_FILE
    if kind == "qlora" and any(read_json(quantised).get(k, v) != v for k, v in (
            ("block_size", method.block_size), ("double_quant", method.double_quant))):
        raise _other(loaded, "its base is quantised in another way")


def _plain(value):
    value = getattr(value, "value", value)
    return sorted(value) if isinstance(value, set | list | tuple) else value or None


def _other(loaded: Loaded, why: str) -> RecipeError:
    return RecipeError(f"train.start_from: {loaded.recipe.train.start_from!r} does not fit method", where=str(loaded.path),
                       why=why, fix="give method the settings of that adapter, or leave train.start_from out")
