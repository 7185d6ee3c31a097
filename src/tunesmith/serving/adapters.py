"""An adapter as data: what its files add to which linear layer of a base. No module is built for it, so to load one is to read
a file, beside requests that are running.

Shapes: N = outputs and C = inputs of a linear layer, R = rank, K = key/value heads, D = head size, d = hidden size,
n = virtual tokens.

    LoRA         y = W x + b + s B A x                            factors: A [R, C], B [N, R], s
    DoRA         y = m / |W + s B A| * (W + s B A) x + b          magnitudes: m / |W + s B A|, [N], the length of each row
    IA3          y = l * (W x + b)  or  y = W (l * x) + b         outputs: l [N], inputs: l [C]
    bottleneck   h' = h + up f(down h), behind a module           blocks
    prompt       n vectors before the row                         words [n, d]
    prefix       n keys and values in every layer                 keys_values [K, n, D] each

Which tensors an adapter must have is asked of PEFT: of its config, and of its rules for names.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tunesmith import methods
from tunesmith.errors import AdapterError, UsageError
from tunesmith.methods import files
from tunesmith.methods.report import VLLM_STARTS
from tunesmith.methods.targets import decoder_layers, linear_layers
from tunesmith.models.load import quiet_transformers

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from tunesmith.engine.native.build import Library
    from tunesmith.engine.native.decode import LowRank
    from tunesmith.methods.bottleneck import Block

PREFIX = "base_model.model."
"""Before the name of a module in PEFT's files."""
PACKED = "tunesmith_packed"
"""Attribute of a linear layer whose weight is held by the kernels and not by the layer (serving.sites)."""
ALONE = {"full": "it replaces every weight of the base", "qlora": "its base is quantised"}
WHY = {"modules_to_save": "it holds whole modules (modules_to_save)", "bias": "it trains biases",
       "lora_bias": "it trains biases", "trainable_token_indices": "it trains rows of the embedding",
       "layer_replication": "it repeats layers", "target_parameters": "it adapts parameters that are no linear layer"}
READ = frozenset({"r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_modules",
                  "exclude_modules", "layers_to_transform", "layers_pattern", "feedforward_modules", "num_virtual_tokens",
                  "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"})
"""Settings that decide which tensors there are, or what is computed of them."""
OF_TRAINING = frozenset({
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "fan_in_fan_out", "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "runtime_config", "init_ia3_weights", "init_weights", "encoder_hidden_size", "prefix_projection",
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "base_digest"})
"""Settings that mean nothing once an adapter is saved. Any other must be empty: it makes the adapter another thing."""


