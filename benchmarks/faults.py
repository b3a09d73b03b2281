"""Fault injection into training runs: does every run resume, and end with the same weights?

    python benchmarks/faults.py [--kills 100] [--repeats 5] [--flips 100] [--ranks 20]

Each run is a process that trains a tiny network on scikit-learn's digits: killed at a random
moment, killed after each disk operation of a save, given a corrupt checkpoint or a failing disk,
or with one of its processes killed or frozen. It is then resumed to its end, and its weights are
compared, bit for bit, with those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import cvt.train.checkpoints as store_module
from cvt.config import CvTConfig, StageConfig
from cvt.data.config import AugmentConfig
from cvt.data.sources.builtin import digits
from cvt.train import loop
from cvt.train.checkpoints import CheckpointStore
from cvt.train.config import OptimConfig
from cvt.train.directory import CHECKPOINTS, LAST
from cvt.train.recipe import Recipe
from cvt.weights.tensors import BEST, read_tensors
from timing import keep

ROOT = Path(__file__).parent


def recipe(home: Path, **changes: object) -> Recipe:
    stages = (StageConfig(dim=8, num_heads=1, depth=1),
              StageConfig(dim=8, num_heads=2, depth=1, cls_token=True, drop_rate=0.1,
                          drop_path_rate=0.2))
    CvTConfig(stages=stages, num_classes=10, image_size=8).save(home / "tiny.json")
    given = {"model": str(home / "tiny.json"), "image_size": 8, "epochs": 3, "batch_size": 128,
             "ema": 0.9, "save_every": 2, "device": "cpu",
             "augment": AugmentConfig(crop="shift", mixup=0.2, cutmix=1.0),
             "optim": OptimConfig(lr=3e-3, warmup_epochs=0.5, clip_grad=1.0), **changes}
    return Recipe(**given)  # type: ignore[arg-type]


def fork(action: Callable[[], object], log: Path) -> int:
    """Start `action` in a forked process, its output in `log`; returns the process id.

    It is forked because importing PyTorch a thousand times would take most of the time.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 70
    with contextlib.suppress(BaseException):
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        torch.set_num_threads(1)
        try:
            action()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            code = 1
    os._exit(code)


def ended(pid: int) -> int:
    """Wait for a process; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(run: Path, plan: Recipe, log: Path) -> bool:
    """Resume a run, or start it again if nothing is left; whether it finishes."""
    if (run / "metrics.json").exists():
        return True
    if (run / "recipe.yaml").exists():
        return ended(fork(lambda: loop.resume(run, quiet=True), log)) == 0
    return ended(fork(lambda: loop.train(plan, run, quiet=True), log)) == 0


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same weights, bit for bit."""
    for name in (LAST, BEST):
        ours, theirs = read_tensors(one / name), read_tensors(other / name)
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[k], theirs[k]) for k in ours):
            return False
    return True


def kills(home: Path, whole: Path, plan: Recipe, count: int, seconds: float) -> dict[str, object]:
    """Kill runs at random moments between their first and last instruction."""
    rng, right, saving = random.Random(0), 0, 0
    for i in range(count):
        run = home / f"kill-{i}"
        pid = fork(lambda run=run: loop.train(plan, run, quiet=True), home / "kill.log")  # type: ignore[misc]
        time.sleep(rng.uniform(0.05, 1.1 * seconds))
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        saving += any(run.glob(f"{CHECKPOINTS}/.*"))
        right += finish(run, plan, home / "kill.log") and same(whole, run)
        shutil.rmtree(run)
    return {"runs": count, "bit_equal": right, "of_those_killed_inside_a_save": saving}


