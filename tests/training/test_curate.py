"""`data curate` end to end on a tiny base: nothing is lost, nothing is half, nothing depends on the order of a file.

The tiny base is random and learns too little to suspect anybody; that the noise is found is shown on the real one, at the end.

pytest tests/training/test_curate.py
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tunesmith.data.read import read_records
from tunesmith.data.rows import Row
from tunesmith.engine import fast, plain
from tunesmith.errors import DataError
from tunesmith.evals.likelihood import row_losses
from tunesmith.methods import lora
from tunesmith.recipe.load import load
from tunesmith.recipe.methods import Lora
from tunesmith.recipe.schema import Train
from tunesmith.training import crossfit
from tunesmith.verbs import curate_data, prepare

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "addresses"
BENCHMARKS = EXAMPLE.parent.parent / "benchmarks"
FILES = {"curated.jsonl", "scores.jsonl", "recipe.yaml", "curation.html"}


def chat_row(n: int, street: str) -> dict:
    return {"messages": [{"role": "user", "content": f"{n} {street} Street"},
                         {"role": "assistant", "content": json.dumps({"number": str(n), "street": street})}]}


ROWS = [chat_row(n * 37 + 11, ("Oak", "Elm", "Main", "Bever", "Stone Hedge")[n % 5]) for n in range(60)]
TRAIN_ROWS = ROWS[:40]


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def messages(path) -> list[str]:
    return sorted(json.dumps(r["messages"]) for r in lines(path))


# ---- what is written -------------------------------------------------------------------------------------------------


def test_every_row_is_kept_or_reported_and_the_proposal_is_a_recipe(make_recipe, tmp_path):
    recipe, out = make_recipe(train=TRAIN_ROWS), tmp_path / "out"
    made = curate_data(recipe, out, rows=25)
    assert {p.name for p in out.iterdir()} == FILES
    scores = lines(out / "scores.jsonl")
    assert [s["where"] for s in scores] == [f"train.jsonl:{n}" for n in range(1, 41)]
    assert made["rows"] == 40 and made["proposed"] == 25
    proposed = {s["where"] for s in scores if s["verdict"] == "proposed"}
    curated = lines(out / "curated.jsonl")
    assert len(curated) == 25 and {r["curated_from"] for r in curated} == proposed
    for r in curated:
        assert r["messages"] == TRAIN_ROWS[int(r["curated_from"].split(":")[1]) - 1]["messages"]
    assert all(s["score"] > 0 and abs(s["base"] - s["score"] - s["gain"]) < 2e-4 for s in scores)
    before, after = load(recipe).recipe, load(out / "recipe.yaml").recipe
    assert after.model_dump(exclude={"data"}) == before.model_dump(exclude={"data"})
    counts = prepare(out / "recipe.yaml")["counts"]
    assert counts["train"] == 25 and counts["test:test"] == 8
    assert "<script" not in (out / "curation.html").read_text()


def test_held_out_rows_stay_the_same_when_the_recipe_draws_them(make_recipe, tmp_path, home):
    recipe = make_recipe(train=ROWS, **{"data.test": None})
    curate_data(recipe, tmp_path / "out", rows=30)
    first = prepare(recipe)["path"]
    again = prepare(tmp_path / "out" / "recipe.yaml")
    assert again["counts"]["train"] == 30
    assert messages(tmp_path / "out" / "test.test.jsonl") == sorted(
        json.dumps(r["messages"]) for r in lines(Path(first) / "test.test.jsonl"))
    train = {json.dumps(r["messages"]) for r in lines(Path(again["path"]) / "train.jsonl")}
    assert not train & set(messages(tmp_path / "out" / "test.test.jsonl"))


def test_rows_keep_what_else_they_said(make_recipe, tmp_path):
    recipe = make_recipe(train=[r | {"author": f"a{n}"} for n, r in enumerate(TRAIN_ROWS)])
    curate_data(recipe, tmp_path / "out")
    for r in lines(tmp_path / "out" / "curated.jsonl"):
        assert r["author"] == f"a{int(r['curated_from'].split(':')[1]) - 1}"
    assert len(list(read_records(tmp_path / "out" / "curated.jsonl"))) == 40


# ---- the same, whatever the order; and no work twice -----------------------------------------------------------------


def test_another_order_of_the_file_gives_the_same_scores_bit_for_bit(make_recipe, tmp_path):
    def by_content(out) -> dict[str, float]:
        return {json.dumps(TRAIN_ROWS[i]): s["score"] for i, s in out}

    recipe = make_recipe(train=TRAIN_ROWS)
    curate_data(recipe, tmp_path / "a", rows=10)
    order = list(range(40))
    random.Random(5).shuffle(order)
    curate_data(make_recipe("other.yaml", train=[TRAIN_ROWS[i] for i in order]), tmp_path / "b", rows=10)
    assert by_content(zip(range(40), lines(tmp_path / "a" / "scores.jsonl"), strict=True)) == by_content(
        zip(order, lines(tmp_path / "b" / "scores.jsonl"), strict=True))
    assert messages(tmp_path / "a" / "curated.jsonl") == messages(tmp_path / "b" / "curated.jsonl")


def test_another_number_of_rows_trains_nothing_and_a_lost_fold_is_made_again(make_recipe, tmp_path, home):
    recipe, said = make_recipe(train=TRAIN_ROWS), []
    curate_data(recipe, tmp_path / "a", rows=10, say=said.append)
    assert [line for line in said if line.startswith("measuring")] == ["measuring base", "measuring fold-0", "measuring fold-1"]
    said.clear()
    curate_data(recipe, tmp_path / "b", rows=20, say=said.append)
    assert not any(line.startswith("measuring") for line in said)
    fold = next((home / "datasets").glob("*/crossfit/*/fold-1.npz"))
    before = dict(np.load(fold))
    fold.unlink()
    curate_data(recipe, tmp_path / "c", rows=20, say=said.append)
    assert [line for line in said if line.startswith("measuring")] == ["measuring fold-1"]
    assert all(np.array_equal(before[k], v) for k, v in np.load(fold).items())
    assert (tmp_path / "b" / "scores.jsonl").read_bytes() == (tmp_path / "c" / "scores.jsonl").read_bytes()


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_an_existing_directory_is_refused_before_any_work(command, make_recipe, tmp_path, home):
    (tmp_path / "out").mkdir()
    code, out, _ = command("data", "curate", make_recipe(), "--out", tmp_path / "out", "--json")
    assert code == 2 and json.loads(out)["what"] == "it is there already"
    assert not list((tmp_path / "out").iterdir()) and not home.exists()


def test_too_few_rows_are_refused(command, make_recipe, tmp_path):
    code, out, _ = command("data", "curate", make_recipe(train=TRAIN_ROWS[:39]), "--out", tmp_path / "out", "--json")
    assert code == 2 and "39 training rows are too few" in json.loads(out)["what"]
    assert not (tmp_path / "out").exists()


def test_more_rows_than_are_above_suspicion_are_refused(command, make_recipe, tmp_path):
    code, out, _ = command("data", "curate", make_recipe(), "--rows", 41, "--out", tmp_path / "out", "--json")
    assert code == 2 and "41 rows are asked for, and 40 of 40" in json.loads(out)["what"]
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_near_duplicates_of_one_row_cannot_judge_each_other(make_recipe, tmp_path):
    words = str.split("By the river where Oak Street ends and the water still turns two of its four wheels")
    same = [{"prompt": "Where is the old stone mill of Cedar Rapids?",
             "completion": " ".join([*words[: n % 17], f"x{n}", *words[n % 17 + 1 :]])} for n in range(60)]
    recipe = make_recipe(train=same, **{"data.dedup": {"exact": False, "near": 0.5}})
    with pytest.raises(DataError, match="the smallest of 2 folds would hold 0 rows"):
        curate_data(recipe, tmp_path / "out")


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_groups_stay_in_one_fold_and_folds_are_of_one_size():
    rows = [Row([{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "a"}], f"f:{n}") for n in range(50)]
    groups = [[0, 7, 9], [3, 4], [20, 30, 40, 45]]
    place = crossfit.fold_of(rows, 3, groups)
    assert all(len({place[i] for i in group}) == 1 for group in groups)
    assert max(np.bincount(place)) - min(np.bincount(place)) <= 1


@pytest.mark.parametrize(("tokens", "steps", "per_step"), [(1_000, 7, 512), (31_000, 64, 512), (1_000_000, 64, 1562),
                                                           (60_000, 64, 937)])
def test_the_budget_is_one_pass_or_enough_steps(tokens, steps, per_step):
    budget = crossfit.budget_of(Train(tokens_per_step=4096), tokens)
    assert (budget.steps, budget.tokens_per_step) == (steps, per_step)
    assert budget.steps * budget.tokens_per_step <= crossfit.MOST_TOKENS
    assert crossfit.budget_of(Train(tokens_per_step=4096, max_steps=5), tokens).steps <= 5


@pytest.mark.parametrize("engine", [fast, plain])
def test_losses_of_tokens_are_those_of_the_whole_logits(engine, tiny_base):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = lora.attach(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32), Lora(rank=4, alpha=8), "tiny")
    draw = random.Random(0)
    samples = []
    for n in (5, 33, 2, 80):
        ids = [draw.randrange(3, 300) for _ in range(n)]
        samples.append((ids, [t if draw.random() < 0.6 else -100 for t in ids[1:]] + [-100]))
    sums, counts = row_losses(model, samples)
    if engine is fast:
        fast.accelerate(model)
    found = engine.token_losses(model, samples)
    assert [len(f) for f in found] == counts
    assert [f.sum().item() for f in found] == pytest.approx(sums, rel=1e-4, abs=1e-4)


def test_hostile_text_is_shown_as_text(make_recipe, tmp_path):
    hostile = [{"prompt": f"<script>alert({n})</script> {n}", "completion": f"</div><b>{n * 37}</b>"} for n in range(40)]
    curate_data(make_recipe(train=hostile), tmp_path / "out")
    page = (tmp_path / "out" / "curation.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(" in page and "<b>37" not in page


# ---- on the real base ------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_planted_noise_is_found_and_other_rows_are_left_in_peace(tmp_path):
    sys.path.insert(0, str(BENCHMARKS))
    from curate import plant

    rows = lines(EXAMPLE / "data" / "train.jsonl")[:80]
    recipe = yaml.safe_load((EXAMPLE / "recipe.yaml").read_text())
    recipe["data"] |= {"train": "train.jsonl", "test": str(EXAMPLE / "data" / "test.jsonl")}
    recipe["train"] |= {"max_steps": 20}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    made, planted = plant(rows, 0.18)
    crude = {i for i, kind in planted.items() if kind in ("another row's answer", "cut off", "off topic", "refusal")}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    curate_data(tmp_path / "recipe.yaml", tmp_path / "noisy")
    scores = lines(tmp_path / "noisy" / "scores.jsonl")
    suspects = {int(s["where"].split(":")[1]) - 1 for s in scores if s["verdict"] == "suspect"}
    assert crude <= suspects and len(suspects - planted.keys()) <= 4
