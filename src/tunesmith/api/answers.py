"""From a request to answers: prompts, tokens crossing from the engine's thread to the event loop, text, finish reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from tunesmith.api.errors import BadParameter
from tunesmith.api.logprobs import words
from tunesmith.api.schemas import ChatRequest, CompletionRequest, Sampling
from tunesmith.errors import TunesmithError
from tunesmith.serving.engine import Engine, Served
from tunesmith.serving.generate import Request, Token
from tunesmith.serving.logprobs import Scored
from tunesmith.serving.text import TextStream
from tunesmith.template.render import generation_prompt

DEFAULT_MAX_TOKENS = 1024
"""For chat, when the request gives none (OpenAI's default is what the context still holds)."""
DISCONNECT_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Prompt:
    ids: list[int]
    max_new_tokens: int
    seed: int | None
    first_copy: bool
    """False for the further choices of n > 1: their prompt is counted once."""
    echo: str = ""
    """The prompt's text, if the answer is to begin with it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text of one choice."""

    index: int
    text: str
    finish: str | None
    tokens: int
    scores: tuple[Scored, ...] = ()


@dataclass(slots=True)
class Answer:
    prompt: Prompt
    text: str = ""
    finish: str = "stop"
    tokens: int = 0
    scores: list[Scored] = field(default_factory=list)


def prompts_of_chat(engine: Engine, served: Served, body: ChatRequest, limit: int | None) -> list[Prompt]:
    ids = generation_prompt(served.tokenizer, [m.as_message() for m in body.messages])
    return _copies(served, [(ids, "")], body, limit, "messages")


def prompts_of_completion(engine: Engine, served: Served, body: CompletionRequest) -> list[Prompt]:
    given = body.prompt
    several = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    ids = [served.tokenizer(p)["input_ids"] if isinstance(p, str) else list(p) for p in several]
    vocabulary = len(served.tokenizer)
    if any(p and (min(p) < 0 or max(p) >= vocabulary) for p in ids):
        raise BadParameter("prompt has token ids outside the vocabulary", "prompt")
    if body.max_tokens == 0 and not body.echo:
        raise BadParameter("max_tokens must be at least 1, unless echo is set", "max_tokens")
    echoes = [(p if isinstance(p, str) else words(served.tokenizer, p)) if body.echo else "" for p in several]
    return _copies(served, list(zip(ids, echoes, strict=True)), body, body.max_tokens, "prompt")


def _copies(served: Served, prompts: list[tuple[list[int], str]], body: Sampling, limit: int | None,
            param: str) -> list[Prompt]:
    """`n` prompts each. Raises BadParameter for one that does not fit with what was asked for."""
    out = []
    for ids, echo in prompts:
        if not ids:
            raise BadParameter(f"{param} is empty", param)
        room, wanted = served.context_tokens - len(ids), 1 if limit is None else limit
        if room < wanted:
            raise BadParameter(f"This model's maximum context length is {served.context_tokens} tokens. However, you "
                               f"requested {len(ids) + wanted} tokens ({len(ids)} in the prompt).", param,
                               "context_length_exceeded")
        count = min(room, DEFAULT_MAX_TOKENS) if limit is None else limit
        out += [Prompt(ids, count, None if body.seed is None else body.seed + i, i == 0, echo) for i in range(body.n or 1)]
    return out


async def stream_pieces(engine: Engine, served: Served, body: Sampling, prompts: list[Prompt]) -> AsyncIterator[Piece]:
    """Text of all choices as it comes. Closing the iterator cancels what still runs.

    Raises:
        TunesmithError: generation failed.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, Token | BaseException]] = asyncio.Queue()

    def put(index: int) -> Callable[[Token | BaseException], None]:
        return lambda item: loop.call_soon_threadsafe(queue.put_nowait, (index, item))

    temperature = 1.0 if body.temperature is None else body.temperature
    jobs = [engine.submit(served, Request(prompt=p.ids, max_new_tokens=p.max_new_tokens, temperature=temperature,
                                          top_p=body.top_p or 1.0, seed=p.seed, logprobs=body.scored,
                                          echo=body.echoed), put(i), put(i))
            for i, p in enumerate(prompts)]
    texts = [TextStream(served.tokenizer, body.stops) for _ in prompts]
    running, silent = set(range(len(prompts))), set(range(len(prompts)))
    try:
        while running:
            index, item = await queue.get()
            if isinstance(item, BaseException):
                raise TunesmithError("generation failed", why=f"{type(item).__name__}: {item}") from item
            if index not in running:
                continue
            piece = _advance(index, item, texts[index], prompts[index].echo if index in silent else "")
            silent.discard(index)
            if piece.finish:
                running.discard(index)
                jobs[index].cancel()
            yield piece
    finally:
        for job in jobs:
            job.cancel()


def _advance(index: int, token: Token, text: TextStream, before: str) -> Piece:
    shown = before + (text.push(token.id) if token.id is not None else "")
    if token.finish:
        shown += text.finish()
    return Piece(index, shown, "stop" if text.stopped else token.finish, int(token.id is not None), token.scores)


async def collect(engine: Engine, served: Served, body: Sampling, prompts: list[Prompt],
                  gone: Callable[[], Awaitable[bool]]) -> list[Answer]:
    """Whole answers. Stops generating when the client has gone."""
    answers = [Answer(p) for p in prompts]
    pieces = stream_pieces(engine, served, body, prompts)

    async def gather() -> None:
        async for piece in pieces:
            answer = answers[piece.index]
            answer.text += piece.text
            answer.tokens += piece.tokens
            answer.scores += piece.scores
            answer.finish = piece.finish or answer.finish

    task = asyncio.ensure_future(gather())
    try:
        while not (await asyncio.wait({task}, timeout=DISCONNECT_POLL_SECONDS))[0]:
            if await gone():
                break
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await pieces.aclose()
    return answers
