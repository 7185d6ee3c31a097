"""A composed run is a run like any other, is measured as its parents were, and its loss against them is told and gated.

pytest tests/evals/test_parents.py
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from tests.conftest import STREETS, write_jsonl

import tunesmith
from tunesmith import methods
from tunesmith.cli.compose import parsed
from tunesmith.data.dataset import Dataset
from tunesmith.errors import AdapterError, NotFoundError, StoreError, UsageError
from tunesmith.releases.bundle import Release
from tunesmith.releases.gates import gathered, judge
from tunesmith.training.run import Run

ASKED = {"gates": {"target": {"metric": "loss", "min_gain": -10}}}


def number_row(n: int, street: str) -> dict:
    """Another task on the same questions' words: the number, and no JSON."""
    return {"messages": [{"role": "user", "content": f"Number of {n} {street} Street?"},
                         {"role": "assistant", "content": str(n)}]}


@dataclass(frozen=True)
class Family:
    """Two runs of two tasks on one base, each evaluated."""

    home: Path
    streets: str
    numbers: str

    def report(self, run_id: str) -> dict:
        return json.loads((self.home / "runs" / run_id / "report" / "report.json").read_text())


@pytest.fixture(scope="module")
def grown(finished, lively_base, tmp_path_factory) -> Family:
    folder = tmp_path_factory.mktemp("family")
    shutil.copytree(finished.home, folder / "home")
    write_jsonl(folder / "train.jsonl", [number_row(n * 7 + 1, STREETS[n % 8]) for n in range(24)])
    write_jsonl(folder / "test.jsonl", [number_row(n * 9 + 300, STREETS[n % 8]) for n in range(10)])
    recipe = yaml.safe_load(finished.recipe.read_text()) | ASKED | {"name": "numbers"}
    recipe["method"] = {"type": "lora", "rank": 4, "alpha": 8, "rslora": True, "targets": ["q_proj", "v_proj", "down_proj"]}
    recipe["train"] |= {"epochs": 6, "tokens_per_step": 256}
    recipe["eval"] |= {"metrics": ["exact_match", "loss"], "baselines": ["zero_shot"], "samples": 6, "max_new_tokens": 8}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(folder / "home"))
        numbers = tunesmith.train(folder / "recipe.yaml")["run_id"]
        tunesmith.evaluate(numbers)
    return Family(folder / "home", finished.done["run_id"], numbers)


@pytest.fixture
def family(grown, monkeypatch) -> Family:
    """Add runs to it; what is there is only read."""
    monkeypatch.setenv("TUNESMITH_HOME", str(grown.home))
    return grown


@pytest.fixture
def apart(grown, home) -> Family:
    """A copy that a test may spoil."""
    shutil.copytree(grown.home, home)
    return Family(home, grown.streets, grown.numbers)


