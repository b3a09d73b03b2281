"""Signals that ask a run to end: it finishes the step it is in, saves, and leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1")
                 if hasattr(signal, name))  # Windows has no SIGUSR1


class Stop:
    """Within the block SIGINT, SIGTERM and SIGUSR1 set `asked`; a second of a kind acts as ever.

    Only the main thread can listen; elsewhere nothing is ever asked.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background has it
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number in list(self._before):
            self._put_back(number)

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.asked = signal.Signals(number)
        self._put_back(number)

    def _put_back(self, number: int) -> None:
        signal.signal(number, self._before.pop(number, signal.SIG_DFL))  # type: ignore[arg-type]


def requeue() -> str | None:
    """Ask SLURM to start this job again, as SIGUSR1 before a time limit is meant; the job's number.

    None where this is no job of SLURM's, or it refuses.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job or not (scontrol := shutil.which("scontrol")):
        return None
    done = subprocess.run([scontrol, "requeue", job], capture_output=True, check=False)
    return job if done.returncode == 0 else None
