import base64
import io
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from cvt.data.images import read_image
from cvt.explain.colormap import token_colors
from cvt.explain.run import explain
from cvt.serve.errors import ERROR_CODES
from cvt.serve.telemetry import LOG, JsonFormatter
from cvt.weights.models import load_model

pytestmark = pytest.mark.slow


def error_of(response):
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error["request_id"] == response.headers["x-request-id"]
    assert ERROR_CODES[error["code"]][0] == response.status_code
    return error["code"], error["message"]


def test_the_bytes_of_an_image_get_the_predictors_classes(client, predictor, image, classify):
    response = classify(client, image())

    [expected] = predictor([image()], 4)
    assert response.status_code == 200
    body = response.json()
    assert body["model"] == "tiny"
    assert 0 < body["duration_seconds"] < 30
    [prediction] = body["predictions"]
    assert "name" not in prediction
    assert [(c["name"], c["probability"]) for c in prediction["classes"]] == [
        (name, pytest.approx(p, abs=1e-6)) for name, p in expected.classes]
    assert sorted(c["index"] for c in prediction["classes"]) == [0, 1, 2, 3]
    assert len(classify(client, image(), top_k=2).json()["predictions"][0]["classes"]) == 2


def test_the_files_of_a_form_are_classified_in_order(client, image, classify):
    files = [("images", (f"{i}.png", image(i), "image/png")) for i in (3, 1, 2)]

    predictions = client.post("/v1/classify", files=files).json()["predictions"]

    assert [p["name"] for p in predictions] == ["3.png", "1.png", "2.png"]
    for prediction, seed in zip(predictions, (3, 1, 2), strict=True):
        [alone] = classify(client, image(seed)).json()["predictions"]
        assert [c["probability"] for c in prediction["classes"]] == pytest.approx(
            [c["probability"] for c in alone["classes"]], abs=1e-6)


def test_one_bad_image_of_several_has_an_error_in_its_place(client, image):
    files = [("a", ("<img src=x>", b"no image")), ("b", ("b.png", image()))]

    bad, good = client.post("/v1/classify", files=files).json()["predictions"]

    assert bad["name"] == "<img src=x>"
    assert bad["error"]["code"] == "unreadable_image"
    assert "not an image" in bad["error"]["message"]
    assert "classes" not in bad
    assert len(good["classes"]) == 4


def test_no_response_is_for_another_image(client, predictor, image, classify):
    seeds = range(200)
    expected = [p.classes for p in predictor([image(i) for i in seeds], 4)]

    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda i: classify(client, image(i)).json(), seeds))

    for response, wanted in zip(responses, expected, strict=True):
        got = {c["name"]: c["probability"] for c in response["predictions"][0]["classes"]}
        assert got == pytest.approx(dict(wanted), abs=1e-5)
    assert client.server.batcher.in_flight == client.server.memory.used == 0


def test_an_explanation_has_the_maps_of_cvt_explain(client, trained, image):
    response = client.post("/v1/explain", content=image(), params={"target": "bee"},
                         headers={"content-type": "image/png"})

    model, card = load_model(trained)
    expected = explain(model, card, read_image(image()), target="bee")
    body = response.json()
    assert body["target"] == "bee"
    assert {c["name"]: c["probability"] for c in body["classes"]} == pytest.approx(
        dict(expected.classes), rel=1e-5)
    assert [c["index"] for c in body["classes"]] == expected.class_indices
    for got, wanted in ((body["attention"], expected.attention),
                        (body["rollout"], expected.rollout),
                        (body["grad_cam"].values(), expected.grad_cam.values())):
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    seen, *tokens = (Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
                     for url in (body["input"], *body["tokens"]))
    assert seen.tobytes() == expected.input.tobytes()
    assert [t.tobytes() for t in tokens] == [token_colors(t).tobytes() for t in expected.tokens]


def test_an_exported_model_cannot_be_explained(served, image):
    client = served(explainable=False)

    response = client.post("/v1/explain", content=image(), headers={"content-type": "image/png"})

    assert response.status_code == 501
    assert error_of(response)[0] == "not_explainable"
    assert client.get("/v1/model").json()["explainable"] is False


def test_the_model_is_described_with_its_limits(client):
    body = client.get("/v1/model").json()

    assert body["classes"] == ["ant", "bee", "cat", "<b>dog</b>"]
    assert (body["name"], body["backend"], body["precision"]) == ("tiny", "eager", "fp32")
    assert body["limits"]["max_images"] == 16
    assert body["image_size"] == 32


