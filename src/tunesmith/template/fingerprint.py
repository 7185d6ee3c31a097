"""One hash for how a base talks: its vocabulary, its template, and what they make of a few conversations.

Two tokenizers with the same fingerprint turn the same messages into the same ids. Stored with the dataset and the
release; a server whose fingerprint differs would prompt the adapter in a way it was not trained for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from tunesmith.errors import TemplateError
from tunesmith.store.files import sha256_json
from tunesmith.template.render import generation_prompt, render, stop_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER, ANSWER = {"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "Four:\n4 — é 🙂"}
TOOL = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {
    "type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}}}
PROBES = {
    "one_turn": ([USER, ANSWER], None),
    "system": ([{"role": "system", "content": "Be brief. "}, USER, ANSWER], None),
    "many_turns": ([USER, ANSWER, {"role": "user", "content": " And 3+3? "}, {"role": "assistant", "content": "6"}], None),
    "tools": ([USER, ANSWER], [TOOL]),
}


_vocabularies: WeakKeyDictionary = WeakKeyDictionary()
"""tokenizer -> (what its vocabulary depends on, its digest): hashing a large one takes longer than all the rest."""


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    state = (id(getattr(tokenizer, "backend_tokenizer", None)), len(tokenizer))
    known = _vocabularies.get(tokenizer)
    if known is None or known[0] != state:
        known = _vocabularies[tokenizer] = state, sha256_json(tokenizer.get_vocab())
    return known[1]


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """`sha256:...` over vocabulary, template, rendered probe conversations, the generation prompt and the stop token."""
    seen: dict = {"vocabulary": _vocabulary(tokenizer), "template": tokenizer.chat_template,
                  "special": sorted(tokenizer.all_special_ids), "stop": stop_token(tokenizer)}
    for name, (messages, tools) in PROBES.items():
        try:
            rendered = render(tokenizer, messages, tools)
            seen[name] = [rendered.ids, rendered.turns]
        except TemplateError as error:  # some templates take no system message or no tools: that too identifies them
            seen[name] = error.what
    seen["generation"] = generation_prompt(tokenizer, [USER])
    return sha256_json(seen)
