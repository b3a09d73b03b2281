"""Prometheus metrics, and a log of one JSON object a line."""

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


class Metrics:
    """Metrics of a server since its start."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self.requests = Counter("cvt_http_requests", "HTTP requests by path and status.",
                                ("path", "status"), registry=self._registry)
        self.duration = Histogram(
            "cvt_http_request_duration_seconds",
            "Time from a request's headers to the end of the response.", ("path",),
            buckets=_SECONDS, registry=self._registry)
        self.images = Counter("cvt_images", "Images by outcome: classified, explained or "
                              "unreadable.", ("outcome",), registry=self._registry)
        self.batch_size = Histogram("cvt_batch_size", "Images in a batch.",
                                    buckets=(1, 2, 4, 8, 16, 32, 64), registry=self._registry)
        self.images_in_flight = Gauge(
            "cvt_images_in_flight", "Images being read, queued or classified.",
            registry=self._registry)
        self.buffered_bytes = Gauge(
            "cvt_request_buffered_bytes", "Memory of the request bodies in flight.",
            registry=self._registry)

    def text(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self._registry)


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON in ASCII, which cannot control a terminal or begin a new line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its line break."""
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(), "event": record.getMessage(),
            **getattr(record, "fields", {})}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def configure_logging(level: str) -> None:
    """Log to the standard error, uvicorn's records included."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for log in (LOG, logging.getLogger("uvicorn.error")):
        log.handlers, log.propagate = [handler], False
        log.setLevel(level.upper())
    # Its lines on start and shutdown say less than ours.
    logging.getLogger("uvicorn.error").setLevel("WARNING")


def log_event(event: str, level: int = logging.INFO, error: BaseException | None = None,
              **fields: Any) -> None:
    """Log one line; with `error`, its traceback too."""
    LOG.log(level, event, extra={"fields": fields}, exc_info=error)
