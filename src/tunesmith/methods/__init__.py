"""Every way of adapting a base, behind the same verbs.

    of(recipe.method)                  the method's module: attach, save, load, restore, merge, estimate, unmoved
    attach(model, method, base_ref)    base -> model with something to train
    save(model, directory)             adapter_config.json, adapter_model.safetensors
    load(model, directory)             base + directory -> adapted model, whatever method made the directory
    restore(model, directory)          a checkpoint's tensors back into the model, in place
    merge(model)                       adapted model -> a model of the base's architecture, where the method can
    unmoved(model)                     why the adapter changes nothing, or None

An adapted model is a PeftModel or an `adapted.Adapted`: it is called like the base, has `get_base_model()`,
`peft_config` and `disable_adapter()`, and its logits are those of the given tokens, virtual ones left out.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tunesmith.errors import AdapterError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunesmith.recipe.section import Section

BY_PEFT_TYPE = {"LORA": "lora", "IA3": "ia3", "FULL": "full", "PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix",
                "BOTTLENECK": "bottleneck"}
"""Which module loads an adapter. A directory with `quantisation.json` beside LORA is of `qlora`."""
QUANTISATION_FILE = "quantisation.json"


def _module(name: str) -> ModuleType:
    return import_module(f"tunesmith.methods.{name}")


def of(method: Section) -> ModuleType:
    """The module of a recipe's `method`."""
    return _module(method.type)


def attach(model: PreTrainedModel, method: Section, base_ref: str, base_digest: str | None = None):
    """Add what the method trains. Draws from torch's global generator.

    Raises:
        RecipeError: the method's settings do not fit this base.
    """
    made = of(method).attach(model, method, base_ref)
    if base_digest and isinstance(settings := made.peft_config["default"], dict):  # ours: PEFT's have no place for it
        settings["base_digest"] = base_digest
    return made


def kind(directory: Path) -> str:
    """Name of the method that an adapter's directory is of. Raises AdapterError when it is of none that is known."""
    from tunesmith.methods.files import read_config

    peft_type = read_config(directory)["peft_type"]
    if peft_type not in BY_PEFT_TYPE:
        raise AdapterError(f"an adapter of type {peft_type} is not known here", where=str(directory),
                           fix=f"known are {', '.join(BY_PEFT_TYPE)}")
    return "qlora" if peft_type == "LORA" and (directory / QUANTISATION_FILE).is_file() else BY_PEFT_TYPE[peft_type]


def load(model, directory: Path, *, name: str = "default", trainable: bool = False):
    """Put a saved adapter on a base; LoRA and IA3 also beside others of their kind that are on it.

    Raises:
        AdapterError: no adapter there, its tensors are not exactly those that its config makes on this base, or it
            does not go beside what the model carries.
    """
    return _module(kind(directory)).load(model, directory, name=name, trainable=trainable)


def _module_of(model) -> ModuleType:
    if named := vars(type(model)).get("adapted_by") or vars(model).get("adapted_by"):
        return _module(named)
    return _module(BY_PEFT_TYPE[str(next(iter(model.peft_config.values())).peft_type.value)])


def save(model, directory: Path) -> None:
    """Write an adapted model's adapter. The caller makes it atomic (`store.files.publish_directory`).

    Raises:
        StoreError: a full disk.
    """
    _module_of(model).save(model, directory)


def restore(model, directory: Path) -> None:
    """Put a checkpoint's tensors into the model that wrote it, or into one attached in the same way, in place.

    Raises:
        ValueError: they are not exactly this model's.
        AdapterError: the file is damaged.
    """
    from tunesmith.methods.files import read_tensors

    _module_of(model).restore(model, read_tensors(directory))


def merge(model, **options) -> PreTrainedModel:
    """A model of the base's architecture, and its dtype, that answers as the adapted one, up to rounding.

    Raises:
        AdapterError: the method has no such model, or its weights are not finite.
    """
    return _module_of(model).merge(model, **options)


def unmoved(model) -> str | None:
    """Why an adapter that is being trained changes nothing, or None."""
    return _module_of(model).unmoved(model)


def saved_config(method: Section, base_ref: str) -> dict:
    """adapter_config.json as it will be saved, names of layers aside: for who wants to know who can load it."""
    made = of(method).config(method, base_ref)
    made = made if isinstance(made, dict) else made.to_dict()
    return _module("pissa").saved_config(made) if getattr(method, "init", None) == "pissa" else made


def learning_rate_ratios(method: Section) -> dict[str, float]:
    """{part of a parameter's name: its learning rate over train.learning_rate}; empty: all the same."""
    find = getattr(of(method), "learning_rate_ratios", None)
    return find(method) if find else {}


def wanted_dtype(method: Section, dtype: str) -> str:
    """train.dtype, or float32 where the method trains weights of the base itself and the recipe says auto."""
    whole = method.type == "full" or getattr(method, "modules_to_save", [])
    return "float32" if whole and dtype == "auto" else dtype


def describe(method: Section) -> dict[str, str | int | None]:
    """`{method, rank}` for people: rank is None where there is none."""
    name = method.type
    if name == "lora":
        name = "".join([*(["rs"] * method.rslora), "dora" if method.dora else "lora", "+pissa" * (method.init == "pissa")])
    return {"method": name, "rank": getattr(method, "rank", None)}
