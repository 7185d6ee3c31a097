"""`method:` of a recipe: a class for each way of adapting a base, with its own keys only. docs/methods.md has the formulas."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tunesmith.recipe.section import Section


class LowRank(Section):
    """What LoRA on a whole base and LoRA on a quantised one have in common (Hu et al. 2021, arXiv 2106.09685)."""

    type: Literal["lora", "qlora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The adapter's output is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Above 0 trains on the plain path."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the linear layers that get an adapter."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead: a higher rank then does not shrink each update (arXiv 2312.03732)."""
    lora_plus_ratio: Annotated[float, Field(gt=0)] = 1.0
    """LoRA+: B learns this many times as fast as train.learning_rate says; 16 is usual (arXiv 2402.12354)."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=512)]] = {}
    """Another rank for the layers of these names. The first name that fits a layer counts."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Another alpha, in the same way."""
    layers_to_transform: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Numbers of the decoder layers that are adapted, from 0; null: all."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved beside the adapter, such as norms or an untied lm_head. vLLM refuses them."""


class Lora(LowRank):
    type: Literal["lora"] = "lora"
    dora: bool = False
    """Learn the length of each weight column apart from its direction (arXiv 2402.09353)."""
    init: Literal["kaiming", "pissa"] = "kaiming"
    """`pissa` starts A and B from the largest singular values of the weight (arXiv 2404.02948). What is saved is a plain LoRA
    of twice the rank, for the base as it is."""

    @model_validator(mode="after")
    def _one_start(self):
        if self.dora and self.init == "pissa":
            raise ValueError("dora and init: pissa exclude each other: choose one of the two")
        return self


class Qlora(LowRank):
    """LoRA on a base whose linear layers are kept in 4 bits (Dettmers et al. 2023, arXiv 2305.14314)."""

    type: Literal["qlora"] = "qlora"
    double_quant: bool = True
    """Keep the scale of each block in 8 bits as well: 0.37 bits a weight less."""
    block_size: Literal[64, 128, 256, 512, 1024, 2048, 4096] = 64
    """Weights that share a scale."""


class Full(Section):
    """Every weight of the base is trained, in float32."""

    type: Literal["full"] = "full"


class Virtual(Section):
    type: Literal["prompt", "prefix"] = "prompt"
    tokens: Annotated[int, Field(ge=1, le=1024)] = 20
    """Virtual tokens that stand before every row. They count towards the base's context."""
    init: Literal["vocabulary", "random"] = "vocabulary"
    """`vocabulary`: they start as words drawn from the vocabulary; `random`: as noise, which trains slower."""
    init_text: Annotated[str, Field(min_length=1)] | None = None
    """They start as the words of this text, repeated or cut to fit; null: see init."""


class Prompt(Virtual):
    """The input vectors of virtual tokens are trained (Lester et al. 2021, arXiv 2104.08691)."""

    type: Literal["prompt"] = "prompt"


class Prefix(Virtual):
    """The keys and values of virtual tokens are trained in every layer (Li and Liang 2021, arXiv 2101.00190)."""

    type: Literal["prefix"] = "prefix"


class Ia3(Section):
    """One trained factor for each key, each value and each inner unit of the MLP (Liu et al. 2022, arXiv 2205.05638)."""

    type: Literal["ia3"] = "ia3"
    targets: Literal["auto"] | list[str] = "auto"
    """Names of the linear layers whose outputs, or inputs, are scaled; auto: keys, values and the MLP's last layer."""
    feedforward: Literal["auto"] | list[str] = "auto"
    """Those of the targets whose inputs are scaled; auto: the MLP's last layer, when it is a target."""


class Bottleneck(Section):
    """A small MLP after the MLP, and the attention, of every layer: h + up(f(down(h))) (Houlsby et al. 2019, arXiv 1902.00751;
    after the MLP alone: Pfeiffer et al. 2020, arXiv 2005.00052)."""

    type: Literal["bottleneck"] = "bottleneck"
    size: Annotated[int, Field(ge=1, le=4096)] = 64
    """Units between down and up."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    after: Annotated[list[Literal["mlp", "attention"]], Field(min_length=1)] = ["mlp"]
    """What it stands behind."""

    @field_validator("after")
    @classmethod
    def _each_once(cls, after: list[str]) -> list[str]:
        if len(set(after)) < len(after):
            raise ValueError("names a place twice: keep one")
        return after


METHODS = (Lora, Qlora, Full, Prompt, Prefix, Ia3, Bottleneck)


def _method_tag(value) -> str | None:
    if isinstance(value, Section):
        return f"method[{value.type}]"
    kind = value.get("type", "lora") if isinstance(value, dict) else "lora"
    return f"method[{kind}]" if isinstance(kind, str) else None


AnyMethod = Annotated[
    Annotated[Lora, Tag("method[lora]")] | Annotated[Qlora, Tag("method[qlora]")] | Annotated[Full, Tag("method[full]")]
    | Annotated[Prompt, Tag("method[prompt]")] | Annotated[Prefix, Tag("method[prefix]")] | Annotated[Ia3, Tag("method[ia3]")]
    | Annotated[Bottleneck, Tag("method[bottleneck]")],
    Discriminator(_method_tag, custom_error_type="unknown_type", custom_error_message="Input should be {known}",
                  custom_error_context={"known": ", ".join(repr(m.model_fields["type"].default) for m in METHODS)})]
