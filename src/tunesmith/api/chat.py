"""`/v1/chat/completions` and `/v1/completions`: generation in OpenAI's shapes, whole or as server-sent events."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from tunesmith.api.answers import (
    Answer,
    Asked,
    Piece,
    Prompt,
    asked_of_chat,
    asked_of_completion,
    best,
    collect,
    stream_pieces,
)
from tunesmith.api.caller import Caller, may
from tunesmith.api.errors import BadParameter, error_body, words
from tunesmith.api.logprobs import of_chat, of_text
from tunesmith.api.schemas import ChatRequest, CompletionRequest
from tunesmith.api.service import Service, service_of
from tunesmith.errors import TunesmithError
from tunesmith.serving.calls import Said
from tunesmith.serving.interface import BaseEngine, Served
from tunesmith.serving.logprobs import Scored

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat(body: ChatRequest, request: Request, caller: Caller = Depends(may("infer")),
               service: Service = Depends(service_of)):
    engine, served = await _asked_of(body, caller, service)
    asked = await run_in_threadpool(asked_of_chat, engine, served, body)
    return await _answer(_Chat(asked), asked, request)


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request, caller: Caller = Depends(may("infer")),
                      service: Service = Depends(service_of)):
    engine, served = await _asked_of(body, caller, service)
    asked = await run_in_threadpool(asked_of_completion, engine, served, body)
    return await _answer(_Text(asked), asked, request)


async def _asked_of(body: ChatRequest | CompletionRequest, caller: Caller, service: Service) -> tuple[BaseEngine, Served]:
    """The model, or the adapters that are to answer on it together."""
    engine, served = await service.engines.ready(body.model, caller.project_id)
    if not body.adapters:
        return engine, served
    if served.adapter:
        raise BadParameter(f"`{body.model}` is an adapter itself: the base is `model`, adapters have weights", "adapters")
    parts = []
    for name, weight in body.adapters.items():
        beside, part = await service.engines.ready(name, caller.project_id)
        if beside is not engine:
            raise BadParameter(f"`{name}` does not stand on `{body.model}`", "adapters")
        parts.append((part, weight))
    return engine, engine.mixed(parts)


async def _answer(shape: _Chat | _Text, asked: Asked, request: Request):
    asked.engine.refuse_if_full()
    spend = partial(_spend, request)
    spend("prompt", _usage(asked.prompts, 0)["total_tokens"])
    if asked.body.stream:
        return StreamingResponse(_events(shape, asked, spend), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
    answers = await collect(asked, request.is_disconnected)
    spend("completion", sum(a.tokens for a in answers))
    return shape.whole(answers)


def _spend(request: Request, kind: str, tokens: int) -> None:
    """Of the key's tokens a minute, and of what `/metrics` counts."""
    request.state.spend(tokens)
    service_of(request).metrics.tokens.labels(kind).inc(tokens)


async def _events(shape: _Chat | _Text, asked: Asked, spend: Callable[[str, int], None]) -> AsyncIterator[str]:
    """Server-sent events in the order OpenAI sends them."""
    options, prompts = asked.body.stream_options, asked.prompts
    usage = bool(options and options.include_usage)
    pieces, made, known = stream_pieces(asked), 0, 0
    try:
        for event in shape.opening(len(prompts)):
            yield _event(event | ({"usage": None} if usage else {}))
        async for piece in pieces:
            made += piece.tokens
            known += piece.known if prompts[piece.index].first_copy else 0
            for event in shape.piece(piece):
                yield _event(event | ({"usage": None} if usage else {}))
        if usage:
            yield _event(shape.envelope([]) | {"usage": _usage(prompts, made, known)})
        yield "data: [DONE]\n\n"
    except TunesmithError as error:
        yield _event(error_body(words(error), kind="server_error"))
    finally:
        spend("completion", made)
        await pieces.aclose()


def _event(value: dict) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _usage(prompts: list[Prompt], completion: int, known: int = 0) -> dict:
    asked = sum(len(p.ids) for p in prompts if p.first_copy)
    return {"prompt_tokens": asked, "completion_tokens": completion, "total_tokens": asked + completion,
            "prompt_tokens_details": {"cached_tokens": known, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0,
                                          "rejected_prediction_tokens": 0}}


