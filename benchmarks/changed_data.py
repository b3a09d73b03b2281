"""Resume a stopped run after random edits of its images or its recipe: are changes detected?

    python benchmarks/changed_data.py [--edits 200] [--seed 0]

Each edit is one of the kinds below (images gone, added, renamed, changed, moved, relabelled, in
another order or split; options of the recipe changed), in a folder, a table or tar archives, after
a stop in the middle or at the end of an epoch. A plain resume must reject it in one line that names
the difference and leave the run unchanged. Then a resume that accepts data changes must complete
the run as documented (the current epoch restarts, and the report notes it), or reject a change that
is not one of the data, by name. Edits that change nothing (file times, other files beside, the
location of the dataset) are controls: they must reproduce the weights of the uninterrupted run.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cvt.config import CvTConfig, StageConfig
from cvt.data.config import AugmentConfig, DataConfig
from cvt.system.errors import InputError
from cvt.system.schema import read_mapping, write_mapping
from cvt.train import loop
from cvt.train.config import OptimConfig
from cvt.train.recipe import Recipe
from timing import keep

CLASSES = ("ant", "bee", "cat")
STOPS = (5, 9, 13)  # steps, of 9 an epoch
EPOCHS = 2


def image(rng: random.Random) -> bytes:
    file = io.BytesIO()
    pixels = np.frombuffer(rng.randbytes(8 * 8 * 3), np.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels).save(file, "bmp")  # all of one size
    return file.getvalue()


class Folder:
    """CLASS/NN.bmp; an edit changes what is below `root`."""

    name = "folder"

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self, rng: random.Random) -> None:
        for name in CLASSES:
            (self.root / name).mkdir(parents=True)
            for i in range(16):
                (self.root / name / f"{i:02}.bmp").write_bytes(image(rng))

    @property
    def data(self) -> str:
        return str(self.root)

    def files(self) -> list[Path]:
        return sorted(self.root.rglob("*.bmp"))

    def edits(self, rng: random.Random) -> dict[str, Callable[[], object]]:
        one, two = rng.sample(self.files(), 2)
        other = rng.choice([name for name in CLASSES if name != one.parent.name])
        return {
            "image removed": one.unlink,
            "half of the images removed": lambda: [p.unlink() for p in self.files()[::2]],
            "image added": lambda: one.with_name("new.bmp").write_bytes(image(rng)),
            "image renamed": lambda: one.rename(one.with_name("renamed.bmp")),
            "image changed": lambda: one.write_bytes(image(rng)),
            "image cut off": lambda: one.write_bytes(one.read_bytes()[:60]),
            "image relabelled": lambda: one.rename(self.root / other / f"x{one.name}"),
            "images swapped": lambda: swap(one, two),
            "class added": lambda: [(self.root / "dog").mkdir(), *(
                (self.root / "dog" / f"{i}.bmp").write_bytes(image(rng)) for i in range(3))],
            "class renamed": lambda: (self.root / "bee").rename(self.root / "wasp"),
            "class removed": lambda: shutil.rmtree(self.root / "bee"),
            "classes swapped": lambda: [(self.root / "ant").rename(self.root / "x"),
                                        (self.root / "bee").rename(self.root / "ant"),
                                        (self.root / "x").rename(self.root / "bee")],
            "everything removed": lambda: shutil.rmtree(self.root),
        }

    def controls(self) -> dict[str, Callable[[], object]]:
        return {"times of files": lambda: [os.utime(p, (1, 1)) for p in self.files()],
                "a text beside": lambda: (self.root / "notes.txt").write_text("x"),
                "written anew": lambda: [p.write_bytes(p.read_bytes()) for p in self.files()]}


class Table(Folder):
    """The same images, listed by a CSV file."""

    name = "manifest"

    def make(self, rng: random.Random) -> None:
        super().make(rng)
        self.write([["path", "label"], *([f"{p.parent.name}/{p.name}", p.parent.name]
                                         for p in self.files())])

    @property
    def data(self) -> str:
        return str(self.root / "table.csv")

    def write(self, rows: list[list[str]]) -> None:
        with (self.root / "table.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    def edits(self, rng: random.Random) -> dict[str, Callable[[], object]]:
        with (self.root / "table.csv").open(newline="") as file:
            head, *rows = csv.reader(file)
        i, j = rng.sample(range(len(rows)), 2)
        other = next(r[1] for r in rows if r[1] != rows[i][1])

        def changed(k: int, label: str) -> list[list[str]]:
            return [head, *([p, label if n == k else y] for n, (p, y) in enumerate(rows))]

        shuffled = rng.sample(rows, len(rows))
        return {
            "row removed": lambda: self.write([head, *rows[:i], *rows[i + 1:]]),
            "row twice": lambda: self.write([head, *rows, rows[i]]),
            "label changed": lambda: self.write(changed(i, other)),
            "labels of two swapped": lambda: self.write(
                [head, *([p, rows[j][1] if n == i else rows[i][1] if n == j else y]
                         for n, (p, y) in enumerate(rows))]) if rows[i][1] != rows[j][1]
            else self.write(changed(i, other)),
            "label misspelt": lambda: self.write(changed(i, "bees")),
            "rows in another order": lambda: self.write([head, *shuffled]),
            "a split of its own": lambda: self.write(
                [[*head, "split"], *([*r, "val" if n % 3 == 0 else "train"]
                                     for n, r in enumerate(rows))]),
            "image changed": lambda: (self.root / rows[i][0]).write_bytes(image(rng)),
            "image gone": lambda: (self.root / rows[i][0]).unlink(),
            "table gone": lambda: (self.root / "table.csv").unlink(),
        }


class Shards(Folder):
    """The same images in two tar archives."""

    name = "shards"

    def make(self, rng: random.Random) -> None:
        self.root.mkdir(parents=True)
        samples = [(name, image(rng)) for _ in range(16) for name in CLASSES]
        for part in range(2):
            self.write(part, samples[part::2])

    def write(self, part: int, samples: list[tuple[str, bytes]]) -> None:
        (self.root / "index.npz").unlink(missing_ok=True)
        with tarfile.open(self.root / f"{part}.tar", "w") as archive:
            for i, (label, data) in enumerate(samples):
                for suffix, content in (("bmp", data), ("cls", label.encode())):
                    info = tarfile.TarInfo(f"{part}-{i:03}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))

    def read(self, part: int) -> list[tuple[str, bytes]]:
        with tarfile.open(self.root / f"{part}.tar") as archive:
            found = {info.name: archive.extractfile(info).read()  # type: ignore[union-attr]
                     for info in archive}
        return [(found[name.replace("bmp", "cls")].decode(), found[name])
                for name in sorted(found) if name.endswith("bmp")]

    def edits(self, rng: random.Random) -> dict[str, Callable[[], object]]:
        part = rng.randrange(2)
        samples = self.read(part)
        i = rng.randrange(len(samples))
        other = next(label for label, _ in samples if label != samples[i][0])
        return {
            "sample removed": lambda: self.write(part, samples[:i] + samples[i + 1:]),
            "sample added": lambda: self.write(part, [*samples, ("ant", image(rng))]),
            "sample relabelled": lambda: self.write(part, [
                (other if n == i else label, data) for n, (label, data) in enumerate(samples)]),
            "sample changed": lambda: self.write(
                part, [*samples[:i], (samples[i][0], image(rng)), *samples[i + 1:]]),
            "samples in another order": lambda: self.write(part, samples[1:] + samples[:1]),
            "archive removed": lambda: (self.root / f"{part}.tar").unlink(),
            "archive renamed": lambda: (self.root / f"{part}.tar").rename(self.root / "z.tar"),
            "archive cut off": lambda: (self.root / f"{part}.tar").write_bytes(
                (self.root / f"{part}.tar").read_bytes()[:5000]),
        }

    def controls(self) -> dict[str, Callable[[], object]]:
        return {"index gone": lambda: (self.root / "index.npz").unlink(missing_ok=True),
                "times of files": lambda: [os.utime(p, (1, 1)) for p in self.root.glob("*.tar")]}


OPTIONS: dict[str, Any] = {
    "optim.lr": 2e-3, "optim.weight_decay": 0.1, "optim.schedule": "linear", "optim.name": "sgd",
    "optim.clip_grad": 2.0, "optim.grad_accum_steps": 2, "optim.layer_decay": 0.9, "batch_size": 8,
    "seed": 7, "ema": 0.5, "passes_per_epoch": 2, "augment.mixup": 0.0, "augment.hflip": 0.5,
    "augment.label_smoothing": 0.1, "class_weights": "balanced", "sampling": "balanced",
    "image_size": 12, "in_chans": 1, "drop_path_rate": 0.3, "best_by": "val_loss",
    "skip_nonfinite": 5, "optim.lrr": 1.0,
    "data.val_fraction": 0.3, "data.split_seed": 3, "max_train_samples": 20}


def swap(one: Path, two: Path) -> None:
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def edit_recipe(path: Path, name: str, value: Any) -> None:
    """As with a text editor: the result may be an invalid recipe."""
    recipe = place = read_mapping(path)
    *parts, last = name.split(".")
    for part in parts:
        place = place[part]
    place[last] = value
    write_mapping(recipe, path)


def a_recipe(source: Folder, home: Path) -> Recipe:
    stages = (StageConfig(dim=8, num_heads=1, depth=1),
              StageConfig(dim=8, num_heads=2, depth=1, cls_token=True, drop_rate=0.1))
    CvTConfig(stages=stages, num_classes=3, image_size=8).save(home / "tiny.json")
    return Recipe(model=str(home / "tiny.json"), image_size=8, epochs=EPOCHS, batch_size=4,
                  ema=0.9, device="cpu", save_every=4, keep_checkpoints=9,
                  data=DataConfig(name=source.name, root=source.data),  # type: ignore[arg-type]
                  augment=AugmentConfig(crop="shift", mixup=0.2),
                  optim=OptimConfig(lr=1e-3, warmup_epochs=0))


def forked(action: Callable[[], object]) -> tuple[str, str]:
    """Run `action` in a forked process; returns "done", "rejected" or "traceback", and the message.
    Importing PyTorch hundreds of times would take most of the time."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            torch.set_num_threads(1)
            sys.stderr = io.StringIO()
            try:
                action()
                message = "done\n"
            except InputError as error:
                message = f"rejected\n{error}"
            except BaseException as error:
                message = f"traceback\n{type(error).__name__}: {error}"
            os.write(writer, message.encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as pipe:
        how, _, words = pipe.read().partition("\n")
    os.waitpid(pid, 0)
    return how, words


def killed_at(number: int) -> None:
    step = loop.Engine.step

    def dying(self: Any, batch: Any, lr: float, now: int) -> Any:
        if now == number:
            os._exit(9)
        return step(self, batch, lr, now)

    loop.Engine.step = dying  # type: ignore[method-assign]


def tree(run: Path) -> dict[str, str]:
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(run.rglob("*")) if p.is_file() and p.name != ".lock"}


