"""What an adapter does to each parameter of its base, as functions of some rows of it in float32.

    LoRA    W + s B A              s and the layers as PEFT has them: it is put on the model without weights, and asked
    DoRA    m (W + s B A) / |W + s B A|, row by row
    QLoRA   the same, on the weights that NF4 makes of W (engine/nf4.py) or on W itself
    IA3     l * W and l * b, or W * l for a layer whose inputs are scaled
    full, modules_to_save, biases     the adapter's tensor

Every tensor of the adapter is in exactly one change. What PEFT can do beyond this is refused by its name in the config.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tunesmith import methods
from tunesmith.engine.nf4 import Packed
from tunesmith.errors import AdapterError
from tunesmith.exports.merging.names import Checkpoint
from tunesmith.exports.merging.shards import Stored, stored
from tunesmith.methods import files
from tunesmith.methods.targets import linear_layers
from tunesmith.models.load import quiet_transformers

PREFIX = "base_model.model."
"""Of PEFT's names in its files."""
ORIGIN_FILE = "tunesmith.json"
"""Beside the adapter: `dtype` is the base's under it, from which QLoRA quantised."""
INITS = (True, False, "gaussian", "eva", "orthogonal", None)
"""Starts of LoRA that leave the base as it is. The others subtract something from it that the adapter's files do not hold."""
KNOWN = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type",
         "target_modules", "exclude_modules", "fan_in_fan_out", "modules_to_save",
         "r", "lora_alpha", "lora_dropout", "bias", "lora_bias", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
         "layers_to_transform", "layers_pattern", "init_lora_weights", "eva_config",
         "feedforward_modules", "init_ia3_weights"}
"""Keys of an adapter's config that are understood here."""
NEVER = {"prompt": "virtual tokens are input, and no weight of the base holds them",
         "prefix": "virtual tokens are input, and no weight of the base holds them",
         "bottleneck": "its nonlinearity is no weight of the base"}


@dataclass(frozen=True, slots=True)
class Change:
    parameter: str
    """Its name in the model."""
    tensors: tuple[str, ...]
    """What it takes from the adapter's file."""
    apply: Callable[[torch.Tensor, int, int], torch.Tensor]
    """(rows `first` to `last` of the parameter in float32, first, last) -> the same rows, changed."""
    whole: bool = False
    """It needs all rows at once."""
    of_all: bool = False
    """It is of the weight under all its names, not of one of those that are tied."""


def mergeable(adapter: Path) -> str:
    """The adapter's method. Raises AdapterError: the method has no merged form."""
    kind = methods.kind(adapter)
    if kind in NEVER:
        raise AdapterError(f"a {kind} adapter cannot be merged", where=str(adapter), why=NEVER[kind],
                           fix="serve it as an adapter (`tunesmith serve`), or train LoRA, which merges")
    return kind


def changes(checkpoint: Checkpoint, adapter: Path, onto: str | None) -> list[Change]:
    """In the order in which they apply. The checkpoint's model carries the adapter afterwards, without weights.

    Raises:
        AdapterError: the method cannot be merged, or the adapter's tensors are not exactly those of its config on this base.
    """
    kind, model = mergeable(adapter), checkpoint.model
    if onto is not None and kind != "qlora":
        raise AdapterError(f"a {kind} adapter has one base to be merged onto", where=str(adapter),
                           why="only QLoRA has two, the quantised and the original one", fix="leave out --onto")
    with files.fitting(adapter):
        tensors = stored(adapter / files.WEIGHTS_FILE)
        shapes = {n: p.shape for n, p in model.named_parameters(remove_duplicate=False)}
        if kind == "full":
            own = dict(model.named_parameters())
            files.same_shapes(tensors, {n: p.shape for n, p in own.items()})
            found = [replaced(n, tensors[n], of_all=True) for n in own]
        else:
            linear = [f"{n}.weight" for n in linear_layers(model)]
            made = _on_meta(model, adapter, tensors)
            found = quantised(linear, adapter) if kind == "qlora" and onto != "original" else []
            found += _of_peft(made, tensors, shapes)
        used = Counter(n for c in found for n in c.tensors)
        if odd := sorted(n for n in tensors.keys() | used.keys() if used[n] != 1):
            raise ValueError(f"{len(odd)} tensors of the adapter are of no weight of the base, for example {odd[0]}")
    return found


