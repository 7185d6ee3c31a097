"""The lock names what a run was made with, in the field's own format, and a difference is said and not refused.

pytest tests/releases/test_lock.py
"""

import json
import sys
from importlib.metadata import distributions as installed_here
from importlib.metadata import metadata, version

import pytest

import tunesmith
from tunesmith.releases.bundle import Release
from tunesmith.releases.lock import LOCK, here, lock
from tunesmith.training.environment import canonical, distributions


@pytest.fixture(scope="module")
def made(finished) -> dict:
    release = Release(finished.release_dir, json.loads((finished.release_dir / "manifest.json").read_text()))
    return release.lock()


def libraries(made: dict) -> dict[str, str]:
    return {c["name"]: c["version"] for c in made["components"] if c["type"] == "library"}


def test_it_is_valid_cyclonedx_1_6(made, finished):
    """The validator and the schema of CycloneDX's own library; and a control that it refuses."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator = JsonStrictValidator(SchemaVersion.V1_6)
    text = (finished.release_dir / LOCK).read_text()
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"type": "library"', '"type": "book"')) is not None
    assert validator.validate_str(text.replace('"bomFormat": "CycloneDX"', '"bomFormat": "Other"')) is not None


def test_it_reads_back_into_their_model_with_the_same_components(made):
    from cyclonedx.model.bom import Bom

    bom = Bom.from_json(made)
    assert {(c.name, c.version) for c in bom.components} == {(c["name"], c.get("version")) for c in made["components"]}
    assert bom.validate(), "every reference of the dependencies is to a component"


def test_every_library_is_what_is_installed_here(made):
    found = {canonical(d.metadata["Name"]): d.version for d in reversed(list(installed_here()))}  # the first on the path counts
    ours = libraries(made)
    assert ours == {name: found[name] for name in ours}
    assert {"torch", "transformers", "peft", "safetensors", "tokenizers", "numpy", "tunesmith"} <= ours.keys()
    assert "pytest" not in ours, "what only a developer needs is not in it"


def test_the_closure_is_closed_and_agrees_with_pip(made):
    """`pip show` walks the same metadata by its own code."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    ours = libraries(made)
    for name in ("transformers", "peft", "mlflow-skinny", "fastapi"):
        plain = {canonical(r.name) for r in map(Requirement, requires(name)) if r.marker is None}
        assert plain <= ours.keys(), name
    graph = {d["ref"]: d["dependsOn"] for d in made["dependencies"]}
    refs = {c["bom-ref"] for c in made["components"]} | {"adapter"}
    assert graph.keys() == refs and all(set(used) <= refs for used in graph.values())
    reached, queue = set(), ["adapter"]
    while queue:
        one = queue.pop()
        if one not in reached:
            reached.add(one)
            queue += graph[one]
    assert reached == refs, "nothing in it that nothing needs"


def test_an_extra_brings_its_distributions_and_an_unknown_one_brings_none():
    plain, quantised = ({d["name"] for d in distributions(extras)} for extras in ((), ("qlora",)))
    assert quantised >= plain and "bitsandbytes" not in plain
    assert ("bitsandbytes" in quantised) == ("qlora" in (metadata("tunesmith").get_all("Provides-Extra") or []))
    assert {d["name"] for d in distributions(["no-such-extra"])} == plain


def test_base_data_machine_and_threads_are_in_it(made, finished):
    run = json.loads((finished.run_dir / "run.json").read_text())
    facts = {p["name"]: p["value"] for p in made["metadata"]["properties"]}
    assert facts["tunesmith:python"] == sys.version.split()[0] and facts["tunesmith:threads"] == str(run["threads"])
    assert facts["tunesmith:distributions"] == "as trained"
    by_ref = {c["bom-ref"]: c for c in made["components"]}
    assert (by_ref["base"]["name"], by_ref["base"]["version"]) == (run["base"]["ref"], run["base"]["digest"])
    assert by_ref["dataset"]["name"] == run["dataset_id"]
    assert made["metadata"]["component"]["version"] == run["run_id"]
    torch = next(c for c in made["components"] if c["name"] == "torch")
    assert torch["purl"] == f"pkg:pypi/torch@{version('torch').replace('+', '%2B')}" and torch["licenses"]


def test_the_same_run_gives_the_same_lock(finished, made):
    run = json.loads((finished.run_dir / "run.json").read_text())
    environment = json.loads((finished.run_dir / "environment.json").read_text())
    assert lock(run, environment) == made
    assert lock(run | {"threads": 99}, environment)["serialNumber"] != made["serialNumber"]
    older = {k: v for k, v in environment.items() if k != "distributions"}
    facts = {p["name"]: p["value"] for p in lock(run, older)["metadata"]["properties"]}
    assert facts["tunesmith:distributions"].startswith("as released")


def test_another_machine_is_said_and_not_refused(project, rebundled, command):
    """A lock of another Python, another peft, and of something that is not installed here."""
    def edit(folder):
        found = json.loads((folder / LOCK).read_text())
        found["metadata"]["properties"][0]["value"] = "3.99.0"
        for c in found["components"]:
            c["version"] = "0.0.1" if c["name"] == "peft" else c.get("version")
        found["components"].append({"type": "library", "bom-ref": "x", "name": "no-such-thing", "version": "1"})
        (folder / LOCK).write_text(json.dumps(found))

    same = tunesmith.verify_release(project.done["release_id"])["here"]
    assert (same["same"], same["differs"]) == (True, []), "the control: nothing differs where it was made"
    other = command("verify", "release", rebundled(edit=edit), "--json", check=0).json["here"]
    assert other["same"] is False
    assert {d["what"]: (d["released"], d["here"]) for d in other["differs"]} == {
        "python": ("3.99.0", sys.version.split()[0]), "peft": ("0.0.1", version("peft")), "no-such-thing": ("1", None)}
    assert "peft 0.0.1" in other["message"]


def test_many_differences_are_counted_in_the_sentence_and_all_in_the_document(made):
    far = json.loads(json.dumps(made))
    for c in far["components"]:
        c["version"] = "0"
    found = here(far)
    assert len(found["differs"]) == len(libraries(made)) and f"and {len(libraries(made)) - 5} more" in found["message"]
