"""Adapters that make a base answer differently, as PEFT directories, and what plain transformers says of them."""

from pathlib import Path

import pytest

STEMS = ("red", "green", "blue")


@pytest.fixture(scope="session")
def prompts(lively_base) -> list[list[int]]:
    """Ragged prompts, as token ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(lively_base)
    texts = ["4", "37 Oak Street", "12 Elm Street Cedar Rapids IA 52401", "Main " * 30, "1 2 3 4 5 6", "é🙂"]
    return [tokenizer(t)["input_ids"] for t in texts]


@pytest.fixture(scope="session")
def plain_model(lively_base):
    """The base as transformers loads it, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(lively_base, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def adapters(lively_base, tmp_path_factory) -> dict[str, Path]:
    """Three adapters with random A and B, large enough that each changes what the base says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = {}
    for seed, name in enumerate(STEMS, 1):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(lively_base, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        for parameter_name, p in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(p, std=0.2)
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
    return made


@pytest.fixture(scope="session")
def reference(lively_base, adapters):
    """`reference(name)`: the base (None) or one adapter on it, through PEFT and transformers alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = {}

    def get(name: str | None):
        if name not in loaded:
            model = AutoModelForCausalLM.from_pretrained(lively_base, dtype=torch.float32)
            loaded[name] = (model if name is None else PeftModel.from_pretrained(model, adapters[name])).eval()
        return loaded[name]

    return get


@pytest.fixture(scope="session")
def greedy():
    """`greedy(model, prompt, n, stops)`: transformers' own greedy answer to one prompt, without its stop token."""
    import torch

    def answer(model, prompt: list[int], n: int, stops: set[int]) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False,
                                 eos_token_id=sorted(stops), pad_token_id=0)[0, len(prompt):].tolist()
        return out[:-1] if out[-1] in stops else out

    return answer
