"""Bytes and lines of a file that may be compressed (.gz, .zst), a piece at a time: a file may be larger than memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from tunesmith.errors import DataError

COMPRESSED = (".gz", ".zst")
CHUNK_BYTES = 1 << 16
ZSTD_BYTES = 1 << 8
"""What goes into zstandard at a time: 4 bytes of a file can unfold to 128 kB, and it gives all of it at once."""
BOM = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")


def chunks(path: Path, name: str) -> Iterator[bytes]:
    """The file's bytes, unpacked. Messages call it `name`.

    Raises:
        DataError: it cannot be opened, or is damaged or cut off.
    """
    unpack = {".gz": _gunzip, ".zst": _unzstd}.get(path.suffix.lower(), _plain)
    try:
        yield from unpack(path)
    except (OSError, EOFError, zlib.error) as error:
        opened = unpack is not _plain and not (isinstance(error, OSError) and error.errno)
        raise DataError("the compressed file is damaged or cut off" if opened else "the file cannot be read", where=name,
                        why=str(error), fix="copy it again" if opened else "check the path and its permissions") from error


def content(path: Path, name: str) -> bytes:
    return b"".join(chunks(path, name))


def lines(path: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """Each line with its number, its line feed removed. A byte order mark before the first is removed too.

    Raises:
        DataError: as `chunks`, or the file is UTF-16.
    """
    number, pending = 1, []
    for chunk in chunks(path, name):
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            pending.append(piece)
            yield number, _first(b"".join(pending), name) if number == 1 else b"".join(pending)
            number, pending = number + 1, []
        pending.append(rest)
    last = b"".join(pending)
    yield number, _first(last, name) if number == 1 else last


def decode(data: bytes, where: str) -> str:
    """Raises DataError at `where` when the bytes are not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError("not UTF-8 text", where=where, why=f"byte 0x{data[error.start]:02x} {error.reason}",
                        fix="convert the file to UTF-8") from error


def _first(line: bytes, name: str) -> bytes:
    if line.startswith(UTF16):
        raise DataError("not UTF-8 text", where=f"{name}:1", why=f"byte 0x{line[0]:02x} begins a file in UTF-16",
                        fix="convert the file to UTF-8")
    return line.removeprefix(BOM)


def _plain(path: Path, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    with open(path, "rb") as f:
        while chunk := f.read(size):
            yield chunk


def _gunzip(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") as f:
        while chunk := f.read(CHUNK_BYTES):
            yield chunk


def _unzstd(path: Path) -> Iterator[bytes]:
    """Frame by frame: zstandard's own reader takes a file that is cut off for one that ends."""
    import zstandard

    frame = None
    for packed in _plain(path, ZSTD_BYTES):
        while packed:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(packed)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("the file ends before its last frame does")
