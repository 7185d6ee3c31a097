"""Whose words each token of a rendered conversation is, by structure.

    text    <|im_start|>user\\n Oak? <|im_end|>\\n <|im_start|>assistant\\n {"a": 1} <|im_end|> \\n
    role    template            user  template                              assistant           template

Nothing is searched for in the text, so no content can pass for another. A message is rendered once more with another text
in its place, a character that stands nowhere in the conversation: where the two renderings differ is what the message
wrote. That holds for templates that fold the system message into the first user turn, trim, or rewrite history, because
the conversation around it is always whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.errors import TemplateError
from tunesmith.template.render import Message, Rendered, _apply, _begin_plain, _encode, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = "template"
"""The role of what nobody in the conversation said: headers, separators, a template's own system prompt, tools."""


def roles(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list | None = None) -> list[str]:
    """One role a token of `render(tokenizer, messages, tools)`: system, user, assistant, tool or `template`.

    A token that holds text of a message is of that message. A trained token is `assistant`, the stop token too. What a
    template refuses to write with another text is `template`.

    Raises:
        TemplateError: as `render` does.
    """
    rendered = render(tokenizer, messages, tools)
    found = [TEMPLATE] * len(rendered.ids)
    if tokenizer.chat_template:
        for i, message in enumerate(messages):
            span = _span(tokenizer, messages, tools, i, rendered.text)
            if span and span[0] < span[1]:
                begin, end = (_tokens(tokenizer, rendered, at) for at in span)
                found[begin[0] : end[1]] = [message["role"]] * (end[1] - begin[0])
    else:
        prompt = len(_begin_plain(tokenizer, messages[0]["content"]))
        begin = prompt - len(_encode(tokenizer, messages[0]["content"]))
        found[begin:prompt] = [messages[0]["role"]] * (prompt - begin)
    return ["assistant" if on else role for on, role in zip(rendered.trained, found, strict=True)]


def texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text that each token adds: joined, the text of all. A character of several tokens is the last one's.

    A token is decoded after those before it, because its text can depend on them (a space between words).
    """
    found, context, read = [], 0, 0

    def until(end: int) -> str:
        return tokenizer.decode(ids[context:end], clean_up_tokenization_spaces=False)

    for at in range(1, len(ids) + 1):
        window = until(at)
        if window.endswith("\ufffd") and at < len(ids):  # half a character, unless the next token begins another
            following = until(at + 1)
            if len(following) <= len(window) or not following.startswith(window):
                found.append("")
                continue
        found.append(window[len(until(read)) :])
        context, read = read, at
    return found


def _span(tokenizer, messages: list[Message], tools: list | None, i: int, text: str) -> tuple[int, int] | None:
    """Where message `i` stands in the text."""
    other = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
    content = messages[i] | {"content": other}
    without_calls = {k: v for k, v in content.items() if k != "tool_calls"}
    for changed in (without_calls, content) if "tool_calls" in content else (content,):
        try:
            theirs = _apply(tokenizer, [*messages[:i], changed, *messages[i + 1 :]], tools)
        except TemplateError:
            continue
        begin = _common(text, theirs)
        end = len(text) - _common(text[begin:][::-1], theirs[begin:][::-1])
        return begin, end
    return None


def _tokens(tokenizer, rendered: Rendered, at: int) -> tuple[int, int]:
    """The tokens that lie before character `at` as a whole, and those that begin before it."""
    part = _encode(tokenizer, rendered.text[:at])
    whole = _common(part, rendered.ids)
    return whole, whole + (whole < len(part))


def _common(one, other) -> int:
    """Length of the longest common prefix."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
