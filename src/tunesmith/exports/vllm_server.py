"""vLLM started on loopback with an export's own flags, and asked what the reference was asked.

It says its prompts and answers as token ids, and for any text of ours the log-probability of each token and of the likeliest
TOP beside it. So the adapter is compared along the reference's answers here, too: KL over those tokens and the rest as one,
which is never more than the KL over the whole vocabulary.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tunesmith.exports.job import Job
from tunesmith.exports.probe import NEW_TOKENS, Question, Said
from tunesmith.exports.prompting import GENERATION
from tunesmith.exports.verdict import Found, allowed, judge
from tunesmith.serving.text import decode
from tunesmith.serving.vllm_process import KV_GIB, START_SECONDS, STOP_SECONDS, last_error
from tunesmith.store.files import read_json

QUICK = ("--enforce-eager",)
"""Beside the flags of serve.sh: nothing is compiled, which takes a minute and more, for a few questions."""
TOP = 20
"""vLLM's own limit on log-probabilities a token (--max-logprobs)."""


class NotServed(Exception):
    """vLLM did not start, or refused what it was asked; the text is its own."""


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    folder: Path
    """The export."""
    version: str
    log: Path

    def get(self, path: str) -> dict:
        return self.post(path)

    def post(self, path: str, body: dict | None = None) -> dict:
        """Raises NotServed: it refused, or went away; with what its log says of an error of its own."""
        try:
            return _call(self.url + path, body)
        except NotServed as error:
            log = self.log.read_text(encoding="utf-8", errors="replace")
            raise NotServed(f"{error}" + (f"; {last_error(log)}" if "Error: " in log else "")) from error


@contextmanager
def serving(script: Path, command: Path, base: Path | None = None, flags: Sequence[str] = (),
            environment: dict[str, str] | None = None) -> Iterator[Server]:
    """An export's `serve.sh`, running on a free port of loopback until the block ends. `base`: in place of the one it names.

    Raises:
        NotServed: it ended before it answered, or did not answer in START_SECONDS.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"VLLM_CPU_KVCACHE_SPACE": KV_GIB} | os.environ | {"VLLM": str(command), "VLLM_NO_USAGE_STATS": "1"} | (
        {"BASE": str(base)} if base else {}) | (environment or {})
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        log = Path(folder) / "vllm.log"
        with open(log, "wb") as out:
            process = subprocess.Popen(["bash", str(script), "--host", "127.0.0.1", "--port", str(port), *QUICK, *flags],
                                       stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env,
                                       start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, log)
            yield Server(url, script.parent, _call(url + "/version")["version"], log)
        finally:
            _stop(process)


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise NotServed(last_error(log.read_text(encoding="utf-8", errors="replace")))
        with suppress(OSError):
            with _open(url + "/health", 5):
                return
        time.sleep(0.5)
    raise NotServed(f"it did not answer within {START_SECONDS} s")


def _stop(process: subprocess.Popen) -> None:
    """The whole group: vLLM has an engine process of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _open(url: str, seconds: float, body: dict | None = None):
    data = None if body is None else json.dumps(body).encode()
    return _direct.open(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=seconds)


def _call(url: str, body: dict | None = None) -> dict:
    """Raises NotServed: it refused, or went away."""
    try:
        with _open(url, START_SECONDS, body) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        raise NotServed(f"{url.rpartition('/v1/')[2]}: {error.code} {error.read().decode(errors='replace')[:300]}") from error
    except OSError as error:
        raise NotServed(f"it went away: {error}") from error
    return json.loads(text) if text.startswith("{") else {"text": text}


# ---- asking ----------------------------------------------------------------------------------------------------------


def examine(job: Job, server: Server, model: str, asked: Sequence[Question], reference: Sequence[Said], *,
            base: bool = False) -> dict:
    """The verdict on `model` of a server, as `judge`, with what vLLM's log-probabilities say; with `base`, beside the base.

    Raises:
        NotServed: it has no such model, or refuses the questions.
    """
    models = {m["id"]: m for m in server.get("/v1/models")["data"]}
    if model not in models:
        raise NotServed(f"it has no model {model!r}: {', '.join(models)}")
    answers = [_answer(server, model, question) for question in asked]
    found = Found(f"vLLM {server.version}", [a["prompt"] for a in answers], [_said(job, a) for a in answers],
                  _listed(read_json(server.folder / GENERATION).get("eos_token_id")))
    result = judge(job, asked, reference, found)
    along = [_along(server, model, q.prompt, _path(job, s)) for q, s in zip(asked, reference, strict=True)]
    numbers = compared(reference, along)
    result |= {"top1_agreement": numbers.pop("top1_agreement"), "logprobs": numbers, "models": sorted(models)}
    limit = allowed(job, reference).mean_kl
    if numbers["mean_kl_of_top"] > limit:
        refuse(result, "logits", f"KL {numbers['mean_kl_of_top']:.2g} nats a token over the {TOP} likeliest tokens (rounding: "
               f"at most {limit:.2g})", "it is not the model that was evaluated: compare settings, base and dtype")
    if base:
        parent = models[model].get("parent")
        without = [_along(server, parent, q.prompt, _path(job, s)) for q, s in zip(asked, reference, strict=True)]
        moved = max(abs(a[t] - b[t]) for row, other in zip(along, without, strict=True)
                    for a, b in zip(row, other, strict=True) for t in a.keys() & b.keys())
        result |= {"parent": parent, "moved": moved, "logprobs_of_base": compared(reference, without)}
        if moved == 0.0:
            refuse(result, "no_op", f"{model} says exactly what {parent} says: the adapter is not applied",
                   "see vLLM's log for which modules it loaded")
    if result["verdict"] == "pass":
        result["message"] += f", KL over the {TOP} likeliest tokens {numbers['mean_kl_of_top']:.2g} nats"
    return result


