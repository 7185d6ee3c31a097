"""What an adapter is attached to, and where its gradient goes: for people who chose targets by name."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft import PeftModel

    from tunesmith.methods.lora import Target

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be (0.33); an adapter needs one that is not below its own rank."""


def by_module(matched: list[Target], rank: int) -> list[dict]:
    """`{module, layers, inputs, outputs, parameters}` of the adapted layers of one name and shape, in the model's order."""
    groups: dict[tuple[str, int, int], int] = defaultdict(int)
    for target in matched:
        groups[target.name.rsplit(".", 1)[-1], target.inputs, target.outputs] += 1
    return [{"module": module, "layers": count, "inputs": inputs, "outputs": outputs,
             "parameters": count * rank * (inputs + outputs)} for (module, inputs, outputs), count in groups.items()]


def gradient_shares(model: PeftModel) -> dict[str, float]:
    """Each module's share of the squared norm of the gradient at hand, by the last part of its name; all of them sum to 1.

    A module whose share is next to nothing learns next to nothing.
    """
    squares: dict[str, float] = defaultdict(float)
    for name, p in model.named_parameters():
        if p.requires_grad and p.grad is not None:
            squares[name.split(".lora_")[0].rsplit(".", 1)[-1]] += p.grad.float().square().sum().item()
    total = sum(squares.values())
    return {module: square / total if total else 0.0 for module, square in squares.items()}


def vllm(config: dict) -> dict:
    """`{loads, max_lora_rank, refused[]}`: whether vLLM loads an adapter of this adapter_config.json, and with which flag.

    The same questions as vLLM's own loader asks (vllm/lora/peft_helper.py, 0.33).
    """
    refused = []
    if config.get("peft_type") != "LORA":
        refused.append(f"it is of type {config.get('peft_type')}: vLLM knows LORA")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        refused.append("it trains biases")
    if config.get("use_dora"):
        refused.append("it is a DoRA: merge it first")
    if extra := [m for m in config.get("modules_to_save") or [] if m not in ("classifier", "score")]:
        refused.append(f"modules_to_save has whole copies of {', '.join(extra)}")
    if config.get("layer_replication"):
        refused.append("it repeats layers")
    if isinstance(init := config.get("init_lora_weights"), str) and init.lower() != "gaussian":
        refused.append(f"it was initialised as {init}, which changes the base")
    rank = max([config.get("r") or 0, *(config.get("rank_pattern") or {}).values()])
    fitting = next((r for r in VLLM_RANKS if r >= rank), None)
    if fitting is None:
        refused.append(f"its rank {rank} is above {VLLM_RANKS[-1]}")
    return {"loads": not refused, "max_lora_rank": fitting, "refused": refused}
