"""Samples: what a model says to each row's prompt, or what the row brought along; and how graders see it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tunesmith.evals.graders import judges
from tunesmith.evals.graders.grade import rendered
from tunesmith.evals.graders.judges import Find, Usage
from tunesmith.evals.graders.schema import Message
from tunesmith.evals.graders.template import MissingVariable, lookup, read_path
from tunesmith.jobs.evaluation.rows import plain

DEFAULT_MAX_TOKENS = 1024
"""As for chat, where the request gives none."""


def sampled(source: Mapping, items: Sequence[Mapping], find: Find) -> list[dict]:
    """What the source's model says to each item, in the shape of an output item's `sample`.

    Without a seed each item gets one by chance; it is in the sample, and asking again with it gives the same answer.
    """
    params = source.get("sampling_params") or {}
    limit, temperature = params.get("max_completion_tokens"), params.get("temperature")
    temperature = 1.0 if temperature is None else temperature
    top_p = params.get("top_p") or 1.0
    samples: list[dict] = []
    for item in items:
        seed = params.get("seed")
        samples.append({"model": source["model"], "input": [], "output": [], "finish_reason": "error", "error": None,
                        "max_completion_tokens": limit or DEFAULT_MAX_TOKENS, "temperature": temperature, "top_p": top_p,
                        "seed": secrets.randbelow(2**31) if seed is None else seed, "usage": _usage(Usage())})
        try:
            samples[-1]["input"] = _prompt(source["input_messages"], item)
        except (MissingVariable, ValueError) as error:
            samples[-1]["error"] = {"code": "invalid_prompt", "message": str(error)}
    asked = [s for s in samples if s["error"] is None]
    said = judges.answers(find, source["model"], [s["input"] for s in asked], max_tokens=limit, temperature=temperature,
                          top_p=top_p, seeds=[s["seed"] for s in asked], default=DEFAULT_MAX_TOKENS,
                          schema=schema_of_answers(params))
    for sample, answer in zip(asked, said, strict=True):
        if answer.text is None:
            sample["error"] = {"code": "invalid_prompt", "message": answer.problem}
            continue
        sample |= {"output": [{"role": "assistant", "content": answer.text}], "finish_reason": answer.finish,
                   "usage": _usage(answer.usage)}
    return samples


def schema_of_answers(params: Mapping) -> dict | None:
    """What `response_format` holds answers to, or `text.format` of a source of type `responses`; None: any text."""
    form = params.get("response_format") or (params.get("text") or {}).get("format") or {}
    if form.get("type", "text") == "text":
        return None
    found = (form.get("json_schema") or form).get("schema")
    return {"type": "object"} if found is None else found


def given(sample: Mapping | None) -> dict:
    """A sample that a row brought along, in the same shape."""
    text = (sample or {}).get("output_text")
    return {"model": (sample or {}).get("model") or "", "input": [], "finish_reason": "stop", "error": None,
            "output": [{"role": "assistant", "content": text}] if isinstance(text, str) else [],
            "max_completion_tokens": 0, "temperature": 0.0, "top_p": 1.0, "seed": 0, "usage": _usage(Usage())}


def as_graders_see(sample: Mapping) -> dict[str, Any]:
    """The `sample` namespace of what a model said."""
    text = sample["output"][0]["content"]
    return seen_as(text, sample["model"], sample["finish_reason"])


def seen_as(text: str, model: str = "", finish: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    return with_json({"model": model, "output_text": text, "output_tools": [], "finish_reason": finish, "choices": [choice]})


def with_json(sample: Mapping[str, Any]) -> dict[str, Any]:
    """With `output_json`, where the text is JSON and nothing is there by that name."""
    sample = dict(sample)
    if isinstance(sample.get("output_text"), str) and "output_json" not in sample:
        with suppress(ValueError, RecursionError):
            value = json.loads(sample["output_text"])
            plain(value, "the answer")
            sample["output_json"] = value
    return sample


def _prompt(input_messages: Mapping, item: Mapping) -> list[dict]:
    """Raises MissingVariable, ValueError."""
    namespace = {"item": item}
    if input_messages["type"] == "template":
        return rendered([Message.model_validate(m) for m in input_messages["template"]], namespace)
    path = read_path(input_messages["item_reference"])
    found = lookup(path, namespace)
    if not isinstance(found, list) or not found:
        raise ValueError(f"{'.'.join(path)} is no list of messages")
    messages = []
    for message in found:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or not isinstance(
                message.get("role"), str):
            raise ValueError(f"{'.'.join(path)} holds what is no message with a role and a text")
        role = message["role"]
        messages.append({"role": "system" if role == "developer" else role, "content": message["content"]})
    return messages


def _usage(usage: Usage) -> dict:
    return {k: v for k, v in usage.as_dict("").items() if k not in ("model_name", "invocation_count")}
