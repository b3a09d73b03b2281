"""Request bodies: the bytes of an image, or the files of a form. Everything stays in memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from cvt.serve.config import ServeConfig
from cvt.serve.errors import RequestError

FORM = "multipart/form-data"

# filename*=utf-8''caf%C3%A9.jpg (RFC 5987), which some clients send for a name that is not ASCII.
_EXTENDED_NAME = re.compile(rb""";\s*filename\*\s*=\s*[\w-]*'[\w-]*'([^\s;"]+)""", re.IGNORECASE)


@dataclass
class Upload:
    """An uploaded file."""

    data: bytearray = field(default_factory=bytearray)
    name: str | None = None
    """The file name that the client sent, which is untrusted."""


class MemoryBudget:
    """The memory that the bodies of all requests share."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.used = 0
        """Bytes."""

    def acquire(self, size: int) -> None:
        """Add `size` bytes. Raises RequestError if that exceeds the limit."""
        if self.used + size > self._limit:
            raise RequestError("overloaded", "the server is overloaded: other requests fill the "
                               "memory for images; try again later", retry_after=1)
        self.used += size

    def release(self, size: int) -> None:
        """Give `size` bytes back."""
        self.used -= size


class RequestBody:
    """The body of one request; within the block its memory is counted in `memory`."""

    def __init__(self, request: Request, config: ServeConfig, memory: MemoryBudget) -> None:
        self._request, self._config, self._memory = request, config, memory
        self.size = 0
        """Bytes received."""

    def __enter__(self) -> RequestBody:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.release(self.size)

    async def uploads(self) -> list[Upload]:
        """Read the uploaded images, at least one.

        Raises RequestError for another content type, a malformed form, too many bytes or images,
        and a request without an image; starlette's ClientDisconnect if the client disconnects.
        """
        kind, options = parse_options_header(self._request.headers.get("content-type", ""))
        # The protocol has checked that it is a number.
        if int(self._request.headers.get("content-length", 0)) > self._config.max_request_bytes:
            raise self._too_large()
        if kind.decode("latin-1") == FORM:
            uploads = await self._read_form(options.get(b"boundary", b""))
        elif kind == b"application/octet-stream" or kind.startswith(b"image/"):
            uploads = [Upload()]
            async for chunk in self._request.stream():
                self._count(chunk)
                uploads[0].data += chunk
        else:
            raise RequestError(
                "unsupported_media_type", "send the bytes of an image as image/jpeg (image/png, "
                f"...) or application/octet-stream, or files as {FORM}")
        if not any(upload.data for upload in uploads):
            raise RequestError("invalid_request", "there is no image in the request: it is empty")
        return uploads

    def _count(self, chunk: bytes) -> None:
        if self.size + len(chunk) > self._config.max_request_bytes:
            raise self._too_large()
        self._memory.acquire(len(chunk))
        self.size += len(chunk)

    def _too_large(self) -> RequestError:
        return RequestError("request_too_large", "the request has more than "
                            f"{self._config.max_request_bytes:,} bytes; send fewer or smaller "
                            "images")

    async def _read_form(self, boundary: bytes) -> list[Upload]:
        form = _Form(self._config.max_images)
        try:
            parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
            async for chunk in self._request.stream():
                self._count(chunk)
                parser.write(chunk)
        except (FormParserError, ValueError) as error:
            raise RequestError("bad_request", f"the form cannot be read: {error}") from None
        if not form.ended:
            raise RequestError("bad_request", "the form is truncated: its last boundary is missing")
        return form.uploads


class _Form:
    """Collects the files of a form from python-multipart's callbacks."""

    def __init__(self, max_images: int) -> None:
        self._max_images = max_images
        self._header, self._value, self._disposition = b"", b"", b""
        self.uploads: list[Upload] = []
        self.ended = False

    def callbacks(self) -> dict[str, object]:
        return {"on_part_begin": self._part_begin, "on_header_field": self._header_field,
                "on_header_value": self._header_value, "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished, "on_part_data": self._part_data,
                "on_end": self._end}

    def _part_begin(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename")
        if name is None and (found := _EXTENDED_NAME.search(self._disposition)):
            name = unquote_to_bytes(found[1])
        if name is None:
            raise RequestError("invalid_request", "a part of the form is not a file; send only "
                               "images, as curl -F images=@image.jpg does")
        if len(self.uploads) == self._max_images:
            raise RequestError("too_many_images", f"the request has more than {self._max_images} "
                               "images; split it into several requests")
        self.uploads.append(Upload(name=name.decode("utf-8", "replace")))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self.uploads[-1].data += memoryview(data)[start:end]

    def _end(self) -> None:
        self.ended = True
