"""As torchrun: N processes of the `cvt` command and the key-value store that they meet at.

    python torchrun.py N train ...

They are forks of one process that has imported everything, which takes each some seconds else.
"""

import os
import signal
import sys

import torch
import torch.distributed as dist

import cvt.train.loop  # noqa: F401
from cvt.cli import main


def fork(work):
    """The number of a new process, which does `work` and ends with the code that it returns."""
    if process := os.fork():
        return process
    code = 1
    try:
        code = work()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def keep_store(port):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(port, str(store.port).encode())
    signal.pause()


def launch(world, args):
    reading, writing = os.pipe()
    keeper = fork(lambda: keep_store(writing))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.read(reading, 8).decode(),
                   "TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": str(world),
                   "LOCAL_WORLD_SIZE": str(world)}

    def rank(number):
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
        return main(args)

    running = {fork(lambda number=number: rank(number)) for number in range(world)}
    code = 0
    while running:
        process, status = os.wait()
        running.discard(process)
        if status and not code:  # the others would wait for it
            code = os.waitstatus_to_exitcode(status)
            for other in running:
                os.kill(other, signal.SIGTERM)
    os.kill(keeper, signal.SIGKILL)
    return abs(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))
