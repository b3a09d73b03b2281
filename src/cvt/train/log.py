"""The log of a run: progress bar, CSV, JSONL, TensorBoard and trackers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich import progress as bars
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from cvt.data.unreadable import UNREADABLE, Row, read_unreadable, write_unreadable
from cvt.system.errors import one_line
from cvt.system.files import replace_file
from cvt.train.directory import CSV, JSONL, TENSORBOARD
from cvt.train.state import Progress

Metrics = Mapping[str, float]


class Log:
    """The log of a run of `epochs` epochs and `steps` steps, starting at `progress`.

    A progress bar and a line per epoch go to standard error, unless `quiet`; files go to `run`;
    `track` is called with metrics and the number of steps done. Without `run`, as in all processes
    but the main one, nothing is logged.
    """

    def __init__(self, run: Path | None, *, epochs: int, steps: int, progress: Progress,
                 quiet: bool, track: Callable[[Metrics, int], None]) -> None:
        self._run, self._epochs, self._track = run, epochs, track
        quiet = quiet or run is None
        self._console = Console(stderr=True, quiet=quiet)
        self._bar = bars.Progress(
            bars.TextColumn("epoch {task.fields[epoch]}/" + str(epochs)), bars.BarColumn(),
            bars.MofNCompleteColumn(), bars.TextColumn("loss {task.fields[loss]:.3f}"),
            bars.TimeRemainingColumn(), console=self._console, transient=True,
            disable=quiet or not self._console.is_terminal)
        self._task = self._bar.add_task("", total=steps, completed=progress.step, loss=0.0,
                                        epoch=len(progress.history) + 1)
        self._epochs_done = len(progress.history)
        self._unreadable: dict[tuple[str, str], str] = {}
        self._board = SummaryWriter(run / TENSORBOARD, purge_step=progress.step) if run else None

    def __enter__(self) -> Log:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._board:
            self._board.close()

    def message(self, text: str) -> None:
        """Print a message."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def step(self, step: int, loss: float, lr: float) -> None:
        """Log the loss and learning rate of step `step` (from 0, over the whole run)."""
        self._bar.update(self._task, advance=1, loss=loss, epoch=self._epochs_done + 1)
        if self._board:
            self._board.add_scalar("train/step_loss", loss, step)
            self._board.add_scalar("train/lr", lr, step)
            self._log_to_trackers({"train/step_loss": loss, "train/lr": lr}, step + 1)

    def epoch(self, history: Sequence[Metrics], step: int) -> None:
        """Log the last row of `history`, after `step` steps.

        CSV and JSONL are replaced as a whole, so that they always agree.
        """
        self._epochs_done = len(history)
        if not self._run or not self._board:
            return
        row = history[-1]
        width = len(str(self._epochs))
        self._console.print(
            f"epoch {row['epoch']:{width}.0f}/{self._epochs}  train loss {row['train_loss']:.4f}  "
            f"val loss {row['val_loss']:.4f}  val top-1 {row['val_top1']:.2%}  "
            f"{row['seconds']:.1f} s", highlight=False)
        metrics = {name.replace("_", "/", 1): row[name]
                   for name in ("train_loss", "val_loss", "val_top1", "val_recall")}
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step - 1)
        self._log_to_trackers(metrics, step)
        table = io.StringIO()
        writer = csv.DictWriter(table, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        lines = "".join(json.dumps(dict(row)) + "\n" for row in history)
        replace_file(self._run / CSV,
                     lambda part: part.write_text(table.getvalue(), encoding="utf-8"))
        replace_file(self._run / JSONL, lambda part: part.write_text(lines, encoding="utf-8"))

    def rolled_back(self, progress: Progress) -> None:
        """Continue at an earlier step."""
        self._epochs_done = len(progress.history)
        self._bar.update(self._task, completed=progress.step)

    def unreadable(self, rows: Sequence[Row]) -> None:
        """List unreadable images, each once, in unreadable.csv."""
        new = {(split, name): reason for split, name, reason in rows
               if (split, name) not in self._unreadable}
        if not new or not self._run:
            return
        path = self._run / UNREADABLE
        earlier = {(split, name): reason for split, name, reason in read_unreadable(path)}
        self._unreadable |= earlier | new  # also of earlier processes
        self.message(f"{len(self._unreadable)} images could not be read, such as "
                     f"{next(reversed(new.values()))}; {path} lists them")
        write_unreadable(path, [(*key, reason)
                                for key, reason in sorted(self._unreadable.items())])

    def _log_to_trackers(self, metrics: Metrics, step: int) -> None:
        """A tracker that fails must not end the run."""
        try:
            self._track(metrics, step)
        except Exception as error:  # whatever their clients raise
            self._track = lambda _, __: None
            self.message(f"the trackers failed after step {step}; the run continues without them: "
                         + one_line(error))
