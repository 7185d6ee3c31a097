"""The demo: train, prove, release, serve, ask. `make demo` runs it.

    recipe -> check, train, eval, release -> server -> three held-out questions, base beside tuned
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

from openai import OpenAI

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "examples" / "addresses" / "recipe.yaml"
HOME = ROOT / ".tunesmith"
QUESTIONS = 3
TUNESMITH = [sys.executable, "-m", "tunesmith"]


def main() -> None:
    began = time.monotonic()
    environment = os.environ | {"TUNESMITH_HOME": str(HOME)}
    HOME.mkdir(exist_ok=True)
    with open(HOME / "demo.json", "w", encoding="utf-8") as document:
        run = subprocess.run([*TUNESMITH, "run", str(RECIPE), "--json"], stdout=document, env=environment, check=False)
    if run.returncode:
        sys.exit(run.returncode)
    done = json.loads((HOME / "demo.json").read_text(encoding="utf-8"))
    serving = time.monotonic()
    ask(done, environment)
    phases = done["seconds"] | {"serve and ask": time.monotonic() - serving, "all": time.monotonic() - began}
    print("\n" + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in phases.items()))
    for name, m in done["metrics"].items():
        print(f"{name:>12}: base {m['base']:.3f}, tuned {m['tuned']:.3f} (change {m['delta']:+.3f}, "
              f"95% interval {m['ci95'][0]:+.3f} to {m['ci95'][1]:+.3f})")
    print(f"\nreport    {done['report_path']}\nrelease   {done['path']}")
    print(f"serve it  .venv/bin/tunesmith serve --release {done['release_id']}")


def ask(done: dict, environment: dict[str, str]) -> None:
    """Start the server, put held-out questions to the base and to the release, stop it."""
    server = subprocess.Popen([*TUNESMITH, "serve", "--release", done["release_id"], "--port", "0"], env=environment,
                              stderr=subprocess.PIPE, text=True)
    try:
        client = OpenAI(base_url=address(server), api_key="none")
        for question, expected in held_out():
            print(f"\nquestion  {question[-1]['content']}\nexpected  {expected}")
            for label, model in (("base", done["base"]["ref"]), ("tuned", done["release_id"])):
                answer = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=120)
                print(f"{label:<8}  {answer.choices[0].message.content.strip()}")
    finally:
        server.terminate()
        server.wait(timeout=60)


def address(server: subprocess.Popen) -> str:
    for line in server.stderr:
        if found := re.match(r"ready: (\S+)", line):
            return found[1]
    sys.exit("the server did not start")


def held_out() -> list[tuple[list[dict], str]]:
    lines = (RECIPE.parent / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in random.Random(1).sample(lines, QUESTIONS)]
    return [(messages[:-1], messages[-1]["content"]) for messages in rows]


if __name__ == "__main__":
    main()
