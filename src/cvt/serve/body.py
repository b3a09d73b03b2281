"""The images of a request: its bytes as they are, or the files of a form. All stays in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from cvt.serve.config import ServeConfig
from cvt.serve.refusals import Refusal

FORM = "multipart/form-data"


@dataclass
class Upload:
    """An image's file as it came."""

    data: bytearray = field(default_factory=bytearray)
    name: str | None = None
    """What the sender calls it, which is nothing to trust."""


class Memory:
    """What the bodies of all requests in hand take together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0
        """Bytes."""

    def take(self, size: int) -> None:
        """Hold `size` bytes more. Raises Refusal where they are too many."""
        if self.held + size > self._most:
            raise Refusal("busy", "other requests' images fill the memory that there is for "
                          "them; ask again", retry_after=1)
        self.held += size

    def give(self, size: int) -> None:
        """Let go of `size` bytes."""
        self.held -= size


class Body:
    """One request's body; within the block it is held in `memory`."""

    def __init__(self, request: Request, config: ServeConfig, memory: Memory) -> None:
        self._request, self._config, self._memory = request, config, memory
        self.size = 0
        """Bytes that have come."""

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.give(self.size)

    async def uploads(self) -> list[Upload]:
        """The images' files, one at least.

        Raises Refusal for another content type, a form that is none, too many bytes or images,
        and for a request without an image; starlette's ClientDisconnect where the sender leaves.
        """
        kind, options = parse_options_header(self._request.headers.get("content-type", ""))
        if self._announced() > self._config.max_body:
            raise self._too_large()
        if kind.decode("latin-1") == FORM:
            uploads = await self._form(options.get(b"boundary", b""))
        elif kind == b"application/octet-stream" or kind.startswith(b"image/"):
            uploads = [Upload()]
            async for chunk in self._request.stream():
                self._take(chunk)
                uploads[0].data += chunk
        else:
            raise Refusal("wrong_type", "send an image's bytes as image/jpeg (image/png, ...) or "
                          f"application/octet-stream, or files as {FORM}")
        if not any(upload.data for upload in uploads):
            raise Refusal("invalid", "there is no image in the request: it is empty")
        return uploads

    def _announced(self) -> int:
        # The protocol has seen to its being a number.
        return int(self._request.headers.get("content-length", 0))

    def _take(self, chunk: bytes) -> None:
        if self.size + len(chunk) > self._config.max_body:
            raise self._too_large()
        self._memory.take(len(chunk))
        self.size += len(chunk)

    def _too_large(self) -> Refusal:
        return Refusal("too_large", f"the request has more than {self._config.max_body:,} bytes; "
                       "send fewer or smaller images")

    async def _form(self, boundary: bytes) -> list[Upload]:
        form = _Form(self._config.max_images)
        try:
            parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
            async for chunk in self._request.stream():
                self._take(chunk)
                parser.write(chunk)
        except (FormParserError, ValueError) as error:
            raise Refusal("bad_request", f"the form cannot be read: {error}") from None
        if not form.ended:
            raise Refusal("bad_request", "the form is cut off: its last boundary is missing")
        return form.uploads


class _Form:
    """What python-multipart finds, file by file."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._header, self._value, self._disposition = b"", b"", b""
        self.uploads: list[Upload] = []
        self.ended = False

    def callbacks(self) -> dict[str, object]:
        return {"on_part_begin": self._begin, "on_header_field": self._on_header,
                "on_header_value": self._on_value, "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers, "on_part_data": self._on_data,
                "on_end": self._end}

    def _begin(self) -> None:
        self._disposition = b""

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options:
            raise Refusal("invalid", "a part of the form is not a file; send images alone, as "
                          "curl -F images=@image.jpg does")
        if len(self.uploads) == self._most:
            raise Refusal("too_many", f"the request has more than {self._most} images; send "
                          "them in several")
        self.uploads.append(Upload(name=options[b"filename"].decode("utf-8", "replace")))

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self.uploads[-1].data += memoryview(data)[start:end]

    def _end(self) -> None:
        self.ended = True
