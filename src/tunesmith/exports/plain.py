"""Ask exports as a stranger would: plain transformers and PEFT, in a process of its own, nothing of this package imported.

    python -P plain.py REQUESTS.json     writes ANSWERS.json and LOGITS.safetensors where the requests say

A request: {path, kind: peft|merged, base, dtype, new_tokens, threads, questions[{messages, tools, along[], logits}]}.
It takes the chat template, the generation config and the weights from `path`, as the model card says one should.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(requests: Path) -> None:
    wanted = json.loads(requests.read_text(encoding="utf-8"))
    answers, logits = [], {}
    for number, request in enumerate(wanted["requests"]):
        try:
            answers.append(_answered(request, f"{number}", logits))
        except Exception as error:  # whatever the libraries raise is what a user of the export would see
            answers.append({"error": f"{type(error).__name__}: {error}"})
    from safetensors.torch import save_file

    save_file(logits, wanted["logits"])
    Path(wanted["answers"]).write_text(json.dumps({"answers": answers, "runtime": _runtime()}), encoding="utf-8")
    assert not any(name.partition(".")[0] == "tunesmith" for name in sys.modules)


def _answered(request: dict, key: str, logits: dict) -> dict:
    """`{ends, prompts, answers}`; the logits go to `logits` as KEY.QUESTION."""
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(request["threads"])
    tokenizer = AutoTokenizer.from_pretrained(request["path"])
    model, config = _model(request)
    found = {"ends": _listed(config.eos_token_id), "prompts": [], "answers": []}
    for number, question in enumerate(request["questions"]):
        if tokenizer.chat_template:
            ids = tokenizer.apply_chat_template(question["messages"], tools=question["tools"], add_generation_prompt=True,
                                                tokenize=True, return_dict=False)
        else:
            ids = tokenizer("".join(m["content"] for m in question["messages"]))["input_ids"]
        with torch.inference_mode():
            prompt = torch.tensor([ids], device=model.device)
            said = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
            path = torch.tensor([ids + question["along"]], device=model.device)
            places = len(question["along"]) + 1  # the last ones: virtual tokens come before the prompt
            row = model(input_ids=path, attention_mask=torch.ones_like(path)).logits[0, -places:]
        logits[f"{key}.{number}"] = row[:question["logits"]].float().cpu().contiguous()
        found["prompts"].append(list(ids))
        found["answers"].append(said[0, len(ids):].tolist())
    return found


def _model(request: dict):
    """(the model, its generation config from the export, made greedy and nothing else)."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    dtype = getattr(torch, request["dtype"])
    if request["kind"] == "peft":
        from peft import PeftConfig, PeftModel

        named = PeftConfig.from_pretrained(request["path"])
        base = AutoModelForCausalLM.from_pretrained(request["base"] or named.base_model_name_or_path, dtype=dtype,
                                                    revision=None if request["base"] else named.revision)
        model = PeftModel.from_pretrained(base, request["path"])
        config = GenerationConfig.from_pretrained(request["path"])
    else:
        model = AutoModelForCausalLM.from_pretrained(request["path"], dtype=dtype)
        config = model.generation_config
    config.update(do_sample=False, temperature=None, top_p=None, top_k=None, repetition_penalty=None, max_length=None,
                  max_new_tokens=request["new_tokens"])
    return model.eval(), config


def _listed(ends) -> list[int]:
    return [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]


def _runtime() -> str:
    from importlib.metadata import version

    named = [name for name in ("transformers", "peft") if name in sys.modules]
    return ", ".join(f"{name} {version(name)}" for name in named)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
