"""Adapters by digest: all that are registered are known, those that were used last are in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import AdapterError

if TYPE_CHECKING:
    from tunesmith.serving.adapters import Adapter


class Shelf:
    """`read` makes an adapter of a directory; at most `budget` bytes of them are kept, but always the last one. `left` is told
    which has left.

    What a running request uses stays alive by being used: it is counted no more, and read again for the next request.
    """

    def __init__(self, read: Callable[[Path], Adapter], budget: int, left: Callable[[Adapter], None]):
        self._read, self._budget, self._left = read, budget, left
        self._places: dict[str, Path] = {}
        self._loaded: OrderedDict[str, Adapter] = OrderedDict()
        self.reads = 0
        """How often one came back that had left."""

    def __contains__(self, adapter: Adapter) -> bool:
        """Whether it is in memory on the shelf's account."""
        return self._loaded.get(adapter.digest) is adapter

    def __len__(self) -> int:
        return len(self._places)

    @property
    def loaded(self) -> int:
        """Adapters in memory."""
        return len(self._loaded)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self._loaded.values())

    def put(self, adapter: Adapter, directory: Path) -> None:
        """Register one that was read from this directory."""
        self._places[adapter.digest] = directory
        self._keep(adapter)

    def get(self, digest: str) -> Adapter:
        """One that is registered, read again if it had to leave.

        Raises:
            KeyError: it is not registered.
            AdapterError: its directory is gone, or has become another adapter.
        """
        if digest in self._loaded:
            self._loaded.move_to_end(digest)
            return self._loaded[digest]
        directory = self._places[digest]
        adapter = self._read(directory)
        self.reads += 1
        if adapter.digest != digest:
            raise AdapterError("the adapter is another one now", where=str(directory),
                               why=f"its digest was {digest[:12]} when it was registered, and is {adapter.digest[:12]}",
                               fix="register it under a new name; files of a served adapter must not change")
        self._keep(adapter)
        return adapter

    def forget(self, digest: str) -> None:
        self._places.pop(digest, None)
        if adapter := self._loaded.pop(digest, None):
            self._left(adapter)

    def _keep(self, adapter: Adapter) -> None:
        self._loaded[adapter.digest] = adapter
        self._loaded.move_to_end(adapter.digest)
        while len(self._loaded) > 1 and self.nbytes > self._budget:
            self._left(self._loaded.popitem(last=False)[1])
