"""A rollback, rehearsed: what is whole comes back word for word, and whatever is not is named.

pytest tests/releases/test_drill.py
"""

import json
import shutil
import time
from dataclasses import replace

import pytest

import tunesmith
from tunesmith.errors import AdapterError, NotFoundError, StoreError, TemplateError
from tunesmith.recipe.evaluation import RollbackGate
from tunesmith.recipe.schema import Recipe
from tunesmith.releases import drill
from tunesmith.releases.bundle import MANIFEST, Release, _release_id
from tunesmith.releases.gates import Evidence, rollback
from tunesmith.store.files import sha256_tree, write_json


def edited(folder, change):
    """`change(manifest)`, and every digest after it: a bundle that is whole in itself. Returns its new place."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest["files"] = {n: d for n, d in sha256_tree(folder).items() if n != MANIFEST}
    manifest["release_id"] = _release_id(manifest)
    write_json(folder / MANIFEST, manifest)
    return folder.rename(folder.with_name(manifest["release_id"]))


def copied(release: Release, name: str, change=lambda _folder: None, manifest=lambda _m: None):
    """A whole bundle beside the first, another in its name and in what `change` and `manifest` do to it."""
    folder = release.path.with_name("being-made")
    shutil.copytree(release.path, folder)
    change(folder)

    def rename(values):
        values["name"] = name
        manifest(values)

    return edited(folder, rename)


@pytest.fixture
def release(project) -> Release:
    return Release.find(project.done["release_id"])


def edit_golden(folder):
    goldens = json.loads((folder / "golden.json").read_text())
    goldens[2]["answer"] += "!"
    write_json(folder / "golden.json", goldens)


# ---- through the command line, in a fresh process --------------------------------------------------------------------


@pytest.mark.slow
def test_a_whole_release_comes_back_word_for_word_and_the_channel_stays(release, command, home):
    second = copied(release, "second").name
    for r in (release.id, second):
        tunesmith.promote(r, "production")
    before = (home / "channels" / "production.json").read_bytes()
    done = command("rollback", "production", "--drill", "--why", "before the night", "--json", check=0).json
    assert (done["channel"], done["release_id"], done["previous"]) == ("production", second, release.id)
    assert done["identical"] and done["seconds"] > 0 and done["environment"] == {"differs": {}}
    goldens = json.loads((release.path / "golden.json").read_text())
    answers = [g["answer"] for g in goldens]
    assert [c["expected"] for c in done["checked"]] == [c["said"] for c in done["checked"]] == answers
    assert len(set(answers)) > 2 and [c["question"] for c in done["checked"]] == \
        [g["messages"][-1]["content"] for g in goldens]
    assert (home / "channels" / "production.json").read_bytes() == before
    kept = drill.last_drill(release.id)
    assert kept["identical"] and kept["questions"] == 8 and kept["why"] == "before the night" and kept["by"] and kept["at"]
    assert drill.last_drill(second) is None


@pytest.mark.slow
def test_control_a_golden_that_was_edited_is_named_and_is_exit_code_1(release, command):
    tunesmith.promote(copied(release, "edited", edit_golden).name, "production")
    done = command("verify", "replay", "production", check=1)
    answer = json.loads((release.path / "golden.json").read_text())[2]["answer"]
    assert "DIFFERENT: 1 of 8 goldens of rel-" in done.stdout
    assert f"  released: {answer + '!'!r}" in done.stdout and f"  now:      {answer!r}" in done.stdout


def test_a_damaged_release_is_named_and_remembered_as_a_failed_drill(release, command):
    second = copied(release, "second").name
    for r in (release.id, second):
        tunesmith.promote(r, "production")
    weights = release.adapter / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    done = command("rollback", "production", "--drill", check=1)
    assert "adapter/adapter_model.safetensors" in done.stderr and "is not as it was released" in done.stderr
    assert drill.last_drill(release.id)["identical"] is False
    assert tunesmith.show("production")["release_id"] == second


def test_nothing_to_go_back_to_and_an_unknown_channel(release, command):
    command("rollback", "production", "--drill", check=2)
    tunesmith.promote(release.id, "production")
    assert "nothing to roll back to" in command("rollback", "production", "--drill", check=2).stderr
    with pytest.raises(NotFoundError):
        tunesmith.verify_replay("rel-none")


# ---- what the fresh process does, one fault at a time ----------------------------------------------------------------


def test_control_what_is_whole_says_its_goldens(release):
    assert drill.restored(release.path) == [g["answer"] for g in json.loads((release.path / "golden.json").read_text())]


def test_another_template_in_the_bundle_is_refused(release):
    def change(folder):
        path = folder / "tokenizer" / "chat_template.jinja"
        path.write_text(path.read_text().replace("assistant\n'", "assistant:\n'"))

    changed = copied(release, "template", change)
    assert (changed / "tokenizer" / "chat_template.jinja").read_text() != \
        (release.path / "tokenizer" / "chat_template.jinja").read_text()
    with pytest.raises(TemplateError, match="not the one this adapter was trained with"):
        drill.restored(changed)


def test_a_base_whose_bytes_changed_is_refused(release, lively_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(lively_base, base)
    moved = copied(release, "moved", manifest=lambda m: m["base"].update(ref=str(base)))
    assert drill.restored(moved)[0], "a copy of the base, byte for byte, is the base"
    weights = base / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(StoreError, match="is not the one release rel-.* was made on"):
        drill.restored(moved)


def test_an_adapter_of_another_base_is_refused(release):
    from safetensors.torch import load_file, save_file

    def change(folder):
        path = folder / "adapter" / "adapter_model.safetensors"
        save_file({n: w.repeat(1, 2) if "lora_A" in n else w for n, w in load_file(path).items()}, path, {"format": "pt"})

    with pytest.raises(AdapterError, match="does not fit this base"):
        drill.restored(copied(release, "wide", change))


def test_other_weights_say_something_else(release):
    """Whole in itself, served without complaint: only the goldens know."""
    from safetensors.torch import load_file, save_file

    def change(folder):
        path = folder / "adapter" / "adapter_model.safetensors"
        save_file({n: w * 0.5 for n, w in load_file(path).items()}, path, {"format": "pt"})

    changed = copied(release, "weak", change)
    goldens = json.loads((changed / "golden.json").read_text())
    assert drill.restored(changed) != [g["answer"] for g in goldens]


def test_another_environment_is_said_by_its_names():
    here = {"python": "3.11.1", "cpus": 2, "packages": {"torch": "2.13.0", "peft": "0.21"}}
    there = here | {"cpus": 4, "packages": {"torch": "2.12.0", "peft": "0.21"}}
    assert drill.differences(here, here) == {}
    assert drill.differences(there, here) == {"cpus": [4, 2], "torch": ["2.12.0", "2.13.0"]}


# ---- the gate --------------------------------------------------------------------------------------------------------

DONE = {"channel": "production", "release_id": "rel-1", "age_days": 1.0, "differs": {},
        "drill": {"identical": True, "message": "8 of 8 goldens came back word for word"}}


@pytest.mark.parametrize("changes, verdict, word", [
    ({}, "pass", "passed a drill"),
    ({"release_id": None, "drill": None, "age_days": None}, "not_measured", "points at no release"),
    ({"drill": None, "age_days": None}, "not_measured", "was never drilled"),
    ({"drill": {"identical": False, "message": "1 of 8 came back otherwise"}}, "fail", "1 of 8 came back otherwise"),
    ({"age_days": 31.0}, "not_measured", "31 days old"),
    ({"age_days": 30.0}, "pass", "30.0 days ago"),
    ({"differs": {"torch": ["2.12.0", "2.13.0"]}}, "not_measured", "torch 2.12.0 -> 2.13.0"),
], ids=["drilled", "first release", "never", "failed", "old", "just in time", "another environment"])
def test_the_gate_passes_what_was_drilled_lately_and_here(changes, verdict, word):
    recipe = Recipe.model_validate({"name": "x", "base": "b", "data": {"train": "t"}, "gates": {"rollback": {}}})
    gate = rollback(Evidence(recipe, None, {}, None, DONE | changes))
    assert gate.verdict == verdict and word in gate.evidence["message"]
    assert verdict == "pass" or gate.evidence["fix"]
    assert rollback(replace(Evidence(recipe, None, {}), fallback=None)).verdict == "not_measured"


@pytest.mark.slow
def test_a_release_asks_for_a_drill_of_what_it_would_replace(project, release, command):
    """First nothing is in the channel, then something that nobody drilled, then something that failed, then it passes."""
    path = project.run_dir / "recipe.resolved.json"
    recipe = json.loads(path.read_text())
    recipe["gates"]["rollback"] = RollbackGate().model_dump()
    path.write_text(json.dumps(recipe))

    def gate(code):
        gates = {g["name"]: g for g in command("release", project.done["run_id"], "--json", check=code).json["gates"]}
        return gates["rollback"]["verdict"], gates["rollback"]["evidence"]["message"]

    assert gate(3) == ("not_measured", "channel 'production' points at no release: there would be nothing to go back to")
    tunesmith.promote(release.id, "production")
    assert gate(3)[0] == "not_measured"
    facts = {"questions": 8, "message": "8 of 8", "environment": drill.environment()}
    drill._remember(release.id, facts | {"identical": True})
    assert gate(0)[0] == "pass"
    drill._remember(release.id, facts | {"identical": False, "message": "the base is gone"})
    verdict, message = gate(3)
    assert verdict == "fail" and "the base is gone" in message


def test_the_age_of_a_drill_is_in_days(release):
    drill._remember(release.id, {"identical": True, "questions": 8, "message": "", "environment": drill.environment()})
    tunesmith.promote(release.id, "production")
    path = drill._path(release.id)
    drills = json.loads(path.read_text())
    drills["drills"][-1]["at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3 * 86400))
    path.write_text(json.dumps(drills))
    assert drill.evidence("production")["age_days"] == pytest.approx(3.0, abs=0.01)
