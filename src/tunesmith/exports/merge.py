"""Merge an adapter into a checkpoint on files, tensor by tensor: a directory that transformers loads without any adapter.

    base/model-00001-of-00004.safetensors   ->  out/model-00001-of-00004.safetensors   the same tensors, those adapted changed
         config.json, generation_config.json    config.json (dtype, ties), generation_config.json, licences

Of a tensor some million values are in memory at a time, so the model's size does not matter; under QLoRA the largest linear
layer does, which is needed whole. Sums are made in float32 and rounded once, to the output's dtype. A tensor that is not
adapted keeps its bytes where its dtype stays. `methods.merge`, which does it on a loaded model, is what tests compare with
(ADR 14, docs/merge.md).
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunesmith.errors import AdapterError, BaseModelError, UsageError
from tunesmith.store.files import publish_directory, write_json

if TYPE_CHECKING:
    import torch

    from tunesmith.exports.merging.changes import Change
    from tunesmith.exports.merging.names import Checkpoint
    from tunesmith.exports.merging.shards import Stored

Onto = Literal["dequantised", "original"]
DTYPES = ("float32", "bfloat16", "float16")
CHUNK = 1 << 25
"""Values of a tensor that are in memory at once, 4 bytes each and some copies of them."""
COPIED = ("generation_config.json", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
"""Of the base's directory, beside its weights and its config. The tokenizer is the caller's."""


def merge(base: Path, adapter: Path, out: Path, *, dtype: str | None = None, onto: Onto | None = None) -> dict:
    """Write the merged checkpoint at `out`, all of it or nothing.

    `dtype` is that of the result; None: each tensor keeps the base's. `onto` is for QLoRA: the weights that 4 bits made of the
    base's (the default: what was trained on), or the base's own.

    Returns `{path, method, onto, dtype, tensors, changed, bytes, shards, tied, untied[]}`.

    Raises:
        AdapterError: the method has no merged form, its tensors are not exactly those of its config on this base, one of them
            falls on a weight that the files hold in another form, or a result is not finite.
        BaseModelError: the base's files are missing, damaged or quantised.
        UsageError: `out` is there already.
        StoreError: a full disk.
    """
    if out.exists():
        raise UsageError("the directory is there already", where=str(out), why="nothing is overwritten",
                         fix="give a new one, or remove it")
    with publish_directory(out) as staging:
        made = write(base, adapter, staging, dtype=dtype, onto=onto)
    return made | {"path": str(out)}


def write(base: Path, adapter: Path, folder: Path, *, dtype: str | None = None, onto: Onto | None = None) -> dict:
    """`merge` into a directory that is there, for a caller that publishes it."""
    import torch

    from tunesmith.exports.merging.changes import changes, mergeable
    from tunesmith.exports.merging.names import opened

    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"no dtype {dtype!r} to merge into", fix=f"one of {', '.join(DTYPES)}")
    method = mergeable(adapter)
    checkpoint = opened(base)
    found = changes(checkpoint, adapter, onto)
    untied = _untied(checkpoint, found)
    planned = _planned(checkpoint, found, untied, getattr(torch, dtype) if dtype else None, adapter)
    total, weight_map = 0, {}
    for file, tensors in planned.items():
        _write_file(folder / file, tensors, adapter)
        total += sum(t.bytes for t in tensors)
        weight_map |= {t.name: file for t in tensors}
    if checkpoint.indexed:
        from tunesmith.exports.merging.names import INDEX_FILE

        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    _copy_rest(base, folder, dtype, bool(untied))
    _check(folder, untied)
    return {"path": str(folder), "method": method, "onto": (onto or "dequantised") if method == "qlora" else None,
            "dtype": dtype or "as the base", "tensors": len(weight_map), "changed": len({c.parameter for c in found}),
            "bytes": total, "shards": len(planned), "tied": checkpoint.tied if not untied else {}, "untied": sorted(untied)}


def _untied(checkpoint: Checkpoint, found: list[Change]) -> dict[str, str]:
    """{parameter: where its values are} of tied ones that must each be written by itself, since one of them is adapted.

    A head that is tied to the embedding and has an adapter answers with W + s B A, and the embedding still with W.
    """
    alone = {c.parameter for c in found if not c.of_all}
    if not any(alone & {t, s} for t, s in checkpoint.tied.items()):
        return {}
    return {n: checkpoint.where(n) for pair in checkpoint.tied.items() for n in pair}


def _planned(checkpoint: Checkpoint, found: list[Change], untied: dict[str, str], dtype: torch.dtype | None,
             adapter: Path) -> dict[str, list]:
    """{file: tensors to write}. Raises AdapterError: a change that falls on no tensor of the files."""
    from tunesmith.exports.merging.shards import Planned

    by_place: dict[str, list[Change]] = defaultdict(list)
    for change in found:
        if change.parameter in checkpoint.converted:
            raise AdapterError(f"{change.parameter} is adapted, and the base's files hold it in another form",
                               where=str(adapter), why=f"transformers makes it of {checkpoint.converted[change.parameter]}",
                               fix="merge the loaded model: tunesmith.methods.merge(methods.load(model, adapter))"
                                   ".save_pretrained(DIR)")
        others = checkpoint.together(change.parameter) if change.of_all or not untied else []
        places = [n for n in (change.parameter, *others) if n in checkpoint.of or n in untied]
        if not places:
            raise AdapterError(f"{change.parameter} is adapted, and no file of the base holds it", where=str(adapter),
                               fix="give the base that it was trained on")
        for place in places:
            by_place[place].append(change)
    kept = _kept_exact(checkpoint, dtype)
    parameter_of = {(one.path, one.name): name for name, one in checkpoint.of.items()}
    planned: dict[str, list] = {}
    for file, tensors in checkpoint.files.items():
        planned[file] = []
        for name, one in tensors.items():
            parameter = parameter_of.get((one.path, one.name))
            todo = by_place.pop(parameter, []) if parameter else []
            to = one.dtype if dtype is None or not one.dtype.is_floating_point or parameter in kept else dtype
            planned[file].append(Planned(name, to, one.shape, partial(_pieces, one, todo, to)))
            for other in [n for n, source in untied.items() if source == parameter and n not in checkpoint.of]:
                planned[file].append(Planned(other, to, one.shape, partial(_pieces, one, by_place.pop(other, []), to)))
    if by_place:
        raise AdapterError(f"{min(by_place)} is adapted, and was not written", where=str(adapter))
    return planned


def _kept_exact(checkpoint: Checkpoint, dtype: torch.dtype | None) -> set[str]:
    """Parameters that transformers keeps in float32 whatever dtype it is asked for: their own dtype stays."""
    import re

    import torch

    model = checkpoint.model
    modules = set(model._keep_in_fp32_modules_strict or ()) if dtype in (torch.float16, torch.bfloat16) else set()
    if dtype == torch.float16:
        modules |= set(model._keep_in_fp32_modules or ())
    return {n for n in checkpoint.of if any(re.search(rf"(^|\.){m}($|\.)", n) for m in modules)}


def _pieces(one: Stored, todo: list[Change], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """A tensor's values as they will be written. Raises AdapterError: they are not finite."""
    import torch

    if not todo and one.dtype == dtype:
        yield from one.pieces()
        return
    rows = one.shape[0] if one.shape else 1
    step = rows if not one.shape or any(c.whole for c in todo) else max(1, CHUNK // max(1, prod(one.shape[1:])))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        values = one.read(first, last) if one.shape else one.read()
        if todo:
            values = values.float()
            for change in todo:
                values = change.apply(values, first, last)
        values = values.to(dtype)
        if not bool(torch.isfinite(values).all()):
            raise AdapterError(f"{one.name} is not finite once it is merged", where=str(one.path),
                               why="the adapter's numbers are broken" if todo else "the base's are",
                               fix="merge into bfloat16 or float32, whose range is larger" if dtype == torch.float16 else
                               "see the run's losses: `tunesmith show RUN`")
        yield values


def _write_file(path: Path, tensors: list, adapter: Path) -> None:
    from tunesmith.exports.merging.shards import write as write_shard

    try:
        write_shard(path, tensors)
    except ValueError as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError("the adapter cannot be merged into this base", where=str(adapter), why=str(error)) from error


def _copy_rest(base: Path, folder: Path, dtype: str | None, untied: bool) -> None:
    """config.json as it has to be now, and what travels with the weights."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        for key in ("dtype", "torch_dtype"):
            if dtype and (key in part or (part is config and key == "dtype" and "torch_dtype" not in part)):
                part[key] = dtype
        if untied and (part is config or "tie_word_embeddings" in part):
            part["tie_word_embeddings"] = False
    write_json(folder / "config.json", config)
    for path in sorted({p for pattern in COPIED for p in base.glob(pattern) if p.is_file()}):
        shutil.copyfile(path, folder / path.name)


def _check(folder: Path, untied: dict[str, str]) -> None:
    """What was written is a whole checkpoint, and tied as it should be. Raises AdapterError."""
    from tunesmith.exports.merging.names import opened

    try:
        made = opened(folder)
    except BaseModelError as error:
        raise AdapterError("the merged checkpoint cannot be read back", where=str(folder), why=error.what) from error
    if untied and (odd := sorted(set(untied) & (made.tied.keys() | set(made.tied.values())))):
        raise AdapterError(f"{odd[0]} is adapted by itself, and this base ties it to another weight", where=str(folder),
                           why="its config has no way to say that they are two", fix="serve it as an adapter")