def refuse(result: dict, name: str, why: str, fix: str) -> None:
    first = result["verdict"] != "fail"
    result["message"] = f"{result['runtime']}: {why}" if first else f"{result['message']}; {why}"
    result["verdict"], result["failed"] = "fail", [*result["failed"], name]
    result.setdefault("fix", fix)


def _answer(server: Server, model: str, question: Question) -> dict:
    """`{prompt, answer, finish}`: token ids of vLLM's prompt and greedy answer, and why it ended."""
    body = {"model": model, "temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": NEW_TOKENS, "return_token_ids": True}
    if (server.folder / "chat_template.jinja").is_file():
        messages = [{k: v for k, v in m.items() if k != "weight"} for m in question.messages]
        tools = {"tools": question.tools, "tool_choice": "none"} if question.tools else {}
        said = server.post("/v1/chat/completions", body | {"messages": messages} | tools)
        prompt = said["prompt_token_ids"]
    else:
        said = server.post("/v1/completions", body | {"prompt": "".join(m["content"] for m in question.messages)})
        prompt = said["choices"][0]["prompt_token_ids"]
    choice = said["choices"][0]
    return {"prompt": prompt, "answer": choice["token_ids"], "finish": choice["finish_reason"]}


def _said(job: Job, answer: dict) -> Said:
    ids = answer["answer"]
    stopped = answer["finish"] == "stop"
    ids = ids[:-1] if stopped and ids and ids[-1] in job.stops else ids
    return Said(decode(job.tokenizer, ids), ids, stopped)


def _path(job: Job, said: Said) -> list[int]:
    return said.answer + [job.stops[0]] * said.stopped


def _along(server: Server, model: str, prompt: list[int], path: list[int]) -> list[dict[int, float]]:
    """Before each token of `path`: log-probability, in nats, of that token and of the likeliest."""
    said = server.post("/v1/completions", {"model": model, "prompt": prompt + path, "max_tokens": 1, "temperature": 0.0,
                                           "prompt_logprobs": TOP})
    rows = said["choices"][0]["prompt_logprobs"][len(prompt):]
    return [{int(token): found["logprob"] for token, found in row.items()} for row in rows]


def _listed(ends) -> list[int]:
    return [] if ends is None else list(ends) if isinstance(ends, list) else [ends]


def compared(reference: Sequence[Said], along: Sequence[list[dict[int, float]]]) -> dict:
    """`{tokens, mean_kl_of_top, max_kl_of_top, max_abs_logprob_diff, top1_agreement}` of what vLLM said along the reference.

    KL(reference || vLLM) in nats, over the tokens that vLLM named and all others as one.
    """
    kls, furthest, same = [], 0.0, 0
    for said, rows in zip(reference, along, strict=True):
        for logits_V, row in zip(said.logits, rows, strict=True):
            logp_V = logits_V.double().log_softmax(-1)
            named = list(row)
            ours, theirs = logp_V[named].tolist(), [row[t] for t in named]
            kls.append(_kl(ours, theirs))
            furthest = max(furthest, *(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
            same += int(logp_V.argmax()) == max(row, key=row.get)
    return {"tokens": len(kls), "mean_kl_of_top": sum(kls) / len(kls), "max_kl_of_top": max(kls),
            "max_abs_logprob_diff": furthest, "top1_agreement": same / len(kls)}


def _kl(p: list[float], q: list[float]) -> float:
    """Of two distributions given by the logarithms of some probabilities; what is missing to 1 is one more."""
    rest_p, rest_q = (max(1.0 - sum(map(math.exp, x)), 1e-12) for x in (p, q))
    return max(0.0, sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)) + rest_p * math.log(rest_p / rest_q))
