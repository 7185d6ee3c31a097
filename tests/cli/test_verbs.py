"""Every verb end to end on a tiny base: what it prints for machines, what it prints for people, how it ends.

pytest tests/cli/test_verbs.py
"""

import filecmp
import json
import re
from pathlib import Path

import pytest

from tunesmith.recipe.load import load

PATHS = ("path", "recipe", "run_dir", "adapter_dir", "report_path", "recipe_path")
CHECKED = {"ok", "problems", "estimate", "targets", "serving", "dataset_id", "advice"}
TRAINED = {"run_id", "run_dir", "adapter_dir", "steps", "train_loss", "eval_loss", "tokens_per_second", "peak_memory_bytes",
           "status"}
EVALUATED = {"run_id", "report_path", "metrics", "primary", "sets", "baselines", "conclusion", "worry"}
RELEASED = {"run_id", "release_id", "verdict", "gates", "overrides", "path", "signed_by"}


def paths_are_absolute(document: dict) -> None:
    for key in PATHS:
        if document.get(key) is not None:
            assert Path(document[key]).is_absolute() and Path(document[key]).exists(), f"{key}: {document[key]}"


def is_evaluation(document: dict) -> None:
    for metrics in (document["metrics"], *(s["metrics"] for s in document["sets"].values())):
        for m in metrics.values():
            assert {"base", "tuned", "delta", "ci95"} <= m.keys()
            assert m["ci95"][0] <= m["delta"] <= m["ci95"][1]


# ---- init ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", ["addresses", "style"])
def test_init_writes_an_example_that_is_a_valid_recipe_with_its_data(command, home, tmp_path, example):
    made = command("init", tmp_path / "new" / "project", "--example", example, "--json", check=0).json
    paths_are_absolute(made)
    assert made["path"] == str(tmp_path / "new" / "project")
    loaded = load(made["recipe"])
    assert loaded.recipe.name == example
    source = Path(__file__).parent.parent.parent / "examples" / example
    compared = filecmp.dircmp(source, made["path"], ignore=[".tunesmith", "__pycache__"])
    assert not (compared.left_only or compared.right_only or compared.diff_files)