@pytest.fixture(scope="module")
def both(grown):
    """(the state of a run composed of both by cat, its report)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(grown.home))
        state = tunesmith.compose("both", [(grown.streets, 1.0), (grown.numbers, 0.5)])
        said: list[str] = []
        tunesmith.evaluate(state["run_id"], say=said.append)
    return Run(Path(state["run_dir"])).state, grown.report(state["run_id"])


# ---- the run ---------------------------------------------------------------------------------------------------------


def test_it_has_all_that_a_run_has_and_says_what_it_is_of(both, family):
    state, _ = both
    folder = Path(state["run_dir"])
    trained = {p.name for p in (family.home / "runs" / family.streets).iterdir() if not p.name.startswith("checkpoint")}
    assert {p.name for p in folder.iterdir()} == trained
    of_trained = json.loads((family.home / "runs" / family.numbers / "run.json").read_text()).keys()
    assert {"status", "adapter_digest", "trainable_parameters", "rows_trained", "threads", "dtype"} <= state.keys() & of_trained
    assert (state["status"], state["steps"], state["name"]) == ("finished", 0, "both")
    record = state["composed"]
    assert (record["how"], record["rank"], record["density"], record["seed"]) == ("cat", 12, None, None)
    assert [(p["id"], p["weight"], p["system"], p["sets"]) for p in record["parents"]] == [
        (family.streets, 1.0, "parent_tiny", ["tiny-test"]), (family.numbers, 0.5, "parent_numbers", ["numbers-test"])]
    kept = json.loads((folder / "adapter" / "tunesmith.json").read_text())["composed"]
    assert kept["parents"][0]["adapter_digest"] == record["parents"][0]["adapter_digest"]
    assert str(family.home) not in json.dumps(kept), "a release is the same wherever it is made"
    recipe = tunesmith.show(state["run_id"])
    assert recipe["kind"] == "run" and tunesmith.watch(state["run_id"])["status"] == "finished"
    assert state["run_id"] in [r["run_id"] for r in tunesmith.runs()["runs"]]
    assert Run(folder).recipe().recipe.eval.baselines == ["zero_shot"]


def test_its_recipe_can_be_trained_one_adapter_on_all_rows(both, family):
    checked = tunesmith.check(Path(both[0]["run_dir"]) / "recipe.yaml")
    assert checked["ok"], checked["problems"]
    recipe = Run(Path(both[0]["run_dir"])).recipe().recipe
    assert list(recipe.data.test) == ["tiny-test", "numbers-test"] and recipe.eval.metrics == ["exact_match", "loss"]


def test_the_same_composition_is_the_same_adapter_and_data(both, family):
    again = tunesmith.compose("both", [(family.streets, 1.0), (family.numbers, 0.5)])
    assert again["adapter_digest"] == both[0]["adapter_digest"] and again["dataset_id"] == both[0]["dataset_id"]


def test_its_dataset_has_all_rows_and_test_sets(both, family):
    dataset = Dataset.open(family.home / "datasets" / both[0]["dataset_id"])
    parents = [Run(family.home / "runs" / i).dataset() for i in (family.streets, family.numbers)]
    assert dataset.tests == ["tiny-test", "numbers-test"]
    assert len(dataset.rows("train")) == sum(len(p.rows("train")) for p in parents)
    for name, parent in zip(dataset.tests, parents, strict=True):
        mine, theirs = dataset.tokens(name), parent.tokens("test")
        assert [mine[i] for i in range(len(mine))] == [theirs[i] for i in range(len(theirs))]


# ---- measured against its parents ------------------------------------------------------------------------------------


def test_every_parent_answers_every_test_set_with_the_composed_adapter_and_the_base(both):
    for part in both[1]["sets"].values():
        for metric in part["metrics"].values():
            assert metric["systems"].keys() == {"zero_shot", "tuned", "parent_tiny", "parent_numbers"}
            assert [(p["a"], p["b"]) for p in metric["pairs"]] == [("tuned", "parent_tiny"), ("tuned", "parent_numbers")]
    metrics = {name: list(part["metrics"]) for name, part in both[1]["sets"].items()}
    assert [part.get("max_new_tokens") for part in both[1]["sets"].values()] == [None, 8], "24 is the first parent's"
    assert not any("hit the limit of 24 tokens" in line and "numbers-test" in line for line in both[1]["worry"])
    assert metrics == {"tiny-test": ["exact_match", "json_f1", "loss", "perplexity"], "numbers-test": ["exact_match", "loss"]}


@pytest.mark.parametrize("which, name", [("streets", "tiny-test"), ("numbers", "numbers-test")])
def test_a_parent_scores_on_its_own_task_what_its_own_report_says(both, family, which, name):
    """The same rows, answers and numbers: nothing of the parent was changed, and nothing else was asked."""
    run_id = getattr(family, which)
    own, here = family.report(run_id)["sets"]["test"], both[1]["sets"][name]
    system = {"streets": "parent_tiny", "numbers": "parent_numbers"}[which]
    assert [i["answers"][system] for i in here["items"]] == [i["answers"]["tuned"] for i in own["items"]]
    assert [i["prompt"] for i in here["items"]] == [i["prompt"] for i in own["items"]]
    for metric, m in own["metrics"].items():
        assert here["metrics"][metric]["systems"][system]["value"] == pytest.approx(m["tuned"], rel=1e-6)
        assert here["metrics"][metric]["base"] == pytest.approx(m["base"], rel=1e-6)


@pytest.mark.parametrize("weights, mine, other", [((1.0, 0.0), "parent_tiny", "numbers-test"),
                                                  ((0.0, 1.0), "parent_numbers", "tiny-test")])
def test_with_one_weight_it_is_that_parent_and_is_told_what_it_lost_of_the_other(family, weights, mine, other):
    state = tunesmith.compose("one", list(zip((family.streets, family.numbers), weights, strict=True)))
    done = tunesmith.evaluate(state["run_id"])
    report = family.report(state["run_id"])
    for part in report["sets"].values():
        for item in part["items"]:
            assert item["answers"]["tuned"] == item["answers"][mine]
        for m in part["metrics"].values():
            assert m["tuned"] == pytest.approx(m["systems"][mine]["value"], rel=1e-4)
    same, lost = sorted(report["composition"]["compared"], key=lambda c: c["set"] == other)
    assert same["call"] == "not_shown" and "not shown to be worse than its parent" in same["message"]
    assert abs(same["delta"]) < 1e-3
    assert (lost["set"], lost["call"]) == (other, "worse") and "is worse than its parent" in lost["message"]
    assert lost["message"] in report["worry"] and lost["message"] in done["composition"]
    gate = judge(gathered(Run(Path(state["run_dir"])), report))[-1]
    assert (gate.name, gate.verdict, gate.evidence["set"]) == ("composition", "fail", other)
    assert "against " in gate.evidence["message"] and gate.evidence["fix"]


def test_the_page_has_the_parents(both, family):
    state, report = both
    page = (Path(state["run_dir"]) / "report" / "report.html").read_text()
    assert 'id="parents"' in page and "Against its parents" in page and "parent numbers" in page
    for found in report["composition"]["compared"]:
        assert found["message"].split(":")[0] in page
    assert 'id="training"' not in page and f"{family.numbers}, weight 0.5" in page
    trained = (family.home / "runs" / family.streets / "report" / "report.html").read_text()
    assert 'id="parents"' not in trained and 'id="training"' in trained


def test_a_trained_run_has_no_composition(family):
    report = family.report(family.streets)
    assert "composition" not in report
    run = Run(family.home / "runs" / family.streets)
    assert "composition" not in [g.name for g in judge(gathered(run, report))]


# ---- it goes on like any run -----------------------------------------------------------------------------------------


def test_it_is_refused_for_its_loss_and_released_where_the_loss_is_allowed(family):
    strict = tunesmith.compose("all-of-it", [(family.streets, 1.0), (family.numbers, 0.0)], max_drop=0.0, max_loss_rise=0.0)
    tunesmith.evaluate(strict["run_id"])
    refused = tunesmith.release(strict["run_id"])
    assert refused["verdict"] == "refused" and "composition" in [g["name"] for g in refused["gates"] if g["verdict"] != "pass"]
    loose = tunesmith.compose("all-of-it", [(family.streets, 1.0), (family.numbers, 0.1)], max_drop=1.0, max_loss_rise=100.0)
    tunesmith.evaluate(loose["run_id"])
    done = tunesmith.release(loose["run_id"])
    assert done["verdict"] == "pass", done["gates"]
    release = Release.find(done["release_id"])
    assert release.manifest["adapter"]["method"] == "lora, composed by cat"
    assert tunesmith.compare(done["release_id"], family.streets)["speed"]["steps"][0] == 0
    assert tunesmith.compare(loose["run_id"], family.numbers)["recipe"]
    again = tunesmith.compose("twice", [(done["release_id"], 1.0), (family.numbers, 0.2)])
    assert [(p["id"], p["sets"]) for p in again["composed"]["parents"]] == [
        (done["release_id"], ["tiny-test", "numbers-test"]), (family.numbers, ["test"])]
    assert again["composed"]["sets"]["numbers-test"]["metrics"] == ["exact_match", "loss"]


def test_it_is_served_and_merged_as_it_was_composed(both, family):
    from tunesmith.api.server import load_engine
    from tunesmith.models.load import model_of

    run = Run(Path(both[0]["run_dir"]))
    engine = load_engine([], [], None, runs=[both[0]["run_id"], family.streets])
    assert both[0]["run_id"] in engine.served
    engine.close()
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.inference_mode():
        adapted = methods.load(model_of(run.base(), torch.float32), run.adapter)
        expected = adapted(input_ids=ids).logits
        merged = methods.merge(adapted)(input_ids=ids).logits
    assert (merged - expected).abs().max() < 1e-3


@pytest.mark.slow
def test_it_leaves_the_house_as_a_merged_checkpoint_and_a_peft_directory_that_answer_as_it_does(both, family, tmp_path):
    """Layers of two ranks, and nothing special about it."""
    run_id = both[0]["run_id"]
    merged = tunesmith.merge(run_id, tmp_path / "merged")
    assert merged["verdict"] == "pass" and merged["top1_agreement"] == 1.0, merged
    exported = tunesmith.export(run_id, "peft", tmp_path / "peft", unreleased=True)
    assert exported["verdict"] == "pass", exported
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["rank_pattern"]


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_parents_of_other_bases_or_templates_are_refused(apart):
    path = apart.home / "runs" / apart.numbers / "run.json"
    state = json.loads(path.read_text())
    for key, value, words in (("base", state["base"] | {"digest": "sha256:other"}, "different bases"),
                              ("template_fingerprint", "other", "different chat templates")):
        path.write_text(json.dumps(state | {key: value}))
        with pytest.raises(UsageError, match=words) as error:
            tunesmith.compose("x", [(apart.streets, 1.0), (apart.numbers, 1.0)])
        assert error.value.why and error.value.fix and error.value.where


def test_a_run_that_has_no_adapter_yet_or_another_than_it_made_is_refused(apart):
    path = apart.home / "runs" / apart.numbers / "run.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"status": "stopped"}))
    with pytest.raises(UsageError, match="is stopped"):
        tunesmith.compose("x", [(apart.streets, 1.0), (apart.numbers, 1.0)])
    path.write_text(json.dumps(state))
    with open(path.parent / "adapter" / "adapter_model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(StoreError, match="is not the one that it made"):
        tunesmith.compose("x", [(apart.streets, 1.0), (apart.numbers, 1.0)])


def test_a_parent_that_is_gone_or_changed_is_told_before_anything_is_measured(apart):
    made = tunesmith.compose("x", [(apart.streets, 1.0), (apart.numbers, 1.0)])
    directory = apart.home / "runs" / apart.numbers / "adapter"
    config = (directory / "adapter_config.json").read_text()
    (directory / "adapter_config.json").write_text(config + " ")
    with pytest.raises(StoreError, match="is not the one that was composed"):
        tunesmith.evaluate(made["run_id"])
    shutil.rmtree(directory)
    with pytest.raises(StoreError, match="is gone"):
        tunesmith.evaluate(made["run_id"])


def test_a_dataset_that_is_gone_is_named(apart):
    state = json.loads((apart.home / "runs" / apart.numbers / "run.json").read_text())
    shutil.rmtree(apart.home / "datasets" / state["dataset_id"])
    with pytest.raises(NotFoundError, match="the dataset of numbers"):
        tunesmith.compose("x", [(apart.streets, 1.0), (apart.numbers, 1.0)])


def test_nothing_is_left_of_a_composition_that_is_refused(family):
    before = sorted(p.name for p in (family.home / "runs").iterdir())
    with pytest.raises(AdapterError, match="not finite"):
        tunesmith.compose("x", [(family.streets, 1e39), (family.numbers, 1.0)])
    assert sorted(p.name for p in (family.home / "runs").iterdir()) == before


@pytest.mark.parametrize("arguments, words", [
    ([], "Missing option '--adapter'"), (["--adapter", "STREETS"], "nothing to compose"),
    (["--adapter", "STREETS=a", "--adapter", "NUMBERS"], "'a' is no weight"),
    (["--adapter", "STREETS", "--adapter", "nobody"], "no run 'nobody'"),
    (["--adapter", "STREETS", "--adapter", "STREETS=2"], "are the same adapter"),
    (["--adapter", "STREETS", "--adapter", "NUMBERS", "--how", "linear"], "needs adapters of one rank"),
    (["--adapter", "STREETS", "--adapter", "NUMBERS", "--rank", "3"], "--rank changes nothing"),
    (["--adapter", "STREETS", "--adapter", "NUMBERS=nan"], "is nan"),
])
def test_the_command_says_what_is_wrong(command, family, arguments, words):
    given = [a.replace("STREETS", family.streets).replace("NUMBERS", family.numbers) for a in arguments]
    assert words in command("compose", "x", *given, check=2).stderr


def test_a_bad_name_is_said(command, family):
    done = command("compose", "Not A Name", "--adapter", family.streets, "--adapter", family.numbers, "--json", check=2)
    assert "name" in done.json["what"] and done.json["fix"]


def test_the_command_composes_and_says_how_it_goes_on(command, family):
    done = command("compose", "few", "--adapter", f"{family.streets}=0.5", "--adapter", f"{family.numbers}=0.5", "--how", "svd",
                   "--rank", "2", check=0)
    assert "it is not the weighted sum of its parents" in done.stderr and "higher --rank keeps more" in done.stderr
    assert done.stdout.splitlines()[1].startswith("next: tunesmith eval few-")


def test_a_weight_is_what_stands_behind_the_last_equals_sign():
    assert parsed("run-1") == ("run-1", 1.0)
    assert parsed("a=b/run=-0.25") == ("a=b/run", -0.25)
