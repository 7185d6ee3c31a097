"""EleutherAI's lm-evaluation-harness, as it comes, against our server: its numbers are ours.

make test-harness, or: pip install -e '.[harness]' && pytest -m harness tests/api/test_harness.py
"""

import json
import os
import subprocess
import sys

import pytest
import yaml

pytestmark = pytest.mark.harness
STREETS = ("Oak", "Elm", "Main", "Bever", "Stone Hedge", "4th", "Cottage Grove", "Washington")
STOP = "<|im_end|>"


@pytest.fixture
def harness(tmp_path):
    """`harness(model, url, tokenizer, task, rows, **model arguments)`: (results, samples) of one task over a file of rows."""

    def run(kind: str, name: str, url: str, tokenizer, task: dict, rows: list[dict], *options: str, **arguments):
        data = tmp_path / f"{task['task']}.jsonl"
        data.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        shared = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (tmp_path / f"{task['task']}.yaml").write_text(yaml.safe_dump(shared | task), encoding="utf-8")
        arguments = {"model": name, "base_url": url, "tokenizer": str(tokenizer), "max_retries": 1} | arguments
        environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "datasets"), "HF_HOME": str(tmp_path / "hub"),
                                    "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"}
        done = subprocess.run(
            [sys.executable, "-m", "lm_eval", "run", "--model", kind, "--model_args",
             ",".join(f"{k}={v}" for k, v in arguments.items()), "--tasks", task["task"], "--include_path", str(tmp_path),
             "--output_path", str(tmp_path / "out"), "--log_samples", *options],
            capture_output=True, text=True, timeout=240, check=False, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-4000:]
        results, = (tmp_path / "out").rglob("results_*.json")
        samples, = (tmp_path / "out").rglob(f"samples_{task['task']}_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
        return json.loads(results.read_text())["results"][task["task"]], sorted(lines, key=lambda s: s["doc_id"])

    return run


@pytest.mark.parametrize("as_ids", [True, False])
def test_multiple_choice_has_the_likelihoods_and_the_accuracy_of_our_own_metric(harness, server, tuned, finished, lively_base,
                                                                               as_ids):
    """The harness writes its prompts without a chat template; ours are made without one here, too."""
    import torch

    from tunesmith import methods
    from tunesmith.evals.compare import parts_of, value
    from tunesmith.evals.items import Item, Suite
    from tunesmith.evals.metrics import METRICS
    from tunesmith.evals.systems import System, ask
    from tunesmith.models.base import resolve
    from tunesmith.models.load import model_of, tokenizer_of

    rows = [{"question": f"House {n * 37 + 11} stands in the street called:" + " Iowa" * (n % 4),
             "choices": [f" {STREETS[(n + k) % 8]}" for k in range(2 + n % 3)], "correct": n % 2} for n in range(12)]
    task = {"task": "streets", "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_target": "correct",
            "doc_to_choice": "closed", "target_delimiter": "", "metric_list": [{"metric": "acc"}]}
    results, samples = harness("local-completions", tuned, f"{server.url}/completions", lively_base, task,
                               [r | {"closed": [c + STOP for c in r["choices"]]} for r in rows], "--batch_size", "4",
                               max_length=512, tokenized_requests=as_ids)
    base = resolve(str(lively_base))
    model = methods.load(model_of(base, torch.float32), finished.release_dir / "adapter")
    plain = tokenizer_of(base)
    plain.chat_template = None
    items = [Item(f"f:{i}", [{"role": "user", "content": r["question"]}], choices=tuple(r["choices"]), correct=r["correct"])
             for i, r in enumerate(rows)]
    said = ask(model, plain, Suite("streets", "suite", items, ("choice",), "", 8), [System("tuned", adapter=True)],
               batch_size=4, known={})
    ours = parts_of(METRICS["choice"], items, said)["tuned"]
    for sample, outcome, (right, _) in zip(samples, said["tuned"], ours, strict=True):
        theirs = [float(response[0]) for response in sample["filtered_resps"]]
        assert theirs == pytest.approx(outcome.choices, abs=1e-3)
        assert sample["acc"] == right
    assert results["acc,none"] == pytest.approx(value(METRICS["choice"], ours))
    assert 0 < results["acc,none"] < 1, "right and wrong answers are among them"


def test_chat_answers_are_those_of_our_own_report(harness, server, tuned, finished):
    part = finished.report["sets"][finished.report["primary"]]
    rows = [{"question": i["prompt"], "answer": i["reference"]} for i in part["items"]]
    task = {"task": "addresses", "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": [STOP], "max_gen_toks": 24, "temperature": 0},
            "metric_list": [{"metric": "exact_match"}]}
    results, samples = harness("local-chat-completions", tuned, f"{server.url}/chat/completions", finished.release_dir, task,
                               rows, "--apply_chat_template")
    assert [s["filtered_resps"][0] for s in samples] == [i["answers"]["tuned"] for i in part["items"]]
    assert results["exact_match,none"] == pytest.approx(part["metrics"]["exact_match"]["tuned"])
