"""Configuration of the server; no web framework is imported."""

from __future__ import annotations

from dataclasses import dataclass

from cvt.system.schema import check, check_types

LOCAL = ("127.0.0.1", "localhost", "::1")
"""Addresses that only this machine reaches."""

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Limits and timeouts of the server; a request above a limit gets an error of its own."""

    host: str = "127.0.0.1"
    """Address to listen on: by default this machine only; 0.0.0.0 for all."""
    port: int = 8000
    """Port to listen on; 0 for a free one, which the first line of the log names."""
    allowed_hosts: str = ""
    """Comma-separated names allowed in the Host header; others get 421. By default the local names
    if `host` is local, else all."""
    allowed_origins: str = ""
    """Comma-separated sites, such as https://example.org, whose pages may send requests (CORS);
    pages of others get 403."""
    max_batch_size: int = 16
    """Maximum number of images in a batch."""
    max_batch_delay: float = 0.005
    """Maximum time in seconds that an idle network waits for more images to fill a batch."""
    max_queue_size: int = 128
    """Maximum number of images being read, queued or classified; above it 429."""
    queue_timeout: float = 10.0
    """Maximum time in seconds from a request's last byte to its batch; above it 503."""
    max_request_bytes: int = 32 * _MIB
    """Maximum size of one request in bytes; above it 413."""
    max_buffered_bytes: int = 256 * _MIB
    """Maximum size of all requests in flight together in bytes; above it 429."""
    max_images: int = 16
    """Maximum number of images in one request; above it 413."""
    max_pixels: int = 16_000_000
    """Maximum number of pixels of one image; above it 422."""
    read_timeout: float = 10.0
    """Maximum time in seconds from a request's first byte to its last; above it 408."""
    max_connections: int = 512
    """Maximum number of open connections; above it 503."""
    shutdown_delay: float = 0.0
    """Seconds after SIGTERM in which requests are still accepted while /readyz says 503, so that a
    load balancer sends them elsewhere."""
    shutdown_timeout: float = 30.0
    """Seconds that requests in flight then have to finish."""

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host in LOCAL

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("max_batch_size", "max_queue_size", "max_request_bytes", "max_buffered_bytes",
                     "max_images", "max_pixels", "max_connections"):
            check(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        for name in ("queue_timeout", "read_timeout", "shutdown_timeout"):
            check(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be above 0")
        for name in ("max_batch_delay", "shutdown_delay"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must be at least 0")
        check(0 <= self.port <= 65535, f"port={self.port} must be from 0 to 65535")
        for larger, smaller in (("max_queue_size", "max_images"),
                                ("max_buffered_bytes", "max_request_bytes")):
            check(getattr(self, larger) >= getattr(self, smaller),
                  f"{larger}={getattr(self, larger)} is less than {smaller}="
                  f"{getattr(self, smaller)}, so the largest allowed request would always be "
                  "rejected; increase it")


def split_list(names: str) -> tuple[str, ...]:
    """The entries of a comma-separated list."""
    return tuple(part.strip() for part in names.split(",") if part.strip())
