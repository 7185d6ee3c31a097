"""From a request to answers: prompts, tokens crossing from the engine's thread to the event loop, text, finish reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import sha256

from tunesmith.api.errors import BadParameter
from tunesmith.api.logprobs import words
from tunesmith.api.schemas import UNSUPPORTED, ChatRequest, CompletionRequest, Sampling
from tunesmith.api.tools import Calling, calling, grammar_of
from tunesmith.errors import NotFoundError, TunesmithError, UsageError
from tunesmith.serving.answer import Token
from tunesmith.serving.grammar import Grammar
from tunesmith.serving.interface import BaseEngine, Job, Served
from tunesmith.serving.logprobs import Scored
from tunesmith.serving.sampling import Request
from tunesmith.serving.text import ENCODING, TextStream
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
    known: int = 0
    """Of the prompt's tokens, with the first piece: those that had been read before."""


@dataclass(slots=True)
class Answer:
    prompt: Prompt
    text: str = ""
    finish: str = "stop"
    tokens: int = 0
    scores: list[Scored] = field(default_factory=list)
    known: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """All that a request's answers are made from."""

    engine: BaseEngine
    served: Served
    body: Sampling
    prompts: list[Prompt]
    calling: Calling = Calling()
    grammar: Grammar | None = None

    @property
    def fingerprint(self) -> str:
        """The same as long as base, adapter and number format are."""
        made = f"{self.engine.base.digest} {self.served.root} {self.engine.dtype}"
        return f"fp_{sha256(made.encode()).hexdigest()[:10]}"

    def request(self, prompt: Prompt) -> Request:
        b = self.body
        return Request(
            prompt=prompt.ids, max_new_tokens=prompt.max_new_tokens,
            temperature=1.0 if b.temperature is None else b.temperature,
            top_p=b.top_p or 1.0, top_k=max(b.top_k or 0, 0), min_p=b.min_p or 0.0, seed=prompt.seed,
            frequency_penalty=b.frequency_penalty or 0.0, presence_penalty=b.presence_penalty or 0.0,
            repetition_penalty=b.repetition_penalty or 1.0,
            logit_bias={int(k): v for k, v in (b.logit_bias or {}).items()}, min_tokens=b.min_tokens or 0,
            ignore_stop=bool(b.ignore_eos), grammar=self.grammar, logprobs=b.scored, echo=b.echoed)


def asked_of_chat(engine: BaseEngine, served: Served, body: ChatRequest) -> Asked:
    """Raises BadParameter, and TemplateError for a conversation that the template refuses."""
    called = calling(body, served)
    messages = [m.as_message() for m in body.messages]
    without = [{k: v for k, v in m.items() if k != "tool_calls"} for m in messages]
    with ENCODING:
        ids = generation_prompt(served.tokenizer, messages, called.shown)
        unseen = without != messages and generation_prompt(served.tokenizer, without, called.shown) == ids
    if unseen:
        raise BadParameter("`tool_calls` in messages are not supported by this model: its chat template leaves them out",
                           "messages", UNSUPPORTED)
    prompts = _copies(served, [(ids, "")], body, body.max_completion_tokens or body.max_tokens, "messages")
    return Asked(engine, served, body, prompts, called, grammar_of(body, served, called))


def asked_of_completion(engine: BaseEngine, served: Served, body: CompletionRequest) -> Asked:
    given = body.prompt
    several = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    with ENCODING:
        ids = [served.tokenizer(p)["input_ids"] if isinstance(p, str) else list(p) for p in several]
    vocabulary = len(served.tokenizer)
    if any(p and (min(p) < 0 or max(p) >= vocabulary) for p in ids):
        raise BadParameter("prompt has token ids outside the vocabulary", "prompt")
    if body.max_tokens == 0 and not body.echo:
        raise BadParameter("max_tokens must be at least 1, unless echo is set", "max_tokens")
    echoes = [(p if isinstance(p, str) else words(served.tokenizer, p)) if body.echo else "" for p in several]
    return Asked(engine, served, body, _copies(served, list(zip(ids, echoes, strict=True)), body, body.max_tokens, "prompt"))


def _copies(served: Served, prompts: list[tuple[list[int], str]], body: Sampling, limit: int | None,
            param: str) -> list[Prompt]:
    """`copies` prompts each. Raises BadParameter for one that does not fit with what was asked for."""
    out = []
    if wrong := next((k for k in body.logit_bias or {} if int(k) >= len(served.tokenizer)), None):
        raise BadParameter(f"Invalid key in 'logit_bias': {wrong}. Maximum value is {len(served.tokenizer) - 1}.", "logit_bias")
    for ids, echo in prompts:
        if not ids:
            raise BadParameter(f"{param} is empty", param)
        room, wanted = served.context_tokens - len(ids), 1 if limit is None else limit
        if room < wanted:
            raise BadParameter(f"This model's maximum context length is {served.context_tokens} tokens. However, you "
                               f"requested {len(ids) + wanted} tokens ({len(ids)} in the prompt).", param,
                               "context_length_exceeded")
        count = min(room, DEFAULT_MAX_TOKENS) if limit is None else limit
        if (body.min_tokens or 0) > count:
            raise BadParameter(f"min_tokens is {body.min_tokens}, and the answer has {count} tokens at most", "min_tokens")
        out += [Prompt(ids, count, None if body.seed is None else body.seed + i, i == 0, echo) for i in range(body.copies)]
    return out


async def stream_pieces(asked: Asked) -> AsyncIterator[Piece]:
    """Text of all choices as it comes. Closing the iterator cancels what still runs.

    Raises:
        TunesmithError: generation failed.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, Token | BaseException]] = asyncio.Queue()
    served, prompts = asked.served, asked.prompts

    def put(index: int) -> Callable[[Token | BaseException], None]:
        return lambda item: loop.call_soon_threadsafe(queue.put_nowait, (index, item))

    jobs: list[Job] = []
    keep = asked.calling.form.marks(served.tokenizer) if asked.calling.form and asked.calling.tools else frozenset()
    texts = [TextStream(served.tokenizer, asked.body.stops, keep) for _ in prompts]
    running, silent = set(range(len(prompts))), set(range(len(prompts)))
    try:
        for i, prompt in enumerate(prompts):
            jobs.append(asked.engine.submit(served, asked.request(prompt), put(i), put(i)))
        while running:
            index, item = await queue.get()
            if isinstance(item, NotFoundError | UsageError):
                raise item
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
    return Piece(index, shown, "stop" if text.stopped else token.finish, int(token.id is not None), token.scores, token.known)


async def collect(asked: Asked, gone: Callable[[], Awaitable[bool]]) -> list[Answer]:
    """Whole answers. Stops generating when the client has gone."""
    answers = [Answer(p) for p in asked.prompts]
    pieces = stream_pieces(asked)

    async def gather() -> None:
        async for piece in pieces:
            answer = answers[piece.index]
            answer.text += piece.text
            answer.tokens += piece.tokens
            answer.scores += piece.scores
            answer.known += piece.known
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


def best(answers: list[Answer], body: CompletionRequest) -> list[Answer]:
    """The `n` of each prompt's `best_of` whose tokens were likeliest on average, likeliest first."""
    keep, made = body.n or 1, body.copies
    if keep == made:
        return answers

    def likely(answer: Answer) -> float:
        own = answer.scores[len(answer.prompt.ids) if body.echoed else 0 :]
        return sum(s.logprob or 0.0 for s in own) / max(len(own), 1)

    return [a for i in range(0, len(answers), made) for a in sorted(answers[i : i + made], key=likely, reverse=True)[:keep]]
