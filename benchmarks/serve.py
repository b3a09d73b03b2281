"""`cvt serve` under load, on loopback, clients on the same cores as the server.

    python benchmarks/serve.py [--only load overload identity idle drain soak] [--minutes 5]

load: 32 clients, each asking again as soon as it is answered, beside what `Predictor` does of the
same files offline. overload: 2, 5 and 10 times as many requests a second as it can answer.
identity: 10,000 different images, many at once; is each answer for its own? idle: 200 that say
nothing and 50 that drip, beside 8 that are well. drain: SIGTERM with 100 requests in hand. soak:
`cvt_nano` for --soak_minutes; descriptors and memory before and after.

Models have random weights but for cvt_nano.fashion_mnist; all are exported to OpenVINO fp32.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cvt.deploy.export import export
from cvt.predict.predictor import Predictor
from streaming import photo, write_model
from timing import keep

PARTS = ("load", "overload", "identity", "idle", "drain", "soak")


@dataclass
class Answers:
    """What clients got: status and seconds of each request, by when it was sent."""

    rows: list[tuple[float, int, float]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    missed: int = 0
    """Requests that were not sent, for no connection was free."""

    def statuses(self) -> dict[str, int]:
        return {str(k): n for k, n in sorted(Counter(s for _, s, _ in self.rows).items())}

    def milliseconds(self, *statuses: int) -> dict[str, float]:
        taken = [1000 * seconds for _, status, seconds in self.rows if status in statuses]
        return {} if not taken else {
            "n": len(taken), **{f"p{q}": round(float(np.percentile(taken, q)), 2)
                                for q in (50, 90, 99, 100)}}


CLASSIFY = b"/v1/classify"
HEAD = (b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
        b"Content-Length: %d\r\n\r\n")


class Client:
    """One connection, kept as long as the server keeps it."""

    def __init__(self, port: int, path: bytes = CLASSIFY) -> None:
        self._port, self._path = port, path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, data: bytes, answers: Answers) -> bytes:
        """POST an image; 0 stands for no answer."""
        start = time.perf_counter()
        try:
            status, body = await self._ask(data)
        except (OSError, asyncio.IncompleteReadError) as error:
            print("no answer:", repr(error), file=sys.stderr)
            status, body = 0, b""
            self.close()
        answers.rows.append((start - answers.began, status, time.perf_counter() - start))
        return body

    async def _ask(self, data: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(HEAD % (self._path, len(data)) + data)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        if b"connection: close" in head.lower():
            self.close()
        return int(head.split(b" ", 2)[1]), body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    port: int

    def memory_mb(self) -> float:
        """What it holds for itself: maps of shared files do not count."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextmanager
def served(model: Path, *options: str) -> Iterator[Served]:
    """`cvt serve` as it comes, its log in a file."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cvt", "serve", "--model", str(model), "--port", "0", *options],
            stderr=log)
        try:
            while '"listening"' not in (told := os.pread(log.fileno(), 10_000, 0).decode()):
                assert process.poll() is None, told
                time.sleep(0.05)
            line = next(line for line in told.splitlines() if '"listening"' in line)
            yield Served(process, int(json.loads(line)["url"].rsplit(":", 1)[1].strip("/")))
        finally:
            process.terminate()
            process.wait(60)


async def closed_loop(port: int, files: Sequence[bytes], clients: int, seconds: float,
                      pause: float = 0.0) -> Answers:
    """`clients` that each ask again as soon as they are answered."""
    answers, stop = Answers(), time.perf_counter() + seconds
    turns = itertools.cycle(files)

    async def one() -> None:
        client = Client(port)
        while time.perf_counter() < stop:
            await client.ask(next(turns), answers)
            await asyncio.sleep(pause)
        client.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return answers


async def open_loop(port: int, files: Sequence[bytes], rate: float, seconds: float) -> Answers:
    """`rate` requests a second whether they are answered or not, over as many connections as need
    be, up to 400."""
    answers, free = Answers(), [Client(port) for _ in range(400)]
    turns, tasks, missed = itertools.cycle(files), set(), 0

    async def one(client: Client) -> None:
        await client.ask(next(turns), answers)
        free.append(client)

    start = time.perf_counter()
    for i in range(int(rate * seconds)):
        if (wait := start + i / rate - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        elif i % 50 == 0:
            await asyncio.sleep(0)
        if free:
            task = asyncio.create_task(one(free.pop()))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        else:
            missed += 1
    await asyncio.gather(*tasks)
    answers.missed = missed
    for client in free:
        client.close()
    return answers


def offline(predictor: Predictor, files: Sequence[bytes], seconds: float) -> float:
    """Images a second of `Predictor` on the same files."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        done += sum(p.error is None for p in predictor(files))
    return done / (time.perf_counter() - start)


