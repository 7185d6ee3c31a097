"""Every method with small settings, and what each computes, written down a second time in float64 from its files alone.

The formulas here know nothing of `tunesmith.methods` or PEFT: they read adapter_config.json and the tensors.
"""

from __future__ import annotations

import copy
import math
import random

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from tunesmith.engine.loss import IGNORE
from tunesmith.engine.nf4 import Packed
from tunesmith.methods.adapted import Adapted
from tunesmith.recipe.methods import Bottleneck, Full, Ia3, Lora, Prefix, Prompt, Qlora

VOCABULARY = 97
METHODS = {
    "lora": Lora(rank=4, alpha=8.0),
    "rslora": Lora(rank=4, alpha=8.0, rslora=True),
    "dora": Lora(rank=4, alpha=8.0, dora=True),
    "pissa": Lora(rank=4, alpha=8.0, init="pissa"),
    "pissa rslora patterns": Lora(rank=4, alpha=8.0, init="pissa", rslora=True, rank_pattern={"q_proj": 2},
                                  alpha_pattern={"layers.1.mlp.up_proj": 3.0}),
    "patterns": Lora(rank=4, alpha=8.0, rank_pattern={"mlp.down_proj": 7, "layers.0.self_attn.v_proj": 1},
                     alpha_pattern={"o_proj": 1.5}, layers_to_transform=[1, 0]),
    "one layer": Lora(rank=3, targets=["q_proj", "mlp.up_proj"], layers_to_transform=[1]),
    "whole modules": Lora(rank=2, targets=["q_proj"], modules_to_save=["norm", "lm_head"]),
    "qlora": Qlora(rank=4, alpha=8.0),
    "qlora single": Qlora(rank=4, alpha=8.0, double_quant=False, block_size=128),
    "full": Full(),
    "prompt": Prompt(tokens=5),
    "prompt noise": Prompt(tokens=3, init="random"),
    "prefix": Prefix(tokens=5),
    "prefix noise": Prefix(tokens=3, init="random"),
    "ia3": Ia3(),
    "ia3 named": Ia3(targets=["q_proj", "up_proj", "down_proj"], feedforward=["up_proj"]),
    "bottleneck": Bottleneck(size=6),
    "bottleneck both": Bottleneck(size=3, activation="gelu", after=["attention", "mlp"]),
}
PLAIN_PATH = {"prompt", "prompt noise", "prefix", "prefix noise", "whole modules"}
NOT_PEFT = {"full", "bottleneck", "bottleneck both"}
UNMERGED = {"prompt", "prompt noise", "prefix", "prefix noise", "bottleneck", "bottleneck both"}
NO_BASE_START = {"prompt", "prompt noise", "prefix", "prefix noise"}
"""Virtual tokens are a prompt from the first step on."""


def decoder(architecture: str = "llama", dtype: torch.dtype = torch.float32, **changes):
    """A two-layer decoder: `decoder("qwen2", tie_word_embeddings=True)`. The same weights at every call."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    shape = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
             "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
             "tie_word_embeddings": False}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[architecture](**shape | changes))
    for name, p in model.named_parameters():  # biases and norms are born 0 and 1: then a forgotten one goes unseen
        if p.ndim == 1:
            torch.nn.init.normal_(p, mean=1.0 if "norm" in name else 0.0, std=0.1)
    return model.to(dtype).eval().requires_grad_(False)


@torch.no_grad()
def moved(model, seed: int = 2, std: float = 0.05):
    draw = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p += std * torch.randn(p.shape, generator=draw)
    return model


def trained(model) -> dict[str, torch.Tensor]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def make_rows(lengths: list[int], seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Rows of these lengths: random tokens, about three fifths of them labelled."""
    draw = random.Random(seed)
    rows = []
    for n in lengths:
        ids = [draw.randrange(VOCABULARY) for _ in range(n)]
        rows.append((ids, [t if draw.random() < 0.6 else IGNORE for t in ids[1:]] + [IGNORE]))
    return rows


def logits(model, ids: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40)[None] if ids is None else ids).logits


# ---- the formulas ----------------------------------------------------------------------------------------------------


def loss(base: nn.Module, config: dict, tensors: dict[str, torch.Tensor], rows, quantised: dict | None = None) -> torch.Tensor:
    """Summed cross-entropy of rows, each alone, by a float64 base and an adapter's float64 tensors."""
    total = torch.zeros((), dtype=torch.float64)
    for ids, labels in rows:
        logits_1LV = answer(base, config, tensors, torch.tensor([ids]), quantised)
        total = total + F.cross_entropy(logits_1LV[0], torch.tensor(labels), ignore_index=IGNORE, reduction="sum")
    return total