def killing(number: int) -> Callable[[], list[str]]:
    """Kill this process after the `number`-th disk operation of its saves; 0 for never."""
    done: list[str] = []

    def watch(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def watched(*args: object, **kwargs: object) -> object:
            result = call(*args, **kwargs)
            done.append(name)
            if len(done) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return watched

    for owner, name in ((store_module, "save_file"), (store_module, "_sync"),
                        (store_module, "_manifest"), (store_module.tempfile, "mkdtemp"),
                        (store_module.shutil, "rmtree"), (store_module.Path, "rename"),
                        (store_module.Path, "write_bytes")):
        setattr(owner, name, watch(name, getattr(owner, name)))
    return lambda: done


def points(home: Path, whole: Path, plan: Recipe, repeats: int) -> dict[str, object]:
    """Kill runs after each disk operation of a save, in `repeats` saves of a run."""
    def count() -> None:
        done = killing(0)
        loop.train(plan, home / "count", quiet=True)
        (home / "count.json").write_text(json.dumps(done()))

    assert ended(fork(count, home / "points.log")) == 0
    operations = json.loads((home / "count.json").read_text())
    saves = operations.count("save_file") // 3
    each = len(operations) // saves
    right = tried = 0
    for repeat in range(repeats):
        first = 1 + repeat * (saves - 1) // max(1, repeats) * each
        for number in range(first, first + each + 2):
            run = home / f"point-{number}"
            code = ended(fork(lambda run=run, number=number: (  # type: ignore[misc]
                killing(number), loop.train(plan, run, quiet=True)), home / "points.log"))
            if code == 0:
                continue
            tried += 1
            right += finish(run, plan, home / "points.log") and same(whole, run)
            shutil.rmtree(run)
    return {"operations_of_a_save": each, "kills": tried, "bit_equal": right}


def stopped(home: Path, plan: Recipe) -> Path:
    """A run that SIGTERM stopped in its third epoch, with several checkpoints."""
    run = home / "stopped"
    pid = fork(lambda: loop.train(plan, run, quiet=True), home / "stopped.log")
    while not list(run.glob(f"{CHECKPOINTS}/step-0000002*")):
        time.sleep(0.005)
    os.kill(pid, signal.SIGTERM)
    ended(pid)
    assert not (run / "metrics.json").exists()
    return run


def damage(home: Path, whole: Path, plan: Recipe, flips: int) -> dict[str, object]:
    """Corrupt bits, lengths and names of the latest checkpoint: is it detected and skipped?"""
    run, rng = stopped(home, plan), random.Random(0)
    seen = 0
    store = CheckpointStore(run / CHECKPOINTS)
    newest = max(p for p in (run / CHECKPOINTS).glob("step-*"))
    step = int(newest.name.removeprefix("step-"))
    files = sorted(newest.iterdir())
    for _ in range(flips):
        file = rng.choice(files)
        content = bytearray(before := file.read_bytes())
        bit = rng.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        try:
            store.read(step)
        except ValueError:
            seen += 1
        file.write_bytes(before)
    results: dict[str, object] = {"flips": flips, "flips_seen": seen}
    fell_back = tried = 0
    for name in [f.name for f in files]:
        for harm in ("cut", "gone", "swapped", "flipped"):
            copy = home / "damaged"
            shutil.copytree(run, copy)
            file = copy / CHECKPOINTS / newest.name / name
            content = bytearray(file.read_bytes())
            if harm == "cut":
                file.write_bytes(content[:len(content) // 2])
            elif harm == "gone":
                file.unlink()
            elif harm == "swapped":
                older = sorted(copy.glob(f"{CHECKPOINTS}/step-*"))[-2]
                shutil.copy(older / name, file)
            else:
                content[len(content) // 2] ^= 16
                file.write_bytes(content)
            tried += 1
            fell_back += (finish(copy, plan, home / "damage.log") and same(whole, copy)
                          and (copy / CHECKPOINTS / f"corrupt-{newest.name}").exists())
            shutil.rmtree(copy)
    return {**results, "files_harmed": tried, "fell_back_and_bit_equal": fell_back}


def disks(home: Path, whole: Path, plan: Recipe) -> dict[str, object]:
    """A disk that is full, fails or denies access, in the third save."""
    right, said = 0, []
    codes = (errno.ENOSPC, errno.EIO, errno.EACCES)
    calls = ("save_file", "_sync", "_manifest")
    for code in codes:
        for name in calls:
            run, log = home / f"disk-{code}-{name}", home / f"disk-{code}-{name}.log"

            def fail(code: int = code, name: str = name, run: Path = run) -> None:
                call, times = getattr(store_module, name), iter(range(1000))

                def fails(*args: object) -> object:
                    if next(times) >= 9:
                        raise OSError(code, os.strerror(code))
                    return call(*args)

                setattr(store_module, name, fails)
                loop.train(plan, run, quiet=True)

            clear = ended(fork(fail, log)) == 1 and os.strerror(code) in log.read_text()
            intact = CheckpointStore(run / CHECKPOINTS).repair() == []
            right += clear and intact and finish(run, plan, log) and same(whole, run)
            said.append(log.read_text().splitlines()[0])
    return {"runs": len(codes) * len(calls), "clear_intact_and_bit_equal": right,
            "said": sorted(set(said))}


def sources(home: Path) -> dict[str, Path]:
    """The digits as a folder of files and as tar shards, in the same order."""
    data, folder, shards = digits(), home / "folder", home / "shards"
    shards.mkdir(parents=True)
    for half, images in (("train", data.train), ("val", data.val)):
        for i, label in enumerate(images.labels):
            place = folder / half / images.classes[label] / f"{i:04}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            images.read(i).save(place)
        with tarfile.open(shards / f"{half}-000000.tar", "w") as archive:
            for place in sorted((folder / half).glob("*/*.png")):
                name = f"{place.parent.name}-{place.stem}"
                archive.add(place, f"{name}.png")
                label = io.BytesIO(place.parent.name.encode())
                member = tarfile.TarInfo(f"{name}.cls")
                member.size = len(label.getvalue())
                archive.addfile(member, label)
    return {"folder": folder, "shards": shards}


def settings(home: Path) -> dict[str, object]:
    """Kill runs in the middle of an epoch and resume them, with different numbers of workers and
    micro-batches, from files and from tar shards: are all weights the same?"""
    right, runs = 0, []
    for accumulate in (1, 4):
        base: Path | None = None
        for source, root in sources(home / str(accumulate)).items():
            for workers in (0, 1, 4):
                plan = recipe(home, optim=OptimConfig(lr=3e-3, warmup_epochs=0.5,
                                                      grad_accum_steps=accumulate))
                plan = Recipe.from_dict({**plan.to_dict(), "data": {
                    "name": source, "root": str(root), "workers": workers}})
                runs.append(f"{source}, workers {workers}, accumulate {accumulate}")
                whole, cut = (home / f"{len(runs)}-{name}" for name in ("whole", "cut"))
                assert ended(fork(lambda plan=plan, run=whole: loop.train(plan, run, quiet=True),  # type: ignore[misc]
                                  home / "set.log")) == 0, (home / "set.log").read_text()
                pid = fork(lambda plan=plan, run=cut: loop.train(plan, run, quiet=True),  # type: ignore[misc]
                           home / "set.log")
                while not list(cut.glob(f"{CHECKPOINTS}/step-00000016")):
                    time.sleep(0.005)
                os.kill(pid, signal.SIGKILL)
                ended(pid)
                base = base or whole
                right += finish(cut, plan, home / "set.log") and same(base, cut) and same(base,
                                                                                          whole)
    return {"settings": runs, "bit_equal": right}


def launch(home: Path, run: Path, processes: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={processes}", "-m", "cvt", "train", f"--model={home / 'tiny.json'}",
         "--image_size=8", "--epochs=1000", "--batch_size=64", "--device=cpu", "--quiet",
         f"--output={run}"], env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def ranks(home: Path, count: int) -> dict[str, object]:
    """Kill or freeze one of two processes: how long until all have ended?"""
    seconds: dict[str, list[float]] = {"killed": [], "frozen": []}
    reasons = 0
    for i in range(count):
        how, run = ("killed", "frozen")[i % 2], home / f"rank-{i}"
        launcher = launch(home, run, 2)
        while not (run / LAST).exists():
            time.sleep(0.05)
        pids = [int(p) for p in subprocess.check_output(["pgrep", "-P", str(launcher.pid)],
                                                        text=True).split()]
        victim = pids[i // 2 % 2]
        os.kill(victim, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        start = time.monotonic()
        _, error = launcher.communicate(timeout=120)
        seconds[how].append(time.monotonic() - start)
        reasons += ("no heartbeat" if how == "frozen" else "SIGKILL") in error
        shutil.rmtree(run)
    return {"faults": count, "said_why": reasons,
            "longest_s": {how: max(s, default=0.0) for how, s in seconds.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=[
        "kills", "points", "damage", "disks", "settings", "ranks"])
    parser.add_argument("--print", action="store_true", help="keep no file")
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        plan, whole = recipe(home), home / "whole"
        start = time.monotonic()
        assert ended(fork(lambda: loop.train(plan, whole, quiet=True), home / "log")) == 0, (
            (home / "log").read_text())
        seconds = time.monotonic() - start
        for what, run in (("kills", lambda: kills(home, whole, plan, args.kills, seconds)),
                          ("points", lambda: points(home, whole, plan, args.repeats)),
                          ("damage", lambda: damage(home, whole, plan, args.flips)),
                          ("disks", lambda: disks(home, whole, plan)),
                          ("settings", lambda: settings(home)),
                          ("ranks", lambda: ranks(home, args.ranks))):
            if args.only is None or what in args.only:
                start = time.monotonic()
                result = {**run(), "seconds": round(time.monotonic() - start)}
                print(what, json.dumps(result), flush=True)
                if not args.print:
                    keep(f"faults_{what}", result)


if __name__ == "__main__":
    main()
