"""Is a GGUF what it was made from? Asked of llama.cpp, which will run it, and of the file itself (ADR 14).

    file        its tensors put back into the model, in torch     logits over the whole vocabulary: what rounding or q8_0 did
    llama.cpp   a process of its own, over its HTTP server        prompts, ends, greedy answers, log-probabilities

llama.cpp rounds what it multiplies by a matrix to the matrix's own type. So under q8_0 it may differ from the reference by
TIMES as much as the file does, and always by what rounding does (`verdict.allowed`); beyond, it is another model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import exp, log
from pathlib import Path

from tunesmith.exports.gguf import plain
from tunesmith.exports.job import Job
from tunesmith.exports.probe import NEW_TOKENS, Question, Said, parting

TOP = 200
"""How many of the likeliest tokens are compared at each token of an answer."""
TIMES = 4.0
"""How many times as far as a file in q8_0 llama.cpp may be from the reference."""
LOST = 0.1
"""Nats a token that quantising may cost, on average, before the file is refused."""
LEAST_KL = 1e-6
"""Nats a token: rounding, where none was found."""
CLEAR = 1.0
"""Nats by which a token is preferred (2.7 to 1) that neither rounding nor q8_0 may turn round."""
SECONDS = 1800.0
"""How long llama.cpp may take in all."""
INSTALL = "pip install 'tunesmith[llamacpp]'"
TEXTS = (
    "x", "Hello World", "  two  spaces   three ", "tab\tand\ttab", "a\nb\n\nc\r\n  d", "It's we'LL I'd THEY'RE don't",
    "3.14159 1,234 007 x86_64", "12345678901234567890", "HTTPServer camelCase snake_case kebab-case", "...!!!???",
    "\u2014\u201cquoted\u201d \u2018single\u2019 \u00ab\u00bb", "na\u00efve caf\u00e9 Gr\u00f6\u00dfe \u00c6r\u00f8",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c \u6f22\u5b57\u304b\u306a", "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f642\U0001f44d\U0001f3fd e \U0001f3f3\ufe0f\u200d\U0001f308",
    "def f(x):\n    return {'a': [1, 2]}  # done\n", '{"key": null, "n": -1.5e-10}', "http://example.org/a?b=c&d=%20#e",
    "\u00bd \u00b2 \u2163 \u0663 \u096a", "a\u00a0b\u2003c", "\\n \\\\ $x^2$ <b>")
"""Each tells patterns apart that cut texts: cases, digits, white space, scripts, signs."""


@dataclass(frozen=True, slots=True)
class Told:
    """What llama.cpp said."""

    runtime: str
    prompts: list[list[int]]
    texts: list[list[int]]
    """Of a conversation with each of TEXTS."""
    ends: list[bool]
    """Whether it ends at each of the tokens that were named."""
    said: list[Said]
    rows: list[list[dict[int, float] | None]]
    """Log-probabilities of its likeliest tokens before each token of the reference's answer and its end."""


def probe(job: Job, path: Path, asked: Sequence[Question], reference: Sequence[Said]) -> dict:
    """The verdict on one file: `{verdict, message, fix?, runtime, failed[], file{}, llama_cpp{}, ...}`.

    `top1_agreement` and `mean_kl` are llama.cpp's, over its TOP likeliest tokens and the rest as one;
    `max_abs_logit_diff` is None, since it gives no logits. `file` is a Difference, with all of them.
    """
    if find_spec("xllamacpp") is None:
        return {"verdict": "not_measured", "runtime": None, "message": "llama.cpp is not installed: the file was written and "
                "nobody has asked it", "fix": INSTALL}
    try:
        told = ask_llama_cpp(job, path, asked, reference)
    except RuntimeError as error:
        return {"verdict": "fail", "runtime": f"llama.cpp (xllamacpp {_version()})", "failed": ["load"],
                "message": f"llama.cpp does not run it: {error}", "fix": "use --format merged; please report the architecture"}
    return judged(job, path, asked, reference, told)


