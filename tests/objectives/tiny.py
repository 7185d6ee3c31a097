"""A tiny decoder with an adapter whose every number follows from its name, and pairs of answers: the same in any process.

Both the tests and `trl_numbers.py`, which TRL's Python runs, build on it. Imports nothing of ours.
"""

from __future__ import annotations

import random
import zlib

import torch

VOCABULARY = 61
SETTINGS = {"dpo sigmoid 0.1": ("sigmoid", 0.1), "dpo sigmoid 2": ("sigmoid", 2.0), "dpo ipo 0.1": ("ipo", 0.1),
            "dpo ipo 1": ("ipo", 1.0)}
SFT_SETTINGS = {"sft 0.0005": 0.0005, "sft 0.003": 0.003}
"""Learning rate of AdamW, constant."""
ROWS_A_STEP = 2
KTO_SETTINGS = {"kto 0.1": (0.1, 1.0, 1.0), "kto 1 weighted": (1.0, 1.5, 0.5)}
"""beta, weight of desirable and of undesirable answers."""


def fill(model, only: str = "") -> None:
    """Numbers from the name and the place, for the parameters with `only` in their name."""
    with torch.no_grad():
        for name, p in ((n, p) for n, p in model.named_parameters() if only in n):
            wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * 1.7 + zlib.crc32(name.encode()) % 1000)
            scale = 1.0 if "lora_B" in name else p.shape[-1] ** -0.5
            p.copy_((wave * scale + ("norm" in name)).view_as(p).to(p.dtype))


def base_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3,
                         num_key_value_heads=1, head_dim=16, vocab_size=VOCABULARY, max_position_embeddings=128,
                         tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model = LlamaForCausalLM(config)
    fill(model)
    return model


def pairs(count: int = 6) -> list[dict]:
    """`{prompt_ids, chosen_ids, rejected_ids}` of different lengths."""
    draw = random.Random(7)
    return [{name: [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(3, most))]
             for name, most in (("prompt_ids", 20), ("chosen_ids", 14), ("rejected_ids", 14))} for _ in range(count)]


def labelled(count: int = 6) -> list[dict]:
    """`{prompt_ids, completion_ids, KL_completion_ids, label}`: the chosen and rejected answers of `pairs`, in turn."""
    rows = pairs(count)
    answers = [row["chosen_ids"] if i % 3 else row["rejected_ids"] for i, row in enumerate(rows)]
    return [{"prompt_ids": row["prompt_ids"], "completion_ids": answer, "KL_completion_ids": other, "label": i % 3 != 0}
            for i, (row, answer, other) in enumerate(zip(rows, answers, answers[-1:] + answers[:-1], strict=True))]


def chats(count: int = 24) -> list[dict]:
    """`{input_ids, labels}`, labels not shifted, -100 over the prompt: two rows a step of supervised fine-tuning."""
    return [{"input_ids": row["prompt_ids"] + row["chosen_ids"], "labels": [-100] * len(row["prompt_ids"]) + row["chosen_ids"]}
            for row in pairs(count)]