def answer(base: nn.Module, config: dict, tensors: dict[str, torch.Tensor], ids: torch.Tensor, quantised: dict | None = None):
    kind = config["peft_type"]
    if kind == "PROMPT_TUNING":
        prompt = tensors["prompt_embeddings"]
        words = torch.cat([prompt.expand(len(ids), -1, -1), base.get_input_embeddings()(ids)], 1)
        return base(inputs_embeds=words).logits[:, len(prompt) :]
    if kind == "PREFIX_TUNING":
        from transformers import DynamicCache

        flat, shape = tensors["prompt_embeddings"], base.config
        states = flat.view(len(flat), shape.num_hidden_layers, 2, shape.num_key_value_heads, -1).permute(1, 2, 3, 0, 4)
        return base(input_ids=ids, past_key_values=DynamicCache([(layer[:1], layer[1:]) for layer in states])).logits
    if kind == "BOTTLENECK":
        return _with_blocks(base, config, tensors)(input_ids=ids).logits
    weights = _weights(base, config, tensors, quantised)
    return functional_call(base, weights, kwargs={"input_ids": ids}, tie_weights=True).logits


def _weights(base: nn.Module, config: dict, tensors: dict[str, torch.Tensor], quantised: dict | None) -> dict:
    """The weights that the adapter makes of the base's."""
    if config["peft_type"] == "FULL":
        return tensors
    made = dict(base.named_parameters())
    if quantised:
        for n, p in base.named_parameters():
            if p.ndim == 2 and "embed" not in n and "lm_head" not in n:
                made[n] = Packed.of(p.float(), quantised["block_size"], quantised["double_quant"]).dequantise(
                    torch.float32).double()
    for key, tensor in tensors.items():
        name = key.removeprefix("base_model.model.")
        if name.endswith(".ia3_l"):
            layer = name.removesuffix(".ia3_l")
            made[f"{layer}.weight"] = made[f"{layer}.weight"] * tensor
            if f"{layer}.bias" in made and tensor.shape[0] > 1:
                made[f"{layer}.bias"] = made[f"{layer}.bias"] * tensor.flatten()
        elif name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            b = tensors[key.replace("lora_A", "lora_B")]
            alpha = next((v for n, v in config["alpha_pattern"].items() if layer.endswith(n)), config["lora_alpha"])
            scale = alpha / (math.sqrt(len(tensor)) if config["use_rslora"] else len(tensor))
            weight = made[f"{layer}.weight"] + scale * b @ tensor
            if config["use_dora"]:  # the length counts as a constant in the gradient (Liu et al. 2024, section 4.3)
                length = tensors[key.replace("lora_A.weight", "lora_magnitude_vector")]
                weight = length[:, None] * weight / weight.norm(dim=1, keepdim=True).detach()
            made[f"{layer}.weight"] = weight
        elif "lora_" not in name:
            made[name] = tensor
    return made


class _Behind(nn.Module):
    def __init__(self, inner: nn.Module, tensors: dict[str, torch.Tensor], place: str, activation: str):
        super().__init__()
        self.inner, self.tensors, self.place, self.activation = inner, tensors, place, activation

    def forward(self, *args, **kwargs):
        found = self.inner(*args, **kwargs)
        h = found[0] if isinstance(found, tuple) else found
        get = {k.removeprefix(self.place + "."): t for k, t in self.tensors.items() if k.startswith(self.place + ".")}
        inner = {"relu": torch.relu, "gelu": F.gelu}[self.activation](h @ get["down.weight"].T + get["down.bias"])
        h = h + inner @ get["up.weight"].T + get["up.bias"]
        return (h, *found[1:]) if isinstance(found, tuple) else h


def _with_blocks(base: nn.Module, config: dict, tensors: dict[str, torch.Tensor]) -> nn.Module:
    base = copy.deepcopy(base)
    for number, layer in enumerate(base.model.layers):
        for name in [{"mlp": "mlp", "attention": "self_attn"}[a] for a in config["after"]]:
            setattr(layer, name, _Behind(getattr(layer, name), tensors, f"{number}.{name}", config["activation"]))
    return base


def saved_name(model: nn.Module, name: str) -> str:
    """The name in the file of a trained parameter."""
    if isinstance(model, Adapted):
        return next(k for k, p in model.trained().items() if p is model.get_parameter(name))
    name = name.replace(".modules_to_save.default", "").replace(".default", "")
    return name.removesuffix(".weight") if "magnitude" in name else name
