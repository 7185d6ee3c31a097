"""From the addresses example to a rollback, through the command line, with the real base and few steps.

    v1 released and promoted -> v2, worse, refused -> v3, better, promoted -> drill -> rollback -> the server says v1's goldens

pytest -m slow tests/releases/test_loop.py -s
"""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import yaml

STEPS = {"v1": 12, "v2": 2, "v3": 24}
RATES = {"v1": 1e-3, "v2": 1e-6, "v3": 1e-3}


def tunesmith(*arguments, code: int = 0) -> dict:
    """One verb, its document. `code`: how it has to end."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "tunesmith", *map(str, arguments), "--json"], capture_output=True, text=True,
                          check=False, timeout=900)
    print(f"{time.monotonic() - began:6.1f} s  {done.returncode}  tunesmith {' '.join(map(str, arguments))}")
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr[-3000:]
    return json.loads(done.stdout)


def served(channel: str, goldens: list[dict]) -> list[str]:
    """What a real server of this channel says to the goldens."""
    from openai import OpenAI

    process = subprocess.Popen([sys.executable, "-m", "tunesmith", "serve", "--channel", channel, "--port", "0"],
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        url = next(found[1] for line in process.stderr if (found := re.match(r"ready: (http://\S+)", line)))
        client = OpenAI(base_url=url, api_key="none", max_retries=0)
        return [client.chat.completions.create(model=channel, messages=g["messages"], temperature=0,
                                               max_tokens=g["max_new_tokens"]).choices[0].message.content for g in goldens]
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(1800)
def test_released_refused_improved_rehearsed_and_taken_back(tmp_path, home):
    tunesmith("init", tmp_path / "mine")
    recipe = yaml.safe_load((tmp_path / "mine" / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["data"]["test"] = "data/test.jsonl"
    recipe["eval"] = {"metrics": ["loss"], "baselines": ["zero_shot"], "samples": 24, "max_new_tokens": 56}
    recipe["gates"] = {"target": {"metric": "loss", "min_gain": 1.0}}
    recipe["track"] = {"mlflow": None}

    def path_of(version: str) -> str:
        recipe["train"] |= {"max_steps": STEPS[version], "tokens_per_step": 256, "learning_rate": RATES[version],
                            "checkpoint": {"every_steps": 1000}}
        if version != "v1":
            recipe["gates"]["rollback"] = {}
        path = tmp_path / "mine" / f"{version}.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return str(path)

    def gates(done: dict) -> dict[str, str]:
        return {g["name"]: g["verdict"] for g in done["gates"]}

    v1 = tunesmith("run", path_of("v1"))
    tunesmith("promote", v1["release_id"], "--to", "production", "--why", "the first")
    v2 = tunesmith("run", path_of("v2"), code=3)
    assert v2["release_id"] is None and gates(v2)["target"] == "fail"
    assert gates(v2)["rollback"] == "not_measured", "v1 was never drilled"
    assert tunesmith("verify", "replay", "production")["identical"]
    v3 = tunesmith("run", path_of("v3"))
    assert gates(v3) == dict.fromkeys(gates(v3), "pass") and "rollback" in gates(v3)
    assert v3["metrics"]["loss"]["tuned"] < v1["metrics"]["loss"]["tuned"] < v1["metrics"]["loss"]["base"]
    tunesmith("promote", v3["release_id"], "--to", "production", "--why", "better")
    drilled = tunesmith("rollback", "production", "--drill")
    assert (drilled["release_id"], drilled["previous"], drilled["identical"]) == (v3["release_id"], v1["release_id"], True)
    assert tunesmith("show", "production")["release_id"] == v3["release_id"]
    first, third = (json.loads((home / "releases" / v["release_id"] / "golden.json").read_text(encoding="utf-8"))
                    for v in (v1, v3))
    assert len(first) == 8 and [g["answer"] for g in first] != [g["answer"] for g in third]
    assert tunesmith("rollback", "production", "--why", "night")["release_id"] == v1["release_id"]
    assert served("production", first) == [g["answer"] for g in first]
    moves = [(m["action"], m["release_id"]) for m in tunesmith("show", "production")["history"]]
    assert moves == [("promote", v1["release_id"]), ("promote", v3["release_id"]), ("rollback", v1["release_id"])]
    assert os.environ["TUNESMITH_HOME"] == str(home)