def test_health_and_readiness(client):
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok"}
    client.server.shutting_down = True
    try:
        response = client.get("/readyz")
        assert response.status_code == 503
        assert error_of(response)[0] == "shutting_down"
        assert client.get("/healthz").status_code == 200
    finally:
        client.server.shutting_down = False


def test_metrics_count_requests_images_and_batches(served, image, classify):
    client = served()
    classify(client, image())
    classify(client, b"nothing")
    client.get("/anything")

    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines()
                 if not line.startswith("#"))

    assert lines['cvt_http_requests_total{path="/v1/classify",status="200"}'] == "1.0"
    assert lines['cvt_http_requests_total{path="/v1/classify",status="422"}'] == "1.0"
    assert lines['cvt_http_requests_total{path="other",status="404"}'] == "1.0"
    assert lines['cvt_images_total{outcome="classified"}'] == "1.0"
    assert lines['cvt_images_total{outcome="unreadable"}'] == "1.0"
    assert lines["cvt_batch_size_count"] == "1.0"
    assert lines["cvt_images_in_flight"] == lines["cvt_request_buffered_bytes"] == "0.0"


def test_the_openapi_document_has_every_path_and_response(client):
    paths = client.get("/openapi.json").json()["paths"]

    assert set(paths) == {"/v1/classify", "/v1/explain", "/v1/model", "/healthz", "/readyz",
                          "/metrics"}
    responses = paths["/v1/classify"]["post"]["responses"]
    assert {"200", "400", "401", "408", "413", "415", "422", "429", "503"} <= set(responses)
    for status, codes in (("413", ("request_too_large", "too_many_images")),
                          ("422", ("unreadable_image", "invalid_request"))):
        assert all(f"`{code}`: " in responses[status]["description"] for code in codes)


def test_a_request_keeps_its_id_or_gets_one(client):
    assert client.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == (
        "mine-1")
    for bad in ("with space", "x" * 65, "\x1b[31m"):
        given = client.get("/healthz", headers={"x-request-id": bad}).headers["x-request-id"]
        assert given != bad
        assert len(given) == 32


@pytest.mark.parametrize(("method", "path", "code"), [
    ("GET", "/nothing", "not_found"), ("GET", "/v1/classify", "method_not_allowed"),
    ("POST", "/v1/model", "method_not_allowed"), ("GET", "/samples/0", "not_found"),
    ("GET", "/page/../../etc/passwd", "not_found"), ("GET", "/%2e%2e/etc/passwd", "not_found")])
def test_an_unknown_path_or_method_has_an_error_of_the_same_form(client, method, path, code):
    assert error_of(client.request(method, path))[0] == code


def test_an_image_is_never_fetched_from_a_url(client):
    for kind in ("text/plain", "application/json", "application/x-www-form-urlencoded", ""):
        response = client.post("/v1/classify", content=b"http://127.0.0.1/x.png",
                             headers={"content-type": kind})
        assert error_of(response)[0] == "unsupported_media_type"


@pytest.mark.parametrize(("content", "kind", "code", "message"), [
    (b"", "image/png", "invalid_request", "no image in the request"),
    (b"--b--\r\n", "multipart/form-data; boundary=b", "invalid_request", "no image in the request"),
    (b"x", "multipart/form-data", "bad_request", "the form cannot be read"),
    (b"garbage", "multipart/form-data; boundary=b", "bad_request", "the form cannot be read"),
    (b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\nabc',
     "multipart/form-data; boundary=b", "bad_request", "truncated"),
    (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nabc\r\n--b--\r\n',
     "multipart/form-data; boundary=b", "invalid_request", "is not a file"),
    (b"no image", "application/octet-stream", "unreadable_image", "not an image"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/x-eps", "unreadable_image",
     "not an image")])
def test_a_malformed_body_is_rejected(client, content, kind, code, message):
    got, text = error_of(client.post("/v1/classify", content=content,
                                     headers={"content-type": kind}))
    assert got == code
    assert message in text


@pytest.mark.parametrize("params", [{"top_k": 0}, {"top_k": 5}, {"top_k": "x"}])
def test_a_parameter_out_of_range_is_rejected(client, image, classify, params):
    code, message = error_of(classify(client, image(), **params))
    assert code == "invalid_request"
    assert message.startswith("top_k: ")


