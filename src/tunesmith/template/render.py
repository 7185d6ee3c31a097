"""Render a conversation with the tokenizer's own template and mark the tokens that are trained, by structure.

    messages   system            user              assistant                     (weight 1)
    text       <|im_start|>sy... <|im_start|>us... <|im_start|>assistant\\n {"a": 1} <|im_end|> \\n
    trained    . . . . . . . . . . . . . . . . . . . . . . . . . . . . .   # # # # # #         .

The template is rendered up to each assistant turn with its generation prompt, and through that turn. Both must be
prefixes of the whole, as text and as token ids. What lies between is the turn: it is trained up to and with its
stop token. Nothing is searched for in the text, so no content can confuse the mask, and what is trained starts
exactly where generation will start. A template or a row for which that does not hold is an error.

Special tokens come from the template alone. A training row that spells one out (`<|im_end|>`) is refused: it was
rendered before, or would teach to stop in the middle. In a prompt to be answered it is plain text and ends no turn.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TemplateError
from tunesmith.store.files import canonical_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rendered:
    text: str
    ids: list[int]
    trained: list[bool]
    """One a token: whether it is predicted during training."""
    turns: list[tuple[int, int]]
    """Token range of each trained turn, stop token included."""


def generation_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list | None = None) -> list[int]:
    """Token ids that a model is given to answer `messages`."""
    spelled = any(_spelled_token(tokenizer, m) for m in messages)
    if not tokenizer.chat_template:
        return _begin_plain(tokenizer, "".join(m["content"] for m in messages), split_special_tokens=spelled)
    if spelled:
        return _apply(tokenizer, messages, tools, add_generation_prompt=True, tokenize=True, return_dict=False,
                      sanitize_control_tokens=True)
    return _encode(tokenizer, _apply(tokenizer, messages, tools, add_generation_prompt=True))


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list | None = None) -> Rendered:
    """Token ids and mask of one conversation.

    `messages` carry role, content, and optionally `weight` (0: not trained) on assistant turns. A base without a
    chat template takes one user and one assistant message, joined as they are and closed with its end-of-text token.

    Raises:
        TemplateError: a message spells out a special token, or the template fails on these messages, rewrites history,
            changes or leaves out what is trained, fuses the answer with the prompt, or leaves it without a stop token.
    """
    for i, message in enumerate(messages):
        if token := _spelled_token(tokenizer, message):
            raise TemplateError(f"messages[{i}] spells out {token!r}, which the tokenizer reads as a special token",
                                why="special tokens are the template's to write",
                                fix="give the text alone, without a template's tokens, or drop the row")
    if not tokenizer.chat_template:
        return _render_plain(tokenizer, messages)
    text = _apply(tokenizer, messages, tools)
    _refuse_unseen_tools(tokenizer, messages, tools, text)
    ids = _encode(tokenizer, text)
    trained = [False] * len(ids)
    turns = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("weight", 1) == 0:
            continue
        before = _apply(tokenizer, messages[:i], tools, add_generation_prompt=True)
        through = _apply(tokenizer, messages[: i + 1], tools)
        begin = _prefix(tokenizer, before, text, ids, i)
        whole = _prefix(tokenizer, through, text, ids, i)
        if message["content"] not in through[len(before) :]:
            raise TemplateError(f"messages[{i}]: the chat template changes the answer",
                                why="another text would be trained than the row holds",
                                fix="strip white space from both ends of the answer, or set data.template")
        end = _stop(ids, begin, whole, stop_token(tokenizer), i)
        trained[begin:end] = [True] * (end - begin)
        turns.append((begin, end))
    return Rendered(text, ids, trained, turns)


def stop_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The special token with which the template ends an assistant turn; without a template, end-of-text.

    Raises:
        TemplateError: the template ends turns with plain text, so that a tuned model would never stop.
    """
    if tokenizer.chat_template:
        return _stop_token(tokenizer, canonical_json(tokenizer.chat_template))
    if tokenizer.eos_token_id is None:
        raise TemplateError("the base has neither a chat template nor an end-of-text token")
    return tokenizer.eos_token_id


