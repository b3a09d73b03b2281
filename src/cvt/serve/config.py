"""Everything that decides a server beside its model, as data. No web framework."""

from __future__ import annotations

from dataclasses import dataclass

from cvt.system.schema import check, check_types

LOCAL = ("127.0.0.1", "localhost", "::1")
"""Addresses that only this machine reaches."""

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Limits and times of a server; each limit has an answer of its own."""

    host: str = "127.0.0.1"
    """The address to listen on: by default this machine alone; 0.0.0.0 for all."""
    port: int = 8000
    """0 for a free one, which the first line of the log names."""
    hosts: str = ""
    """Names, with commas between, that a request's Host may have; others are answered with 421. By
    default the local ones where `host` is local, else all."""
    origins: str = ""
    """Other sites, as https://example.org, with commas between, whose pages may ask (CORS); those
    of others get 403."""
    max_batch: int = 16
    """Images that the network sees at once at most."""
    max_wait: float = 0.005
    """Seconds that an image waits for others at most, while the network has nothing to do."""
    max_queue: int = 128
    """Images that may be read, waiting or computed; with more the answer is 429."""
    deadline: float = 10.0
    """Seconds from a request's last byte to the network; after that the answer is 503."""
    max_body: int = 32 * _MIB
    """Bytes of one request; above it the answer is 413."""
    max_bodies: int = 256 * _MIB
    """Bytes of all requests held at once; above it the answer is 429."""
    max_images: int = 16
    """Images of one request; above it the answer is 413."""
    max_pixels: int = 16_000_000
    """Pixels of one image; above it the answer is 422."""
    read_timeout: float = 10.0
    """Seconds from a request's first byte to its last; after that the answer is 408."""
    max_connections: int = 512
    """Connections open at once; one more is answered with 503."""
    notice: float = 0.0
    """Seconds after SIGTERM in which requests are still taken while /readyz says 503, so that a
    balancer sends them elsewhere."""
    drain: float = 30.0
    """Seconds that requests in hand then have to end."""

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in LOCAL

    def listed(self, name: str) -> tuple[str, ...]:
        """What `hosts` or `origins` names, one by one."""
        return tuple(part.strip() for part in getattr(self, name).split(",") if part.strip())

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("max_batch", "max_queue", "max_body", "max_bodies", "max_images",
                     "max_pixels", "max_connections"):
            check(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        for name in ("deadline", "read_timeout", "drain"):
            check(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be above 0")
        for name in ("max_wait", "notice"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must be at least 0")
        check(0 <= self.port <= 65535, f"port={self.port} must be from 0 to 65535")
        for larger, smaller in (("max_queue", "max_images"), ("max_bodies", "max_body")):
            check(getattr(self, larger) >= getattr(self, smaller),
                  f"{larger}={getattr(self, larger)} is less than {smaller}="
                  f"{getattr(self, smaller)}, so that such a request would never be taken; make it "
                  "larger")
