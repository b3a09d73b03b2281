"""Load tests of `cvt serve` on loopback, with the clients on the same cores as the server.

    python benchmarks/serve.py [--only load overload identity idle drain soak] [--minutes 5]

load: 32 clients that each send the next request after a response, compared with `Predictor` on the
same files. overload: 2, 5 and 10 times the sustainable number of requests per second. identity:
10,000 different images, many at once; does each response belong to its own image? idle: 200 silent
connections and 50 that send a byte at a time, beside 8 normal clients. drain: SIGTERM with 100
requests in flight. soak: `cvt_nano` for --soak_minutes; descriptors and memory before and after.

Models have random weights except cvt_nano.fashion_mnist; all are exported to OpenVINO fp32.
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
class Responses:
    """Responses to the clients: send time, status and latency in seconds of each request."""

    rows: list[tuple[float, int, float]] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)
    not_sent: int = 0
    """Requests that were not sent because no connection was free."""

    def statuses(self) -> dict[str, int]:
        return {str(k): n for k, n in sorted(Counter(s for _, s, _ in self.rows).items())}

    def latency_ms(self, *statuses: int) -> dict[str, float]:
        values = [1000 * seconds for _, status, seconds in self.rows if status in statuses]
        return {} if not values else {
            "n": len(values), **{f"p{q}": round(float(np.percentile(values, q)), 2)
                                for q in (50, 90, 99, 100)}}


CLASSIFY = b"/v1/classify"
HEAD = (b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
        b"Content-Length: %d\r\n\r\n")


class Client:
    """A client with one keep-alive connection."""

    def __init__(self, port: int, path: bytes = CLASSIFY) -> None:
        self._port, self._path = port, path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, data: bytes, responses: Responses) -> bytes:
        """POST an image; without a response the status is 0."""
        start = time.perf_counter()
        try:
            status, body = await self._post(data)
        except (OSError, asyncio.IncompleteReadError) as error:
            print("no response:", repr(error), file=sys.stderr)
            status, body = 0, b""
            self.close()
        responses.rows.append((start - responses.start, status, time.perf_counter() - start))
        return body

    async def _post(self, data: bytes) -> tuple[int, bytes]:
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
        """Anonymous memory of the process."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextmanager
def served(model: Path, *options: str) -> Iterator[Served]:
    """Run `cvt serve` with its log in a file."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cvt", "serve", "--model", str(model), "--port", "0", *options],
            stderr=log)
        try:
            while '"listening"' not in (log_text := os.pread(log.fileno(), 10_000, 0).decode()):
                assert process.poll() is None, log_text
                time.sleep(0.05)
            line = next(line for line in log_text.splitlines() if '"listening"' in line)
            yield Served(process, int(json.loads(line)["url"].rsplit(":", 1)[1].strip("/")))
        finally:
            process.terminate()
            process.wait(60)


async def closed_loop(port: int, files: Sequence[bytes], clients: int, seconds: float,
                      pause: float = 0.0) -> Responses:
    """`clients` that each send the next request after a response."""
    responses, stop = Responses(), time.perf_counter() + seconds
    turns = itertools.cycle(files)

    async def one() -> None:
        client = Client(port)
        while time.perf_counter() < stop:
            await client.post(next(turns), responses)
            await asyncio.sleep(pause)
        client.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return responses


async def open_loop(port: int, files: Sequence[bytes], rate: float, seconds: float) -> Responses:
    """`rate` requests per second regardless of the responses, over up to 400 connections."""
    responses, free = Responses(), [Client(port) for _ in range(400)]
    turns, tasks, not_sent = itertools.cycle(files), set(), 0

    async def one(client: Client) -> None:
        await client.post(next(turns), responses)
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
            not_sent += 1
    await asyncio.gather(*tasks)
    responses.not_sent = not_sent
    for client in free:
        client.close()
    return responses


def offline(predictor: Predictor, files: Sequence[bytes], seconds: float) -> float:
    """Images per second of `Predictor` on the same files."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        done += sum(p.error is None for p in predictor(files))
    return done / (time.perf_counter() - start)


def load(model: Path, files: Sequence[bytes], minutes: float) -> dict[str, Any]:
    predictor = Predictor(model)
    rates: list[float] = []
    runs: list[Responses] = []
    rounds = 5
    with served(model) as server:
        asyncio.run(closed_loop(server.port, files, 32, 5))
        offline(predictor, files, 5)
        for _ in range(rounds):  # interleaved, so that both run under the same conditions
            rates.append(offline(predictor, files, 15))
            runs.append(asyncio.run(closed_loop(server.port, files, 32, 60 * minutes / rounds)))
    online = [sum(s == 200 for _, s, _ in a.rows) / max(t + d for t, _, d in a.rows) for a in runs]
    every = Responses([row for a in runs for row in a.rows])
    latency = every.latency_ms(200)
    fractions = [o / r for o, r in zip(online, rates, strict=True)]
    return {"clients": 32, "minutes": minutes, "requests_per_s": online, "offline_img_per_s": rates,
            "fraction_of_offline": statistics.median(fractions),
            "fraction_of_offline_by_round": fractions, "latency_ms": latency,
            "p99_over_p50": latency["p99"] / latency["p50"], "statuses": every.statuses()}


