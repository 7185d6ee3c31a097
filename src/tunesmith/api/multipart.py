"""A form with a file, received piece by piece: the file goes to disk as it comes, and nothing longer than a field is in memory
as a whole. The framework's own reader would write it to /tmp first, which may be memory, and then again to its place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from tunesmith.api.errors import BadParameter

MAX_FIELDS = 16
FIELD_BYTES = 4096
WRITE_BYTES = 1 << 20


@dataclass(slots=True)
class Form:
    filename: str = ""
    size: int = 0
    """Of the file, in bytes."""
    sha256: str = ""
    fields: dict[str, str] = field(default_factory=dict)


async def receive(request: Request, name: str, fields: set[str], out: BinaryIO, room: Callable[[int], None]) -> Form:
    """Write the file that comes as the field `name` to `out`; the other fields may be `fields`.

    `room`: called with the size of each piece before it is written; it raises when there is no room.

    Raises:
        BadParameter: no form, no file, or a field that is unknown, too long or there twice.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise BadParameter("the request body must be a form with a file, sent as multipart/form-data")
    reader = _Reader(name, fields)
    try:
        parser = MultipartParser(options[b"boundary"], reader.callbacks)
    except FormParserError as error:
        raise BadParameter("the form's boundary is too long") from error
    digest = hashlib.sha256()

    def write(pieces: list[bytes]) -> None:
        for piece in pieces:
            out.write(piece)
            digest.update(piece)

    async for chunk in request.stream():
        try:
            parser.write(chunk)
        except FormParserError as error:
            raise BadParameter("the request body is no form as its header describes it") from error
        if reader.fresh:
            room(reader.fresh)
            reader.form.size += reader.fresh
            reader.fresh = 0
        if sum(map(len, reader.pieces)) >= WRITE_BYTES:
            await run_in_threadpool(write, reader.pieces)
            reader.pieces.clear()
    await run_in_threadpool(write, reader.pieces)
    if not reader.ended:
        raise BadParameter("the form is cut off")
    if not reader.found:
        raise BadParameter(f"{name}: Field required", name, "missing_required_parameter")
    reader.form.sha256 = digest.hexdigest()
    return reader.form


class _Reader:
    """What the parser calls as it reads."""

    def __init__(self, name: str, fields: set[str]):
        self._name, self._fields = name, fields
        self.form, self.pieces = Form(), []
        self.fresh = 0
        self.found = self.ended = False
        self._header, self._value, self._disposition, self._field = b"", b"", b"", ""
        self._text = bytearray()
        self.callbacks = {
            "on_part_begin": self._begin, "on_header_field": self._on_header, "on_header_value": self._on_value,
            "on_header_end": self._header_ends, "on_headers_finished": self._named, "on_part_data": self._data,
            "on_part_end": self._part_ends, "on_end": self._ends}

    def _begin(self) -> None:
        self._disposition, self._field, self._text = b"", "", bytearray()

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _named(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        if self._field == self._name:
            if self.found:
                raise BadParameter(f"{self._name}: one file at a time", self._name)
            self.found, self.form.filename = True, options.get(b"filename", b"").decode("utf-8", "replace")
        elif self._field not in self._fields:
            raise BadParameter(f"Unknown parameter: {self._field[:64]!r}.", self._field[:64], "unknown_parameter")
        elif self._field in self.form.fields or len(self.form.fields) >= MAX_FIELDS:
            raise BadParameter(f"{self._field}: given twice", self._field)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._field == self._name:
            self.pieces.append(data[start:end])
            self.fresh += end - start
            return
        self._text += data[start:end]
        if len(self._text) > FIELD_BYTES:
            raise BadParameter(f"{self._field}: longer than {FIELD_BYTES} bytes", self._field)

    def _part_ends(self) -> None:
        if self._field != self._name:
            self.form.fields[self._field] = self._text.decode("utf-8", "replace")

    def _ends(self) -> None:
        self.ended = True
