"""MLflow's registry shows what is released and where channels point; when it fails, nothing else does.

pytest tests/track/test_mirror.py
"""

import json
import shutil
from pathlib import Path

import pytest

import tunesmith
from tunesmith.releases.bundle import MANIFEST, Release
from tunesmith.store.files import sha256_file, sha256_json, sha256_tree, write_json
from tunesmith.track import mlflow as track


def tracked(folder: Path, **values) -> None:
    """A resolved recipe that tracks."""
    path = folder / "recipe.resolved.json"
    recipe = json.loads(path.read_text())
    write_json(path, recipe | {"track": recipe["track"] | {"mlflow": "sqlite"} | values})


@pytest.fixture
def registry(project, migrated):
    """The finished project as if it had been tracked: its run is in the store, with the model that training registers."""
    from mlflow import MlflowClient

    shutil.copy(migrated, project.home)
    tracked(project.run_dir)
    shutil.rmtree(project.home / "releases")
    tracker = track.start("sqlite", project.home, experiment="tiny", run_name="r", params={}, tags={})
    state = json.loads((project.run_dir / "run.json").read_text())
    model = tracker.adapter("tiny", project.run_dir / "adapter", params={}, tags={"tunesmith.adapter": state["adapter_digest"]})
    tracker.finish()
    write_json(project.run_dir / "run.json", state | {"mlflow_run_id": tracker.run_id, "mlflow_model": model})
    return MlflowClient(tracker.uri, registry_uri=tracker.uri)


@pytest.fixture
def first(project, registry) -> dict:
    return tunesmith.release(project.done["run_id"])


def aliases(registry, name: str = "tiny") -> dict[str, str]:
    """`{alias: release id}`, as MLflow has them."""
    found = registry.get_registered_model(name).aliases
    return {alias: registry.get_model_version(name, version).tags["tunesmith.release_id"] for alias, version in found.items()}


def later(rebundled, first: dict, name: str, day: int, **changes) -> str:
    return rebundled(first["release_id"], created=f"2099-01-{day:02}T00:00:00Z", metrics={"name": name}, **changes)


def test_a_release_is_the_version_that_training_registered_with_its_verdicts(project, registry, first):
    release = Release.find(first["release_id"])
    assert first["mlflow"] == {"name": "tiny", "version": 1, "aliases": {"challenger": release.id, "champion": None}}
    (version,) = registry.search_model_versions("name = 'tiny'")
    assert version.tags["tunesmith.release_id"] == release.id
    assert version.tags["tunesmith.manifest"] == sha256_file(release.path / MANIFEST)
    assert version.tags["tunesmith.adapter"] == sha256_json(sha256_tree(release.adapter))
    assert version.tags["tunesmith.verdict"] == "pass"
    assert {k.removeprefix("tunesmith.gate."): v for k, v in version.tags.items() if k.startswith("tunesmith.gate.")} == {
        g["name"]: g["verdict"] for g in first["gates"]}
    artifact = Path(version.source.removeprefix("file://"))
    assert sha256_tree(artifact) == sha256_tree(release.adapter), "its source is the adapter itself"
    assert aliases(registry) == {"challenger": release.id}


def test_releasing_again_makes_no_second_version(project, registry, first):
    assert tunesmith.release(project.done["run_id"])["mlflow"] == first["mlflow"]
    assert len(registry.search_model_versions("name = 'tiny'")) == 1


def test_promote_and_rollback_move_the_champion_and_the_challenger_is_what_was_never_promoted(registry, first, rebundled):
    a, b, c = first["release_id"], later(rebundled, first, "b", 1), later(rebundled, first, "c", 2)
    moved = tunesmith.promote(a, "production")
    assert moved["mlflow"]["aliases"] == {"champion": a, "challenger": None}, "c is not known there yet"
    for release_id in (b, c):
        tunesmith.promote(release_id, "elsewhere")
    assert aliases(registry) == {"champion": a, "challenger": c}
    tunesmith.promote(c, "production")
    assert aliases(registry) == {"champion": c}, "b is older than the champion"
    moved = tunesmith.rollback("production")
    assert moved["mlflow"]["aliases"] == {"champion": a, "challenger": b}
    assert aliases(registry) == {"champion": a, "challenger": b}, "c was promoted, and taken back"
    assert len({v.tags["tunesmith.release_id"] for v in registry.search_model_versions("name = 'tiny'")}) == 3


def test_a_channel_with_another_name_has_the_alias_that_the_recipe_gives_it(registry, first, rebundled):
    wanted = {"eu-prod": "eu", "production": "champion"}
    mapped = later(rebundled, first, "m", 3, edit=lambda folder: tracked(folder, aliases=wanted))
    tunesmith.promote(mapped, "eu-prod")
    assert aliases(registry)["eu"] == mapped
    tunesmith.promote(first["release_id"], "staging")
    assert aliases(registry)["eu"] == mapped, "a channel that nobody mapped has none"


def test_an_alias_leaves_the_model_whose_channel_went_on_to_another(registry, first, rebundled):
    renamed = rebundled(first["release_id"], name="other")
    tunesmith.promote(first["release_id"], "production")
    assert aliases(registry)["champion"] == first["release_id"]
    tunesmith.promote(renamed, "production")
    assert aliases(registry, "other") == {"champion": renamed}
    assert "champion" not in aliases(registry)


def test_a_release_from_elsewhere_is_registered_with_its_adapter(project, registry, first, tmp_path):
    """Pulled into a home that has a registry and not the run."""
    tunesmith.push(first["release_id"], str(tmp_path / "store"))
    for kind in ("releases", "runs"):
        shutil.rmtree(project.home / kind)
    tunesmith.pull(first["release_id"], str(tmp_path / "store"))
    release = Release.find(first["release_id"])
    registry.delete_registered_model("tiny")
    done = tunesmith.promote(release.id, "production")
    assert done["mlflow"]["aliases"] == {"champion": release.id, "challenger": None}
    version = registry.get_model_version_by_alias("tiny", "champion")
    assert sha256_tree(Path(version.source.removeprefix("file://"))) == sha256_tree(release.adapter)


def test_without_a_registry_none_is_made_and_an_untracked_release_says_nothing(project):
    done = tunesmith.promote(project.done["release_id"], "production")
    assert "mlflow" not in done and not (project.home / "mlflow.db").exists()


def test_a_registry_that_fails_undoes_nothing_and_is_said(project, registry, first, rebundled, command):
    second = later(rebundled, first, "s", 5)
    tunesmith.promote(first["release_id"], "production")
    whole = (project.home / "mlflow.db").read_bytes()
    (project.home / "mlflow.db").write_text("this is not a database " * 100)
    done = command("promote", second, "--to", "production", "--json", check=0)
    assert done.json["release_id"] == second
    assert done.json["mlflow"]["error"]["what"].startswith("MLflow could not") and "tracking:" in done.stderr
    state = json.loads((project.home / "channels" / "production.json").read_text())
    assert state["release_id"] == second
    (project.home / "mlflow.db").write_bytes(whole)
    assert aliases(registry)["champion"] == first["release_id"], "the control: it has missed that"
    tunesmith.promote(second, "production")
    assert aliases(registry)["champion"] == second, "and catches up with the next move"
