"""Where a run is trained: versions and machine, as far as they can change a result, and every distribution that it needs.

    environment.json   {"python", "platform", "cpus", "packages": {name: version},
                        "distributions": [{"name", "version", "licence", "requires"}]}

`distributions` is the closure of what tunesmith requires, as it is installed here (PEP 508 markers are evaluated for this
machine). A licence is `{"expression": SPDX}` where the distribution gives one (PEP 639), `{"name": TEXT}` where it only names
one, and null where it says nothing. A release makes its lock of it (`releases/lock.py`).
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version

VERSIONED = ("torch", "transformers", "peft", "safetensors", "tokenizers", "numpy", "tunesmith")
LICENCE_CHARACTERS = 100
"""A longer text in a `License` field is the licence itself and not its name."""


def environment() -> dict:
    """Versions and machine."""
    return {"python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count(),
            "packages": {p: installed(p) for p in VERSIONED}}


def installed(package: str) -> str | None:
    """The version that is installed here, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def canonical(name: str) -> str:
    """The name of a distribution as registries compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(extras: Iterable[str] = ()) -> list[dict]:
    """What is installed here of tunesmith and all that it requires, by name. What is required and absent is left out.

    `extras` are those of tunesmith's extras that the run uses, such as qlora; one that it does not have adds nothing.
    From a source tree that was never installed, the closure starts at `VERSIONED`.
    """
    from packaging.requirements import Requirement

    roots = [("tunesmith", frozenset(extras))] if installed("tunesmith") else [(name, frozenset()) for name in VERSIONED]
    queue, seen, found = roots, set(), {}
    while queue:
        name, wanted = queue.pop()
        key = (canonical(name), wanted)
        if key in seen:
            continue
        seen.add(key)
        try:
            one = distribution(name)
        except PackageNotFoundError:
            continue
        needed = [r for r in map(Requirement, one.requires or []) if r.marker is None
                  or any(r.marker.evaluate({"extra": extra}) for extra in {"", *wanted})]
        entry = found.setdefault(key[0], {"name": key[0], "version": one.version, "licence": licence(one), "requires": set()})
        entry["requires"] |= {canonical(r.name) for r in needed}
        queue += [(r.name, frozenset(r.extras)) for r in needed]
    return [found[n] | {"requires": sorted(found[n]["requires"] & found.keys())} for n in sorted(found)]


def licence(one: Distribution) -> dict | None:
    """As the distribution's own metadata has it."""
    if expression := one.metadata.get("License-Expression"):
        return {"expression": expression}
    classified = [c.split(" :: ")[-1] for c in one.metadata.get_all("Classifier") or [] if c.startswith("License :: ")]
    named = ", ".join(classified) or (one.metadata.get("License") or "").strip()
    return {"name": named} if named and len(named) <= LICENCE_CHARACTERS and "\n" not in named else None
