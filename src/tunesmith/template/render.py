"""Render a conversation with the tokenizer's own template and mark the tokens that are trained, by structure.

    messages   system            user              assistant                     (weight 1)
    text       <|im_start|>sy... <|im_start|>us... <|im_start|>assistant\\n {"a": 1} <|im_end|> \\n
    trained    . . . . . . . . . . . . . . . . . . . . . . . . . . . . .   # # # # # #         .

The template is rendered up to each assistant turn with its generation prompt, and through that turn. Both must be
prefixes of the whole, as text and as token ids. What lies between is the turn: it is trained up to and with its
stop token. Nothing is searched for in the text, so no content can confuse the mask, and what is trained starts
exactly where generation will start. A template or a row for which that does not hold is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TemplateError

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
    if not tokenizer.chat_template:
        return _encode(tokenizer, "".join(m["content"] for m in messages))
    return _encode(tokenizer, _apply(tokenizer, messages, tools, add_generation_prompt=True))


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list | None = None) -> Rendered:
    """Token ids and mask of one conversation.

    `messages` carry role, content, and optionally `weight` (0: not trained) on assistant turns. A base without a
    chat template takes one user and one assistant message, joined as they are and closed with its end-of-text token.

    Raises:
        TemplateError: the template fails on these messages, rewrites history, fuses the answer with the prompt,
            or leaves the answer without a stop token.
    """
    if not tokenizer.chat_template:
        return _render_plain(tokenizer, messages)
    text = _apply(tokenizer, messages, tools)
    ids = _encode(tokenizer, text)
    trained = [False] * len(ids)
    turns = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("weight", 1) == 0:
            continue
        begin = _prefix(tokenizer, _apply(tokenizer, messages[:i], tools, add_generation_prompt=True), text, ids, i)
        whole = _prefix(tokenizer, _apply(tokenizer, messages[: i + 1], tools), text, ids, i)
        end = _stop(ids, begin, whole, stop_token(tokenizer), i)
        trained[begin:end] = [True] * (end - begin)
        turns.append((begin, end))
    return Rendered(text, ids, trained, turns)


@lru_cache(maxsize=32)
def stop_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The special token with which the template ends an assistant turn; without a template, end-of-text.

    Raises:
        TemplateError: the template ends turns with plain text, so that a tuned model would never stop.
    """
    if not tokenizer.chat_template:
        if tokenizer.eos_token_id is None:
            raise TemplateError("the base has neither a chat template nor an end-of-text token")
        return tokenizer.eos_token_id
    asked = [{"role": "user", "content": "q"}]
    answered = [*asked, {"role": "assistant", "content": "answer"}]
    begin = len(_encode(tokenizer, _apply(tokenizer, asked, None, add_generation_prompt=True)))
    turn = _encode(tokenizer, _apply(tokenizer, answered, None))[begin:]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ends = [t for t in turn if t in special]
    if not ends:
        raise TemplateError("the chat template ends no assistant turn with a special token",
                            why="a model tuned with it would never stop", fix="set data.template to one that does")
    return ends[-1]


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a generation."""
    ends = {stop_token(tokenizer)}
    return ends if tokenizer.eos_token_id is None else ends | {tokenizer.eos_token_id}


def _apply(tokenizer, messages: list[Message], tools: list | None, add_generation_prompt: bool = False) -> str:
    from jinja2 import TemplateError as JinjaError

    plain = [{k: v for k, v in m.items() if k != "weight"} for m in messages]
    try:
        return tokenizer.apply_chat_template(plain, tools=tools, tokenize=False,
                                             add_generation_prompt=add_generation_prompt)
    except (JinjaError, TypeError, ValueError) as error:
        raise TemplateError("the base's chat template refuses this conversation", why=str(error),
                            fix="see which roles and fields it takes, or set data.template") from error


def _encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


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
                            fix="strip white space from the beginning of the answer")
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
    ids = _encode(tokenizer, prompt)
    begin = len(ids)
    ids = ids + _encode(tokenizer, answer) + [stop_token(tokenizer)]
    trained = [False] * begin + [True] * (len(ids) - begin)
    return Rendered(prompt + answer, ids, trained, [(begin, len(ids))])
