"""The two files of an adapter, and PEFT's way of loading them made strict.

    adapter_config.json          what it is (`peft_type`) and its settings
    adapter_model.safetensors    its tensors
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import AdapterError, StoreError
from tunesmith.models.load import quiet_transformers

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


def read_config(directory: Path) -> dict:
    """adapter_config.json. Raises AdapterError when one of the two files is missing or it cannot be read."""
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / file).is_file():
            raise AdapterError(f"no {file}", where=str(directory), fix="give the directory of a PEFT adapter")
    with fitting(directory):
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
            raise ValueError(f"{CONFIG_FILE} names no peft_type")
    return config


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Raises AdapterError when the file is damaged."""
    from safetensors.torch import load_file

    with fitting(directory):
        return load_file(directory / WEIGHTS_FILE)


def write(directory: Path, config: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Write both files. Raises StoreError: a full disk, which safetensors does not report as an OSError."""
    from safetensors.torch import save_file

    with full_disk(directory):
        save_file({n: t.detach().contiguous() for n, t in tensors.items()}, directory / WEIGHTS_FILE, metadata={"format": "pt"})
        (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True, default=_plain), encoding="utf-8")


def _plain(value):
    """PEFT's configs hold sets and enumerations."""
    return sorted(value) if isinstance(value, set) else value.value


def same_tensors(stored: dict, expected: dict) -> None:
    """Raises ValueError: names or shapes differ."""
    same_shapes(stored, {n: t.shape for n, t in expected.items()})


def same_shapes(stored: dict, expected: dict) -> None:
    """`stored`: tensors by name, `expected`: shapes by name. Raises ValueError: they differ."""
    if odd := sorted(stored.keys() ^ expected.keys()):
        raise ValueError(f"{len(odd)} tensors of the adapter and the base do not match, for example {odd[0]}")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise ValueError(f"size mismatch for {name}: {tuple(stored[name].shape)} in the file, {tuple(shape)} here")


@contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise StoreError(f"could not write {directory / WEIGHTS_FILE}", why=str(error),
                         fix="free some space, or set TUNESMITH_HOME to a disk that has room") from error


@contextmanager
def fitting(directory: Path) -> Iterator[None]:
    """Whatever a library says of an adapter that does not fit, as an AdapterError."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError("the adapter does not fit this base", where=str(directory),
                           why=f"{type(error).__name__}: {(str(error).splitlines() or [''])[-1].strip()}",
                           fix="load it on the base it was trained on (see its release's manifest)") from error


# ---- PEFT -------------------------------------------------------------------------------------------------------------


def save_peft(model: PeftModel, directory: Path) -> None:
    """Write a plain PEFT directory."""
    with full_disk(directory), quiet_transformers():
        model.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's blank model card


def load_peft(model: PreTrainedModel | PeftModel, directory: Path, *, name: str, trainable: bool) -> PeftModel:
    """Put an adapter on a base, or beside those already on it, which stay as they are when it is refused.

    Raises:
        AdapterError: no adapter there, or its tensors are not exactly those that its config makes on this base.
            PEFT only warns of missing keys, and answers with the base's own weights.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    from tunesmith.methods.adapted import alone

    peft_type = read_config(directory)["peft_type"]
    beside = isinstance(model, PeftModel)
    if not beside:
        alone(model, directory)
    elif any(c.peft_type.value != peft_type for c in model.peft_config.values()):
        raise AdapterError(f"{peft_type} does not go beside another kind of adapter", where=str(directory),
                           why=f"the base carries {', '.join(sorted({c.peft_type.value for c in model.peft_config.values()}))}",
                           fix="load it on a base of its own")
    try:
        with fitting(directory):
            with safe_open(directory / WEIGHTS_FILE, framework="pt") as f:
                stored = set(f.keys())
            with quiet_transformers():
                if beside:
                    model.load_adapter(str(directory), adapter_name=name, is_trainable=trainable)
                else:
                    model = PeftModel.from_pretrained(model, str(directory), adapter_name=name, is_trainable=trainable)
            expected = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
            if odd := sorted(stored ^ expected):
                raise ValueError(f"{len(odd)} tensors of the adapter and the base do not match, for example {odd[0]}")
    except AdapterError:
        if beside and name in model.peft_config:
            model.delete_adapter(name)
        raise
    return model


def restore_peft(model: PeftModel, tensors: dict[str, torch.Tensor]) -> None:
    """Put saved tensors back, in place. Raises ValueError when they are not exactly those of the adapter."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    same_tensors(tensors, get_peft_model_state_dict(model, save_embedding_layers=False))
    set_peft_model_state_dict(model, tensors)


def merge_peft(model: PeftModel) -> PreTrainedModel:
    """Fold the active adapter into the base's weights, in place, and return the base.

    Raises:
        AdapterError: the merged weights are not finite.
    """
    try:
        with quiet_transformers():
            return model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise AdapterError("the adapter cannot be merged", why=str(error)) from error