def load(model: Path, files: Sequence[bytes], minutes: float) -> dict[str, Any]:
    predictor = Predictor(model)
    rates: list[float] = []
    found: list[Answers] = []
    rounds = 5
    with served(model) as server:
        asyncio.run(closed_loop(server.port, files, 32, 5))
        offline(predictor, files, 5)
        for _ in range(rounds):  # in turn, so that both meet the same machine
            rates.append(offline(predictor, files, 15))
            found.append(asyncio.run(closed_loop(server.port, files, 32, 60 * minutes / rounds)))
    online = [sum(s == 200 for _, s, _ in a.rows) / max(t + d for t, _, d in a.rows) for a in found]
    every = Answers([row for a in found for row in a.rows])
    times = every.milliseconds(200)
    return {"clients": 32, "minutes": minutes, "requests_per_s": online, "offline_img_per_s": rates,
            "of_offline": statistics.median(o / r for o, r in zip(online, rates, strict=True)),
            "of_offline_by_round": [o / r for o, r in zip(online, rates, strict=True)],
            "ms": times, "p99_of_p50": times["p99"] / times["p50"], "statuses": every.statuses()}


def overload(model: Path, files: Sequence[bytes], seconds: float) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with served(model) as server:
        asyncio.run(closed_loop(server.port, files, 32, 5))
        usual = asyncio.run(closed_loop(server.port, files, 32, 15))
        rate = len(usual.rows) / 15
        one = asyncio.run(closed_loop(server.port, files, 1, 5)).milliseconds(200)
        # What a full queue takes is not growth.
        asyncio.run(open_loop(server.port, files, 2 * rate, seconds / 2))
        before = server.memory_mb()
        result |= {"rate": rate, "ms_of_one_client": one, "memory_mb_before": before}
        for factor in (2, 5, 10):
            answers = asyncio.run(open_loop(server.port, files, factor * rate, seconds))
            memory = server.memory_mb()
            asyncio.run(asyncio.sleep(5))
            after = asyncio.run(closed_loop(server.port, files, 1, 5)).milliseconds(200)
            result[f"{factor}x"] = {
                "sent_per_s": len(answers.rows) / max(t + d for t, _, d in answers.rows),
                "not_sent": answers.missed,  # all 400 connections were waiting
                "statuses": answers.statuses(), "answered_ms": answers.milliseconds(200),
                "refused_ms": answers.milliseconds(429, 503), "memory_mb": memory,
                "memory_growth": memory / before - 1, "ms_of_one_client_5_s_after": after}
            print(f"overload {factor}x:", json.dumps(result[f"{factor}x"]))
    return result


