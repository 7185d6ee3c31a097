"""Adapters that are there and do nothing.

pytest tests/runbooks/test_adapter_does_nothing.py
"""

import shutil

import pytest


@pytest.fixture
def spoilt(project):
    """`spoilt(change)`: the run's weights, each as `change(name, tensor)`; returns the run's id."""
    from safetensors.torch import load_file, save_file

    path = project.run_dir / "adapter" / "adapter_model.safetensors"

    def spoil(change):
        save_file(dict(change(n, w) for n, w in load_file(path).items()), path, {"format": "pt"})
        return project.done["run_id"]

    return spoil


def test_an_adapter_of_zeros_is_not_served_until_it_is_copied_again(spoilt, project, command, page):
    from tunesmith.api.server import load_engine

    run = spoilt(lambda n, w: (n, w * 0 if "lora_B" in n else w))
    done = command("serve", "--run", run, "--port", 0, check=1)
    assert page("adapter-does-nothing").missing("nothing", done.stderr) == [], done.stderr
    shutil.copytree(project.release_dir / "adapter", project.run_dir / "adapter", dirs_exist_ok=True)
    load_engine([], [], None, [run]).close()


def test_an_adapter_with_other_names_does_not_load(spoilt, command, page):
    run = spoilt(lambda n, w: (n.replace("base_model.model.", "model."), w))
    done = command("serve", "--run", run, "--port", 0, check=1)
    assert page("adapter-does-nothing").missing("other", done.stderr) == [], done.stderr


def test_an_adapter_that_is_not_moved_ends_its_training(make_recipe, command, page):
    done = command("train", make_recipe(**{"train.clip_norm": 1.0e-50, "train.checkpoint": {"every_steps": 1000}}), check=1)
    assert page("adapter-does-nothing").missing("untrained", done.stderr) == [], done.stderr
