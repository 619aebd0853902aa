"""A multipart/form-data body taken apart while it comes, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from .errors import ApiError

MULTIPART = "multipart/form-data"


@dataclass(frozen=True, slots=True)
class PartStart:
    """A part begins; ``file_name`` None is a plain field."""

    name: str
    file_name: str | None


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part is whole."""


PartEvent = PartStart | PartEnd | bytes
"""Bytes are the part's content, in pieces."""


class MultipartReader:
    """What one body consists of. Every method raises ApiError 400 for a body that is no form."""

    def __init__(self, content_type: str) -> None:
        _, options = parse_options_header(content_type)
        if b"boundary" not in options:
            raise _bad_form("its content-type names no boundary")
        self._events: list[PartEvent] = []
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._is_complete = False
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": lambda data, start, end: self._on_header(0, data[start:end]),
                    "on_header_value": lambda data, start, end: self._on_header(1, data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": lambda data, start, end: self._events.append(data[start:end]),
                    "on_part_end": lambda: self._events.append(PartEnd()),
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _bad_form(str(error)) from None

    def feed(self, data: bytes) -> list[PartEvent]:
        """Take in a piece of the body; what it holds."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _bad_form(str(error)) from None
        events, self._events = self._events, []
        return events

    def finish(self) -> None:
        """The body is over."""
        if not self._is_complete:
            raise _bad_form("its last boundary is missing")

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header(self, index: int, data: bytes) -> None:
        self._header[index].extend(data)

    def _on_header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if not options.get(b"name"):
            raise _bad_form("a part of it has no name")
        file_name = options.get(b"filename")
        self._events.append(
            PartStart(_text(options[b"name"]), None if file_name is None else _text(file_name))
        )

    def _on_end(self) -> None:
        self._is_complete = True


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")


def _bad_form(reason: str) -> ApiError:
    return ApiError(f"The body is not valid {MULTIPART}: {reason[:200]}.")
