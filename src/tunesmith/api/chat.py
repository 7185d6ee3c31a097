"""`/v1/chat/completions` and `/v1/completions`: generation in OpenAI's shapes, whole or as server-sent events."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse

from tunesmith.api.answers import (
    Answer,
    Piece,
    Prompt,
    collect,
    prompts_of_chat,
    prompts_of_completion,
    stream_pieces,
)
from tunesmith.api.caller import Caller, may
from tunesmith.api.errors import error_body, words
from tunesmith.api.logprobs import of_chat, of_text
from tunesmith.api.schemas import ChatRequest, CompletionRequest, Sampling
from tunesmith.api.service import Service, service_of
from tunesmith.errors import TunesmithError
from tunesmith.serving.engine import Engine, Served
from tunesmith.serving.logprobs import Scored

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat(body: ChatRequest, request: Request, caller: Caller = Depends(may("infer")),
               service: Service = Depends(service_of)):
    engine, served = await service.engines.ready(body.model, caller.project_id)
    limit = body.max_completion_tokens or body.max_tokens
    prompts = prompts_of_chat(engine, served, body, limit)
    return await _answer(_Chat(body, served), engine, served, body, prompts, request)


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request, caller: Caller = Depends(may("infer")),
                      service: Service = Depends(service_of)):
    engine, served = await service.engines.ready(body.model, caller.project_id)
    prompts = prompts_of_completion(engine, served, body)
    return await _answer(_Text(body, served), engine, served, body, prompts, request)


async def _answer(shape: _Chat | _Text, engine: Engine, served: Served, body: Sampling, prompts: list[Prompt],
                  request: Request):
    spend = request.state.spend
    spend(_usage(prompts, 0)["total_tokens"])
    if body.stream:
        pieces = stream_pieces(engine, served, body, prompts)
        return StreamingResponse(_events(shape, body, prompts, pieces, spend), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
    answers = await collect(engine, served, body, prompts, request.is_disconnected)
    spend(sum(a.tokens for a in answers))
    return shape.whole(answers)


async def _events(shape: _Chat | _Text, body: Sampling, prompts: list[Prompt],
                  pieces: AsyncIterator[Piece], spend: Callable[[int], None]) -> AsyncIterator[str]:
    """Server-sent events in the order OpenAI sends them."""
    usage = bool(body.stream_options and body.stream_options.include_usage)
    made = 0
    try:
        for event in shape.opening(len(prompts)):
            yield _event(event | ({"usage": None} if usage else {}))
        async for piece in pieces:
            made += piece.tokens
            for event in shape.piece(piece):
                yield _event(event | ({"usage": None} if usage else {}))
        if usage:
            yield _event(shape.envelope([]) | {"usage": _usage(prompts, made)})
        yield "data: [DONE]\n\n"
    except TunesmithError as error:
        yield _event(error_body(words(error), kind="server_error"))
    finally:
        spend(made)
        await pieces.aclose()


def _event(value: dict) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _usage(prompts: list[Prompt], completion: int) -> dict:
    asked = sum(len(p.ids) for p in prompts if p.first_copy)
    return {"prompt_tokens": asked, "completion_tokens": completion, "total_tokens": asked + completion}


class _Shape:
    """What chat and text answers share: identity and envelope."""

    prefix, object, chunk_object = "", "", ""

    def __init__(self, body: Sampling, served: Served):
        self.id = f"{self.prefix}-{uuid.uuid4().hex[:24]}"
        self.created = int(time.time())
        self.model = body.model
        self.served = served
        self.scored = body.scored is not None

    def envelope(self, choices: list[dict], chunk: bool = True) -> dict:
        return {"id": self.id, "object": self.chunk_object if chunk else self.object, "created": self.created,
                "model": self.model, "choices": choices}

    def whole(self, answers: list[Answer]) -> dict:
        choices = [self.choice(i, a) for i, a in enumerate(answers)]
        usage = _usage([a.prompt for a in answers], sum(a.tokens for a in answers))
        return self.envelope(choices, chunk=False) | {"usage": usage}


class _Chat(_Shape):
    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, answer: Answer) -> dict:
        return {"index": index, "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": self.logprobs(answer.scores), "finish_reason": answer.finish}

    def logprobs(self, scores: Sequence[Scored]) -> dict | None:
        """Of what can be read: the stop token is not part of a message."""
        return of_chat(self.served.tokenizer, [s for s in scores if s.id not in self.served.stop_ids]) if self.scored else None

    def opening(self, choices: int) -> list[dict]:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self.envelope([_delta(i, delta)]) for i in range(choices)]

    def piece(self, piece: Piece) -> list[dict]:
        scores = self.logprobs(piece.scores)
        told = piece.text or (scores and scores["content"])
        events = [self.envelope([_delta(piece.index, {"content": piece.text}) | {"logprobs": scores}])] if told else []
        return events + ([self.envelope([_delta(piece.index, {}, piece.finish)])] if piece.finish else [])


class _Text(_Shape):
    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, body: Sampling, served: Served):
        super().__init__(body, served)
        self._offsets: Counter[int] = Counter()

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
