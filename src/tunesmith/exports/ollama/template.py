"""A chat template (Jinja) as an Ollama template (Go), where the two can be proved to write the same.

    begin [system] { user open | text | user close + assistant open | answer | assistant close } ...

Most templates write a conversation in that form, whatever their family: ChatML, Llama 3, Gemma, Phi, Zephyr. Which one it is,
is not asked: the pieces are read off renderings of conversations whose messages are one character each (`pieces`), the Go
template is put together from them (`go_template`), and conversations that would tell them apart are rendered by both
(`translated`), by the tokenizer and by `go.render`. A template that does anything else is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tunesmith.errors import TemplateError
from tunesmith.exports.ollama import go

SYSTEM, USER, ANSWER, LATER = "\ue000", "\ue001", "\ue002", "\ue003"
"""Messages of the conversations that the pieces are read off."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a template writes around messages."""

    begin: str
    """Before the first user message, where there is no system message."""
    system_open: str | None
    """None: the template takes no system message."""
    system_close: str
    """Between it and the first user message."""
    user_open: str
    """Before every later user message."""
    user_close: str
    """After a user message, up to where the answer begins."""
    answer_open: str
    """Before an answer that is there, and not where one is asked for: a space, in Mistral's."""
    answer_close: str


def translated(tokenizer, add_bos: bool) -> tuple[str, list[str]]:
    """(the Go template, what it does not do as the chat template does). `add_bos`: the runtime puts it before every prompt.

    Raises:
        TemplateError: the template has another form, or the two write other texts.
    """
    found = pieces(tokenizer)
    bos = tokenizer.bos_token if add_bos else ""
    source = go_template(found, bos)
    trims = False
    for messages in _conversations(found.system_open is not None):
        ours, theirs = _render(tokenizer, messages), bos + go.render(source, messages)
        if ours == theirs:
            continue
        stripped = _stripped(tokenizer, messages, ours)
        if stripped == messages or ours != bos + go.render(source, stripped):
            _refuse(f"they write {len(messages)} messages otherwise: {ours!r}, {theirs!r}")
        trims = True
    return source, (["white space around messages is kept, which the chat template drops"] if trims else []) + (
        [] if found.system_open is not None else ["system messages are left out: the chat template takes none"])


def pieces(tokenizer) -> Pieces:
    """Raises TemplateError: the template has another form."""
    user, answer, later = ({"role": r, "content": c} for r, c in (("user", USER), ("assistant", ANSWER), ("user", LATER)))
    begin, end = _split(_render(tokenizer, [user]), USER)
    first, between, open_again, last = _split(_render(tokenizer, [user, answer, later]), USER, ANSWER, LATER)
    closed = _split(_render(tokenizer, [user, answer], prompt=False), USER, ANSWER)[-1]
    if (first, last) != (begin, end) or not between.startswith(end):
        _refuse("it writes the first turn otherwise when others follow, or answers otherwise than it asks for them")
    if not open_again.startswith(closed):  # the last one closes the whole conversation too
        closed = open_again
    system_open, system_close = None, ""
    try:
        with_system = _render(tokenizer, [{"role": "system", "content": SYSTEM}, user])
        system_open, system_close, tail = _split(with_system, SYSTEM, USER)
    except TemplateError:
        tail = end
    if tail != end:
        _refuse("it closes the user's message otherwise when there is a system message")
    return Pieces(begin, system_open, system_close, open_again[len(closed):], end, between[len(end):], closed)


def go_template(found: Pieces, bos: str = "") -> str:
    """Every text is a quoted Go string, so that white space between actions can be trimmed away."""
    begin = _without(found.begin, bos)
    if found.system_open is None:
        first = _text(begin)
    else:
        first = (f"{{{{- if $.System }}}}{_text(_without(found.system_open, bos))}{{{{- $.System }}}}"
                 f"{_text(found.system_close)}{{{{- else }}}}{_text(begin)}{{{{- end }}}}")
    return "\n".join((
        "{{- $first := true }}",
        "{{- range .Messages }}",
        '{{- if eq .Role "user" }}',
        f"{{{{- if $first }}}}{first}{{{{- else }}}}{_text(found.user_open)}{{{{- end }}}}",
        f"{{{{- $first = false }}}}{{{{- .Content }}}}{_text(found.user_close)}",
        '{{- else if eq .Role "assistant" }}',
        f"{_text(found.answer_open)}{{{{- .Content }}}}{_text(found.answer_close)}",
        "{{- end }}",
        "{{- end }}"))


def _conversations(system: bool) -> list[list[dict]]:
    """Turns, system messages, white space at both ends and inside, quotes, braces and signs of both template languages."""
    texts = ("Hello", "Grüße 🙂\nzwei Zeilen", 'say "no" \\n {{ .System }} {% if %} <b>', "x " * 40 + "x", "  both ends \n")
    found = []
    for turns in (1, 2, 3):
        for shift in range(len(texts)):
            said = [{"role": ("user", "assistant")[i % 2], "content": texts[(i + shift) % len(texts)]}
                    for i in range(2 * turns - 1)]
            found.append(said)
            if system:
                found.append([{"role": "system", "content": texts[shift]}, *said])
    return found


def _stripped(tokenizer, messages: list[dict], text: str) -> list[dict]:
    """The messages without white space at their ends, where the template drops it."""
    found = list(messages)
    for i, message in enumerate(messages):
        without = message | {"content": message["content"].strip()}
        if _render(tokenizer, [*messages[:i], without, *messages[i + 1:]]) == text:
            found[i] = without
    return found


def _render(tokenizer, messages: list[dict], prompt: bool = True) -> str:
    from jinja2 import TemplateError as JinjaError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except (JinjaError, TypeError, ValueError) as error:
        raise TemplateError("the chat template refuses a conversation", why=str(error)) from error


def _split(text: str, *marks: str) -> list[str]:
    """What stands between the marks. Raises TemplateError: one of them is not there once, or they are in another order."""
    found = []
    for mark in marks:
        if text.count(mark) != 1:
            _refuse("it leaves out a message, repeats one or changes their order")
        part, _, text = text.partition(mark)
        found.append(part)
    return [*found, text]


def _without(text: str, bos: str) -> str:
    if not text.startswith(bos):
        _refuse("its prompts begin otherwise than the runtime begins them")
    return text[len(bos):]


def _text(text: str) -> str:
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _refuse(why: str) -> None:
    raise TemplateError("the chat template cannot be written for Ollama", why=why,
                        fix="--format gguf: llama.cpp's own server runs the chat template itself (llama-server --jinja); or "
                        "write the TEMPLATE of a Modelfile by hand")
