"""What a run says while it trains: a progress bar, CSV, JSONL and TensorBoard."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich import progress as bars
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from cvt.data.unreadable import UNREADABLE, Row, read_unreadable, write_unreadable
from cvt.system.errors import one_line
from cvt.system.files import replace_file
from cvt.train.state import CSV, JSONL, TENSORBOARD, Progress

Figures = Mapping[str, float]


class Log:
    """The log of a run of `epochs` epochs and `total` steps, from where `progress` is.

    A bar and a line an epoch go to the standard error, unless `quiet`; the files go to `run`, the
    figures and how many steps were done also to `track`. With
    no `run`, as in all processes but the main one, it says and writes nothing.
    """

    def __init__(self, run: Path | None, *, epochs: int, total: int, progress: Progress,
                 quiet: bool, track: Callable[[Figures, int], None]) -> None:
        self._run, self._epochs, self._track = run, epochs, track
        quiet = quiet or run is None
        self._console = Console(stderr=True, quiet=quiet)
        self._bar = bars.Progress(
            bars.TextColumn("epoch {task.fields[epoch]}/" + str(epochs)), bars.BarColumn(),
            bars.MofNCompleteColumn(), bars.TextColumn("loss {task.fields[loss]:.3f}"),
            bars.TimeRemainingColumn(), console=self._console, transient=True,
            disable=quiet or not self._console.is_terminal)
        self._task = self._bar.add_task("", total=total, completed=progress.step, loss=0.0,
                                        epoch=len(progress.history) + 1)
        self._done = len(progress.history)
        self._unreadable: dict[tuple[str, str], str] = {}
        self._board = SummaryWriter(run / TENSORBOARD, purge_step=progress.step) if run else None

    def __enter__(self) -> Log:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._bar.stop()
        if self._board:
            self._board.close()

    def step(self, step: int, loss: float, lr: float) -> None:
        """Step `step` (from 0 over the whole run) had this loss, with this learning rate."""
        self._bar.update(self._task, advance=1, loss=loss, epoch=self._done + 1)
        if self._board:
            self._board.add_scalar("train/step_loss", loss, step)
            self._board.add_scalar("train/lr", lr, step)
            self._tell({"train/step_loss": loss, "train/lr": lr}, step + 1)

    def _tell(self, figures: Figures, step: int) -> None:
        """Tell the trackers; one that fails must not cost the run."""
        try:
            self._track(figures, step)
        except Exception as error:  # whatever their clients raise
            self._track = lambda _, __: None
            self.say(f"the trackers failed after step {step}, and the run goes on without them: "
                     + one_line(error))

    def say(self, what: str) -> None:
        """Something that whoever watches should know."""
        self._console.print(what, highlight=False, markup=False, soft_wrap=True)

    def unreadable(self, rows: Sequence[Row]) -> None:
        """Images that could not be read; the file has all, once."""
        new = {(split, name): why for split, name, why in rows
               if (split, name) not in self._unreadable}
        if not new or not self._run:
            return
        path = self._run / UNREADABLE
        earlier = {(split, name): why for split, name, why in read_unreadable(path)}
        self._unreadable |= earlier | new  # of the processes before this one, too
        self.say(f"{len(self._unreadable)} images could not be read, such as "
                 f"{next(reversed(new.values()))}; {path} lists them")
        write_unreadable(path, [(*key, why) for key, why in sorted(self._unreadable.items())])

    def back_to(self, progress: Progress) -> None:
        """The run goes on from an earlier step."""
        self._done = len(progress.history)
        self._bar.update(self._task, completed=progress.step)

    def epoch(self, history: Sequence[Figures], step: int) -> None:
        """The last row of `history` is new, after `step` steps; the files are written anew, so they
        never differ.
        """
        self._done = len(history)
        if not self._run or not self._board:
            return
        row = history[-1]
        width = len(str(self._epochs))
        self._console.print(
            f"epoch {row['epoch']:{width}.0f}/{self._epochs}  train loss {row['train_loss']:.4f}  "
            f"val loss {row['val_loss']:.4f}  val top-1 {row['val_top1']:.2%}  "
            f"{row['seconds']:.1f} s", highlight=False)
        figures = {name.replace("_", "/", 1): row[name]
                   for name in ("train_loss", "val_loss", "val_top1", "val_recall")}
        for name, value in figures.items():
            self._board.add_scalar(name, value, step - 1)
        self._tell(figures, step)
        table = io.StringIO()
        writer = csv.DictWriter(table, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        lines = "".join(json.dumps(dict(row)) + "\n" for row in history)
        replace_file(self._run / CSV,
                     lambda part: part.write_text(table.getvalue(), encoding="utf-8"))
        replace_file(self._run / JSONL, lambda part: part.write_text(lines, encoding="utf-8"))
