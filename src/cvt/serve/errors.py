"""Errors of the HTTP API: the status, code and message of every response but 200."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cvt.system.text import utf8

# Status and meaning of each code; docs/serving.md and the OpenAPI document repeat them.
ERROR_CODES: Mapping[str, tuple[int, str]] = {
    "bad_request": (400, "not valid HTTP, or a malformed form"),
    "unauthorized": (401, "the API key is missing or wrong"),
    "origin_not_allowed": (403, "a page of another site, not in --allowed_origins"),
    "not_found": (404, "no such path"),
    "method_not_allowed": (405, "the path does not support this method"),
    "request_timeout": (408, "the request did not arrive within --read_timeout"),
    "request_too_large": (413, "more bytes than --max_request_bytes"),
    "too_many_images": (413, "more images than --max_images"),
    "unsupported_media_type": (415, "neither the bytes of an image nor a form with files"),
    "host_not_allowed": (421, "a Host header that is not in --allowed_hosts"),
    "unreadable_image": (422, "not an image, a corrupt one, or one of more pixels than "
                              "--max_pixels"),
    "invalid_request": (422, "a parameter out of range, or no image"),
    "overloaded": (429, "the queue or the memory for requests is full; see Retry-After"),
    "internal_error": (500, "an error in the server; its log has the traceback"),
    "not_explainable": (501, "an exported model has no attention to show"),
    "queue_timeout": (503, "the image waited in the queue for more than --queue_timeout"),
    "too_many_connections": (503, "more open connections than --max_connections"),
    "shutting_down": (503, "the server is shutting down"),
}


class RequestError(Exception):
    """A request that is rejected with an error response."""

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code, self.status = code, ERROR_CODES[code][0]
        self.message = utf8(message)
        self.headers: dict[str, str] = {}
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after)))
        if code == "unauthorized":
            self.headers["www-authenticate"] = "Bearer"

    def body(self, request_id: str | None) -> dict[str, Any]:
        """The response's JSON."""
        return {"error": {"code": self.code, "message": self.message, "request_id": request_id}}