@dataclass(frozen=True, slots=True, eq=False)
class LowRankFactors:
    """A and B of one linear layer, in the base's dtype: as tensors, or laid out for the kernel."""

    a_RC: Tensor | None
    b_NR: Tensor | None
    scale: float
    packed: LowRank | None = None

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes if self.packed is not None else self.a_RC.nbytes + self.b_NR.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Everything is by the full name of a module of the base."""

    digest: str
    """sha256 of config and weights."""
    kind: str
    nbytes: int
    """What it occupies in memory."""
    virtual_tokens: int = 0
    factors: dict[str, LowRankFactors] = field(default_factory=dict)
    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)
    """By the module that they stand behind."""
    words: Tensor | None = None
    keys_values: list[tuple[Tensor, Tensor]] | None = None

    @property
    def adds_up(self) -> bool:
        """It can be weighed, and used beside others: it is a sum of s B A and nothing else."""
        return self.kind == "lora" and not self.magnitudes


Mix = tuple[tuple[Adapter, float], ...]
"""Adapters that are used together, each with its weight. () is the base."""


def check_mix(mix: Mix) -> None:
    """Raises UsageError: adapters are weighed or used together that are not sums of weights, or a weight is no number."""
    for adapter, weight in mix:
        if not math.isfinite(weight):
            raise UsageError(f"an adapter's weight is {weight}", fix="give a finite number")
        if (len(mix) > 1 or weight != 1) and not adapter.adds_up:
            what = "DoRA" if adapter.magnitudes else adapter.kind
            raise UsageError(f"an adapter of kind {what} goes alone, with weight 1",
                             why="only LoRA is something added to the base's weights, which can be weighed and summed",
                             fix="ask for it by itself, or mix adapters of plain LoRA")


def why_alone(directory: Path) -> str | None:
    """Why this adapter needs a tree of modules of its own, or None when it goes beside others on the base's.

    Raises:
        AdapterError: no adapter is there, of no kind that is known, or its files are damaged.
    """
    from safetensors import safe_open

    kind = methods.kind(directory)
    with files.fitting(directory), safe_open(directory / files.WEIGHTS_FILE, framework="pt") as file:
        names = list(file.keys())
    return _why_alone(kind, files.read_config(directory), names)


def _why_alone(kind: str, config: dict, names: list[str]) -> str | None:
    if kind in ALONE:
        return ALONE[kind]
    if kind == "bottleneck":
        return None
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in VLLM_STARTS:
        return f"it was initialised as {init}, which changes the base"
    for key, value in config.items():
        if key not in READ | OF_TRAINING | {"init_lora_weights"} and value and (key, value) != ("bias", "none"):
            return WHY.get(key, f"it is set to {key} = {value}, which is not known here")
    if kind in ("lora", "ia3") and (odd := next((n for n in names if not re.search(r"\.\d+\.", n)), None)):
        return f"{odd} is of no decoder layer"
    return None


def linear_sites(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers inside of the decoder layers, by their full names. Raises RecipeError: those cannot be told."""
    from torch import nn

    name, _ = decoder_layers(model)
    return {f"{name}.{n}": m for n, m in model.get_submodule(name).named_modules() if type(m) is nn.Linear}


def weight_of(module: nn.Linear) -> Tensor:
    """[N, C], wherever it is held."""
    packed = vars(module).get(PACKED)
    return module.weight if packed is None else packed.unpacked()


def read(directory: Path, model: PreTrainedModel, library: Library | None = None) -> Adapter:
    """An adapter's files, for this base. `library`: of the kernels, which the factors of LoRA are laid out for.

    Raises:
        AdapterError: no adapter there, it cannot share the base (`why_alone`), its tensors are not exactly those that its
            config makes on this base, or a number is not finite.
    """
    from safetensors.torch import load_file

    from tunesmith.store.files import canonical_json

    kind, config = methods.kind(directory), files.read_config(directory)
    digest = hashlib.sha256(canonical_json(config).encode())
    path = directory / files.WEIGHTS_FILE
    with files.fitting(directory), open(path, "rb") as file, ThreadPoolExecutor(1) as beside:
        before = os.fstat(file.fileno())
        # Mapped, not read: to write 20 MB of fresh memory may take longer than all the rest
        digested = beside.submit(_take_in, digest, file) if before.st_size else None
        tensors = load_file(path)
        if reason := _why_alone(kind, config, list(tensors)):
            raise AdapterError("this adapter cannot share the base with others", where=str(directory), why=reason,
                               fix="load it on a base of its own")
        settings = config if kind == "bottleneck" else _peft_config(directory)
        files.same_shapes(tensors, EXPECTED[kind](model, settings))
        _check_numbers(tensors, directory)
        if library is None or kind != "lora":  # what is kept must not be the file's own pages
            tensors = {name: tensor.to(model.device, copy=True) for name, tensor in tensors.items()}
        parts = MADE[kind](model, settings, tensors, library)
        digested.result()
        if _stamp(before) != _stamp(os.stat(path)):
            raise AdapterError("the adapter was changed while it was read", where=str(directory), fix="load it again")
    return Adapter(digest.hexdigest(), kind, sum(map(_nbytes, parts.values())),
                   settings.num_virtual_tokens if kind in ("prompt", "prefix") else 0, **parts)


