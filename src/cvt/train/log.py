"""What a run says while it trains: a progress bar, CSV, JSONL and TensorBoard."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from cvt.atomic import replace_file
from cvt.train.state import CSV, JSONL, TENSORBOARD

Row = Mapping[str, float]


class Log:
    """The log of a run of `epochs` epochs of `steps` steps, of which `history` are done.

    A bar and a line an epoch go to the standard error, unless `quiet`; the files go to `run`.
    """

    def __init__(self, run: Path, *, epochs: int, steps: int, history: Sequence[Row],
                 quiet: bool) -> None:
        self._run, self._epochs, self._steps = run, epochs, steps
        self._console = Console(stderr=True, quiet=quiet)
        self._bar = Progress(TextColumn("epoch {task.fields[epoch]}/" + str(epochs)), BarColumn(),
                             MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
                             TimeRemainingColumn(), console=self._console, transient=True,
                             disable=quiet or not self._console.is_terminal)
        done = len(history) * steps
        self._task = self._bar.add_task("", total=epochs * steps, completed=done, loss=0.0,
                                        epoch=len(history) + 1)
        self._board = SummaryWriter(run / TENSORBOARD, purge_step=done)

    def __enter__(self) -> Log:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._bar.stop()
        self._board.close()

    def step(self, step: int, loss: float, lr: float) -> None:
        """Step `step` (from 0 over the whole run) had this loss, with this learning rate."""
        self._bar.update(self._task, advance=1, loss=loss, epoch=step // self._steps + 1)
        self._board.add_scalar("train/step_loss", loss, step)
        self._board.add_scalar("train/lr", lr, step)

    def epoch(self, history: Sequence[Row]) -> None:
        """The last row of `history` is new; the files are written anew, so they never differ."""
        row = history[-1]
        width = len(str(self._epochs))
        self._console.print(
            f"epoch {row['epoch']:{width}.0f}/{self._epochs}  train loss {row['train_loss']:.4f}  "
            f"val loss {row['val_loss']:.4f}  val top-1 {row['val_top1']:.2%}  "
            f"{row['seconds']:.1f} s", highlight=False)
        for name in ("train_loss", "val_loss", "val_top1"):
            self._board.add_scalar(name.replace("_", "/", 1), row[name],
                                   int(row["epoch"]) * self._steps - 1)
        table = io.StringIO()
        writer = csv.DictWriter(table, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        lines = "".join(json.dumps(dict(row)) + "\n" for row in history)
        replace_file(self._run / CSV, lambda part: part.write_text(table.getvalue()))
        replace_file(self._run / JSONL, lambda part: part.write_text(lines))
