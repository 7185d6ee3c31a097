"""A fine-tune that learns its task and forgets the rest, and the rows that mend it.

pytest tests/runbooks/test_eval_regression.py
"""

import json
import random

import pytest

WORDS = ["".join(random.Random(i).choices("aeioubdgklmnprst", k=5)) for i in range(60)]


def general(count: int, seed: int) -> list[dict]:
    """Something else than addresses."""
    draw = random.Random(seed)
    return [{"prompt": f"Write of {draw.choice(WORDS)} and {draw.choice(WORDS)}, {seed}/{n}.",
             "completion": "the " + " the ".join(draw.choices(WORDS, k=6))} for n in range(count)]


@pytest.mark.slow
def test_what_was_forgotten_is_refused_and_replay_mends_it(make_recipe, sharp_base, tmp_path, command, page):
    for name, count, seed in (("other", 24, 1), ("general", 60, 2)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in general(count, seed)))
    common = {"base": str(sharp_base), "data.test": {"test": "test.jsonl", "other": "other.jsonl"}, "method.rank": 8,
              "method.alpha": 16, "train.epochs": 12, "train.learning_rate": 0.005, "train.tokens_per_step": 512,
              "train.checkpoint": {"every_steps": 1000}, "gates.regression": {},
              "eval": {"metrics": ["loss"], "baselines": ["zero_shot"], "samples": 24, "max_new_tokens": 4}}
    refused = command("run", make_recipe(**common), check=3)
    assert page("eval-regression").missing("refused", refused.stdout) == [], refused.stdout
    assert "pass  target" in refused.stdout, "the task itself was learned"
    replay = {"data.replay": {"rows": "general.jsonl", "share": 0.5}}
    mended = command("run", make_recipe(**common, **replay), "--json", check=0)
    assert {g["name"]: g["verdict"] for g in mended.json["gates"]}["regression"] == "pass"
