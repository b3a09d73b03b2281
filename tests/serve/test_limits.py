"""Every limit: one below it, at it and one above it."""

import io
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from cvt.serve.config import ServeConfig
from cvt.system.errors import InputError

pytestmark = pytest.mark.slow


def raw(port, data, *, seconds=5.0):
    """The response to raw bytes, until the server closes or for `seconds`."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(data)
        return until_closed(connection)


def until_closed(connection):
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except TimeoutError:
        pass
    return received


HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


@pytest.mark.parametrize(("over", "status"), [(-1, 200), (0, 200), (1, 413)])
def test_a_request_of_more_bytes_is_rejected(served, image, classify, over, status):
    data = image()
    client = served(max_request_bytes=len(data) - over)

    assert classify(client, data).status_code == status
    # The same where its size is not announced.
    response = client.post("/v1/classify", content=iter([data[:100], data[100:]]),
                         headers={"content-type": "image/png"})
    assert response.status_code == status
    assert client.server.memory.used == 0


@pytest.mark.parametrize(("count", "status"), [(1, 200), (2, 200), (3, 413)])
def test_a_request_of_more_images_is_rejected(served, image, count, status):
    client = served(max_images=2)
    files = [("images", (f"{i}.png", image(i))) for i in range(count)]
    response = client.post("/v1/classify", files=files)
    assert response.status_code == status
    if status == 413:
        assert response.json()["error"]["code"] == "too_many_images"


@pytest.mark.parametrize(("size", "status"), [((40, 39), 200), ((40, 40), 200), ((41, 40), 422)])
def test_an_image_of_more_pixels_is_rejected(served, image, classify, size, status):
    client = served(max_pixels=1600)
    response = classify(client, image(size=size))
    assert response.status_code == status
    if status == 422:
        assert "has 41x40 pixels, more than 1,600" in response.json()["error"]["message"]
        explained = client.post("/v1/explain", content=image(size=size),
                                headers={"content-type": "image/png"})
        assert explained.status_code == 422


def test_pixels_are_counted_before_they_are_decompressed(served, classify):
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    client = served()
    start = time.perf_counter()
    assert classify(client, file.getvalue()).status_code == 422
    assert time.perf_counter() - start < 1


def test_one_image_more_than_the_queue_holds_is_rejected_at_once(served, slow, image, classify):
    client = served(max_queue_size=4, max_images=4, max_batch_size=1)
    slow(0.3)
    with ThreadPoolExecutor(5) as pool:
        held = [pool.submit(classify, client, image(i)) for i in range(3)]
        while client.server.batcher.in_flight < 3:
            time.sleep(0.01)
        last = pool.submit(classify, client, image(3))  # the fourth is taken
        while client.server.batcher.in_flight < 4:
            time.sleep(0.01)
        start = time.perf_counter()
        rejected = classify(client, image(4))
        assert time.perf_counter() - start < 0.25
        assert rejected.status_code == 429
        assert rejected.json()["error"]["code"] == "overloaded"
        assert 1 <= int(rejected.headers["retry-after"]) <= 30
        assert [f.result().status_code for f in (*held, last)] == [200] * 4
    assert classify(client, image(5)).status_code == 200


def test_a_request_of_several_images_is_accepted_whole_or_not_at_all(served, slow, image, classify):
    client = served(max_queue_size=3, max_images=3)
    slow(0.3)
    files = [("images", (f"{i}.png", image(i))) for i in range(3)]
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(classify, client, image())
        while client.server.batcher.in_flight < 1:
            time.sleep(0.01)
        assert client.post("/v1/classify", files=files).status_code == 429
        assert client.post("/v1/classify", files=files[:2]).status_code == 200
        assert held.result().status_code == 200


def test_buffered_bytes_count_as_they_arrive_and_are_released(served, image, classify):
    data = image()
    client = served(max_request_bytes=len(data), max_buffered_bytes=len(data) + 50)
    head = HEAD + b"Content-Length: %d\r\n\r\n" % len(data)
    for already, status in ((49, 200), (50, 200), (51, 429)):
        with socket.create_connection(("127.0.0.1", client.port)) as waiting:
            waiting.sendall(head + data[:already])
            while client.server.memory.used < already:
                time.sleep(0.01)
            assert classify(client, data).status_code == status
        while client.server.memory.used:  # a disconnect releases the memory
            time.sleep(0.01)


@pytest.mark.parametrize(("seconds", "status"), [(0.1, 200), (0.9, 503)])
def test_an_image_that_waits_too_long_in_the_queue_is_rejected(
        served, slow, image, classify, seconds, status):
    client = served(max_batch_size=1, queue_timeout=0.5)
    slow(seconds)
    with ThreadPoolExecutor(2) as pool:
        first, second = [pool.submit(classify, client, image(i)) for i in range(2)]
        statuses = sorted(f.result().status_code for f in (first, second))
    assert statuses == [200, status]
    if status == 503:
        expired = next(f.result() for f in (first, second) if f.result().status_code == 503)
        assert expired.json()["error"]["code"] == "queue_timeout"
        assert "retry-after" in expired.headers


@pytest.mark.parametrize("begun", [
    b"P", b"POST /v1/classify HTTP/1.1\r\nHost: loc",
    HEAD + b"Content-Length: 100\r\n\r\nhalf of it",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"])
def test_a_request_that_does_not_arrive_in_time_is_rejected(served, begun):
    client = served(read_timeout=0.3)
    start = time.perf_counter()
    response = raw(client.port, begun)
    assert 0.25 < time.perf_counter() - start < 3
    assert response.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "request_timeout"' in response
    while client.server.memory.used:
        time.sleep(0.01)


def test_a_request_that_trickles_in_gets_no_more_time(served):
    client = served(read_timeout=0.5)
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        start = time.perf_counter()
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        connection.settimeout(0.05)
        response = b""
        while not response and time.perf_counter() - start < 5:
            connection.sendall(b"x")
            try:
                response = connection.recv(4096)
            except TimeoutError:
                continue
        assert response.startswith(b"HTTP/1.1 408 ")
        assert 0.4 < time.perf_counter() - start < 2


def test_a_silent_connection_is_closed_without_a_response(served):
    client = served(read_timeout=0.3)
    assert raw(client.port, b"") == b""


def test_a_request_that_arrives_in_time_may_take_long_to_classify(served, slow, image, classify):
    client = served(read_timeout=0.3)
    slow(0.8)
    assert classify(client, image()).status_code == 200


def test_a_connection_serves_one_request_after_another(served, image):
    client = served(read_timeout=0.5)
    data = image()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data
    with socket.create_connection(("127.0.0.1", client.port), timeout=5) as connection:
        for _ in range(3):  # each has the whole timeout
            connection.sendall(request)
            time.sleep(0.3)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(request + request)  # pipelined
        responses = b""
        while responses.count(b"HTTP/1.1 200 ") < 2:
            responses += connection.recv(65536)


def test_a_response_does_not_wait_for_the_acknowledgement_of_its_head(served):
    seconds = []
    with socket.create_connection(("127.0.0.1", served().port), timeout=5) as connection:
        for _ in range(20):
            start = time.perf_counter()
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            response = b""
            while not response.endswith(b'{"status":"ok"}'):
                response += connection.recv(65536)
            seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.03  # else 0.04, by the system's clock for acknowledgements


def test_the_rest_of_a_rejected_body_does_not_break_the_connection(served):
    client = served(max_request_bytes=100)
    with socket.create_connection(("127.0.0.1", client.port), timeout=5) as connection:
        connection.sendall(HEAD + b"Content-Length: 500000\r\n\r\n" + b"x" * 250000)
        responses = b""
        while not responses.endswith(b"}}"):
            responses += connection.recv(65536)
        assert responses.startswith(b"HTTP/1.1 413 ")
        connection.sendall(b"x" * 250000 + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_connection_beyond_the_limit_is_rejected_until_another_closes(served):
    client = served(max_connections=3)
    with socket.create_connection(("127.0.0.1", client.port)), \
            socket.create_connection(("127.0.0.1", client.port)):
        time.sleep(0.1)
        assert client.get("/healthz").status_code == 200  # the third
        assert raw(client.port, b"").startswith(b"HTTP/1.1 503 ")
    client.close()
    deadline = time.monotonic() + 5
    while not raw(client.port, b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n").startswith(
            b"HTTP/1.1 200 "):
        assert time.monotonic() < deadline


@pytest.mark.parametrize("data", [
    b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a: " + b"x" * 200_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"])
def test_invalid_http_is_rejected(served, data):
    client = served()
    response = raw(client.port, data)
    assert response.startswith(b"HTTP/1.1 400 ")
    assert b'"code": "bad_request"' in response
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(("values", "message"), [
    ({"max_queue_size": 4}, "max_queue_size=4 is less than max_images=16"),
    ({"max_buffered_bytes": 5}, "max_buffered_bytes=5 is less than max_request_bytes="),
    ({"max_batch_size": 0}, "max_batch_size=0 must be at least 1"),
    ({"queue_timeout": 0.0}, "queue_timeout=0.0 must be above 0"),
    ({"shutdown_delay": -1.0}, "shutdown_delay=-1.0 must be at least 0"),
    ({"port": 70000}, "port=70000 must be from 0 to 65535"),
    ({"host": 5}, "host=5")])
def test_invalid_limits_are_an_error(values, message):
    with pytest.raises(InputError, match=message):
        ServeConfig(**values)
