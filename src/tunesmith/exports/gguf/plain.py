"""Ask llama.cpp what it makes of a GGUF, in a process of its own: nothing of this package is imported.

    python -P plain.py REQUEST.json ANSWER.json

The request: {model, context, threads, new_tokens, top, ends[], conversations[{messages, tools}], texts[],
questions[{messages, tools, along[]}]}; without a chat template `messages` are joined and taken as plain text (`plain: true`).
Everything goes over llama.cpp's own HTTP server, on the loopback, as a user's programs do: its template engine, its tokenizer,
its sampling. The answer: {runtime, prompts[][], conversations[][], ends[bool], answers[{tokens[], stopped, rows[]}]}; a row is
{id: log-probability} of the `top` likeliest tokens before one token of `along`, or null where the server gave none.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path

LIMIT_SECONDS = 300
SURE = 1e4
"""Added to a logit, it makes a token the likeliest of all."""


def main(request: Path, answer: Path) -> None:
    wanted = json.loads(request.read_text(encoding="utf-8"))
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = wanted["model"]
    params.n_ctx = wanted["context"]
    params.n_parallel = 1
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = wanted["threads"]
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.use_jinja = True
    server = xllamacpp.Server(params)

    def post(path: str, **body):
        call = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(),
                                      {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=LIMIT_SECONDS) as reply:
            return json.load(reply)

    found = {"runtime": f"llama.cpp (xllamacpp {version('xllamacpp')})"}
    found["conversations"] = [prompt_of(post, wanted, one) for one in wanted["conversations"]]
    found["prompts"] = [prompt_of(post, wanted, one) for one in wanted["questions"]]
    found["ends"] = [is_end(post, found["prompts"][0], token) for token in wanted["ends"]]
    found["answers"] = [answered(post, wanted, prompt, one["along"])
                        for prompt, one in zip(found["prompts"], wanted["questions"], strict=True)]
    answer.write_text(json.dumps(found), encoding="utf-8")
    assert not any(name.partition(".")[0] == "tunesmith" for name in sys.modules)


def prompt_of(post, wanted: dict, conversation: dict) -> list[int]:
    """Token ids that llama.cpp makes of a conversation."""
    if wanted["plain"]:
        text = "".join(m["content"] for m in conversation["messages"])
    else:
        tools = {"tools": conversation["tools"]} if conversation["tools"] else {}
        text = post("/apply-template", messages=conversation["messages"], **tools)["prompt"]
    return post("/tokenize", content=text, add_special=True, parse_special=not wanted["plain"])["tokens"]


def is_end(post, prompt: list[int], token: int) -> bool:
    """Whether an answer ends when this token is drawn."""
    said = post("/completion", prompt=prompt, n_predict=2, temperature=0, logit_bias=[[token, SURE]], return_tokens=True)
    return said["stop_type"] == "eos"


def answered(post, wanted: dict, prompt: list[int], along: list[int]) -> dict:
    """Its own greedy answer, and its rows along another's: asked again from every token that it would not have said."""
    first = generated(post, wanted, prompt, wanted["new_tokens"])
    rows, said = [], first
    while len(rows) < len(along) + 1:
        begin = len(rows)
        for token, row in zip(said["tokens"], said["rows"], strict=True):
            rows.append(row)
            if len(rows) > len(along) or along[len(rows) - 1] != token:
                break
        if len(rows) == begin:
            break
        if len(rows) < len(along) + 1:
            said = generated(post, wanted, prompt + along[:len(rows)], len(along) + 1 - len(rows))
    return {"tokens": first["tokens"], "stopped": first["stopped"], "rows": rows[:len(along) + 1]}


def generated(post, wanted: dict, prompt: list[int], new_tokens: int) -> dict:
    """`tokens`, the one that ended it included, with a row for each."""
    said = post("/completion", prompt=prompt, n_predict=new_tokens, temperature=0, n_probs=wanted["top"], return_tokens=True)
    told = [(p["id"], {t["id"]: t["logprob"] for t in p["top_logprobs"]}) for p in said.get("completion_probabilities", [])]
    places = matched(said["tokens"], [token for token, _ in told])
    rows = [None if place is None else told[place][1] for place in places]
    return {"tokens": said["tokens"], "rows": rows, "stopped": said["stop_type"] == "eos"}


def matched(tokens: list[int], told: list[int]) -> list[int | None]:
    """Where each token stands in `told`, which lacks some of them: those that end in half a character. None: not for certain.

    Matched from the left, a token is as early as it can be, from the right as late: where both agree it is certain.
    """
    def from_left(some: list[int], others: list[int]) -> list[int | None]:
        found: list[int | None] = []
        at = 0
        for token in some:
            match = at < len(others) and others[at] == token
            found.append(at if match else None)
            at += match
        return found

    late = [None if at is None else len(told) - 1 - at for at in from_left(tokens[::-1], told[::-1])][::-1]
    return [a if a == b else None for a, b in zip(from_left(tokens, told), late, strict=True)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
