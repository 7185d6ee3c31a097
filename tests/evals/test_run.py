"""An evaluation measures every system on the same rows, and its report adds up.

pytest tests/evals/test_run.py
"""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import tunesmith
from tunesmith.data.dataset import Dataset
from tunesmith.data.rows import Row
from tunesmith.errors import DataError, RecipeError
from tunesmith.evals.compare import compare_suite, measurable
from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.evals.run import evaluate, verdict, worries
from tunesmith.evals.systems import System, _outcomes, few_shot, shots_from
from tunesmith.recipe.schema import Recipe
from tunesmith.training.run import Run

SYSTEMS = {"zero_shot", "few_shot", "tuned"}


@pytest.fixture
def dataset(finished) -> Dataset:
    return Dataset.open(finished.home / "datasets" / finished.report["dataset"]["id"])


@pytest.fixture
def recipe(finished) -> Recipe:
    return Run(finished.run_dir).recipe().recipe


def resolved(project, **changes) -> Run:
    """The project's run with other values in its recipe."""
    path = project.run_dir / "recipe.resolved.json"
    recipe = json.loads(path.read_text())
    for section, values in changes.items():
        recipe[section] |= values
    path.write_text(json.dumps(recipe))
    return Run(project.run_dir)


# ---- the report ------------------------------------------------------------------------------------------------------


def test_the_report_has_what_readers_and_gates_rely_on(finished):
    report = finished.report
    assert report.keys() == {"version", "name", "created", "run_id", "base", "adapter", "dataset", "settings", "primary",
                             "target", "sets", "effect", "drift", "training", "baselines", "verdict", "worry"}
    assert report["adapter"].keys() == {"method", "rank", "trainable_parameters", "bytes", "digest"}
    assert report["settings"].keys() == {"samples", "max_new_tokens", "decoding", "seed", "few_shot", "dtype"}
    assert (report["primary"], list(report["sets"])) == ("test", ["test"])
    part = report["sets"]["test"]
    assert part.keys() == {"kind", "source", "n", "metrics", "power", "items", "prompt_tokens"}
    assert part["power"].startswith("8 items can show a change of ")
    assert (part["source"], part["n"], len(part["items"])) == ("test.jsonl", 8, 8)
    for name, metric in part["metrics"].items():
        paired = {"pairs"} if "few_shot" in metric["systems"] else set()
        assert metric.keys() == {"label", "higher_is_better", "unit", "systems", "base", "tuned", "delta", "ci95",
                                 "p_value", "detectable"} | paired
        assert metric["systems"].keys() == (SYSTEMS - {"few_shot"} if name in ("loss", "perplexity") else SYSTEMS)
    for item in part["items"]:
        assert item.keys() == {"id", "prompt", "reference", "answers", "stopped", "scores", "losses", "parts"}
        assert item["answers"].keys() == item["stopped"].keys() == SYSTEMS
        assert item["losses"].keys() == {"zero_shot", "tuned"}
    assert report["training"]["steps"][-1]["step"] == finished.done["steps"]
    assert report["training"]["evals"][-1] == {"step": finished.done["steps"], "loss": finished.done["eval_loss"]}
    assert (finished.run_dir / "report" / "report.html").stat().st_size > 10_000


def test_items_are_the_rows_of_the_test_set(finished, dataset):
    rows = {row.where: row for row in dataset.rows("test")}
    for item in finished.report["sets"]["test"]["items"]:
        assert (item["prompt"], item["reference"]) == (rows[item["id"]].prompt, rows[item["id"]].answer)