@lru_cache(maxsize=32)
def _stop_token(tokenizer, _template: str) -> int:
    asked = [{"role": "user", "content": "q"}]
    answered = [*asked, {"role": "assistant", "content": "answer"}]
    begin = len(_encode(tokenizer, _apply(tokenizer, asked, None, add_generation_prompt=True)))
    turn = _encode(tokenizer, _apply(tokenizer, answered, None))[begin:]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    last = max((i for i, t in enumerate(turn) if t in special), default=None)
    if last is None or "answer" in tokenizer.decode(turn[last + 1 :]):
        raise TemplateError("the chat template ends no assistant turn with a special token",
                            why="a model tuned with it would never stop", fix="set data.template to one that does")
    return turn[last]


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a generation."""
    ends = {stop_token(tokenizer)}
    return ends if tokenizer.eos_token_id is None else ends | {tokenizer.eos_token_id}


def _apply(tokenizer, messages: list[Message], tools: list | None, *, tokenize: bool = False, **options):
    from jinja2 import TemplateError as JinjaError

    plain = [{k: v for k, v in m.items() if k != "weight"} for m in messages]
    try:
        return tokenizer.apply_chat_template(plain, tools=tools, tokenize=tokenize, **options)
    except (JinjaError, TypeError, ValueError) as error:
        raise TemplateError("the base's chat template refuses this conversation", why=str(error),
                            fix="see which roles and fields it takes, or set data.template") from error


def _encode(tokenizer, text: str, **options) -> list[int]:
    return tokenizer(text, add_special_tokens=False, **options)["input_ids"]


def _spelled_token(tokenizer, message: Message) -> str | None:
    """The first control token that is spelled out in a message."""
    calls = message.get("tool_calls")
    said = message["content"] + (canonical_json(calls) if calls else "")
    found = _control_tokens(tokenizer, canonical_json(tokenizer.chat_template)).search(said)
    return found.group() if found else None


@lru_cache(maxsize=32)
def _control_tokens(tokenizer, template: str) -> re.Pattern:
    """The special tokens that the template writes or that begin and end texts. Others, as `<filename>`, are content."""
    written = template + (tokenizer.bos_token or "") + (tokenizer.eos_token or "")
    for roles in (("user", "assistant"), ("system", "user", "assistant")) if tokenizer.chat_template else ():
        with suppress(TemplateError):  # not every template takes a system message
            written += _apply(tokenizer, [{"role": role, "content": "text"} for role in roles], None)
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special} | set(tokenizer.all_special_tokens)
    found = sorted((t for t in special if t.strip() and t in written), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found)) or "(?!)")


def _refuse_unseen_tools(tokenizer, messages: list[Message], tools: list | None, text: str) -> None:
    without = [{k: v for k, v in m.items() if k != "tool_calls"} for m in messages]
    unseen = "tools" if tools and _apply(tokenizer, messages, None) == text else \
        "tool_calls" if without != messages and _apply(tokenizer, without, tools) == text else None
    if unseen:
        raise TemplateError(f"the chat template leaves out the row's {unseen}", why="they would not be trained",
                            fix=f"use a base whose template shows {unseen}, set data.template, or remove them from the row")


def _prefix(tokenizer, part: str, text: str, ids: list[int], turn: int) -> int:
    """Length in tokens of `part`, which must be a prefix of the whole both as text and as ids."""
    if not text.startswith(part):
        raise TemplateError(f"the chat template rewrites what comes before messages[{turn}]",
                            why="the turn would be trained on a history that generation never sees",
                            fix="split the conversation so that only its last turn is trained (weight 0 on the others)")
    part_ids = _encode(tokenizer, part)
    if ids[: len(part_ids)] != part_ids:
        raise TemplateError(f"messages[{turn}]: the tokenizer fuses the end of the prompt with the answer's first "
                            "characters", why="training would start from other tokens than generation does",
                            fix="strip white space from the beginning of the answer, or from the end of the template's "
                            "generation prompt")
    return len(part_ids)


def _stop(ids: list[int], begin: int, whole: int, stop: int, turn: int) -> int:
    for at in range(whole - 1, begin - 1, -1):
        if ids[at] == stop:
            return at + 1
    raise TemplateError(f"messages[{turn}]: the rendered turn has no stop token", fix="check the chat template")


def _render_plain(tokenizer, messages: list[Message]) -> Rendered:
    if [m["role"] for m in messages] != ["user", "assistant"]:
        raise TemplateError("the base has no chat template, and this row is a conversation",
                            fix="use an instruct base, set data.template, or give rows of prompt and completion")
    prompt, answer = (m["content"] for m in messages)
    ids = _begin_plain(tokenizer, prompt)
    begin = len(ids)
    ids = ids + _encode(tokenizer, answer) + [stop_token(tokenizer)]
    trained = [False] * begin + [True] * (len(ids) - begin)
    return Rendered(prompt + answer, ids, trained, [(begin, len(ids))])


def _begin_plain(tokenizer, prompt: str, **options) -> list[int]:
    """A prompt without a template, after the begin-of-text token where the tokenizer adds one to plain text."""
    bos = tokenizer.bos_token_id
    first = [bos] if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else []
    return first + _encode(tokenizer, prompt, **options)