def ask_llama_cpp(job: Job, path: Path, asked: Sequence[Question], reference: Sequence[Said],
                  new_tokens: int = NEW_TOKENS) -> Told:
    """Raises RuntimeError: it cannot load the file, ends before it has answered, or takes too long."""
    import torch

    conversations = [{"messages": [{"role": "user", "content": text}], "tools": None} for text in TEXTS]
    prompts = [q.prompt for q in asked]
    context = max(map(len, prompts)) + new_tokens + 16
    names = [job.tokenizer.convert_ids_to_tokens(t) for t in job.stops]
    assert None not in names
    request = {"model": str(path), "context": max(context, 512), "threads": torch.get_num_threads(), "new_tokens": new_tokens,
               "top": min(TOP, len(job.tokenizer)), "plain": not job.template, "ends": [*job.stops, *_specials(job)],
               "conversations": conversations, "questions": [
                   {"messages": [{k: v for k, v in m.items() if k != "weight"} for m in q.messages], "tools": q.tools,
                    "along": s.answer} for q, s in zip(asked, reference, strict=True)]}
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        files = [Path(folder) / name for name in ("request.json", "answer.json", "log.txt")]
        files[0].write_text(json.dumps(request), encoding="utf-8")
        with open(files[2], "wb") as log_file:
            try:
                done = subprocess.run([sys.executable, "-P", plain.__file__, *map(str, files[:2])], stdout=log_file,
                                      stderr=subprocess.STDOUT, check=False, timeout=SECONDS, env=_environment(),
                                      start_new_session=True)  # its server signals its whole group when it goes
            except subprocess.TimeoutExpired as error:
                raise RuntimeError(f"no answer after {SECONDS:.0f} s") from error
        if done.returncode:
            raise RuntimeError(_reason(files[2].read_text(encoding="utf-8", errors="replace"), done.returncode))
        told = json.loads(files[1].read_text(encoding="utf-8"))
    rows = [[r and {int(i): p for i, p in r.items()} for r in one["rows"]] for one in told["answers"]]
    return Told(told["runtime"], told["prompts"], told["conversations"], told["ends"],
                [_said(job, one) for one in told["answers"]], rows)


def judged(job: Job, path: Path, asked: Sequence[Question], reference: Sequence[Said], told: Told) -> dict:
    """What was told, beside the reference and beside what the file itself says."""
    failed: list[tuple[str, str]] = []
    far = of_file(job, path, asked, reference)
    limit, quantised = _limits(job, reference), job.quant == "q8_0"
    result = {"runtime": told.runtime, "questions": len(asked), "file": far.as_dict()}
    if quantised and far.mean_kl > LOST:
        failed.append(("file", f"q8_0 costs {far.mean_kl:.2g} nats a token (at most {LOST})"))
    elif not quantised and (far.max_abs_logit_diff > limit.max_abs_logit_diff or far.mean_kl > limit.mean_kl):
        failed.append(("file", f"what it says differs by up to {far.max_abs_logit_diff:.2g} in the logits (rounding: at most "
                       f"{limit.max_abs_logit_diff:.2g}), KL {far.mean_kl:.2g} nats a token (at most {limit.mean_kl:.2g})"))
    kl, margin = limit.mean_kl, limit.margin
    if quantised and not failed:
        kl, margin = max(kl, TIMES**2 * far.mean_kl), CLEAR
    result |= _prompting(job, asked, told, failed)
    runtime = beside(reference, told.rows)
    result |= {"llama_cpp": runtime | {"compared": min(TOP, len(job.tokenizer))}, "max_abs_logit_diff": None,
               "mean_kl": runtime["mean_kl"], "top1_agreement": runtime["top1_agreement"],
               "allowed": {"mean_kl": kl, "margin": margin}}
    if runtime["mean_kl"] is None:
        failed.append(("answers", "it gave no probabilities along any answer"))
    elif runtime["mean_kl"] > kl:
        failed.append(("answers", f"KL {runtime['mean_kl']:.2g} nats a token (at most {kl:.2g})"))
    parted = [{"question": i, **place} for i, (ours, theirs) in enumerate(zip(reference, told.said, strict=True))
              if (place := _parting(job, ours, theirs))]
    if (clear := [p for p in parted if p["margin"] > margin]) and not failed:
        failed.append(("answers", f"{len(clear)} of {len(asked)} answers part where the reference was sure, by up to "
                       f"{max(p['margin'] for p in clear):.2g} nats (at most {margin:.2g})"))
    result |= {"same_texts": 1 - len(parted) / len(asked), "parted": parted, "failed": [name for name, _ in failed]}
    if failed:
        return result | {"verdict": "fail", "message": f"{told.runtime}: " + "; ".join(why for _, why in failed),
                         "fix": FIXES[failed[0][0]]}
    return result | {"verdict": "pass", "message": f"{told.runtime}: the same prompts and ends, KL {runtime['mean_kl']:.2g} "
                     f"nats a token, the same likeliest token at {runtime['top1_agreement']:.1%}, {len(asked) - len(parted)} "
                     f"of {len(asked)} greedy answers the same" + (f" and {len(parted)} that part at a tie" if parted else "")}


def _limits(job: Job, reference: Sequence[Said]):
    """`verdict.allowed`, and no looser than what rounding did to KL here and than a choice that is clear whatever the dtype."""
    from dataclasses import replace

    from tunesmith.exports.verdict import TIMES as ROUNDINGS
    from tunesmith.exports.verdict import allowed

    limit = allowed(job, reference)
    kl = ROUNDINGS**2 * max(job.rounding.mean_kl, LEAST_KL) if job.rounding else limit.mean_kl
    return replace(limit, mean_kl=min(limit.mean_kl, kl), margin=min(limit.margin, CLEAR))


FIXES = {"file": "--quant f16, or bf16 where the weights are large",
         "template": "its template engine or tokenizer differs: keep the release on a runtime of transformers or vLLM",
         "stops": "give the stop token to the runtime with every request, or use another format",
         "answers": "it is another model there than the one that was evaluated: use --format merged"}


