"""Which tensor of a checkpoint's files is which parameter of its model, by transformers' own rules.

Names may differ: a checkpoint without `model.` before its names, one of an older version, one whose layers are named otherwise.
transformers renames them when it loads (`core_model_loading.rename_source_key`), and so does this, on names alone. It also
converts: several tensors become one parameter, or one becomes several. Such parameters are in the files in another form;
they are copied as they are, and nothing can be merged into them here.

    tied    two names of the model that are one weight: an input embedding and a head, mostly
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import BaseModelError
from tunesmith.exports.merging.shards import Stored, stored
from tunesmith.models.load import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_FILE, SINGLE_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's files, and its model without weights."""

    path: Path
    model: PreTrainedModel
    """On the meta device."""
    files: dict[str, dict[str, Stored]]
    """By file, by name in the file."""
    indexed: bool
    """There is an index of shards."""
    of: dict[str, Stored]
    """By the parameter's (or buffer's) name in the model. Of tied ones, those that the files hold."""
    converted: dict[str, str]
    """Parameters that the files hold in another form, and the name there."""
    tied: dict[str, str]
    """{parameter: parameter it is tied to}, as the config and the files have it."""

    def where(self, parameter: str) -> str | None:
        """The parameter under whose name the files hold this one: itself, or the one it is tied to."""
        return next((name for name in (parameter, *self.together(parameter)) if name in self.of), None)

    def together(self, parameter: str) -> list[str]:
        """The others that are tied to it."""
        source = self.tied.get(parameter, parameter)
        group = [source, *(t for t, s in self.tied.items() if s == source)]
        return [name for name in group if name != parameter] if parameter in group else []


def opened(path: Path) -> Checkpoint:
    """A checkpoint's names. Reads headers only, but compares tied tensors that the files hold twice.

    Raises:
        BaseModelError: files are missing or damaged, the weights are quantised, or transformers does not know the model.
    """
    try:
        files, indexed = _files(path)
        model = without_weights(path)
        of, converted = _parameters(model, files, path)
        tied = {t: s for t, s in model.all_tied_weights_keys.items() if not (t in of and s in of and not _same(of[t], of[s]))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, BaseModelError):
            raise
        raise BaseModelError("the base's files cannot be read", where=str(path), why=(str(error).splitlines() or ["?"])[0],
                             fix="fetch or save the checkpoint again") from error
    made = Checkpoint(path, model, files, indexed, of, converted, tied)
    names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    if missing := [n for n in names if made.where(n) is None and n not in converted]:
        raise BaseModelError(f"{len(missing)} weights of the base are missing", where=str(path),
                             why=f"{missing[0]} is in no file", fix="fetch or save the checkpoint again")
    return made


def without_weights(path: Path) -> PreTrainedModel:
    """The model on the meta device, of the class that loads it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        raise BaseModelError("the base's weights are quantised in its files", where=str(path),
                             why="an adapter cannot be added to codes", fix="merge onto the checkpoint before quantisation")
    with torch.device("meta"), quiet_transformers():
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()


def _files(path: Path) -> tuple[dict[str, dict[str, Stored]], bool]:
    """As transformers looks for them: one file, or the shards of an index."""
    if (path / SINGLE_FILE).is_file():
        return {SINGLE_FILE: stored(path / SINGLE_FILE)}, False
    if not (path / INDEX_FILE).is_file():
        raise BaseModelError(f"no {SINGLE_FILE} and no {INDEX_FILE}", where=str(path),
                             fix="give a checkpoint that transformers' save_pretrained wrote")
    index = json.loads((path / INDEX_FILE).read_text(encoding="utf-8"))
    return {name: stored(path / name) for name in sorted(set(index["weight_map"].values()))}, True


def _parameters(model: PreTrainedModel, files: dict[str, dict[str, Stored]],
                path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """(tensors by the parameter they are, parameters that the files hold in another form)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules, expected = get_model_conversion_mapping(model), model.state_dict()
    renamings = [r for r in rules if isinstance(r, WeightRenaming)]
    converters = [r for r in rules if isinstance(r, WeightConverter)]
    prefix = model.base_model_prefix
    of: dict[str, Stored] = {}
    converted: dict[str, str] = {}
    tensors = [(name, one) for found in files.values() for name, one in found.items()]
    for name, one in sorted(tensors, key=lambda pair: dot_natural_key(pair[0])):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if renamed not in expected and name in expected:
            renamed, pattern = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=expected)
        if pattern is not None:
            rule = next(c for c in converters if pattern in c.source_patterns)
            converted |= {renamed.replace(rule.target_patterns[0], target): name for target in rule.target_patterns}
        elif renamed in of:
            raise BaseModelError(f"two tensors of the base are {renamed}", where=str(path),
                                 why=f"{of[renamed].name} in {of[renamed].path.name} and {name} in {one.path.name}",
                                 fix="save the checkpoint again with transformers' save_pretrained")
        elif renamed in expected:
            if one.shape != tuple(expected[renamed].shape):
                raise BaseModelError(f"{name} of the base has shape {one.shape}", where=str(one.path),
                                     why=f"its config makes it {tuple(expected[renamed].shape)}",
                                     fix="fetch or save the checkpoint again")
            of[renamed] = one
    return of, converted


def _same(a: Stored, b: Stored) -> bool:
    """transformers ties two tensors that a checkpoint holds only where they are equal."""
    return (a.dtype, a.shape) == (b.dtype, b.shape) and all(x.equal(y) for x, y in zip(a.pieces(), b.pieces(), strict=True))