def test_metrics_follow_from_the_items(finished, dataset):
    part = finished.report["sets"]["test"]
    items, metrics = part["items"], part["metrics"]
    for name, score in (("exact_match", lambda i, s: float(i["answers"][s].strip() == i["reference"])), ("json_f1", None)):
        for system in SYSTEMS:
            scores = [i["scores"][name][system] for i in items]
            assert metrics[name]["systems"][system]["value"] == pytest.approx(np.mean(scores))
            if score:
                assert scores == [score(i, system) for i in items]
        m = metrics[name]
        assert (m["base"], m["tuned"]) == (m["systems"]["zero_shot"]["value"], m["systems"]["tuned"]["value"])
        assert m["delta"] == pytest.approx(m["tuned"] - m["base"])
        change = np.array([i["scores"][name]["tuned"] - i["scores"][name]["zero_shot"] for i in items])
        half = 1.96 * change.std() / math.sqrt(len(change))
        assert m["ci95"][0] < m["delta"] - 0.5 * half and m["ci95"][1] > m["delta"] + 0.5 * half, "8 rows say little"
        exact = stats.permutation_test((change, 0 * change), lambda a, b: (a - b).mean(), permutation_type="samples",
                                       n_resamples=np.inf)
        assert m["p_value"] == pytest.approx(exact.pvalue)
    assert 0 < metrics["exact_match"]["tuned"] < 1, "some right, some wrong: otherwise this shows little"
    where = {row.where: i for i, row in enumerate(dataset.rows("test"))}
    tokens = [sum(dataset.tokens("test")[where[i["id"]]][1]) for i in items]
    for system in ("zero_shot", "tuned"):
        loss = np.average([i["losses"][system] for i in items], weights=tokens)
        assert metrics["loss"]["systems"][system]["value"] == pytest.approx(loss)
        assert metrics["perplexity"]["systems"][system]["value"] == pytest.approx(math.exp(loss))
        low, high = metrics["perplexity"]["systems"][system]["ci95"]
        assert [math.log(low), math.log(high)] == pytest.approx(metrics["loss"]["systems"][system]["ci95"])


def test_the_tuned_loss_is_the_one_that_the_training_saw_last(project):
    run = resolved(project, eval={"samples": 1000, "metrics": ["loss"], "baselines": ["zero_shot"]})
    report = evaluate(run)
    assert report["sets"]["test"]["n"] == 12
    assert report["sets"]["test"]["metrics"]["loss"]["tuned"] == pytest.approx(project.done["eval_loss"], rel=1e-5)
    assert project.report == report, "what is returned is what is written"


# ---- the same rows for everybody -------------------------------------------------------------------------------------


def test_a_sample_is_drawn_with_the_seed_once_for_all_systems(project):
    run = resolved(project, eval={"samples": 5})
    first, again = evaluate(run), evaluate(run)
    ids = [i["id"] for i in first["sets"]["test"]["items"]]
    assert len(set(ids)) == 5
    assert ids == [i["id"] for i in again["sets"]["test"]["items"]]
    assert first["sets"]["test"] == again["sets"]["test"]
    other = evaluate(resolved(project, train=Run(project.run_dir).recipe().recipe.train.model_dump() | {"seed": 1}))
    assert {i["id"] for i in other["sets"]["test"]["items"]} != set(ids)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_do_not_depend_on_the_batch(project, finished, batch_size):
    report = evaluate(resolved(project, eval={"batch_size": batch_size}))
    assert [i["answers"] for i in report["sets"]["test"]["items"]] == \
        [i["answers"] for i in finished.report["sets"]["test"]["items"]]


# ---- few shots -------------------------------------------------------------------------------------------------------


def test_few_shot_answers_are_the_bases_to_a_prompt_that_shows_training_rows(finished, dataset, recipe, lively_base):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shots = shots_from(dataset.rows("train"), recipe.eval.shots, recipe.train.seed)
    train = {row.where: row.messages for row in dataset.rows("train")}
    assert len({s.where for s in shots}) == 3 == finished.report["settings"]["few_shot"]
    assert all(train[s.where] == s.messages for s in shots)

    tokenizer = AutoTokenizer.from_pretrained(lively_base)
    model = AutoModelForCausalLM.from_pretrained(lively_base, dtype=torch.float32).eval()
    shown = "".join(f"<|im_start|>user\n{s.prompt}<|im_end|>\n<|im_start|>assistant\n{s.answer}<|im_end|>\n" for s in shots)
    for item in finished.report["sets"]["test"]["items"][:4]:
        prompt = f"{shown}<|im_start|>user\n{item['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False,
                             eos_token_id=tokenizer.eos_token_id, pad_token_id=0)[0, ids.shape[1]:]
        assert item["answers"]["few_shot"] == tokenizer.decode(out, skip_special_tokens=True)


