"""Several processes of the `cvt` command and their key-value store, as torchrun starts them.

They are forked from one process that imports everything once for a whole session, because each
import takes some seconds.
"""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

TIMEOUT = 300  # seconds


def launch(world, *args):
    """Run `cvt` with `args` in `world` processes; returns exit code, standard output and error."""
    with tempfile.TemporaryDirectory() as home:
        job = {"world": world, "args": [str(arg) for arg in args], "home": home}
        server().stdin.write(json.dumps(job) + "\n")
        server().stdin.flush()
        code = int(server().stdout.readline())
        return code, *((Path(home) / name).read_text() for name in ("stdout", "stderr"))


@functools.cache
def server():
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    atexit.register(stop, process)
    return process


def stop(process):
    process.communicate()


def serve():
    import cvt.train.loop
    from cvt.cli import main

    assert cvt.train.loop  # the slow import
    for line in sys.stdin:
        job = json.loads(line)
        _, status = os.waitpid(fork(lambda job=job: run(main, **job)), 0)
        sys.stdout.write(f"{abs(os.waitstatus_to_exitcode(status))}\n")
        sys.stdout.flush()


def run(main, world, args, home):
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(home) / name, os.O_WRONLY | os.O_CREAT), stream)
    reading, writing = os.pipe()
    keeper = fork(lambda: keep_store(writing))
    port = os.read(reading, 8).decode()

    def work(rank):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank),
                       "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
                       "LOCAL_WORLD_SIZE": str(world), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        return main(args)

    running = {fork(lambda rank=rank: work(rank)) for rank in range(world)}
    code = 0
    while running:
        process, status = os.wait()
        running.discard(process)
        if status and not code:  # the others would wait for it
            code = abs(os.waitstatus_to_exitcode(status))
            for other in running:
                os.kill(other, signal.SIGTERM)
    os.kill(keeper, signal.SIGKILL)
    return code


def keep_store(port):
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(port, str(store.port).encode())
    signal.pause()


def fork(work):
    """Start a process that calls `work` and exits with the code that it returns; its id."""
    if process := os.fork():
        return process
    code = 1
    try:
        signal.alarm(TIMEOUT)
        code = work()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
