"""Goldens: held-out questions with the release's own answers, to be asked again on the day that it is rolled back to.

    golden.json   [{messages, tools, max_new_tokens, answer}]
    replay.json   {dtype, device, threads, environment}         with what they were answered

An evaluation asks a hundred rows at once, and a product of another shape adds up in another order: where two tokens are
almost equally likely, a row alone parts from the same row in a batch. So a golden is not the report's answer. It is asked
when the release is made, alone, greedily, by the engine that serves, with the tokenizer that the bundle holds; and asked
again in the same way, with the same dtype and number of threads, it is the same text to the last character.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.models.base import Base
from tunesmith.store.files import read_json, write_json
from tunesmith.training.run import Run, environment

if TYPE_CHECKING:
    from tunesmith.serving.interface import BaseEngine, Served

GOLDENS = 8
"""Held-out questions of the primary test set that are kept."""
GOLDEN_FILE, REPLAY_FILE = "golden.json", "replay.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """What an answer depends on, beside weights and prompt."""

    dtype: str
    device: str
    threads: int


def record(run: Run, report: dict, folder: Path) -> None:
    """Ask the adapter and the tokenizer that lie in `folder`, a bundle in the making, and write goldens and settings there.

    Raises:
        AdapterError, TemplateError: what lies there cannot be served.
    """
    from transformers import AutoTokenizer

    state = run.state
    settings = Settings(state["dtype"], state["device"], state["threads"])
    rows = {i["id"] for i in report["sets"][report["primary"]]["items"]}
    asked = [{"messages": r.question, "tools": r.tools, "max_new_tokens": report["settings"]["max_new_tokens"]}
             for r in run.dataset().rows(report["primary"]) if r.where in rows][:GOLDENS]
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    said = answers(run.base(), folder / "adapter", tokenizer, state["template_fingerprint"], settings, asked)
    write_json(folder / GOLDEN_FILE, [a | {"answer": text} for a, text in zip(asked, said, strict=True)])
    write_json(folder / REPLAY_FILE, {"dtype": settings.dtype, "device": settings.device, "threads": settings.threads,
                                      "environment": environment()})


def recorded(folder: Path) -> tuple[list[dict], dict]:
    """The goldens of a bundle, and its replay.json; empty for a release from before there was one."""
    settings = folder / REPLAY_FILE
    return read_json(folder / GOLDEN_FILE), read_json(settings) if settings.is_file() else {}


def answers(base: Base, adapter: Path, tokenizer, fingerprint: str, settings: Settings, asked: Sequence[dict]) -> list[str]:
    """The text of each answer, each question asked alone. `asked`: `{messages, tools, max_new_tokens}`.

    Raises:
        AdapterError: the adapter does not fit the base, or changes nothing.
        TemplateError: the tokenizer would prompt it otherwise than it was trained.
    """
    import torch

    from tunesmith.serving.engine import Engine

    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    engine = Engine(base, tokenizer, settings.dtype, settings.device, 0)
    try:
        engine.add(["release"], adapter, tokenizer, fingerprint, 0)
        served = engine.find("release")
        return [_answer(engine, served, one) for one in asked]
    finally:
        engine.close()
        torch.set_num_threads(before)


def _answer(engine: BaseEngine, served: Served, asked: dict) -> str:
    from tunesmith.serving.sampling import Request
    from tunesmith.serving.text import decode
    from tunesmith.template.render import generation_prompt

    ids: list[int] = []
    failed: list[BaseException] = []
    ended = threading.Event()

    def on_token(token) -> None:
        if token.id is not None:
            ids.append(token.id)
        if token.finish:
            ended.set()

    def on_error(error: BaseException) -> None:
        failed.append(error)
        ended.set()

    prompt = generation_prompt(served.tokenizer, asked["messages"], asked["tools"])
    room = served.context_tokens - len(prompt)
    engine.submit(served, Request(prompt=prompt, max_new_tokens=min(asked["max_new_tokens"], room)), on_token, on_error)
    ended.wait()
    if failed:
        raise failed[0]
    return decode(served.tokenizer, ids)