def identity(model: Path, count: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((28, 28), Image.Resampling.BICUBIC).save(file, "PNG")
        files.append(file.getvalue())
    expected = [dict(p.classes) for p in Predictor(model)(files, 10)]
    found: list[dict[str, float]] = [{} for _ in files]
    turns = iter(range(count))

    async def one(port: int) -> None:
        # As many classes as there are, or an image is known by its likeliest ones.
        client, answers = Client(port, CLASSIFY + b"?top_k=10"), Answers()
        for i in turns:
            body = json.loads(await client.ask(files[i], answers))
            found[i] = {c["name"]: c["probability"] for c in body["predictions"][0]["classes"]}
        client.close()

    async def all_of(port: int) -> None:
        await asyncio.gather(*(one(port) for _ in range(64)))

    with served(model) as server:
        asyncio.run(all_of(server.port))
    apart = [max(abs(got.get(name, 0) - p) for name, p in wanted.items())
             for got, wanted in zip(found, expected, strict=True)]
    different = len({tuple(round(p, 4) for p in e.values()) for e in expected})
    return {"images": count, "different_to_4_digits": different,
            "largest_difference": max(apart), "for_another": sum(a > 1e-3 for a in apart)}


def idle(model: Path, files: Sequence[bytes], seconds: float) -> dict[str, Any]:
    async def with_bad(port: int) -> tuple[Answers, Counter[str]]:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        ends: Counter[str] = Counter()

        async def drip() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(HEAD % (CLASSIFY, 10_000))
                answer = asyncio.create_task(reader.read(100))
                while not answer.done():
                    writer.write(b"x")
                    await asyncio.wait([answer], timeout=0.5)
                ends[(answer.result().split(b" ")[1:2] or [b"none"])[0].decode()] += 1
            finally:
                writer.close()

        slow = [asyncio.create_task(drip()) for _ in range(50)]
        answers = await closed_loop(port, files, 8, seconds, pause=0.1)
        await asyncio.gather(*slow)
        for _, writer in silent:
            writer.close()
        return answers, ends

    with served(model) as server:
        asyncio.run(closed_loop(server.port, files, 8, 5))
        alone = asyncio.run(closed_loop(server.port, files, 8, seconds, pause=0.1))
        answers, ends = asyncio.run(with_bad(server.port))
    before, after = alone.milliseconds(200), answers.milliseconds(200)
    return {"ms_alone": before, "ms_beside_200_idle_50_slow": after,
            "p99_ratio": after["p99"] / before["p99"], "statuses": answers.statuses(),
            "slow_ended_with": dict(ends)}


def drain(model: Path, files: Sequence[bytes]) -> dict[str, Any]:
    async def run(server: Served) -> Answers:
        answers, clients = Answers(), [Client(server.port) for _ in range(100)]
        asked = [asyncio.create_task(client.ask(files[i % len(files)], answers))
                 for i, client in enumerate(clients)]
        await asyncio.sleep(0.2)
        os.kill(server.process.pid, signal.SIGTERM)
        in_hand = sum(not task.done() for task in asked)
        await asyncio.gather(*asked)
        print(f"drain: {in_hand} of 100 were in hand at SIGTERM")
        return answers

    with served(model) as server:
        answers = asyncio.run(run(server))
        code = server.process.wait(60)
    return {"statuses": answers.statuses(), "exit_code": code}


def soak(model: Path, minutes: float, pause: float) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    files = []
    for i in range(500):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(file, "PNG")
        files.append(file.getvalue() if i % 50 else b"no image")
    samples: list[dict[str, float]] = []
    statuses: Counter[str] = Counter()
    with served(model) as server:
        asyncio.run(closed_loop(server.port, files, 16, 20))
        start = time.perf_counter()
        while time.perf_counter() - start < 60 * minutes:
            statuses += Counter(asyncio.run(closed_loop(server.port, files, 16, 30, pause)
                                            ).statuses())
            time.sleep(0.5)
            samples.append({"seconds": round(time.perf_counter() - start, 1),
                            "requests": statuses.total(), "memory_mb": server.memory_mb(),
                            "descriptors": server.descriptors()})
            print("soak:", json.dumps(samples[-1]), flush=True)
    return {"minutes": minutes, "pause": pause, "requests": statuses.total(),
            "statuses": dict(statuses), "samples": samples}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--model", default="cvt_13")
    parser.add_argument("--minutes", type=float, default=5, help="of load")
    parser.add_argument("--seconds", type=float, default=20, help="of each overload, and of idle")
    parser.add_argument("--images", type=int, default=10_000, help="of identity")
    parser.add_argument("--soak_minutes", type=float, default=60)
    parser.add_argument("--soak_pause", type=float, default=0, help="seconds that each of the 16 "
                        "clients waits between two requests")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    files = []
    for _ in range(64):
        file = io.BytesIO()
        photo(rng, 500, 375).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        # In a process of its own, for an export leaves hundreds of megabytes behind.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(write_model, home, args.model, "openvino", "fp32").result()
            pool.submit(export, "cvt_nano.fashion_mnist", home / "nano", "openvino").result()
        large, nano = home / "exported", home / "nano"
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "load": lambda: load(large, files, args.minutes),
            "overload": lambda: overload(large, files, args.seconds),
            "identity": lambda: identity(nano, args.images),
            "idle": lambda: idle(large, files, args.seconds),
            "drain": lambda: drain(large, files),
            "soak": lambda: soak(nano, args.soak_minutes, args.soak_pause)}
        for part in args.only:
            result = parts[part]()
            print(f"{part}:", json.dumps(result, indent=2))
            print(keep(f"serve_{part}", {"model": args.model, **result}), flush=True)


if __name__ == "__main__":
    main()
