"""The examples that ship with the package: real data, with its licence and the script that made it."""

from __future__ import annotations

import shutil
from pathlib import Path

from tunesmith.errors import UsageError

NAMES = ("addresses", "style")


def copy(name: str, directory: Path) -> dict:
    """Copy example `name` into a new directory. Returns `{path, recipe}`.

    Raises:
        UsageError: no such example, or the directory has something in it.
    """
    if name not in NAMES:
        raise UsageError(f"no example {name!r}", fix=f"one of {', '.join(NAMES)}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError("the directory is not empty", where=str(directory), fix="give a new one: nothing is overwritten")
    shutil.copytree(_folder() / name, directory, dirs_exist_ok=True)
    path = directory.absolute()
    return {"path": str(path), "recipe": str(path / "recipe.yaml")}


def _folder() -> Path:
    """Inside an installed wheel, or beside `src` in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "_examples"
    return installed if installed.is_dir() else package.parent.parent / "examples"
