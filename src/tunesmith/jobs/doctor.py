"""`tunesmith doctor`: whether this machine can do what will be asked of it, found out by doing it.

Each check is `{name, status: ok|warning|fail, message, fix}`. A warning costs speed or a feature; a failure stops something
that everybody needs.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator

from tunesmith.errors import TunesmithError

ROOM_BYTES = 5 * 10**9
"""What an example, its base and its checkpoints take, several times over."""
MEMORY_BYTES = 3 * 10**9
"""The example's training takes half of it."""
EXTRAS = {"bitsandbytes": ("qlora", "QLoRA in fewer bytes on a GPU"), "oras": ("registry", "releases in an OCI registry"),
          "tensorboardX": ("tensorboard", "TensorBoard event files"), "s3fs": ("s3", "releases in S3"),
          "xllamacpp": ("llamacpp", "asking GGUF exports in llama.cpp"),
          "psycopg": ("postgresql", "PostgreSQL for the service"), "ray": ("ray", "data stages over Ray")}
Check = dict[str, str | None]
LESS_MEMORY = "`tunesmith check RECIPE` says what a training takes; a smaller train.tokens_per_pack takes less"


def examine() -> dict:
    """`{ok, checks[]}`; ok means that nothing failed."""
    checks = [one for look in (_python, _torch, _kernels, _processors, _memory, _disk, _home, _database, _bases, _extras)
              for one in _carefully(look)]
    return {"ok": all(c["status"] != "fail" for c in checks), "checks": checks}


def _carefully(look: Callable[[], Iterator[Check]]) -> list[Check]:
    try:
        return list(look())
    except TunesmithError as error:
        return [_check(look.__name__.strip("_"), "fail", error.what + (f" ({error.why})" if error.why else ""), error.fix)]


def _check(name: str, status: str, message: str, fix: str | None = None) -> Check:
    return {"name": name, "status": status, "message": message, "fix": fix}


def _python() -> Iterator[Check]:
    fits = sys.version_info >= (3, 11)
    yield _check("python", "ok" if fits else "fail", f"{platform.python_version()} on {platform.system()} {platform.machine()}",
                 None if fits else "use Python 3.11 or newer")


def _torch() -> Iterator[Check]:
    import torch

    from tunesmith.engine.precision import choose

    choice = choose()
    yield _check("torch", "ok", f"{torch.__version__}, {choice.because.removeprefix('chose ')}")


def _kernels() -> Iterator[Check]:
    import torch

    from tunesmith.engine.native import build

    if torch.cuda.is_available():
        yield _check("kernels", "ok", f"GPU: {torch.cuda.get_device_name()}; the kernels in C are for processors")
        return
    trouble = build.start()
    if trouble:
        yield _check("kernels", "warning", f"no kernels in C: {trouble}; trainings give the same and take longer",
                     "install gcc or clang")
    else:
        yield _check("kernels", "ok", "compiled for this processor")


def _processors() -> Iterator[Check]:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    if threads > usable:
        yield _check("processors", "warning", f"{threads} threads on {usable} processors wait for each other",
                     f"set OMP_NUM_THREADS={usable}")
    elif load > usable * 1.5:
        yield _check("processors", "warning", f"{usable} processors, and a load of {load:.1f}: others work here too",
                     "expect trainings to take longer than estimated")
    else:
        yield _check("processors", "ok", f"{usable} processors, {threads} threads, load {load:.1f}")


def _memory() -> Iterator[Check]:
    from tunesmith.engine.memory import available_bytes

    free = available_bytes()
    if free is None:
        yield _check("memory", "warning", "this system does not say how much memory is free", None)
    else:
        enough = free >= MEMORY_BYTES
        yield _check("memory", "ok" if enough else "warning", f"{free / 1e9:.1f} GB free", None if enough else LESS_MEMORY)


def _disk() -> Iterator[Check]:
    from tunesmith.store.home import cache, home

    for name, place in (("home", home()), ("cache", cache())):
        there = next(p for p in (place, *place.parents) if p.exists())
        free = shutil.disk_usage(there).free
        enough = free >= ROOM_BYTES
        yield _check(f"disk of the {name}", "ok" if enough else "warning", f"{free / 1e9:.1f} GB free at {place}",
                     None if enough else f"free some space, or set TUNESMITH_{name.upper()} to a disk that has room")


def _home() -> Iterator[Check]:
    from tunesmith.store.files import explain_os_errors, held, write_json
    from tunesmith.store.home import home

    place = home() / ".doctor"
    with explain_os_errors(place, "write"):
        place.mkdir(parents=True, exist_ok=True)
    try:
        write_json(place / "written.json", {"by": "doctor"})
        try:
            with held(place):
                locks = True
        except OSError:
            locks = False
    finally:
        shutil.rmtree(place, ignore_errors=True)
    yield (_check("home", "ok", f"{home()} can be written to, and locks hold") if locks else
           _check("home", "warning", f"{home()} is on a file system without locks: two processes can train one run",
                  "set TUNESMITH_HOME to a local disk"))


def _database() -> Iterator[Check]:
    from tunesmith.jobs import places
    from tunesmith.jobs.database import Database

    url = os.environ.get("TUNESMITH_DATABASE") or places.default_database()
    if url == places.default_database() and not (places.service() / "service.db").exists():
        yield _check("database", "ok", "none yet: `tunesmith serve` makes one")
        return
    database = Database(url)
    database.close()
    yield _check("database", "ok", f"{database.shown} opens, with the tables of this version")


def _bases() -> Iterator[Check]:
    from tunesmith.store.home import cache

    kept = sorted(p.name for p in (cache() / "bases").glob("*") if p.is_dir() and not p.name.startswith("."))
    yield _check("bases", "ok", f"{len(kept)} in {cache() / 'bases'}" if kept else "none fetched yet: the first check does it")


def _extras() -> Iterator[Check]:
    missing = [f"{extra} ({what})" for module, (extra, what) in EXTRAS.items() if importlib.util.find_spec(module) is None]
    yield _check("extras", "ok", f"not installed: {', '.join(missing)}" if missing else "all installed",
                 "pip install 'tunesmith[NAME]' for what you need" if missing else None)