class _Shape:
    """What chat and text answers share: identity and envelope."""

    prefix, object, chunk_object = "", "", ""

    def __init__(self, asked: Asked):
        self.id = f"{self.prefix}-{uuid.uuid4().hex[:24]}"
        self.created = int(time.time())
        self.body, self.served = asked.body, asked.served
        self.fingerprint = asked.fingerprint
        self.scored = asked.body.scored is not None

    def envelope(self, choices: list[dict], chunk: bool = True) -> dict:
        return {"id": self.id, "object": self.chunk_object if chunk else self.object, "created": self.created,
                "model": self.body.model, "choices": choices, "system_fingerprint": self.fingerprint}

    def whole(self, answers: list[Answer]) -> dict:
        choices = [self.choice(i, a) for i, a in enumerate(self.told(answers))]
        usage = _usage([a.prompt for a in answers], sum(a.tokens for a in answers),
                       sum(a.known for a in answers if a.prompt.first_copy))
        return self.envelope(choices, chunk=False) | {"usage": usage}

    def told(self, answers: list[Answer]) -> list[Answer]:
        return answers


class _Chat(_Shape):
    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, asked: Asked):
        super().__init__(asked)
        self.calling = asked.calling
        self._readers = [asked.calling.reader() for _ in asked.prompts]

    def choice(self, index: int, answer: Answer) -> dict:
        reader = self._readers[index]
        said = [*reader.feed(answer.text), *reader.finish()] if reader else [Said(answer.text)]
        return {"index": index, "message": {"role": "assistant", "refusal": None} | self.calling.whole(said),
                "logprobs": self.logprobs(answer.scores),
                "finish_reason": self.calling.finish(answer.finish, reader.calls if reader else 0)}

    def logprobs(self, scores: Sequence[Scored]) -> dict | None:
        """Of what can be read: the stop token is not part of a message."""
        return of_chat(self.served.tokenizer, [s for s in scores if s.id not in self.served.stop_ids]) if self.scored else None

    def opening(self, choices: int) -> list[dict]:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self.envelope([_delta(i, delta)]) for i in range(choices)]

    def piece(self, piece: Piece) -> list[dict]:
        reader, scores = self._readers[piece.index], self.logprobs(piece.scores)
        said = ([*reader.feed(piece.text), *(reader.finish() if piece.finish else [])] if reader
                else [Said(piece.text)] if piece.text else [])
        if not said and scores and scores["content"]:
            said = [Said("")]
        deltas = [_delta(piece.index, self.calling.delta(s)) for s in said]
        if deltas:
            deltas[0]["logprobs"] = scores
        if piece.finish:
            deltas.append(_delta(piece.index, {}, self.calling.finish(piece.finish, reader.calls if reader else 0)))
        return [self.envelope([d]) for d in deltas]


class _Text(_Shape):
    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, asked: Asked):
        super().__init__(asked)
        self.scored = asked.body.logprobs is not None
        self._offsets: Counter[int] = Counter()

    def told(self, answers: list[Answer]) -> list[Answer]:
        return best(answers, self.body)

    def choice(self, index: int, answer: Answer) -> dict:
        return {"index": index, "text": answer.text, "logprobs": self.logprobs(index, answer.scores),
                "finish_reason": answer.finish}

    def logprobs(self, index: int, scores: Sequence[Scored]) -> dict | None:
        if not self.scored:
            return None
        made = of_text(self.served.tokenizer, scores, self._offsets[index])
        self._offsets[index] += sum(map(len, made["tokens"]))
        return made

    def opening(self, _choices: int) -> list[dict]:
        return []

    def piece(self, piece: Piece) -> list[dict]:
        if not piece.text and not piece.finish and not piece.scores:
            return []
        choice = {"index": piece.index, "text": piece.text, "logprobs": self.logprobs(piece.index, piece.scores),
                  "finish_reason": piece.finish}
        return [self.envelope([choice])]


def _delta(index: int, delta: dict, finish: str | None = None) -> dict:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