def _take_in(digest, file: BinaryIO) -> None:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        digest.update(data)


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """What says that a file is the same one with the same bytes."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def _peft_config(directory: Path) -> PeftConfig:
    from peft import PeftConfig

    with quiet_transformers():
        return PeftConfig.from_pretrained(str(directory))


def _check_numbers(tensors: dict[str, Tensor], directory: Path) -> None:
    """Raises AdapterError with the name of a tensor that is not of finite numbers."""
    import torch

    if odd := next((n for n, t in tensors.items() if not t.is_floating_point()), None):
        raise ValueError(f"{odd} holds {tensors[odd].dtype}, not floating point numbers")
    ends_X2 = torch.stack([torch.stack(t.aminmax()).float() for t in tensors.values()])  # a NaN passes through
    if not (finite_X := ends_X2.isfinite().all(1)).all():
        raise AdapterError("the adapter has weights that are not finite",
                           where=f"{directory / files.WEIGHTS_FILE}: {list(tensors)[int(finite_X.int().argmin())]}",
                           why="a NaN or infinity spreads to whatever is computed with it", fix="train this adapter again")


def _nbytes(part: Any) -> int:
    if part is None:
        return 0
    if isinstance(part, dict):
        return sum(map(_nbytes, part.values()))
    if isinstance(part, list | tuple):
        return sum(map(_nbytes, part))
    if hasattr(part, "parameters"):
        return sum(p.nbytes for p in part.parameters())
    return part.nbytes


# ---- LoRA and IA3: tensors of linear layers ---------------------------------------------------------------------------


def _targets(model: PreTrainedModel, settings: PeftConfig) -> dict[str, nn.Linear]:
    """The layers that PEFT would adapt. Raises ValueError: one of them is no linear layer of a decoder layer, or none is."""
    from peft.tuners.tuners_utils import check_target_module_exists

    sites = linear_sites(model)
    if settings.target_modules is None:
        raise ValueError("the config names no target_modules")
    if isinstance(settings.target_modules, str) and settings.target_modules.lower() == "all-linear":
        settings.target_modules = set(linear_layers(model))
    found = [name for name, _ in model.named_modules() if name and check_target_module_exists(settings, name)]
    if odd := next((name for name in found if name not in sites), None):
        raise ValueError(f"the target {odd} is no linear layer of a decoder layer")
    if not found:
        raise ValueError("the config's target_modules name no layer of this base")
    return {name: sites[name] for name in found}


def _rank(settings: PeftConfig, name: str) -> int:
    from peft.utils.other import get_pattern_key

    return settings.rank_pattern.get(get_pattern_key(settings.rank_pattern.keys(), name), settings.r)


def _scale(settings: PeftConfig, name: str) -> float:
    """alpha / r, with rsLoRA alpha / sqrt(r) (arXiv 2312.03732)."""
    from peft.utils.other import get_pattern_key

    alpha = settings.alpha_pattern.get(get_pattern_key(settings.alpha_pattern.keys(), name), settings.lora_alpha)
    rank = _rank(settings, name)
    return alpha / (math.sqrt(rank) if settings.use_rslora else rank)


def _low_rank_shapes(model: PreTrainedModel, settings: PeftConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in _targets(model, settings).items():
        rank = _rank(settings, name)
        shapes[f"{PREFIX}{name}.lora_A.weight"] = (rank, module.in_features)
        shapes[f"{PREFIX}{name}.lora_B.weight"] = (module.out_features, rank)
        if settings.use_dora:
            shapes[f"{PREFIX}{name}.lora_magnitude_vector"] = (module.out_features,)
    return shapes


def _low_rank(model: PreTrainedModel, settings: PeftConfig, tensors: dict[str, Tensor], library: Library | None) -> dict:
    factors, magnitudes = {}, {}
    end, dtype = ".lora_A.weight", model.dtype
    for key in [k for k in tensors if k.endswith(end)]:
        name = key.removeprefix(PREFIX).removesuffix(end)
        a, b = tensors[key], tensors[key.replace(end, ".lora_B.weight")]
        scale = _scale(settings, name)
        if settings.use_dora:
            length_N = (weight_of(model.get_submodule(name)).float() + scale * b.float() @ a.float()).norm(dim=1)
            magnitudes[name] = tensors[key.replace(end, ".lora_magnitude_vector")].float() / length_N
        if library is None:
            factors[name] = LowRankFactors(a.to(dtype), b.to(dtype), scale)
        else:
            from tunesmith.engine.native.decode import LowRank

            factors[name] = LowRankFactors(None, None, scale, LowRank(library, a, b))
    return {"factors": factors, "magnitudes": magnitudes}


def _ia3_shapes(model: PreTrainedModel, settings: PeftConfig) -> dict[str, tuple[int, ...]]:
    return {f"{PREFIX}{name}.ia3_l": (1, m.in_features) if _scales_inputs(settings, name) else (m.out_features, 1)
            for name, m in _targets(model, settings).items()}


def _scales_inputs(settings: PeftConfig, name: str) -> bool:
    from peft import IA3Model

    return IA3Model._check_target_module_feedforward(settings, name)


def _ia3(model: PreTrainedModel, settings: PeftConfig, tensors: dict[str, Tensor], _library) -> dict:
    inputs, outputs = {}, {}
    for key, factor in tensors.items():
        name = key.removeprefix(PREFIX).removesuffix(".ia3_l")
        (inputs if _scales_inputs(settings, name) else outputs)[name] = factor.flatten().float()
    return {"inputs": inputs, "outputs": outputs}


# ---- bottleneck -------------------------------------------------------------------------------------------------------


def _block_shapes(model: PreTrainedModel, settings: dict) -> dict[str, torch.Size]:
    from tunesmith.methods.bottleneck import shapes

    return shapes(model, settings)


def _blocks(model: PreTrainedModel, settings: dict, tensors: dict[str, Tensor], _library) -> dict:
    """In the base's dtype, which `Block` would turn its weights to at every call."""
    import torch

    from tunesmith.methods.bottleneck import Block, places

    layers, _ = decoder_layers(model)
    blocks = {}
    for place in places(model, settings["after"]):
        with torch.device("meta"):  # draws nothing from torch's generator
            block = Block(model.config.get_text_config().hidden_size, settings["size"], settings["activation"])
        block.load_state_dict({n: tensors[f"{place}.{n}"].to(model.dtype) for n in block.state_dict()}, assign=True)
        blocks[f"{layers}.{place}"] = block.requires_grad_(False).eval()
    return {"blocks": blocks}


