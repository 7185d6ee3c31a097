"""The safetensors format, some rows of a tensor at a time.

    8 bytes    length of the header, little endian
    header     JSON: {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {...}}, filled up with spaces
    data       the tensors one after the other, without holes

https://github.com/huggingface/safetensors#format. Its own `save_file` takes a whole file's tensors in memory, and its reader
maps the file, so that every page read counts as memory of the process. A merge of a large model can afford neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
          "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
          "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000
"""Bytes; that of the format's own reader."""
COPY_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Where its bytes begin in the file."""

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def read(self, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Rows `first` to `last` of its first dimension, all others whole; the whole tensor by default.

        Raises:
            ValueError: the file ends before them.
        """
        if not self.shape:
            return self._bytes(0, self.bytes).view(self.dtype).reshape(())
        row = prod(self.shape[1:]) * self.dtype.itemsize
        last = self.shape[0] if last is None else last
        return self._bytes(first * row, last * row).view(self.dtype).view(last - first, *self.shape[1:])

    def pieces(self) -> Iterator[torch.Tensor]:
        """All its bytes in order, as uint8."""
        for begin in range(0, self.bytes, COPY_BYTES):
            yield self._bytes(begin, min(begin + COPY_BYTES, self.bytes))

    def _bytes(self, begin: int, end: int) -> torch.Tensor:
        found = torch.empty(end - begin, dtype=torch.uint8)
        with open(self.path, "rb") as f:
            f.seek(self.begin + begin)
            if f.readinto(memoryview(found.numpy())) != end - begin:
                raise ValueError(f"{self.path.name} ends within {self.name}")
        return found


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[torch.Tensor]]
    """Its values, or its bytes as uint8, in order; asked for once."""

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def stored(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name, in the file's order. Raises ValueError: it is damaged, or of dtypes not known here."""
    size = path.stat().st_size
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise ValueError(f"{path.name} is no safetensors file: its header would have {length} bytes")
        header = json.loads(f.read(length))
    header.pop("__metadata__", None)
    data, found = 8 + length, {}
    for name, entry in sorted(header.items(), key=lambda one: one[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{path.name}: {name} is of dtype {entry['dtype']}, which is not known here")
        begin, end = entry["data_offsets"]
        one = Stored(path, name, DTYPES[entry["dtype"]], tuple(entry["shape"]), data + begin)
        if end - begin != one.bytes or data + end > size:
            raise ValueError(f"{path.name} is damaged: {name} is not of the size that it says")
        found[name] = one
    return found


def write(path: Path, tensors: Sequence[Planned]) -> None:
    """Write a file, one piece in memory at a time. Wider dtypes come first, so that each tensor is aligned.

    Raises:
        ValueError: a tensor whose pieces are not of its dtype or size.
        OSError: a full disk.
    """
    ordered = sorted(tensors, key=lambda t: -t.dtype.itemsize)
    header, begin = {"__metadata__": {"format": "pt"}}, 0
    for t in ordered:
        header[t.name] = {"dtype": NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [begin, begin + t.bytes]}
        begin += t.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for t in ordered:
            written = 0
            for piece in t.pieces():
                if piece.dtype not in (t.dtype, torch.uint8):
                    raise ValueError(f"{t.name} is planned as {t.dtype}, and a piece of it is {piece.dtype}")
                written += f.write(memoryview(piece.contiguous().reshape(-1).view(torch.uint8).numpy()))
            if written != t.bytes:
                raise ValueError(f"{t.name}: {written} bytes were written, {t.bytes} planned")
