"""Signals that stop a run: it finishes the current step, saves a checkpoint and exits."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from types import FrameType
from typing import Self

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1")
                 if hasattr(signal, name))  # Windows has no SIGUSR1


class Stop:
    """Within the block SIGINT, SIGTERM and SIGUSR1 set `received`; a second one acts as usual.

    Signals are handled in the main thread only; in another thread nothing is ever received.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as in a shell's background
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._previous):
            self._restore(number)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore(number)

    def _restore(self, number: int) -> None:
        signal.signal(number, self._previous.pop(number, signal.SIG_DFL))  # type: ignore[arg-type]


def requeue() -> str | None:
    """Requeue the SLURM job that this process belongs to; returns its number.

    SIGUSR1 before a time limit asks for it. None outside of SLURM, and if SLURM rejects it.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job or not (scontrol := shutil.which("scontrol")):
        return None
    done = subprocess.run([scontrol, "requeue", job], capture_output=True, check=False)
    return job if done.returncode == 0 else None
