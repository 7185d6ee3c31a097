"""A transformers checkpoint as one GGUF file, tensor by tensor: memory holds one of them at a time.

    config.json          ->  keys              families.py
    tokenizer            ->  tokenizer.ggml.*  vocabulary.py, and the chat template as it was trained
    model.safetensors    ->  tensors           matrices in `quant`, the rest in float32

`load` is the way back: a model with what the file says. A tied head is not written twice: llama.cpp takes the
embedding where there is no `output.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import AdapterError, BaseModelError, UsageError
from tunesmith.exports.gguf.families import Family, extra_tensors, family_of, restored, rewritten, write_keys
from tunesmith.exports.gguf.vocabulary import vocabulary

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

QUANTS = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
"""What --quant takes, and llama.cpp's name for such a file."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """One tensor that will be written."""

    source: str
    """As transformers names it."""
    name: str
    """As llama.cpp does."""
    file: Path
    shape: tuple[int, ...]
    quant: str


def write(checkpoint: Path, tokenizer, stops: list[int], out: Path, *, name: str, quant: str = "f16") -> dict:
    """Write the file `out`; its weights come from `checkpoint`, its prompting from `tokenizer`.

    Returns `{quant, bytes, tensors, architecture, pre_tokenizer, context, notes[]}`.

    Raises:
        UsageError: an architecture, a tokenizer or a `quant` that is not written here.
        BaseModelError: weights are missing from the checkpoint, or it has some that nobody knows.
        AdapterError: a weight does not fit `quant`.
    """
    import gguf
    from transformers import AutoConfig

    if quant not in QUANTS:
        raise UsageError(f"no quantisation {quant!r}", fix=f"--quant {', '.join(QUANTS)}; llama.cpp's own llama-quantize makes "
                         "smaller ones of a GGUF in f16")
    config = AutoConfig.from_pretrained(checkpoint)
    family = family_of(config)
    plans = _planned(checkpoint, config, quant)
    rows = next(p.shape[0] for p in plans if p.name == "token_embd.weight")
    words = vocabulary(tokenizer, stops, rows)
    writer = gguf.GGUFWriter(out, family.architecture)
    writer.add_type("model")
    writer.add_name(_named(name, words.strips))
    writer.add_file_type(gguf.LlamaFileType[QUANTS[quant]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    context, notes = write_keys(writer, config, rows)
    words.write(writer)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    extras = extra_tensors(config)
    for key, values in extras.items():
        writer.add_tensor_info(key, values.shape, values.dtype, values.nbytes)
    for plan in plans:
        kind = gguf.GGMLQuantizationType[plan.quant.upper()]
        stored = gguf.quant_shape_to_byte_shape(plan.shape, kind)
        size = 1
        for length in stored:
            size *= length
        writer.add_tensor_info(plan.name, stored, _bytes_dtype(), size, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in extras.values():
            writer.write_tensor_data(values)
        for plan, weight in _weights(plans):
            writer.write_tensor_data(_packed(plan, rewritten(family, config, plan.source, weight)))
    finally:
        writer.close()
    as_f16 = sum(p.quant != quant and len(p.shape) > 1 for p in plans)
    if as_f16:
        notes.append(f"{as_f16} matrices are in f16: their rows are no multiple of 32 long")
    return {"quant": quant, "bytes": out.stat().st_size, "tensors": len(plans) + len(extras), "context": context,
            "architecture": family.architecture, "pre_tokenizer": words.pre, "notes": notes}


def load(path: Path, model: PreTrainedModel) -> PreTrainedModel:
    """`model`, in float32, with the weights that the file says: the inverse of `write`.

    Raises:
        BaseModelError: the file lacks one of them.
    """
    import gguf
    import torch

    config, model = model.config, model.float()
    family = family_of(config)
    names = {_name(family, config, source): source for source in model.state_dict()}
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        if source := names.get(tensor.name):
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            found[source] = torch.from_numpy(restored(family, config, source, values).copy())
    missing = set(names.values()) - set(found) - _tied(config)
    if missing:
        raise BaseModelError(f"{len(missing)} weights are missing from the file", where=str(path), why=min(missing))
    model.load_state_dict(found, strict=False)
    model.tie_weights()
    return model.eval()


def _planned(checkpoint: Path, config, quant: str) -> list[_Plan]:
    """Every tensor of the model, in the checkpoint's order."""
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    family = family_of(config)
    with torch.device("meta"):
        expected = set(AutoModelForCausalLM.from_config(config).state_dict())
    tied = _tied(config)
    plans, unknown = [], []
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="pt") as f:
            for source in f.keys():  # noqa: SIM118 - not a dict
                if source in tied:
                    continue
                name = _name(family, config, source)
                if name is None or source not in expected:
                    unknown.append(source)
                    continue
                shape = tuple(f.get_slice(source).get_shape())
                plans.append(_Plan(source, name, file, shape, _quant_of(shape, quant)))
    if wrong := unknown or sorted(expected - tied - {p.source for p in plans}):
        raise BaseModelError(f"{len(wrong)} weights of the checkpoint " + ("are not known" if unknown else "are missing"),
                             where=str(checkpoint), why=f"{wrong[0]}, for one", fix="save the checkpoint again with the "
                             "transformers that is installed here")
    return plans


def _tied(config) -> set[str]:
    return {"lm_head.weight"} if config.tie_word_embeddings else set()


def _name(family: Family, config, source: str) -> str | None:
    return _names(family.architecture, config.num_hidden_layers).get_name(source, try_suffixes=(".weight", ".bias"))


@lru_cache(maxsize=4)
def _names(architecture: str, layers: int):
    import gguf

    return gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture), layers)


def _quant_of(shape: tuple[int, ...], quant: str) -> str:
    """Vectors stay in float32; blocks of q8_0 are 32 values of a row."""
    if len(shape) < 2:
        return "f32"
    return "f16" if quant == "q8_0" and shape[-1] % 32 else quant


def _weights(plans: list[_Plan]) -> Iterator[tuple[_Plan, np.ndarray]]:
    from safetensors import safe_open

    opened, file = None, None
    for plan in plans:
        if plan.file != file:
            opened, file = safe_open(plan.file, framework="pt"), plan.file
        yield plan, opened.get_tensor(plan.source).float().numpy()


def _packed(plan: _Plan, weight: np.ndarray) -> np.ndarray:
    """The bytes of a tensor. Raises AdapterError: a value is too large for them."""
    import gguf
    import numpy as np

    with np.errstate(over="ignore"):
        packed = gguf.quants.quantize(np.ascontiguousarray(weight), gguf.GGMLQuantizationType[plan.quant.upper()])
    if plan.quant == "f16" and not np.isfinite(packed).all():
        raise AdapterError(f"{plan.source} does not fit float16", why=f"its largest value is {np.abs(weight).max():.3g}",
                           fix="--quant bf16")
    return packed.view(np.uint8)


def _bytes_dtype():
    import numpy as np

    return np.dtype(np.uint8)


def _named(name: str, strips: bool) -> str:
    """llama.cpp drops white space after special tokens in a model whose name has Phi-3 in it, and in no other."""
    if strips:
        return f"{name} (phi-3 tokenizer)"
    return name.replace("phi-3", "phi 3").replace("phi3", "phi 3").replace("Phi-3", "Phi 3").replace("Phi3", "Phi 3")
