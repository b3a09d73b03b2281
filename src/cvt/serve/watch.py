"""What a server tells of itself: figures for Prometheus, and a log of one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

LOG = logging.getLogger("cvt.serve")

_SECONDS = (.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30)


class Figures:
    """Counts and times since the server began."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self.requests = Counter(
            "cvt_requests", "Requests answered.", ("path", "status"), registry=self._registry)
        self.seconds = Histogram(
            "cvt_request_seconds", "From a request's head to its answer's end.", ("path",),
            buckets=_SECONDS, registry=self._registry)
        self.images = Counter(
            "cvt_images", "Images: classified, explained or unreadable.",
            ("outcome",), registry=self._registry)
        self.batches = Histogram(
            "cvt_batch_images", "Images that the network saw at once.",
            buckets=(1, 2, 4, 8, 16, 32, 64), registry=self._registry)
        self.inside = Gauge(
            "cvt_images_in_hand", "Images read, waiting or computed.", registry=self._registry)
        self.bytes = Gauge(
            "cvt_body_bytes_in_hand", "Bytes of requests' bodies held.", registry=self._registry)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)


class Line(logging.Formatter):
    """A record as JSON in ASCII: nothing in it can steer a terminal or begin another line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        told: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(), "event": record.getMessage(),
            **getattr(record, "fields", {})}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def start_log(level: str) -> None:
    """Write the log, uvicorn's own with it, to the standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Line())
    for log in (LOG, logging.getLogger("uvicorn.error")):
        log.handlers, log.propagate = [handler], False
        log.setLevel(level.upper())
    # Its lines on each start and end say less than ours.
    logging.getLogger("uvicorn.error").setLevel("WARNING")


def tell(event: str, level: int = logging.INFO, error: BaseException | None = None, **fields: Any
         ) -> None:
    """One line of the log; with `error`, its traceback."""
    LOG.log(level, event, extra={"fields": fields}, exc_info=error)
