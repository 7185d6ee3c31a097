"""What an adapter is attached to, and where its gradient goes: for people who chose targets by name."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.methods.files import WEIGHTS_FILE, fitting, read_config

if TYPE_CHECKING:
    from torch import nn

    from tunesmith.methods.targets import Part

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be (0.33); an adapter needs one that is not below its own rank."""
VLLM_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""`init_lora_weights` that leave the base as it is; the others (pissa, olora, corda, loftq) have changed it."""
LORA_TENSOR = re.compile(r"\.lora_(A|B)\.weight$|\.lora_embedding_(A|B)$")
OF_ADAPTER = re.compile(r"\.(lora_\w+|ia3_l|modules_to_save|down|up)\b.*|\.(weight|bias)$")
"""The end of a parameter's name, which says what it is in its adapter."""


def by_module(parts: list[Part]) -> list[dict]:
    """`{module, layers, inputs, outputs, parameters}` of what has one name, shape and size, in the model's order."""
    groups: dict[tuple[str, int, int, int], int] = defaultdict(int)
    for part in parts:
        groups[part.module.rsplit(".", 1)[-1], part.inputs, part.outputs, part.parameters] += 1
    return [{"module": module, "layers": count, "inputs": inputs, "outputs": outputs, "parameters": count * each}
            for (module, inputs, outputs, each), count in groups.items()]


def gradient_shares(model: nn.Module) -> dict[str, float]:
    """Each module's share of the squared norm of the gradient at hand, by the last part of its name; all of them sum to 1.

    A module whose share is next to nothing learns next to nothing.
    """
    squares: dict[str, float] = defaultdict(float)
    for name, p in model.named_parameters():
        if p.requires_grad and p.grad is not None:
            squares[OF_ADAPTER.sub("", name).rsplit(".", 1)[-1]] += p.grad.float().square().sum().item()
    total = sum(squares.values())
    return {module: square / total if total else 0.0 for module, square in squares.items()}


def vllm(config: dict) -> dict:
    """`{loads, max_lora_rank, refused[]}`: whether vLLM loads an adapter of this adapter_config.json, and with which flag.

    The same questions as vLLM's own loader asks (vllm/lora/peft_helper.py, 0.33).
    """
    kind = config.get("peft_type")
    kind = getattr(kind, "value", kind)
    if kind != "LORA":
        how = {"FULL": "it is a whole model: serve the merged checkpoint", "IA3": "merge it first, which is exact",
               "BOTTLENECK": "no merged form exists: serve it here"}.get(kind, "serve it here")
        return {"loads": False, "max_lora_rank": None, "refused": [f"it is of type {kind}, vLLM knows LORA; {how}"]}
    refused = []
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        refused.append("it trains biases")
    if config.get("use_dora"):
        refused.append("it is a DoRA: merge it first")
    if extra := [m for m in config.get("modules_to_save") or [] if m not in ("classifier", "score")]:
        refused.append(f"modules_to_save has whole copies of {', '.join(extra)}")
    if config.get("layer_replication"):
        refused.append("it repeats layers")
    if odd := [k for k in ("alora_invocation_tokens", "use_bdlora", "use_qalora") if config.get(k)]:
        refused.append(f"it is a LoRA of another kind ({', '.join(odd)})")
    if isinstance(init := config.get("init_lora_weights"), str) and init.lower() not in VLLM_STARTS:
        refused.append(f"it was initialised as {init}, which changes the base")
    rank = max([config.get("r") or 0, *(config.get("rank_pattern") or {}).values()])
    fitting = next((r for r in VLLM_RANKS if r >= rank), None)
    if fitting is None:
        refused.append(f"its rank {rank} is above {VLLM_RANKS[-1]}")
    return {"loads": not refused, "max_lora_rank": fitting, "refused": refused}


def vllm_directory(adapter: Path) -> dict:
    """`vllm` of an adapter on disk, with its tensors' names looked at, too."""
    from safetensors import safe_open

    found = vllm(read_config(adapter))
    with fitting(adapter), safe_open(adapter / WEIGHTS_FILE, framework="pt") as file:
        odd = [name for name in file.keys() if not LORA_TENSOR.search(name)]  # noqa: SIM118 - not a dict
    if odd and found["loads"]:
        found = found | {"loads": False, "refused": [f"it holds {len(odd)} tensors that are no LoRA's, such as {odd[0]}"]}
    return found