def test_init_says_what_comes_next(command, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("init", "here", check=0)
    assert f"next: tunesmith run {tmp_path}/here/recipe.yaml" in done.stdout


def test_init_overwrites_nothing(command, home, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    error = command("init", tmp_path, "--json", check=2).json
    assert error["error"] == "UsageError" and error["what"] == "the directory is not empty"
    assert {p.name for p in tmp_path.iterdir()} == {"mine.txt"}
    assert "one of addresses, style" in command("init", tmp_path / "x", "--example", "haiku", check=2).stderr
    assert not (tmp_path / "x").exists()
    (tmp_path / "empty").mkdir()
    command("init", tmp_path / "empty", check=0)


# ---- before training -------------------------------------------------------------------------------------------------


def test_check(command, make_recipe):
    recipe = make_recipe()
    checked = command("check", recipe, "--json", check=0).json
    assert checked.keys() == CHECKED and checked["ok"] is True
    assert {"peak_memory_bytes", "seconds", "trainable_parameters", "adapter_bytes", "steps"} <= checked["estimate"].keys()
    assert [p["code"] for p in checked["problems"]] == ["low_diversity", "few_rows"], "40 rows of one template"
    assert all(p.keys() == {"severity", "code", "where", "message", "fix"} for p in checked["problems"])
    people = command("check", recipe, check=0).stdout
    assert "warning: 40 training rows; expectation" in people and "trainable parameters" in people
    assert people.rstrip().endswith("ready to train")


def test_check_lists_every_mistake_of_a_recipe_with_its_line(command, make_recipe):
    recipe = make_recipe(**{"train.learning_rat": 0.1, "method.rank": 0})
    checked = command("check", recipe, "--json", check=2).json
    assert checked["ok"] is False and checked["estimate"] is None
    mistakes = {p["message"].split(":")[0]: p for p in checked["problems"]}
    assert mistakes.keys() == {"train.learning_rat", "method.rank"}
    lines = recipe.read_text().splitlines()
    for name, p in mistakes.items():
        assert lines[int(p["where"].rsplit(":", 1)[1]) - 1].strip().startswith(name.split(".")[1])
    assert mistakes["train.learning_rat"]["fix"] == "did you mean 'learning_rate'?"
    assert "not ready" in command("check", recipe, check=2).stdout


def test_data_prepare_and_audit(command, make_recipe, home):
    recipe = make_recipe()
    prepared = command("data", "prepare", recipe, "--json", check=0).json
    audited = command("data", "audit", recipe, "--json", check=0).json
    assert prepared.keys() == {"dataset_id", "path", "counts", "findings"} == audited.keys() - {"card", "packing", "filters",
                                                                                                "diversity"}
    assert prepared == {k: audited[k] for k in prepared}
    paths_are_absolute(audited)
    assert "train.jsonl:1" in Path(audited["card"]).read_text() and audited["packing"]["tokens"] > 0
    assert (prepared["counts"]["train"], prepared["counts"]["test:test"]) == (40, 8)
    assert prepared["path"] == str(home / "datasets" / prepared["dataset_id"])
    assert prepared["dataset_id"] in command("data", "prepare", recipe, check=0).stdout
    shown = command("data", "audit", recipe, check=0).stdout
    assert "40 training rows; expectation" in shown and "diversity: 40 rows are as varied as " in shown
    assert audited["diversity"]["rows"] == 40 and audited["diversity"]["clusters"]


def test_data_audit_shows_what_filters_take_and_would_take(command, make_recipe, tmp_path):
    rows = [json.loads(line) for line in make_recipe().parent.joinpath("train.jsonl").read_text().splitlines()]
    for row in rows[:3]:
        row["messages"][-1]["content"] += " <br/>"
    rows[3]["messages"][-1]["content"] += " \x00"
    recipe = make_recipe(train=rows, **{"data.filter": {"drop": ["html_residue"]}})
    by_name = {f["name"]: f for f in command("data", "audit", recipe, "--json", check=0).json["filters"]}
    assert by_name["html_residue"]["in_order"] == 3 and by_name["control_character"]["alone"] == 1
    shown = command("data", "audit", recipe, check=0).stdout.splitlines()
    table = [line.split() for line in shown[shown.index(next(s for s in shown if s.startswith("filter "))):-1]]
    assert table[0] == ["filter", "alone", "in", "order"]
    characters = f"{by_name['html_residue']['characters']:,}"
    assert table[1][:8] == ["html_residue", "3", "3", "dropped,", "of", "40", "rows:", characters]
    assert ["control_character", "1", "-", "would", "drop", "1", "of", "37", "rows"] in table


def test_data_diff_tells_recipes_and_dataset_ids_apart(command, make_recipe):
    one, other = make_recipe(), make_recipe("other.yaml", **{"data.max_tokens": 100})
    prepared = command("data", "prepare", one, "--json", check=0).json
    found = command("data", "diff", prepared["dataset_id"][:12], other, "--json", check=0).json
    assert found["inputs"] == {"settings.max_tokens": [128, 100]} and not found["identical"]
    assert "settings.max_tokens: 128 -> 100" in command("data", "diff", one, other, check=0).stdout
    assert "identical" in command("data", "diff", one, one, check=0).stdout
    missing = command("data", "diff", one, "ds-none", check=2)
    assert "no dataset begins with 'ds-none'" in missing.stderr


def test_data_show_marks_what_is_trained(command, make_recipe, tiny_tokenizer):
    recipe = make_recipe()
    shown = command("data", "show", recipe, "--count", "2", "--first", "3", "--json", check=0).json
    assert {"dataset_id", "counts", "findings", "part", "rows"} <= shown.keys()
    assert [row["where"] for row in shown["rows"]] == ["train.jsonl:4", "train.jsonl:5"]
    for row, line in zip(shown["rows"], (tiny := (recipe.parent / "train.jsonl").read_text().splitlines())[3:5], strict=True):
        answer = json.loads(line)["messages"][1]["content"]
        assert tiny_tokenizer.decode([t["id"] for t in row["tokens"] if t["trained"]]) == answer + "<|im_end|>"
        assert tiny_tokenizer.decode([t["id"] for t in row["tokens"]]) == row["text"]
        assert "".join(t["text"] for t in row["tokens"]) == row["text"]
        assert {t["role"] for t in row["tokens"]} == {"template", "user", "assistant"}
        assert all(t["role"] == "assistant" for t in row["tokens"] if t["trained"])
    people = command("data", "show", recipe, "--count", "1", check=0).stdout
    answer = json.loads(tiny[0])["messages"][1]["content"]
    assert f"⟦{answer}<|im_end|>⟧" in people and people.startswith("── train.jsonl:1")
    assert f" assistant │ ⟦{answer}" in people and "      user │ " in people
    ids = command("data", "show", recipe, "--count", "1", "--ids", check=0).stdout
    end = tiny_tokenizer.eos_token_id
    assert f"<|im_end|>‹{end}›⟧" in ids
    test = command("data", "show", recipe, "--part", "test", "--count", "100", "--json", check=0).json
    assert len(test["rows"]) == 8
    assert "one of train, test" in command("data", "show", recipe, "--part", "dev", check=2).stderr
    assert command("data", "show", recipe, "--first", "500", "--json", check=0).json["rows"] == []


# ---- train, eval, release --------------------------------------------------------------------------------------------


def test_train_eval_release_one_by_one(command, make_recipe, home):
    recipe = make_recipe(**{"train.max_steps": 6, "eval.metrics": ["loss"], "eval.baselines": ["zero_shot"]})
    trained = command("train", recipe, "--json", check=0)
    assert trained.json.keys() >= TRAINED and (trained.json["status"], trained.json["steps"]) == ("finished", 6)
    paths_are_absolute(trained.json)
    assert "step 6/6" in trained.stderr and "chose engine=fast" in trained.stderr
    run = trained.json["run_id"]

    evaluated = command("eval", run, "--json", check=0).json
    assert evaluated.keys() == EVALUATED and evaluated["run_id"] == run
    paths_are_absolute(evaluated)
    is_evaluation(evaluated)

    released = command("release", run, "--json", check=0).json
    assert released.keys() == RELEASED and released["verdict"] == "pass"
    assert [g.keys() for g in released["gates"]] == [{"name", "verdict", "evidence"}] * 5
    paths_are_absolute(released)
    assert released["path"] == str(home / "releases" / released["release_id"])

    people = command("eval", recipe, check=0).stdout
    assert "held-out loss" in people and evaluated["report_path"] in people
    assert f"release {released['release_id']}" not in people
    assert "pass  target" in command("release", run, check=0).stdout, "a report of another minute is another release"


def test_resuming_a_run_that_is_finished_and_one_whose_recipe_changed(command, make_recipe):
    recipe = make_recipe(**{"train.max_steps": 4})
    run = command("train", recipe, "--json", check=0).json["run_id"]
    assert command("train", recipe, "--resume", run, "--json", check=0).json["run_id"] == run
    make_recipe(**{"train.max_steps": 5})
    error = command("train", recipe, "--resume", run, "--json", check=2).json
    assert error["error"] == "RecipeError" and "train.max_steps" in error["what"]
    assert "no run 'nobody'" in command("train", recipe, "--resume", "nobody", check=2).stderr


def test_run_does_it_all_in_a_process_of_its_own(cli, make_recipe):
    """The whole of stdout is one document, whatever the libraries below print from C."""
    done = cli("run", make_recipe(**{"train.max_steps": 6}), "--json", check=0)
    document = json.loads(done.stdout)
    assert document.keys() >= CHECKED | TRAINED | EVALUATED | RELEASED | {"seconds"}
    assert document["seconds"].keys() == {"check", "train", "eval", "release"}
    assert (document["ok"], document["status"], document["verdict"]) == (True, "finished", "pass")
    paths_are_absolute(document)
    is_evaluation(document)
    assert "step 6/6" in done.stderr and "released rel-" in done.stderr


def test_run_for_people_and_a_gate_that_refuses(command, make_recipe, home):
    recipe = make_recipe(**{"train.max_steps": 3, "gates.target.min_gain": 50.0, "eval.metrics": ["loss"],
                            "eval.baselines": ["zero_shot"]})
    done = command("run", recipe, check=3)
    for words in ("3 steps, loss", "held-out loss", "fail  target", "refused: nothing was released"):
        assert words in done.stdout, words
    assert re.search(r"^check \d+ s, train \d+ s", done.stdout, re.MULTILINE)
    assert "gate target: fail" in done.stderr and "do: train longer" in done.stderr
    assert not (home / "releases").exists()


def test_run_trains_nothing_when_the_check_finds_errors(command, make_recipe, home):
    recipe = make_recipe(**{"method.targets": ["q_prj"]})
    error = command("run", recipe, "--json", check=2).json
    assert error["error"] == "DataError" and "not ready to be trained" in error["what"]
    assert "did you mean 'q_proj'?" in error["problems"][0]["fix"]
    assert not (home / "runs").exists()


# ---- after a release -------------------------------------------------------------------------------------------------


def test_promote_and_rollback(command, project):
    release = project.done["release_id"]
    assert command("promote", release, "--to", "production", "--json", check=0).json == {
        "channel": "production", "release_id": release, "previous": None}
    assert command("promote", release, "--to", "production", check=0).stdout == f"production -> {release}  (was {release})\n"
    error = command("rollback", "production", "--json", check=2).json
    assert error["error"] == "NotFoundError" and "nothing to roll back to" in error["what"]
    assert "lower-case letters" in command("promote", release, "--to", "../x", check=2).stderr


def test_runs_and_show(command, project):
    run, release = project.done["run_id"], project.done["release_id"]
    command("promote", release, "--to", "production", "--why", "good", check=0)
    listed = command("runs", "--json", check=0).json
    assert [r["run_id"] for r in listed["runs"]] == [run] and [r["release_id"] for r in listed["releases"]] == [release]
    assert run in command("runs", check=0).stdout

    shown = {kind: command("show", name, "--json", check=0).json
             for kind, name in (("run", run), ("release", release), ("channel", "production"))}
    assert {kind: document["kind"] for kind, document in shown.items()} == {k: k for k in shown}
    assert shown["run"]["status"] == "finished" and shown["run"]["release_id"] == release
    assert shown["release"]["verdict"] == "pass" and shown["release"]["path"] == str(project.release_dir)
    assert shown["channel"]["release_id"] == release and shown["channel"]["history"][0]["why"] == "good"
    assert command("show", release[:10], "--json", check=0).json == shown["release"]
    assert command("show", project.release_dir, "--json", check=0).json == shown["release"]
    assert command("show", project.run_dir, "--json", check=0).json["run_id"] == run
    assert f"release_id: {release}" in command("show", "production", check=0).stdout
    error = command("show", "nobody", "--json", check=2).json
    assert (error["error"], error["what"]) == ("NotFoundError", "no run 'nobody'")
    assert command("show", "rel-nobody", "--json", check=2).json["what"] == "no release 'rel-nobody'"


def test_a_run_whose_recipe_is_called_rel_is_found(command, project):
    state = json.loads((project.run_dir / "run.json").read_text())
    other = project.run_dir.rename(project.run_dir.parent / "rel-notes-20260101-000000-abcdef")
    (other / "run.json").write_text(json.dumps(state | {"run_id": other.name}))
    assert command("show", other.name, "--json", check=0).json["kind"] == "run"
    assert command("show", project.done["release_id"], "--json", check=0).json["kind"] == "release"


def test_an_empty_home_has_no_runs(command, home):
    assert command("runs", "--json", check=0).json == {"runs": [], "releases": []}
    assert command("runs", check=0).stdout == "no runs yet\n"


# ---- verify ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proof, options", [("packing", []), ("resume", ["--steps", "4"])])
def test_verify_packing_and_resume(command, make_recipe, home, proof, options):
    recipe = make_recipe()
    document = command("verify", proof, recipe, *options, "--json", check=0).json
    assert document["identical"] is True and document["message"]
    assert command("verify", proof, recipe, *options, check=0).stdout.startswith("identical: ")
    assert not list((home / "runs").iterdir()) if (home / "runs").exists() else True, "a proof leaves no run behind"


def test_verify_release(command, project):
    release = project.done["release_id"]
    document = command("verify", "release", release, "--json", check=0).json
    assert document["here"]["same"] is True and document["here"]["differs"] == []
    del document["here"]
    assert document == {"identical": True, "release_id": release, "trusted": None, "signatures": [], "message":
                        f"15 files of {release} are as they were released; 0 signatures, and no key is said to count"}
    (project.release_dir / "recipe.yaml").write_text("changed")
    error = command("verify", "release", release, "--json", check=1).json
    assert error["error"] == "StoreError" and error["where"].endswith("recipe.yaml")


# ---- where things are ------------------------------------------------------------------------------------------------


def test_paths_are_absolute_when_everything_was_given_relative(command, make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe()
    monkeypatch.chdir(recipe.parent)
    monkeypatch.setenv("TUNESMITH_HOME", "state")
    prepared = command("data", "prepare", recipe.name, "--json", check=0).json
    assert prepared["path"].startswith(str(tmp_path / "state" / "datasets"))
    trained = command("train", recipe.name, "--json", check=0).json
    paths_are_absolute(trained)
    assert trained["run_dir"].startswith(str(tmp_path / "state" / "runs"))
    assert trained["recipe_path"] == str(recipe)