def overload(model: Path, files: Sequence[bytes], seconds: float) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with served(model) as server:
        asyncio.run(closed_loop(server.port, files, 32, 5))
        usual = asyncio.run(closed_loop(server.port, files, 32, 15))
        rate = len(usual.rows) / 15
        one = asyncio.run(closed_loop(server.port, files, 1, 5)).latency_ms(200)
        # Memory of a full queue is not growth.
        asyncio.run(open_loop(server.port, files, 2 * rate, seconds / 2))
        before = server.memory_mb()
        result |= {"requests_per_s": rate, "latency_ms_of_one_client": one,
                   "memory_mb_before": before}
        for factor in (2, 5, 10):
            responses = asyncio.run(open_loop(server.port, files, factor * rate, seconds))
            memory = server.memory_mb()
            asyncio.run(asyncio.sleep(5))
            after = asyncio.run(closed_loop(server.port, files, 1, 5)).latency_ms(200)
            result[f"{factor}x"] = {
                "sent_per_s": len(responses.rows) / max(t + d for t, _, d in responses.rows),
                "not_sent": responses.not_sent,  # all 400 connections were busy
                "statuses": responses.statuses(), "accepted_latency_ms": responses.latency_ms(200),
                "rejected_latency_ms": responses.latency_ms(429, 503), "memory_mb": memory,
                "memory_growth": memory / before - 1, "latency_ms_of_one_client_5_s_after": after}
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
    results: list[dict[str, float]] = [{} for _ in files]
    turns = iter(range(count))

    async def one(port: int) -> None:
        # All classes, because images may share the most probable ones.
        client, responses = Client(port, CLASSIFY + b"?top_k=10"), Responses()
        for i in turns:
            body = json.loads(await client.post(files[i], responses))
            results[i] = {c["name"]: c["probability"] for c in body["predictions"][0]["classes"]}
        client.close()

    async def all_of(port: int) -> None:
        await asyncio.gather(*(one(port) for _ in range(64)))

    with served(model) as server:
        asyncio.run(all_of(server.port))
    differences = [max(abs(got.get(name, 0) - p) for name, p in wanted.items())
             for got, wanted in zip(results, expected, strict=True)]
    distinct = len({tuple(round(p, 4) for p in e.values()) for e in expected})
    return {"images": count, "distinct_to_4_digits": distinct,
            "max_difference": max(differences), "mismatched": sum(a > 1e-3 for a in differences)}


def idle(model: Path, files: Sequence[bytes], seconds: float) -> dict[str, Any]:
    async def with_bad(port: int) -> tuple[Responses, Counter[str]]:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        ends: Counter[str] = Counter()

        async def drip() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(HEAD % (CLASSIFY, 10_000))
                response = asyncio.create_task(reader.read(100))
                while not response.done():
                    writer.write(b"x")
                    await asyncio.wait([response], timeout=0.5)
                ends[(response.result().split(b" ")[1:2] or [b"none"])[0].decode()] += 1
            finally:
                writer.close()

        slow = [asyncio.create_task(drip()) for _ in range(50)]
        responses = await closed_loop(port, files, 8, seconds, pause=0.1)
        await asyncio.gather(*slow)
        for _, writer in silent:
            writer.close()
        return responses, ends

    with served(model) as server:
        asyncio.run(closed_loop(server.port, files, 8, 5))
        alone = asyncio.run(closed_loop(server.port, files, 8, seconds, pause=0.1))
        responses, ends = asyncio.run(with_bad(server.port))
    before, after = alone.latency_ms(200), responses.latency_ms(200)
    return {"latency_ms_alone": before, "latency_ms_with_200_idle_50_slow": after,
            "p99_ratio": after["p99"] / before["p99"], "statuses": responses.statuses(),
            "slow_statuses": dict(ends)}


def drain(model: Path, files: Sequence[bytes]) -> dict[str, Any]:
    async def run(server: Served) -> Responses:
        responses, clients = Responses(), [Client(server.port) for _ in range(100)]
        tasks = [asyncio.create_task(client.post(files[i % len(files)], responses))
                 for i, client in enumerate(clients)]
        await asyncio.sleep(0.2)
        os.kill(server.process.pid, signal.SIGTERM)
        in_flight = sum(not task.done() for task in tasks)
        await asyncio.gather(*tasks)
        print(f"drain: {in_flight} of 100 requests were in flight at SIGTERM")
        return responses

    with served(model) as server:
        responses = asyncio.run(run(server))
        code = server.process.wait(60)
    return {"statuses": responses.statuses(), "exit_code": code}


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
    parser.add_argument("--minutes", type=float, default=5, help="duration of load")
    parser.add_argument("--seconds", type=float, default=20, help="duration of each overload, "
                        "and of idle")
    parser.add_argument("--images", type=int, default=10_000, help="images of identity")
    parser.add_argument("--soak_minutes", type=float, default=60)
    parser.add_argument("--soak_pause", type=float, default=0, help="seconds that each of the 16 "
                        "clients waits between requests")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    files = []
    for _ in range(64):
        file = io.BytesIO()
        photo(rng, 500, 375).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        # In a separate process, because an export leaves hundreds of megabytes in memory.
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