def test_shots_stand_between_the_system_message_and_the_question():
    def messages(*pairs):
        return [{"role": role, "content": content} for role, content in pairs]

    item = Item("f:1", messages(("system", "S"), ("user", "q0"), ("assistant", "a0"), ("user", "q")))
    shot = Row(messages(("system", "other"), ("user", "sq"), ("assistant", "sa")), "f:2")
    assert few_shot([shot]).helped(item) == messages(("system", "S"), ("user", "sq"), ("assistant", "sa"), ("user", "q0"),
                                                     ("assistant", "a0"), ("user", "q"))


# ---- what cannot be measured -----------------------------------------------------------------------------------------


def test_a_metric_that_the_references_do_not_allow_is_an_error_before_anything_is_generated(project, command):
    path = next((project.home / "datasets").glob("*/test.test.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["messages"][-1]["content"] = "just text"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    resolved(project, eval={"samples": 100})
    done = command("eval", project.done["run_id"], "--json", check=2)
    assert done.json["what"] == "metric json_f1 cannot be computed on 'test'"
    assert done.json["where"] == rows[3]["where"]
    assert "evaluating" not in done.stderr
    assert "just text" not in json.dumps(project.report), "the old report stands"


def test_a_set_without_rows_is_an_error():
    with pytest.raises(DataError, match="'hard' has no rows"):
        measurable(Suite("hard", "test", [], ("exact_match",), "hard.jsonl", 8))


def test_a_run_whose_base_talks_otherwise_now_is_refused(project):
    path = project.run_dir / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"template_fingerprint": "sha256:0"}))
    with pytest.raises(DataError, match="not the one this run was trained with"):
        evaluate(Run(project.run_dir))


def test_a_run_whose_base_has_other_bytes_now_is_refused(project):
    path = project.run_dir / "run.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"base": state["base"] | {"digest": "sha256:0"}}))
    with pytest.raises(RecipeError, match="has changed since this run"):
        evaluate(Run(project.run_dir))


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_compare_suite_by_hand():
    items = [Item(f"f:{i}", [{"role": "user", "content": f"q{i}"}], (str(i),), tags=("odd",) * (i % 2)) for i in range(4)]
    before, after = [("0", True), ("x", False), ("x", True), ("x", True)], [("0", True), ("1", True), ("2 ", True), ("x", True)]
    said = {system: [Outcome(text, stopped, n, t) for (text, stopped), n, t in zip(texts, nats, [4, 1, 2, 1], strict=True)]
            for system, texts, nats in (("zero_shot", before, [4.0, 2, 2, 2]), ("tuned", after, [2.0, 1, 1, 0]))}
    suite = Suite("test", "test", items, ("exact_match", "loss", "perplexity"), "f", 8)
    part = compare_suite(suite, said)
    exact, loss, perplexity = (part["metrics"][n] for n in ("exact_match", "loss", "perplexity"))
    assert (exact["base"], exact["tuned"], exact["delta"]) == (0.25, 0.75, 0.5)
    assert (loss["base"], loss["tuned"], loss["delta"]) == (10 / 8, 4 / 8, -6 / 8), "nats over tokens, not a mean of means"
    assert perplexity["delta"] == pytest.approx(math.exp(0.5) - math.exp(1.25))
    assert loss["ci95"][0] < loss["delta"] < 0 < loss["ci95"][1], "four rows that all fall show nothing"
    assert loss["p_value"] == perplexity["p_value"] == 2 / 2**4
    assert part["items"][1] == {"id": "f:1", "prompt": "q1", "reference": "1", "answers": {"zero_shot": "x", "tuned": "1"},
                                "stopped": {"zero_shot": False, "tuned": True}, "tags": ["odd"],
                                "scores": {"exact_match": {"zero_shot": 0.0, "tuned": 1.0}},
                                "losses": {"zero_shot": 2.0, "tuned": 1.0},
                                "parts": dict.fromkeys(("loss", "perplexity"), {"zero_shot": [2.0, 1.0], "tuned": [1.0, 1.0]})}
    assert part["tags"].keys() == {"odd"} and part["tags"]["odd"]["n"] == 2
    assert part["tags"]["odd"]["metrics"]["exact_match"]["tuned"] == 0.5