def state(run: Path) -> dict[str, Any]:
    newest = max((run / "checkpoints").glob("step-*"))
    found: dict[str, Any] = json.loads((newest / "state.json").read_text())["progress"]
    return found


def continues_as_documented(run: Path, stop: int) -> bool:
    """Whether a run that continued with other data is complete, and its note says so."""
    progress, history = state(run), (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in history]
    begun = stop // 9  # complete epochs
    note = next((n for n in progress["notes"] if "on with other data" in n), "")
    steps = int(note.rsplit("begins anew, with ", 1)[1].split()[0]) if note else 0
    saved = min(stop // 4 * 4, stop) if stop % 9 else stop
    return (len(rows) == EPOCHS and f"from step {max(saved, begun * 9)} on" in note
            and f"Epoch {begun + 1} begins anew" in note and steps > 0
            and progress["step"] == max(saved, begun * 9) + steps * (EPOCHS - begun)
            and all(row["train_loss"] > 0 for row in rows)
            and bool(read_mapping(run / "metrics.json")["n"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    failures: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        sources = [kind(home / "data" / kind.name) for kind in (Folder, Table, Shards)]
        bases, wholes = {}, {}
        for source in sources:
            source.make(random.Random(args.seed))
            recipe = a_recipe(source, home)
            wholes[source.name] = home / f"whole-{source.name}"
            assert forked(lambda r=recipe, s=source: loop.train(
                r, wholes[s.name], quiet=True)) == ("done", "")
            for stop in STOPS:
                base = bases[source.name, stop] = home / f"base-{source.name}-{stop}"
                forked(lambda r=recipe, b=base, n=stop: (killed_at(n), loop.train(r, b,
                                                                                  quiet=True)))
        shutil.copytree(home / "data", home / "pristine")
        for number in range(args.edits + args.edits // 10):
            shutil.rmtree(home / "data")
            shutil.copytree(home / "pristine", home / "data")
            source, stop = rng.choice(sources), rng.choice(STOPS)
            run = home / "run"
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(bases[source.name, stop], run)
            control = number >= args.edits
            recipe_edit = not control and rng.random() < 0.3
            if recipe_edit:
                kind = rng.choice(list(OPTIONS))
                edit_recipe(run / "recipe.yaml", kind, OPTIONS[kind])
            else:
                table = source.controls() if control else source.edits(rng)
                kind = rng.choice(list(table))
                table[kind]()
            kinds[f"{'recipe' if recipe_edit else source.name}: {kind}"] += 1
            before = tree(run)
            how, message = forked(lambda r=run: loop.resume(r, quiet=True))
            failure = {"edit": f"{source.name}, stopped at {stop}: {kind}", "said": message}
            if control:
                same = how == "done" and all(
                    tree(run)[name] == tree(wholes[source.name])[name]
                    for name in ("last.safetensors", "best.safetensors"))
                counts["control, bit for bit" if same else "control, another result"] += 1
                if not same:
                    failures.append(failure)
                continue
            if how != "rejected" or "\n" in message or tree(run) != before:
                counts["silent" if how == "done" else how if how == "traceback" else "changed"] += 1
                failures.append(failure)
                continue
            counts["rejected by name"] += 1
            how, message = forked(
                lambda r=run: loop.resume(r, quiet=True, accept_data_changes=True))
            if how == "done":
                good = continues_as_documented(run, stop)
                counts["then accepted: went on as stated" if good else "then: not as stated"] += 1
            else:
                good = how == "rejected" and "\n" not in message
                counts["then rejected, for it is no such change" if good else how] += 1
            if not good:
                failures.append({**failure, "said": message, "accepting": "yes"})
    for name, n in sorted(counts.items()):
        print(f"{n:5} {name}")
    for row in failures:
        print(row)
    print(keep("changed_data", {"edits": args.edits, "seed": args.seed, "counts": dict(counts),
                                "kinds": dict(sorted(kinds.items())), "faults": failures}))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