def _on_meta(model, adapter: Path, tensors: dict[str, Stored]):
    """The model with PEFT's layers on it. Raises ValueError: not exactly the file's tensors, or settings not known here."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    given = files.read_config(adapter)
    with quiet_transformers():
        config = PeftConfig.from_pretrained(str(adapter))
        usual = vars(type(config)())
        for key, value in given.items():
            if key not in KNOWN and value and value != usual.get(key):
                raise AdapterError(f"an adapter with {key} is not merged here", where=str(adapter),
                                   why=f"{key} is {json.dumps(value)}", fix="merge it with PEFT: model.merge_and_unload()")
        if given.get("init_lora_weights", True) not in INITS:
            raise AdapterError(f"an adapter that starts as {given['init_lora_weights']} is not merged here", where=str(adapter),
                               why="its base is not the base of its name: the start was subtracted from it",
                               fix="save it as a plain LoRA with PEFT's path_initial_model_for_weight_conversion")
        if hasattr(config, "init_lora_weights"):
            config.init_lora_weights = True
        made = get_peft_model(model, config, low_cpu_mem_usage=True)
        expected = get_peft_model_state_dict(made, save_embedding_layers=False)
    files.same_shapes(tensors, {n: t.shape for n, t in expected.items()})
    return made


def _of_peft(made, tensors: dict[str, Stored], shapes: dict) -> list[Change]:
    """Changes of every layer that PEFT has put its own around. Raises ValueError: a kind of layer that is not known here."""
    from peft.tuners.ia3 import IA3Layer
    from peft.tuners.ia3 import Linear as IA3Linear
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper

    found: list[Change] = []
    for name, module in made.base_model.model.named_modules():
        own = {n.removeprefix(f"{PREFIX}{name}."): t for n, t in tensors.items() if n.startswith(f"{PREFIX}{name}.")}
        if isinstance(module, ModulesToSaveWrapper):
            found += [replaced(f"{name}.{n}", t) for n, t in own.items()]
        elif isinstance(module, LoraLayer | IA3Layer):
            if type(module) not in (LoraLinear, IA3Linear):
                raise ValueError(f"{name} is a {type(module.get_base_layer()).__name__}: only linear layers are merged here")
            make = _lora if isinstance(module, LoraLayer) else _ia3
            found += make(name, module, own, f"{name}.bias" in shapes)
    taken = {n for c in found for n in c.tensors}
    for n, t in tensors.items():
        parameter = n.removeprefix(PREFIX).replace(".base_layer.", ".")
        if n not in taken and parameter.endswith("bias") and parameter in shapes:
            found.append(replaced(parameter, t))
    return found


def _lora(name: str, module, own: dict[str, Stored], has_bias: bool) -> list[Change]:
    a, b, scale = own["lora_A.weight"], own["lora_B.weight"], module.scaling["default"]
    length = own.get("lora_magnitude_vector")
    across = bool(module.fan_in_fan_out)
    used = tuple(t.name for t in (a, b, length) if t is not None)
    found = [Change(f"{name}.weight", used, _low_rank(a, b, scale, length, across), whole=across)]
    if (bias := own.get("lora_B.bias")) is not None:
        if not has_bias:
            raise ValueError(f"{name} has no bias that the adapter's could be added to")
        found.append(Change(f"{name}.bias", (bias.name,), lambda x, first, last: x + scale * bias.read(first, last).float()))
    return found


def _low_rank(a: Stored, b: Stored, scale: float, length: Stored | None, across: bool):
    def apply(w: torch.Tensor, first: int, last: int) -> torch.Tensor:
        rows = (None, None) if across else (first, last)
        delta = (b.read(*rows) if not across else b.read()).float() @ a.read().float()
        total = w + (delta.T if across else delta) * scale
        if length is None:
            return total
        m = (length.read() if across else length.read(first, last)).float()
        factor = (m / torch.linalg.norm(total.T if across else total, dim=1)).view(-1, 1)
        return (factor.T if across else factor) * total

    return apply


def _ia3(name: str, module, own: dict[str, Stored], has_bias: bool) -> list[Change]:
    factors, inputs, across = own["ia3_l"], module.is_feedforward, bool(module.fan_in_fan_out)

    def weight(w: torch.Tensor, first: int, last: int) -> torch.Tensor:
        by_rows = inputs == across  # the factors go along the stored weight's first dimension
        values = factors.read().float().flatten()
        return w * (values[first:last, None] if by_rows else values[None])

    found = [Change(f"{name}.weight", (factors.name,), weight)]
    if has_bias and not inputs:
        found.append(Change(f"{name}.bias", (), lambda x, first, last: x * factors.read().float().flatten()[first:last]))
    return found


def replaced(parameter: str, tensor: Stored, of_all: bool = False) -> Change:
    return Change(parameter, (tensor.name,), lambda _w, first, last: tensor.read(first, last).float() if tensor.shape else
                  tensor.read().float(), of_all=of_all)


def quantised(linear: list[str], adapter: Path) -> list[Change]:
    """Each linear layer's weight through 4 bits and back, in the dtype that it was trained in, where that is known."""
    settings = json.loads((adapter / methods.QUANTISATION_FILE).read_text(encoding="utf-8"))
    if settings["quant_type"] != "nf4":
        raise ValueError(f"{methods.QUANTISATION_FILE} says {settings['quant_type']}: nf4 is known")
    dtype = trained_dtype(adapter) or torch.float32

    def through(w: torch.Tensor, _first: int, _last: int) -> torch.Tensor:
        return Packed.of(w.to(dtype), settings["block_size"], settings["double_quant"]).dequantise(dtype).float()

    return [Change(name, (), through, whole=True) for name in linear]


def trained_dtype(adapter: Path) -> torch.dtype | None:
    """The base's dtype under the adapter, if its files say so."""
    path = adapter / ORIGIN_FILE
    known = json.loads(path.read_text(encoding="utf-8")).get("dtype") if path.is_file() else None
    return getattr(torch, known) if known else None