def test_the_likelihood_of_choices_is_that_of_each_as_the_answer(lively_base):
    """Against the plain sum of log-softmax over the answer's tokens and its stop token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(lively_base)
    model = AutoModelForCausalLM.from_pretrained(lively_base, dtype=torch.float32).eval()
    item = Item("q/0", [{"role": "user", "content": "11 Oak Street"}], choices=("Oak", "Elm Street", "7"), correct=0)
    suite = Suite("quiz", "suite", [item], (), "q", 8)
    outcome = _outcomes(model, tokenizer, suite, System("zero_shot", adapter=False), 8, {"choices"})[0]
    for choice, likelihood in zip(item.choices, outcome.choices, strict=True):
        question = "<|im_start|>user\n11 Oak Street<|im_end|>\n<|im_start|>assistant\n"
        before, whole = (tokenizer(t, return_tensors="pt", add_special_tokens=False)["input_ids"]
                         for t in (question, question + choice + "<|im_end|>"))
        logp = model(whole).logits[0].log_softmax(-1)
        theirs = sum(float(logp[i - 1, whole[0, i]].detach()) for i in range(before.shape[1], whole.shape[1]))
        assert likelihood == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("metric, delta, ci95, words", [
    ("exact_match", 0.25, [0.1, 0.4], "Tuned beats the base on exact match by 25 points (95% interval 10 to 40)."),
    ("exact_match", -0.25, [-0.4, -0.1], "Tuned is worse than the base on exact match by 25 points"),
    ("exact_match", 0.1, [0.0, 0.3], "No difference between tuned and base on exact match is shown: +10 points"),
    ("loss", -0.5, [-0.6, -0.4], "Tuned beats the base on held-out loss by 0.5 nats (95% interval 0.4 to 0.6)."),
    ("loss", 0.5, [0.4, 0.6], "Tuned is worse than the base on held-out loss by 0.5 nats"),
    ("loss", 0.0, [-0.1, 0.1], "No difference between tuned and base on held-out loss is shown"),
])
def test_the_verdict_says_no_more_than_the_interval(finished, recipe, metric, delta, ci95, words):
    report = copy.deepcopy(finished.report)
    report["sets"]["test"]["metrics"][metric] |= {"delta": delta, "ci95": ci95}
    rule = recipe.gates.model_copy(update={"target": recipe.gates.target.model_copy(update={"metric": metric})})
    assert verdict(report, recipe.model_copy(update={"gates": rule})).startswith(words)


def test_worries_name_rows_and_numbers(finished, dataset):
    report = copy.deepcopy(finished.report)
    items = report["sets"]["test"]["items"]
    for item in items:
        item["stopped"]["tuned"] = True
    (few_shot,) = report["baselines"]
    few_shot["call"] = "better"
    calm = worries(report, dataset)
    assert not any("hit the limit" in w or "prompting" in w or "was lower at step" in w for w in calm)
    items[2]["stopped"]["tuned"] = False
    few_shot |= {"call": "not_shown", "message": "On test, the base is as good: Prefer prompting."}
    report["training"]["evals"] = [{"step": 0, "loss": 3.0}, {"step": 4, "loss": 1.0}, {"step": 8, "loss": 2.0}]
    cut, prompting, overfit = (w for w in worries(report, dataset) if w not in calm)
    assert cut == f"1 of 8 tuned answers on test hit the limit of 24 tokens ({items[2]['id']})"
    assert prompting == few_shot["message"]
    assert overfit == "held-out loss was lower at step 4 (1.000) than at the end (2.000)"
    assert any(w.startswith("data: 40 training rows; expectation") for w in calm)


def test_the_verb_takes_a_run_its_release_and_its_recipe(project):
    made = []
    for name in (project.done["run_id"], project.done["run_id"][:-3], project.done["release_id"], project.recipe):
        done = tunesmith.evaluate(str(name))
        assert done["run_id"] == project.done["run_id"]
        made.append(done["metrics"])
    assert made == [project.done["metrics"]] * 4
    assert Path(done["report_path"]).is_absolute() and Path(done["report_path"]).is_file()
