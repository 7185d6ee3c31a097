"""What llama.cpp has to be told of a model, by its architecture, and which of its weights it wants in another form.

    family   transformers' model_type     weights                                      keys beside the common ones
    llama    llama, mistral               rows of q and k in rope order (`permuted`)   rope_freqs for Llama 3's scaling
    qwen2    qwen2                        as they are, biases on q, k, v
    qwen3    qwen3                        as they are, norms of q and k
    gemma*   gemma, gemma2, gemma3_text   norms + 1, which transformers adds later     window, softcaps
    phi3     phi3                         q, k, v and gate, up in one                  rope factors long and short

A setting that a GGUF cannot say is refused here; it would be lost without a sound. The keys are those of
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

ELSEWHERE = "--format merged, and the converter that comes with llama.cpp, or another runtime"


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture of llama.cpp is written."""

    architecture: str
    activation: str = "silu"
    permuted: bool = False
    """q and k are wanted with the two halves of each head interleaved."""
    norm_offset: int = 0
    """What is added to every norm's weight."""
    more: Callable[[Any, Any], int | None] = lambda _writer, _config: None
    """Writes its own keys; returns the context that they are good for, where that is less than the config's."""


def family_of(config) -> Family:
    """Raises UsageError: no architecture that is written here."""
    if config.model_type not in FAMILIES:
        raise UsageError(f"no GGUF is written of a model of type {config.model_type}",
                         why="written and compared with llama.cpp: " + ", ".join(FAMILIES), fix=ELSEWHERE)
    return FAMILIES[config.model_type]


def write_keys(writer, config, tokens: int) -> tuple[int, list[str]]:
    """Every key of the architecture, for an embedding of `tokens` rows. Returns the context in tokens, and what to know of it.

    Raises:
        UsageError: the config has something that a GGUF of this architecture cannot say.
    """
    family, notes = family_of(config), []
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != family.activation:
        _refuse(config, f"the activation {activation}", f"llama.cpp computes {family.activation}")
    heads = config.num_attention_heads
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads or heads)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(tokens)
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_size(config) * (rope.get("partial_rotary_factor") or 1.0)))
    _write_scaling(writer, config, rope)
    trained = config.max_position_embeddings
    context = min(trained, family.more(writer, config) or trained)
    if context < trained:
        notes.append(f"the context is {context} instead of {trained} tokens: beyond its sliding window this architecture of "
                     "llama.cpp would attend to what the model does not")
    writer.add_context_length(context)
    return context, notes


