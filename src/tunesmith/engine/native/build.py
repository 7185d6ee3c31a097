"""Compile the kernels in C once a machine, load it, and trust it only after it has agreed with torch.

The library is cached under the digest of everything that went into it: source, compiler, flags, processor. It is
compiled for the processor at hand (-march=native), which a cache shared by two kinds of machines must not mix up.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache as remember
from pathlib import Path

import torch

from tunesmith.store.home import cache

FOLDER = Path(__file__).parent
SOURCES = tuple(FOLDER / name for name in ("attention.c", "decode.c", "kernels.c", "pages.c", "pool.c"))
HEADER = FOLDER / "common.h"
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-pthread", "-fPIC", "-shared")
DTYPES = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}
SECONDS = 120
"""More than this, and the compiler is given up."""


@dataclass(frozen=True, slots=True)
class Library:
    """The kernels of one dtype."""

    functions: ctypes.CDLL
    digest: str
    """Of source, compiler, flags and processor."""


_loaded: dict[torch.dtype, Library] = {}
_used = ContextVar("kernels are used", default=False)


def start() -> str | None:
    """Load the kernels; None, or the reason why torch's own operations are used instead."""
    if not _loaded:
        found, reason = _load_all()
        if reason:
            return reason
        _loaded.update(found)
    return None


def stop() -> None:
    """Compute everything with torch again."""
    _loaded.clear()


@contextmanager
def used() -> Iterator[None]:
    """Inside, replaced modules use the kernels; outside, a model computes what transformers computes, to the last bit."""
    token = _used.set(True)
    try:
        yield
    finally:
        _used.reset(token)


def library_for(x: torch.Tensor) -> Library | None:
    """The kernels for a tensor; None: not on the CPU, of another dtype, outside of `used`, or kernels are not loaded."""
    return _loaded.get(x.dtype) if x.device.type == "cpu" and _used.get() else None


def digest() -> str:
    """Of the kernels in use, `torch` where there are none: two runs agree bit for bit only if these do."""
    return next((library.digest for library in _loaded.values()), "torch")


@remember
def _load_all() -> tuple[dict[torch.dtype, Library], str | None]:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return {}, "no C compiler was found"
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=SECONDS).stdout
        texts = [path.read_bytes() for path in (*SOURCES, HEADER)]
        parts = *texts, version.encode(), _processor().encode(), " ".join(FLAGS).encode()
        name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]
        made = {dtype: Library(_library(compiler, name, dtype), name) for dtype in DTYPES}
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return {}, f"the C compiler failed: {said.strip().splitlines()[-1] if said.strip() else type(error).__name__}"
    from tunesmith.engine.native import decode, functions

    for dtype, library in made.items():
        if what := functions.disagreement(library, dtype) or decode.disagreement(library, dtype):
            return {}, f"the compiled {what} differs from torch's"
    return made, None


def _library(compiler: str, name: str, dtype: torch.dtype) -> ctypes.CDLL:
    """Compiled into the cache, in one rename; another process that does the same writes the same file."""
    folder = cache() / "kernels"
    path = folder / f"{name}-{str(dtype).removeprefix('torch.')}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / path.name
            subprocess.run([compiler, *FLAGS, *DTYPES[dtype], *map(str, SOURCES), "-o", str(made), "-lm"], check=True,
                           capture_output=True, text=True, timeout=SECONDS)
            os.replace(made, path)
    return ctypes.CDLL(str(path))


def _processor() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.split("\t")[0].split(":")[0].strip() in wanted))
