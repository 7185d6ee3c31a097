"""Does the adapter do anything? Logits of probe prompts with it and without it, beside what rounding alone does to them."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.evals.items import Item
from tunesmith.template.fingerprint import PROBES

ITEMS = 4
"""Of the primary test set, beside the two probes that every tokenizer's fingerprint is made of."""
LONGEST = 128
"""Of a longer prompt its last tokens are enough for this."""


def effect(model, tokenizer, items: Sequence[Item]) -> dict:
    """`{prompts, logits, rounding, other_tokens}`: the largest difference of a next token's logit that the adapter makes, and
    the largest that the same base makes when a prompt is computed among others instead of alone (at least one unit in the last
    place of the largest logit); after how many prompts the likeliest token is another one.
    """
    import torch

    from tunesmith.template.render import generation_prompt

    asked = [PROBES["one_turn"][0][:1], PROBES["many_turns"][0][:3], *(i.messages for i in items[:ITEMS])]
    prompts = [generation_prompt(tokenizer, messages)[-LONGEST:] for messages in asked]
    device = next(model.parameters()).device

    def last_logits(ids: list[int]) -> torch.Tensor:
        return model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, -1]

    with torch.inference_mode():
        tuned_PV = torch.stack([last_logits(ids) for ids in prompts])
        with model.disable_adapter():
            base_PV = torch.stack([last_logits(ids) for ids in prompts])
            longest = max(map(len, prompts))
            ids_PL = torch.tensor([ids + [0] * (longest - len(ids)) for ids in prompts], device=device)
            mask_PL = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in prompts], device=device)
            logits_PLV = model(input_ids=ids_PL, attention_mask=mask_PL, use_cache=False).logits
            among_PV = torch.stack([logits_PLV[p, len(ids) - 1] for p, ids in enumerate(prompts)])
    unit = torch.finfo(base_PV.dtype).eps * float(base_PV.abs().max())
    return {"prompts": len(prompts), "logits": float((tuned_PV.float() - base_PV.float()).abs().max()),
            "rounding": max(unit, float((among_PV.float() - base_PV.float()).abs().max())),
            "other_tokens": int((tuned_PV.argmax(-1) != base_PV.argmax(-1)).sum())}