# ---- virtual tokens ---------------------------------------------------------------------------------------------------


def _words_shapes(model: PreTrainedModel, settings: PeftConfig) -> dict[str, tuple[int, ...]]:
    from tunesmith.methods.virtual import TENSOR

    return {TENSOR: (settings.num_virtual_tokens, model.get_input_embeddings().weight.shape[1])}


def _words(model: PreTrainedModel, _settings, tensors: dict[str, Tensor], _library) -> dict:
    (words_nd,) = tensors.values()
    return {"words": words_nd.to(model.dtype)}


def _keys_values_shapes(model: PreTrainedModel, settings: PeftConfig) -> dict[str, tuple[int, ...]]:
    from tunesmith.methods.prefix import cached
    from tunesmith.methods.virtual import TENSOR

    layers, heads, size = cached(model)
    return {TENSOR: (settings.num_virtual_tokens, layers * 2 * heads * size)}


def _keys_values(model: PreTrainedModel, settings: PeftConfig, tensors: dict[str, Tensor], _library) -> dict:
    """As PEFT's `get_prompt` lays them out for a cache: for each layer keys and values, [K, n, D]."""
    from tunesmith.methods.prefix import cached

    layers, heads, size = cached(model)
    (flat,) = tensors.values()
    states = flat.to(model.dtype).view(settings.num_virtual_tokens, layers, 2, heads, size)
    return {"keys_values": [(k, v) for k, v in states.permute(1, 2, 3, 0, 4).contiguous()]}


EXPECTED = {"lora": _low_rank_shapes, "ia3": _ia3_shapes, "bottleneck": _block_shapes, "prompt": _words_shapes,
            "prefix": _keys_values_shapes}
"""(model, settings) -> shape of every tensor that an adapter of a kind must have, and no other."""
MADE = {"lora": _low_rank, "ia3": _ia3, "bottleneck": _blocks, "prompt": _words, "prefix": _keys_values}
"""(model, settings, tensors, library) -> fields of the Adapter."""
