"""Every answer but 200: its status, a code for programs and a sentence for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# What each code means, for the documentation and its test.
CODES: Mapping[str, tuple[int, str]] = {
    "bad_request": (400, "not HTTP, or a body that is not the form it says it is"),
    "no_key": (401, "no API key, or another one"),
    "foreign_origin": (403, "a page of another site asks, which --origins does not name"),
    "not_found": (404, "no such address"),
    "wrong_method": (405, "another method is meant for this address"),
    "slow": (408, "the request did not arrive within --read_timeout"),
    "too_large": (413, "more bytes than --max_body"),
    "too_many": (413, "more images than --max_images"),
    "wrong_type": (415, "neither the bytes of an image nor a form with files"),
    "wrong_host": (421, "a Host that this server does not go by; see --hosts"),
    "unreadable": (422, "not an image, a damaged one, or one of more pixels than --max_pixels"),
    "invalid": (422, "a parameter out of its range, or no image"),
    "busy": (429, "as many images or bytes are in hand as may be; Retry-After says how long"),
    "failed": (500, "a fault of the server, which its log tells of"),
    "not_explainable": (501, "an exported model has no attention left to show"),
    "late": (503, "the network did not come to it within --deadline"),
    "full": (503, "as many connections are open as --max_connections"),
    "draining": (503, "the server is about to end"),
}


class Refusal(Exception):  # noqa: N818  a refusal, not a fault
    """A request that is not carried out, for a reason that its sender shall know."""

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code, self.status = code, CODES[code][0]
        self.message = message
        self.headers: dict[str, str] = {}
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after)))
        if code == "no_key":
            self.headers["www-authenticate"] = "Bearer"

    def body(self, request_id: str | None) -> dict[str, Any]:
        """The answer's JSON."""
        return {"error": {"code": self.code, "message": self.message, "request_id": request_id}}
