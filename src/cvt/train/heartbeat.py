"""Do all processes of a run still live? One that is frozen would hold the others forever."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist

from cvt.system.errors import InputError

_BEAT = 2.0  # seconds between two signs of life
_PATIENCE = 15.0  # seconds without one; torchrun takes up to 30 more to end a frozen process
_POLL = 0.02


class Heartbeat:
    """A thread that shows the others that this process lives, and ends it when one is frozen.

    It speaks through the launcher's key-value store, beside the network's collectives. With one
    process it does nothing.
    """

    def __init__(self, rank: int, world: int) -> None:
        self._rank, self._world = rank, world
        self._stopped = threading.Event()
        if world == 1:
            return
        self._store = dist.distributed_c10d._get_default_store().clone()
        self._thread = threading.Thread(target=self._watch, name="cvt-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """This process is done; the others do not wait for it any longer."""
        if self._world == 1 or self._stopped.is_set():
            return
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(RuntimeError):  # the launcher, and its store, may be gone
            self._store.set(f"beat/{self._rank}", "done")

    @contextlib.contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """The main process goes through the block while the others wait, however long it takes.

        Raises InputError in the others where it fails in the main process.
        """
        key = f"turn/{number}"
        if self._rank == 0:
            try:
                yield
            except BaseException:
                self._store.set(key, "failed")
                raise
            self._store.set(key, "done")
            return
        yield
        while not self._store.check([key]):
            time.sleep(_POLL)
        if self._store.get(key) != b"done":
            raise InputError("the main process failed; it says why")

    def _watch(self) -> None:
        beats = 0
        others = [rank for rank in range(self._world) if rank != self._rank]
        seen = {rank: (b"", time.monotonic()) for rank in others}
        try:
            while not self._stopped.wait(_BEAT):
                beats += 1
                self._store.set(f"beat/{self._rank}", str(beats))
                now = time.monotonic()
                for rank in others:
                    key = f"beat/{rank}"
                    beat = self._store.get(key) if self._store.check([key]) else b""
                    if beat != seen[rank][0]:
                        seen[rank] = beat, now
                    elif beat != b"done" and now - seen[rank][1] > _PATIENCE:
                        self._end(f"process {rank} has given no sign of life for "
                                  f"{_PATIENCE:.0f} s: it is frozen, or its machine is")
        except (RuntimeError, OSError) as error:  # those of the store
            if not self._stopped.is_set():
                self._end(f"the launcher cannot be reached any longer ({error})")

    def _end(self, reason: str) -> None:
        sys.stderr.write(f"cvt train: {reason}; process {self._rank} of {self._world} ends too. Go "
                         "on with cvt train --resume DIR\n")
        sys.stderr.flush()
        os._exit(1)  # the main thread may be in a collective that nobody will ever complete