def test_an_unknown_target_class_is_rejected(client, image):
    response = client.post("/v1/explain", content=image(), params={"target": "bea"},
                         headers={"content-type": "image/png"})
    assert error_of(response) == ("invalid_request", "there is no class 'bea'; did you mean bee?")
    response = client.post("/v1/explain", content=b"no image", params={"target": "bee"},
                         headers={"content-type": "image/png"})
    assert error_of(response)[0] == "unreadable_image"
    response = client.post("/v1/explain", content=b"no image", params={"target": "bea"},
                         headers={"content-type": "image/png"})
    assert error_of(response) == ("invalid_request", "there is no class 'bea'; did you mean bee?")


def test_a_protected_server_requires_its_api_key(served):
    client = served(api_key="0123456789abcdef")

    for headers in ({}, {"x-api-key": "0123456789abcdeF"}, {"authorization": "Bearer nothing"},
                    {"authorization": "Basic 0123456789abcdef"}):
        response = client.get("/v1/model", headers=headers)
        assert error_of(response)[0] == "unauthorized"
        assert response.headers["www-authenticate"] == "Bearer"
    assert error_of(client.get("/metrics"))[0] == "unauthorized"
    for headers in ({"x-api-key": "0123456789abcdef"},
                    {"authorization": "Bearer 0123456789abcdef"}):
        assert client.get("/v1/model", headers=headers).status_code == 200
    assert client.get("/healthz").status_code == client.get("/").status_code == 200


def test_a_host_that_is_not_local_is_rejected_on_a_local_address(served):
    client = served()
    assert error_of(client.get("/", headers={"host": "example.org"}))[0] == "host_not_allowed"
    assert client.get("/healthz", headers={"host": "localhost:1"}).status_code == 200
    assert client.get("/healthz", headers={"host": "[::1]:8000"}).status_code == 200
    client = served(allowed_hosts="Example.org:443, other.example.org")
    assert client.get("/healthz", headers={"host": "example.org"}).status_code == 200
    assert error_of(client.get("/healthz"))[0] == "host_not_allowed"


def test_pages_of_other_sites_are_allowed_only_if_they_are_listed(served, image):
    headers = {"origin": "https://example.org", "content-type": "image/png"}
    client = served()
    response = client.post("/v1/classify", content=image(), headers=headers)
    assert error_of(response)[0] == "origin_not_allowed"
    own = f"http://127.0.0.1:{client.port}"
    assert client.get("/healthz", headers={"origin": own}).status_code == 200

    client = served(allowed_origins="https://example.org", api_key="0123456789abcdef")
    preflight = client.options("/v1/classify", headers={
        "origin": "https://example.org", "access-control-request-method": "POST",
        "access-control-request-headers": "x-api-key"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://example.org"
    response = client.post("/v1/classify", content=image(),
                         headers={**headers, "x-api-key": "0123456789abcdef"})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://example.org"


def test_every_response_has_the_security_headers(client):
    for path in ("/", "/healthz", "/nothing"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


def test_an_internal_error_is_500_with_an_id_that_is_in_the_log(served, predictor, image, classify,
                                                                monkeypatch, caplog):
    client = served()

    def broken(batch):
        raise RuntimeError("the runtime broke")

    LOG.setLevel(logging.ERROR)
    with monkeypatch.context() as patch:
        patch.setattr(predictor, "_session", broken)
        response = classify(client, image())
    code, message = error_of(response)
    assert code == "internal_error"
    assert "broke" not in message  # what is inside stays inside
    [record] = caplog.records
    assert record.fields["request_id"] == response.headers["x-request-id"]
    assert "the runtime broke" in record.exc_text
    assert classify(client, image()).status_code == 200


def test_the_log_is_json_that_cannot_control_a_terminal(served, caplog):
    client = served()
    LOG.setLevel(logging.INFO)
    client.get("/%1b]0;owned%07%0a{}", headers={"x-request-id": "r1"})
    while not caplog.records:  # it is written once the response is sent
        time.sleep(0.01)
    line = JsonFormatter().format(caplog.records[-1])
    assert line.isprintable()
    fields = json.loads(line)
    assert fields["path"] == "/\x1b]0;owned\x07\n{}"
    assert (fields["request_id"], fields["status"], fields["method"]) == ("r1", 404, "GET")
