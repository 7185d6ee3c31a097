"""A prepared dataset on disk: rows, tokens and masks, all of them memory-mapped.

    datasets/ID/manifest.json        id, inputs, sources, counts, findings, system prompt of text data
               train.jsonl  test.NAME.jsonl              rows as they were used, each with its place in the source
               train.tokens.npy  .trained.npy  .offsets.npy     rendered: all rows end to end, and where each begins
               train.rejected.tokens.npy ...             of preference data: the rows with the rejected answers instead
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tunesmith.data.spool import Rows
from tunesmith.store.files import read_json

if TYPE_CHECKING:
    import numpy as np

    from tunesmith.template.render import Rendered

TRAIN, REJECTED = "train", "rejected"


@dataclass(frozen=True)
class Dataset:
    path: Path
    manifest: dict

    @property
    def id(self) -> str:
        return self.manifest["id"]

    @property
    def tests(self) -> list[str]:
        """Names of the test sets, the primary one first."""
        return self.manifest["tests"]

    def rows(self, part: str) -> Rows:
        """Rows of `train` or of a test set."""
        return Rows(self.path / rows_file(part))

    def tokens(self, part: str) -> Tokens:
        return Tokens(self.path, stem(part))

    def rejected(self, part: str) -> Tokens:
        """Of preference data: the same conversations with the rejected answers."""
        return Tokens(self.path, f"{stem(part)}.{REJECTED}")

    @classmethod
    def open(cls, path: Path) -> Dataset:
        return cls(path, read_json(path / "manifest.json"))


@dataclass(frozen=True)
class Tokens:
    """Rendered rows of one part: `tokens[i]` is `(ids, trained)`."""

    folder: Path
    stem: str

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, i: int) -> tuple[list[int], list[bool]]:
        part = slice(int(self._offsets[i]), int(self._offsets[i + 1]))
        return self._ids[part].tolist(), self._trained[part].tolist()

    @property
    def lengths(self) -> list[int]:
        return (self._offsets[1:] - self._offsets[:-1]).tolist()

    def trained_lengths(self) -> list[int]:
        """Trained tokens of each row."""
        import numpy as np

        return np.add.reduceat(self._trained, self._offsets[:-1], dtype=np.int64).tolist()

    def trained_spans(self) -> list[tuple[int, int]]:
        """(first, one past the last) trained token of each row, counted in the row."""
        found = []
        for begin, end in zip(self._offsets[:-1].tolist(), self._offsets[1:].tolist(), strict=True):
            at = self._trained[begin:end].nonzero()[0]
            found.append((int(at[0]), int(at[-1]) + 1))
        return found

    def _array(self, name: str) -> np.ndarray:
        import numpy as np

        return np.load(self.folder / f"{self.stem}.{name}.npy", mmap_mode="r")

    @cached_property
    def _ids(self) -> np.ndarray:
        return self._array("tokens")

    @cached_property
    def _trained(self) -> np.ndarray:
        return self._array("trained")

    @cached_property
    def _offsets(self) -> np.ndarray:
        return self._array("offsets")


def write_tokens(folder: Path, part: str, rendered: Iterable[Rendered | tuple[Rendered, Rendered]],
                 pairs: bool = False) -> dict[str, int]:
    """Write rendered rows as they come, or pairs of them: with the preferred and with the rejected answer.

    Returns `{rows, tokens, trained_tokens, longest}`, and of pairs `rejected_tokens`; the others are of the preferred ones.
    """
    import numpy as np

    counts = {"rows": 0, "tokens": 0, "trained_tokens": 0, "longest": 0} | ({"rejected_tokens": 0} if pairs else {})

    def columns(r: Rendered, end: int) -> tuple[np.ndarray, ...]:
        return np.array(r.ids, np.uint32), np.array(r.trained, np.bool_), np.array([end], np.int64)

    def pieces() -> Iterator[tuple[np.ndarray, ...]]:
        yield (np.zeros(0, np.uint32), np.zeros(0, np.bool_), np.zeros(1, np.int64)) * (1 + pairs)
        for item in rendered:
            r = item[0] if pairs else item
            counts["rows"] += 1
            counts["tokens"] += len(r.ids)
            counts["trained_tokens"] += sum(r.trained)
            counts["longest"] = max(counts["longest"], len(r.ids))
            if not pairs:
                yield columns(r, counts["tokens"])
                continue
            counts["rejected_tokens"] += len(item[1].ids)
            yield *columns(r, counts["tokens"]), *columns(item[1], counts["rejected_tokens"])

    stems = [stem(part), f"{stem(part)}.{REJECTED}"][: 1 + pairs]
    with ExitStack() as opened:
        _append([opened.enter_context(open(folder / f"{s}.{name}.npy", "wb"))
                 for s in stems for name in ("tokens", "trained", "offsets")], pieces())
    return counts


def _append(files: list[BinaryIO], pieces: Iterable[tuple[np.ndarray, ...]]) -> None:
    """One .npy file a column, the length in each header filled in at the end (numpy leaves room for it)."""
    lengths, dtypes = [0] * len(files), []
    for row in pieces:
        if not dtypes:
            dtypes = [piece.dtype for piece in row]
            for file, dtype in zip(files, dtypes, strict=True):
                _header(file, dtype, 0)
        for i, (file, piece) in enumerate(zip(files, row, strict=True)):
            file.write(piece.tobytes())
            lengths[i] += len(piece)
    for file, dtype, length in zip(files, dtypes, lengths, strict=True):
        file.seek(0)
        _header(file, dtype, length)


def _header(file: BinaryIO, dtype: np.dtype, length: int) -> None:
    import numpy as np

    np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False,
                                                "shape": (length,)})


def stem(part: str) -> str:
    return part if part == TRAIN else f"test.{part}"


def rows_file(part: str) -> str:
    return f"{stem(part)}.jsonl"
