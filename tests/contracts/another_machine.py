"""Runs `cvt` commands, one JSON list a line of the standard input, without what only Linux has.

Stands for Windows and macOS where there is none: no fork, fcntl, resource, /proc, SIGUSR1 or
affinity, processes are spawned, and an open or mapped file is not renamed, replaced or removed. The
packages under ours are imported before, for each has code of its own for every system.
"""

import builtins
import contextlib
import importlib
import json
import multiprocessing
import os
import pkgutil
import signal
import sys
import warnings
from pathlib import Path

OS = ("fork", "forkpty", "getuid", "geteuid", "getgid", "sched_getaffinity", "sysconf", "mkfifo",
      "chown", "lchown", "killpg", "setsid", "getpgid", "statvfs", "nice", "getloadavg", "uname",
      "posix_fadvise", "sendfile", "O_DIRECTORY", "symlink", "link")
SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGALRM", "setitimer", "pause",
           "sigtimedwait")
MODULES = ("fcntl", "resource", "pwd", "grp", "termios")
PACKAGES = ("torch._dynamo", "torch.utils.data", "torch.utils.tensorboard", "torch.distributed",
            "torchvision.transforms.v2", "accelerate", "timm", "filelock", "matplotlib.pyplot",
            "rich.console", "rich.progress", "jsonargparse", "psutil", "sklearn.datasets",
            "huggingface_hub", "scipy.stats", "torchmetrics", "uvicorn", "fastapi",
            "prometheus_client")


def main():
    for name in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _take_away()
    _guard_files()
    multiprocessing.set_start_method("spawn", force=True)
    warnings.filterwarnings("error", category=EncodingWarning, module=r"cvt\.")
    import cvt

    for module in pkgutil.walk_packages(cvt.__path__, "cvt."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    from cvt.cli import main as cvt_main

    for line in sys.stdin:
        args = json.loads(line)
        code = cvt_main(args)
        sys.stdout.write(f"== {args[0]}: {code}\n")
        sys.stdout.flush()
        if code:
            sys.exit(1)


def _take_away():
    for module, names in ((os, OS), (signal, SIGNALS)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in MODULES:
        sys.modules[name] = None
    for name in ("exists", "read_text", "write_text", "open"):
        setattr(Path, name, _without_proc(getattr(Path, name)))


def _without_proc(method):
    def guarded(self, *args, **kwargs):
        if str(self).startswith("/proc"):
            if method.__name__ == "exists":
                return False
            raise FileNotFoundError(2, "there is no such file on this system", str(self))
        return method(self, *args, **kwargs)

    return guarded


def _guard_files():
    """Let files be as on Windows, where they belong to whoever has them open."""
    from_os = {name: getattr(os, name) for name in ("rename", "replace", "unlink", "open", "fsync")}
    readlink, listdir = os.readlink, os.listdir
    opened = builtins.open

    def held(path):
        path = os.path.realpath(os.fspath(path))
        names = []
        for number in listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                names.append(readlink(f"/proc/self/fd/{number}"))
        with opened("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            names += [line.split(None, 5)[-1].strip() for line in maps if path in line]
        return [name for name in names if name == path or name.startswith(path + os.sep)]

    def checked(name):
        def call(path, *args, **kwargs):
            # filelock removes its file as each system lets it, here while it is open.
            lock = str(path).endswith(".lock")
            if "dir_fd" not in kwargs and not lock and (open_there := held(path)):
                raise PermissionError(13, f"{name}: {open_there[0]} is open", str(path))
            if name == "rename" and os.path.exists(args[0]):
                raise FileExistsError(17, "rename: it exists", str(args[0]))
            if name == "replace" and held(args[0]):
                raise PermissionError(13, "replace: the old file is open", str(args[0]))
            return from_os[name](path, *args, **kwargs)

        return call

    for name in ("rename", "replace", "unlink"):
        setattr(os, name, checked(name))
    os.remove = os.unlink

    def fsync(handle):
        with opened(f"/proc/self/fdinfo/{handle}", encoding="ascii") as info:
            flags = int(next(line for line in info if line.startswith("flags"))[6:], 8)
        if flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "fsync: the file is open to be read alone")
        return from_os["fsync"](handle)

    os.fsync = fsync
    import cvt.train.checkpoints as store

    class Nt:
        """`os` with the name of Windows, for the one place that asks."""

        name = "nt"

        def __getattr__(self, name):
            return getattr(os, name)

    store.os = Nt()


if __name__ == "__main__":
    main()