def of_file(job: Job, path: Path, asked: Sequence[Question], reference: Sequence[Said]):
    """A Difference: the model with the weights that the file says, in torch."""
    from tunesmith import methods
    from tunesmith.exports.gguf.file import load
    from tunesmith.exports.probe import ask, difference

    model = load(path, methods.merge(job.adapted()))
    return difference(reference, ask(model, job.tokenizer, asked, along=reference))


def beside(reference: Sequence[Said], rows: Sequence[Sequence[dict[int, float] | None]]) -> dict:
    """`{tokens, mean_kl, max_kl, top1_agreement, max_abs_logprob_diff}`; None where there is no row at all.

    KL(reference || llama.cpp), its likeliest tokens one by one and the rest as one: never more than over all of them.
    """
    kls, same, largest = [], 0, 0.0
    for said, ours in zip(reference, rows, strict=True):
        for logits_V, row in zip(said.logits.double().log_softmax(-1), ours, strict=False):
            if not row:
                continue
            ids = list(row)
            p = {i: float(v) for i, v in zip(ids, logits_V[ids], strict=True)}
            rest = (max(1 - sum(map(exp, p.values())), 0.0), max(1 - sum(map(exp, row.values())), 1e-12))
            kl = sum(exp(p[i]) * (p[i] - row[i]) for i in ids) + (rest[0] * log(rest[0] / rest[1]) if rest[0] > 1e-12 else 0.0)
            kls.append(max(kl, 0.0))
            same += max(row, key=row.get) == int(logits_V.argmax())
            largest = max(largest, *(abs(p[i] - row[i]) for i in ids))
    count = len(kls)
    return {"tokens": count, "mean_kl": sum(kls) / count if kls else None, "max_kl": max(kls, default=None),
            "top1_agreement": same / count if kls else None, "max_abs_logprob_diff": largest if kls else None}


def _prompting(job: Job, asked: Sequence[Question], told: Told, failed: list) -> dict:
    """Prompts and ends; what is wrong goes to `failed`."""
    from tunesmith.template.render import generation_prompt

    ours = [generation_prompt(job.tokenizer, [{"role": "user", "content": text}]) for text in TEXTS]
    pairs = [*((q.id, q.prompt, theirs) for q, theirs in zip(asked, told.prompts, strict=True)),
             *((repr(text), mine, theirs) for text, mine, theirs in zip(TEXTS, ours, told.texts, strict=True))]
    other = [(name, mine, theirs) for name, mine, theirs in pairs if mine != theirs]
    if other:
        name, mine, theirs = other[0]
        failed.append(("template", f"{len(other)} of {len(pairs)} prompts have other tokens than in training, that of {name} "
                       f"for one: {_first_other(job, mine, theirs)}"))
    known = dict(zip([*job.stops, *_specials(job)], told.ends, strict=True))
    missing = [t for t in job.stops if not known[t]]
    more = [job.tokenizer.convert_ids_to_tokens(t) for t, end in known.items() if end and t not in job.stops]
    if missing:
        failed.append(("stops", f"it does not stop at {', '.join(repr(job.tokenizer.decode([t])) for t in missing)}"))
    return {"same_prompts": len(pairs) - len(other), "prompts": len(pairs),
            "stops": {"asked": job.stops, "known": [t for t in job.stops if known[t]], "more": more}}


def _parting(job: Job, ours: Said, theirs: Said) -> dict | None:
    """As `parting`, with a margin wherever they part: that of the end of an answer is of the likeliest stop token."""
    place = parting(ours, theirs)
    if place and place["margin"] is None:
        logits_V = ours.logits[place["at"]].double().log_softmax(-1)
        place["margin"] = float(logits_V[ours.answer[place["at"]]] - max(logits_V[t] for t in job.stops))
    return place


def _said(job: Job, one: dict) -> Said:
    from tunesmith.serving.text import decode

    tokens = one["tokens"][:-1] if one["stopped"] else one["tokens"]
    return Said(decode(job.tokenizer, tokens), tokens, one["stopped"])


def _specials(job: Job) -> list[int]:
    """Some special tokens that are no end here: llama.cpp ends at some by their names."""
    return [t for t in job.tokenizer.all_special_ids if t not in job.stops][:64]


def _first_other(job: Job, mine: list[int], theirs: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))

    def shown(ids: list[int]) -> str:
        return repr(job.tokenizer.decode(ids[at:at + 4])) if at < len(ids) else "the end"

    return f"token {at} is {shown(theirs)} there, {shown(mine)} in training"


def _environment() -> dict[str, str]:
    """Requests to the loopback go to no proxy."""
    return os.environ | {"no_proxy": "*", "NO_PROXY": "*"}


def _reason(output: str, code: int) -> str:
    """The line of a log that says most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "GGML_ASSERT" in line]
    return (telling or lines or [f"it ended with {code}"])[-1][:300]


def _version() -> str:
    from importlib.metadata import version

    return version("xllamacpp")
