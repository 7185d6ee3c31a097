"""How much sampling moves a score, and what the adapter moves: measured on a real tiny model.

pytest tests/evals/test_noise.py
"""

import json

import numpy as np
import pytest

from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.evals.noise import floor
from tunesmith.evals.run import evaluate
from tunesmith.training.run import Run


def sampled(random, chances, seeds):
    """A model that answers item i rightly with chance i, asked with several seeds."""
    return [[Outcome("yes" if random.random() < p else "no", True) for p in chances] for _ in range(seeds)]


@pytest.mark.parametrize("seeds", [2, 4])
def test_two_evaluations_of_one_model_differ_by_less_than_the_floor_95_times_of_100(seeds):
    random = np.random.default_rng(0)
    chances = random.beta(0.6, 0.6, 150)
    suite = Suite("s", "test", [Item(f"f:{i}", [], ("yes",)) for i in range(150)], ("exact_match",), "f", 8)
    within = []
    for _ in range(120):
        found = floor("exact_match", suite, sampled(random, chances, seeds))
        assert found["ci95"][0] < found["floor"] < found["ci95"][1] and len(found["values"]) == seeds
        one, other = (np.mean([o.text == "yes" for o in s]) for s in sampled(random, chances, 2))
        within.append(abs(one - other) < found["floor"])
    assert 0.9 <= np.mean(within) <= 0.99


def test_a_model_that_always_says_the_same_has_no_noise():
    suite = Suite("s", "test", [Item(f"f:{i}", [], ("yes",)) for i in range(9)], ("exact_match",), "f", 8)
    said = [Outcome("yes" if i % 2 else "no", True) for i in range(9)]
    assert floor("exact_match", suite, [said, said])["floor"] == 0.0


def test_the_report_has_the_noise_of_the_base_and_what_the_adapter_moves(project):
    path = project.run_dir / "recipe.resolved.json"
    recipe = json.loads(path.read_text())
    recipe["eval"] |= {"noise": {"seeds": 2, "temperature": 2.0}, "metrics": ["token_f1", "loss"], "baselines": ["zero_shot"]}
    path.write_text(json.dumps(recipe))
    report = evaluate(Run(project.run_dir))
    metrics = report["sets"]["test"]["metrics"]
    assert metrics["token_f1"]["noise"].keys() == {"seeds", "temperature", "values", "floor", "ci95"}
    assert metrics["loss"]["noise"]["floor"] < 1e-5, "a likelihood is not sampled: only its rows come in another order"
    assert metrics["loss"]["noise"]["values"] == pytest.approx([metrics["loss"]["base"]] * 2, rel=1e-5)
    assert list(metrics["token_f1"]["systems"]) == ["zero_shot", "tuned"], "noise is no system of its own"
    assert report["effect"]["logits"] > 100 * report["effect"]["rounding"] > 0
    assert report["effect"]["prompts"] == 6 >= report["effect"]["other_tokens"] > 0
