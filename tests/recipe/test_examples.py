"""`init` copies an example that works as it is, and overwrites nothing.

    python -m pytest tests/recipe/test_examples.py
"""

from __future__ import annotations

import pytest

from tunesmith.errors import UsageError
from tunesmith.recipe.examples import NAMES, copy
from tunesmith.recipe.load import load


@pytest.mark.parametrize("name", NAMES)
def test_copy_of_an_example_loads(tmp_path, name):
    made = copy(name, tmp_path / "new")
    loaded = load(made["recipe"])
    train = loaded.recipe.data.train
    assert loaded.folder == tmp_path / "new" and loaded.resolve(train if isinstance(train, str) else train[0]).exists()
    assert str(tmp_path / "new") == made["path"]


def test_empty_directory_is_used_and_a_full_one_refused(tmp_path):
    copy("style", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="not empty") as error:
        copy("addresses", tmp_path)
    assert error.value.exit_code == 2 and sorted(tmp_path.rglob("*")) == before


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        copy("style", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_unknown_example_names_the_known_ones(tmp_path):
    with pytest.raises(UsageError) as error:
        copy("poems", tmp_path / "new")
    assert "addresses, style" in error.value.fix and not (tmp_path / "new").exists()
