import asyncio
import threading
import time

import numpy as np
import pytest

from cvt.serve.batcher import Batcher
from cvt.serve.config import ServeConfig
from cvt.serve.errors import RequestError

pytestmark = pytest.mark.slow


def prepare(data):
    if data == b"bad":
        raise ValueError("bad")
    return np.full((1, 2, 2), int(data), np.float32)


class Network:
    """The logit of an image is its number; records the batches."""

    def __init__(self, seconds=0.0):
        self.seconds, self.batches, self.threads = seconds, [], set()

    def __call__(self, batch):
        time.sleep(self.seconds)
        self.batches.append(len(batch))
        self.threads.add(threading.get_ident())
        return batch[:, 0, 0, :1]


def run(network, requests, **limits):
    """Results of a batcher for requests of several images that arrive at once."""
    sizes = []

    async def main():
        async with Batcher(prepare, network, ServeConfig(**limits), threads=2,
                           on_batch=sizes.append) as batcher:
            results = await asyncio.gather(*(
                batcher.logits([str(n).encode() for n in numbers]) for numbers in requests),
                return_exceptions=True)
            assert batcher.in_flight == 0
            return results

    results = asyncio.run(main())
    assert sizes == network.batches
    return results


def test_every_request_gets_its_own_results():
    network = Network(0.001)
    requests = [range(i, i + 1 + i % 5) for i in range(40)]
    for results, numbers in zip(run(network, requests, max_queue_size=1000), requests, strict=True):
        assert [float(r[0]) for r in results] == list(numbers)
    assert len(network.threads) == 1


def test_batches_grow_with_the_load_up_to_the_maximum_size():
    network = Network(0.02)
    run(network, [[i] for i in range(40)], max_batch_size=8)
    assert max(network.batches) == 8
    assert len(network.batches) <= 10
    assert sum(network.batches) == 40


def test_a_single_image_does_not_wait_for_others():
    start = time.perf_counter()
    run(Network(), [[1]], max_batch_delay=5.0)
    assert time.perf_counter() - start < 2


def test_an_unreadable_image_does_not_affect_others():
    [[good, bad, other]] = run(Network(), [[1, "bad", 2]])
    assert (good[0], other[0]) == (1, 2)
    assert isinstance(bad, ValueError)


def test_after_an_error_of_the_network_the_next_batch_is_computed():
    class Failing(Network):
        def __call__(self, batch):
            if batch[0, 0, 0, 0] == 7:
                self.batches.append(len(batch))
                raise RuntimeError("broken")
            return super().__call__(batch)

    async def main():
        async with Batcher(prepare, Failing(), ServeConfig(), threads=1) as batcher:
            return [(await batcher.logits([n]))[0] for n in (b"1", b"7", b"2")]

    one, broken, two = asyncio.run(main())
    assert (one[0], two[0]) == (1, 2)
    assert isinstance(broken, RuntimeError)


def test_images_that_wait_too_long_are_rejected_and_the_others_are_computed():
    results = run(Network(0.2), [[i] for i in range(8)], max_batch_size=1, queue_timeout=0.5)
    expired = [r for r in results if isinstance(r, RequestError)]
    assert {error.code for error in expired} == {"queue_timeout"}
    assert 3 <= len(expired) <= 6


@pytest.mark.parametrize("more", [0, 1])
def test_images_beyond_the_queue_size_are_rejected(more):
    results = run(Network(0.05), [[1, 2]] * (2 + more), max_queue_size=4, max_images=4)
    assert sum(isinstance(r, RequestError) and r.code == "overloaded" for r in results) == more
