"""A tokenizer as llama.cpp has it: tokens, their types, and how a text is cut before pairs are merged.

    byte-level BPE   pieces of a pattern, then merges      tokenizer.ggml.model gpt2, and .pre names the pattern
    SentencePiece    whole texts, U+2581 for a space       tokenizer.ggml.model llama, scores in place of merges

llama.cpp has the patterns built in and knows them by name. The name is chosen here by what the tokenizer does (`PATTERNS`), not
by what it is called; whether it was right is asked of llama.cpp (`runtime.py`), which tokenises texts that tell them apart.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from tunesmith.errors import UsageError
from tunesmith.exports.gguf.families import ELSEWHERE

CL100K = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SIGN = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = f"{SIGN}{UPPER}*{LOWER}+|{SIGN}{UPPER}+{LOWER}*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2, DIGITS = "byte_level", "digits"
PATTERNS = {
    ((GPT2,), False): "gpt-2",
    ((DIGITS, GPT2), False): "smollm",
    ((CONTRACTIONS + CL100K % "{1,3}",), True): "llama-bpe",
    ((CONTRACTIONS + CL100K % "{1,3}",), False): "dbrx",
    ((CONTRACTIONS + CL100K % "",), False): "qwen2",
    ((TEKKEN,), True): "tekken",
}
"""{(what cuts a text, whether a piece that is a token is taken whole): llama.cpp's name for it}"""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's types of tokens."""
SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """All that a GGUF says of a tokenizer."""

    model: str
    """gpt2 or llama."""
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    """`left right`, of byte-level BPE."""
    scores: list[float]
    """Of SentencePiece: minus the rank of the merge that makes the token."""
    add_bos: bool
    add_space: bool
    ids: dict[str, int]
    """bos, eos, eot, unk, pad: those that there are."""
    strips: bool
    """White space after a special token is dropped, as by Phi-3's."""

    def write(self, writer) -> None:
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.model == "llama":
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.add_space)
        else:
            writer.add_token_merges(self.merges)
        writes = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "eot": writer.add_eot_token_id,
                  "unk": writer.add_unk_token_id, "pad": writer.add_pad_token_id}
        for name, token in self.ids.items():
            writes[name](token)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(False)


def vocabulary(tokenizer, stops: list[int], rows: int) -> Vocabulary:
    """`stops`: tokens that end an answer, the template's own first. `rows`: of the embedding; those without a token are padded.

    Raises:
        UsageError: a kind of tokenizer that is not written here, more tokens than rows, or more ends than a GGUF has names for.
    """
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    model = told["model"]
    if model["type"] != "BPE":
        _refuse(f"the tokenizer is a {model['type']} model", "BPE and SentencePiece's BPE are written here")
    if len(tokenizer) > rows:
        _refuse(f"the tokenizer has {len(tokenizer)} tokens and the embedding {rows} rows", "a token would have no weights")
    added = tokenizer.added_tokens_decoder
    pieces = _listed(told["decoder"], "decoders")
    sentencepiece = any(d["type"] == "ByteFallback" for d in pieces)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    for text, i in tokenizer.get_vocab().items():
        tokens[i] = added[i].content if i in added else text
        types[i] = _type(i, text, tokenizer, added, sentencepiece)
    if len(set(tokens)) < rows:
        _refuse("two tokens of the vocabulary are written the same", "llama.cpp tells tokens by their text")
    return Vocabulary(
        model="llama" if sentencepiece else "gpt2", pre="default" if sentencepiece else _pattern(told), tokens=tokens,
        types=types, merges=[] if sentencepiece else merges, scores=_scores(tokens, merges) if sentencepiece else [],
        add_bos=begins(tokenizer), add_space=sentencepiece and _adds_space(tokenizer), ids=_ids(tokenizer, stops),
        strips=any(t.rstrip for t in added.values() if t.special))


def begins(tokenizer) -> bool:
    """Whether the runtime is to put the begin-of-text token before every prompt: texts have one, and the template's prompts."""
    from tunesmith.template.render import generation_prompt

    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("a")["input_ids"][:1] != [bos]:
        return False
    return not tokenizer.chat_template or generation_prompt(tokenizer, [{"role": "user", "content": "a"}])[:1] == [bos]


def _type(i: int, text: str, tokenizer, added: dict, sentencepiece: bool) -> int:
    if sentencepiece and text == tokenizer.unk_token:
        return UNKNOWN
    if i in added:
        return CONTROL if added[i].special else USER_DEFINED
    return BYTE if sentencepiece and re.fullmatch("<0x[0-9A-F]{2}>", text) else NORMAL


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """SentencePiece joins the pair whose token has the highest score; tokenizers, the pair of the first merge."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        ranks.setdefault(left + right, rank)
    return [float(-ranks.get(token, len(merges))) for token in tokens]


def _ids(tokenizer, stops: list[int]) -> dict[str, int]:
    """llama.cpp has two names for what ends an answer: end of text, and end of turn."""
    known = {"bos": tokenizer.bos_token_id, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    found = {name: i for name, i in known.items() if i is not None}
    if len(stops) > 2:
        _refuse(f"answers end at {len(stops)} tokens", "a GGUF has names for two")
    return found | ({"eos": stops[0]} if len(stops) == 1 else {"eot": stops[0], "eos": stops[1]})


def _pattern(told: dict) -> str:
    """llama.cpp's name of what cuts a text into pieces."""
    found: list[str] = []
    for part in _listed(told["pre_tokenizer"], "pretokenizers"):
        if part["type"] == "ByteLevel":
            if part["add_prefix_space"]:
                _refuse("the tokenizer puts a space before a text", "byte-level BPE of llama.cpp does not")
            found += [GPT2] if part["use_regex"] else []
        elif part["type"] == "Digits" and part["individual_digits"]:
            found.append(DIGITS)
        elif part["type"] == "Split" and "Regex" in part["pattern"] and part["behavior"] == "Isolated":
            found.append(part["pattern"]["Regex"])
        else:
            _refuse(f"the tokenizer cuts texts by {part['type']}", "llama.cpp knows patterns by name")
    normal = {n["type"] for n in _listed(told["normalizer"], "normalizers")} - {"NFC"}
    key = (tuple(found), bool(told["model"].get("ignore_merges")))
    if normal or key not in PATTERNS:
        _refuse(f"the tokenizer cuts texts by {found}" + (f" after {', '.join(sorted(normal))}" if normal else ""),
                "none of the patterns that are known here: " + ", ".join(PATTERNS.values()))
    return PATTERNS[key]


def _adds_space(tokenizer) -> bool:
    """Whether a text after a special token begins with a space; without a chat template, a text by itself."""
    from tunesmith.template.render import stop_token

    before = tokenizer.convert_ids_to_tokens(stop_token(tokenizer)) if tokenizer.chat_template else ""
    ids = tokenizer(before + "a", add_special_tokens=False)["input_ids"]
    return tokenizer.convert_ids_to_tokens(ids)[1 if before else 0].startswith(SPACE)


def _listed(part: dict | None, inside: str) -> list[dict]:
    """The parts of a tokenizer's normalizer, pre-tokenizer or decoder, nested ones too."""
    if part is None:
        return []
    return [one for p in part[inside] for one in _listed(p, inside)] if part["type"] == "Sequence" else [part]


def _refuse(what: str, why: str) -> None:
    raise UsageError(what, why=why, fix=ELSEWHERE)