def head_size(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rewritten(family: Family, config, name: str, weight: np.ndarray) -> np.ndarray:
    """A tensor of transformers as llama.cpp wants it. `weight` is float32."""
    if family.norm_offset and name.endswith("norm.weight"):
        return weight + family.norm_offset
    heads = _rope_heads(family, config, name)
    return weight if heads is None else _interleaved(weight, heads)


def restored(family: Family, config, name: str, weight: np.ndarray) -> np.ndarray:
    """What `rewritten` was given."""
    if family.norm_offset and name.endswith("norm.weight"):
        return weight - family.norm_offset
    heads = _rope_heads(family, config, name)
    return weight if heads is None else weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _rope_heads(family: Family, config, name: str) -> int | None:
    if not family.permuted:
        return None
    projection = name.rpartition(".")[0].rpartition(".")[2]
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(projection)


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """[heads * size, ...]: row i of a head's first half is followed by row i of its second half.

    transformers turns (i, i + size/2) together, llama.cpp's "normal" rope (2i, 2i + 1).
    """
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def extra_tensors(config) -> dict[str, np.ndarray]:
    """Tensors that a GGUF has and a checkpoint has not: what its rope frequencies are divided by."""
    import numpy as np

    rope = _rope(config)
    kind = rope.get("rope_type", "default")
    if kind == "llama3":
        return {"rope_freqs.weight": np.array(_llama3_factors(config, rope), dtype=np.float32)}
    if kind == "longrope":
        return {f"rope_factors_{which}.weight": np.array(rope[f"{which}_factor"], dtype=np.float32)
                for which in ("long", "short")}
    return {}


def _rope(config) -> dict:
    """The rope parameters of full attention."""
    rope = config.rope_parameters
    return rope.get("full_attention", rope)


def _write_scaling(writer, config, rope: dict) -> None:
    import gguf

    kind = rope.get("rope_type", "default")
    if kind in ("default", "llama3"):
        return
    if kind not in ("linear", "yarn", "longrope"):
        _refuse(config, f"rope scaling {kind}", "a GGUF has no word for it")
    if kind == "longrope":
        original = rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
        scale = config.max_position_embeddings / original
        factor = rope.get("attention_factor") or (math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(factor)
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
    writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        if unsaid := {"attention_factor", "mscale", "mscale_all_dim", "truncate"} & {k for k, v in rope.items() if v}:
            _refuse(config, f"yarn with {', '.join(sorted(unsaid))}", "it is not compared with llama.cpp")
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)


def _llama3_factors(config, rope: dict) -> list[float]:
    """What each frequency is divided by (Llama 3.1): 1 for short waves, `factor` for long ones, a mean between."""
    size, original = head_size(config), rope["original_max_position_embeddings"]
    low, high, factor = (rope[k] for k in ("low_freq_factor", "high_freq_factor", "factor"))
    found = []
    for i in range(0, size, 2):
        turns = original * rope["rope_theta"] ** (-i / size) / (2 * math.pi)  # in the context it was trained with
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def _refuse(config, what: str, why: str) -> None:
    raise UsageError(f"no GGUF is written of a {config.model_type} model with {what}", why=why, fix=ELSEWHERE)


def _windowed(_writer, config) -> int | None:
    """llama and qwen2 of llama.cpp have no sliding window: within it, full attention is the same."""
    used = getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if used else None


def _gemma2(writer, config) -> None:
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)
    _check_gemma(config, period=2)


def _gemma3(writer, config) -> None:
    if config.attn_logit_softcapping:
        _refuse(config, "a softcap of its attention", "Gemma 3 has none in llama.cpp")
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    if config.rope_parameters["sliding_attention"].get("rope_type", "default") != "default":
        _refuse(config, "rope scaling in its sliding layers", "llama.cpp scales the others only")
    _check_gemma(config, period=6)


def _check_gemma(config, period: int) -> None:
    wanted = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(config.num_hidden_layers)]
    if list(config.layer_types) != wanted:
        _refuse(config, f"full attention elsewhere than in every layer {period}", "llama.cpp has that pattern built in")
    scalar = config.query_pre_attn_scalar
    largest = {"gemma2": 46, "gemma3_text": 62}[config.model_type]  # of the 27B models alone llama.cpp divides by another
    expected = config.hidden_size // config.num_attention_heads if config.num_hidden_layers == largest else head_size(config)
    if scalar != expected:
        _refuse(config, f"query_pre_attn_scalar {scalar}", f"llama.cpp divides by the root of {expected}")


def _phi3(writer, config) -> int | None:
    writer.add_sliding_window(0)  # it would only warn, and guess one where there is no key
    if _rope(config).get("rope_type", "default") == "default":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings or config.max_position_embeddings)
    return config.sliding_window


FAMILIES = {
    "llama": Family("llama", permuted=True),
    "mistral": Family("llama", permuted=True, more=_windowed),
    "qwen2": Family("qwen2", more=_windowed),
    "qwen3": Family("qwen3", more=_windowed),
    "gemma": Family("gemma", "gelu_pytorch_tanh", norm_offset=1),
    "gemma2": Family("gemma2", "gelu_pytorch_tanh", norm_offset=1, more=_gemma2),
    "gemma3_text": Family("gemma3", "gelu_pytorch_tanh", norm_offset=1, more=_gemma3),
    "phi3": Family("phi3", more=_phi3),
}
