import asyncio
import threading
import time

import numpy as np
import pytest

from cvt.serve.batcher import Batcher
from cvt.serve.config import ServeConfig
from cvt.serve.refusals import Refusal

pytestmark = pytest.mark.slow


def prepare(data):
    if data == b"bad":
        raise ValueError("bad")
    return np.full((1, 2, 2), int(data), np.float32)


class Network:
    """Says each image's number, and keeps what it was given."""

    def __init__(self, seconds=0.0):
        self.seconds, self.batches, self.threads = seconds, [], set()

    def __call__(self, batch):
        time.sleep(self.seconds)
        self.batches.append(len(batch))
        self.threads.add(threading.get_ident())
        return batch[:, 0, 0, :1]


def run(network, questions, **limits):
    """What a batcher answers to lists of images that are asked at once."""
    told = []

    async def main():
        async with Batcher(prepare, network, ServeConfig(**limits), readers=2,
                           batches=told.append) as batcher:
            answers = await asyncio.gather(*(
                batcher.logits([str(n).encode() for n in numbers]) for numbers in questions),
                return_exceptions=True)
            assert batcher.inside == 0
            return answers

    found = asyncio.run(main())
    assert told == network.batches
    return found


def test_every_question_gets_its_own_answers():
    network = Network(0.001)
    questions = [range(i, i + 1 + i % 5) for i in range(40)]
    for answers, numbers in zip(run(network, questions, max_queue=1000), questions, strict=True):
        assert [float(a[0]) for a in answers] == list(numbers)
    assert len(network.threads) == 1


def test_batches_grow_with_the_load_up_to_the_largest():
    network = Network(0.02)
    run(network, [[i] for i in range(40)], max_batch=8)
    assert max(network.batches) == 8
    assert len(network.batches) <= 10
    assert sum(network.batches) == 40


def test_a_lone_image_does_not_wait_for_company():
    start = time.perf_counter()
    run(Network(), [[1]], max_wait=5.0)
    assert time.perf_counter() - start < 2


def test_an_image_that_cannot_be_read_harms_no_other():
    [[good, bad, other]] = run(Network(), [[1, "bad", 2]])
    assert (good[0], other[0]) == (1, 2)
    assert isinstance(bad, ValueError)


def test_a_network_that_fails_once_goes_on():
    class Failing(Network):
        def __call__(self, batch):
            if batch[0, 0, 0, 0] == 7:
                self.batches.append(len(batch))
                raise RuntimeError("broken")
            return super().__call__(batch)

    async def main():
        async with Batcher(prepare, Failing(), ServeConfig(), readers=1) as batcher:
            return [(await batcher.logits([n]))[0] for n in (b"1", b"7", b"2")]

    one, broken, two = asyncio.run(main())
    assert (one[0], two[0]) == (1, 2)
    assert isinstance(broken, RuntimeError)


def test_what_comes_too_late_is_refused_and_the_rest_goes_on():
    answers = run(Network(0.2), [[i] for i in range(8)], max_batch=1, deadline=0.5)
    late = [a for a in answers if isinstance(a, Refusal)]
    assert {refusal.code for refusal in late} == {"late"}
    assert 3 <= len(late) <= 6


@pytest.mark.parametrize("more", [0, 1])
def test_no_more_are_taken_than_agreed(more):
    answers = run(Network(0.05), [[1, 2]] * (2 + more), max_queue=4, max_images=4)
    assert sum(isinstance(a, Refusal) and a.code == "busy" for a in answers) == more
