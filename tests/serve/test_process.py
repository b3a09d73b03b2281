"""`cvt serve` as a process: its start, its log, its end."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from cvt.cli import main
from cvt.deploy.export import export

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def process(*args, code="from cvt.cli import main; sys.exit(main())", env=None):
    """A running `cvt serve`, and the fields of its first line."""
    server = subprocess.Popen(
        [sys.executable, "-c", f"import sys; {code}", "serve", "--port", "0", *args],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": "",
                                                **(env or {})})
    lines = []
    try:
        for line in server.stderr:
            lines.append(line)
            if '"listening"' in line:
                break
        assert lines, "it stopped before it listened"
        reader = threading.Thread(target=lambda: lines.extend(server.stderr))
        reader.start()
        yield server, json.loads(lines[-1]), lines
    finally:
        server.kill()
        server.wait()
        with contextlib.suppress(NameError):
            reader.join()
        server.stderr.close()


def test_sigterm_finishes_the_requests_in_flight_and_exits_with_0(trained, image):
    data = image()
    head = (b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: %d\r\n\r\n" % len(data))
    with process("--model", str(trained), "--backend", "eager") as (server, event, lines):
        port = httpx.URL(event["url"]).port
        waiting = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(100)]
        for connection in waiting:
            connection.sendall(head + data[:-1])
        with httpx.Client() as client:  # after this response, the others have arrived
            assert client.get(event["url"] + "readyz").status_code == 200
        server.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        for connection in waiting:
            connection.sendall(data[-1:])
        responses = [connection.recv(65536) for connection in waiting]
        for connection in waiting:
            connection.close()
        assert sum(response.startswith(b"HTTP/1.1 200 ") for response in responses) == 100
        assert server.wait(20) == 0
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", port))
    events = [json.loads(line) for line in lines]
    assert events[0]["event"] == "listening"
    assert events[-1]["event"] == "stopped"
    requests = [e for e in events if e["event"] == "request" and e["path"] == "/v1/classify"]
    assert len(requests) == 100
    assert all(e["status"] == 200 and e["images"] == 1 and e["bytes"] == len(data)
               for e in requests)
    assert len({e["request_id"] for e in requests}) == 100


def test_during_the_shutdown_delay_requests_are_accepted_while_it_is_not_ready(trained, image):
    with process("--model", str(trained), "--backend", "eager", "--shutdown_delay", "1.5") as (
            server, event, _), httpx.Client(base_url=event["url"]) as client:
        client.get("/healthz")
        server.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert client.get("/readyz").status_code == 503
        response = client.post("/v1/classify", content=image(),
                             headers={"content-type": "image/png"})
        assert response.status_code == 200
        assert server.wait(20) == 0


def test_an_exported_model_is_served_without_torch_and_with_a_key(trained, tmp_path, image):
    export(trained, tmp_path / "exported", "openvino")
    (tmp_path / "key").write_text("0123456789abcdef\n")
    without = "sys.modules['torch'] = None; from cvt.cli import main; sys.exit(main())"
    with process("--model", str(tmp_path / "exported"), "--api_key_file", str(tmp_path / "key"),
                 code=without) as (_, event, _lines), httpx.Client(base_url=event["url"]) as client:
        assert (event["backend"], event["model"]) == ("openvino", "exported")
        assert client.get("/v1/model").status_code == 401
        client.headers["x-api-key"] = "0123456789abcdef"
        model = client.get("/v1/model").json()
        assert model["explainable"] is False
        assert str(tmp_path) not in json.dumps(model)  # its path is private
        response = client.post("/v1/classify", content=image(),
                             headers={"content-type": "image/png"})
        assert response.status_code == 200


def test_a_port_that_is_taken_is_one_line(trained, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model", str(trained), "--backend", "eager",
                     "--port", str(port)]) == 1
    assert f"cvt serve: cannot listen on 127.0.0.1, port {port}: Address already in use" in (
        capfd.readouterr().err)


@pytest.mark.parametrize(("options", "code", "message"), [
    (["--max_batch_size", "0"], 2, "max_batch_size=0 must be at least 1"),
    (["--max_bach", "1"], 2, "did you mean --max_batch_size?"),
    (["--model", "nowhere"], 1, "nowhere"),
    (["--api_key_file", "nowhere"], 1, "nowhere: No such file or directory"),
    (["--samples", "empty"], 1, "--samples empty has no images")])
def test_a_wrong_call_is_one_line(trained, tmp_path, monkeypatch, capfd, options, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = [] if "--model" in options else ["--model", str(trained), "--backend", "eager"]
    assert main(["serve", *given, *options]) == code
    *_, line = capfd.readouterr().err.splitlines()
    assert message in line


def test_a_short_api_key_is_rejected(trained, monkeypatch, capfd):
    monkeypatch.setenv("CVT_API_KEY", "short")
    assert main(["serve", "--model", str(trained)]) == 1
    assert "the API key in CVT_API_KEY must be at least 16 ASCII characters" in (
        capfd.readouterr().err)
