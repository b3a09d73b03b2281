"""Names that are not UTF-8, of classes and of uploaded files."""

import pytest
import torch

from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.model import CvT
from cvt.predict.predictor import Predictor
from cvt.weights.models import save_model

# "cafe" in Latin-1, and with an accent as macOS stores it.
CLASSES = ("caf\udce9", "cafe\u0301", "dog")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    home = tmp_path_factory.mktemp("names") / "trained"
    torch.manual_seed(0)
    stage = StageConfig(dim=8, num_heads=1, depth=1, cls_token=True)
    save_model(home, CvT(CvTConfig(stages=(stage,), num_classes=3, image_size=16)),
               Preprocess(size=16), CLASSES)
    return home


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(trained)


def test_classes_whose_names_are_not_utf8_are_served_escaped(served, image, classify, tmp_path):
    (tmp_path / "\udcff.png").write_bytes(image())
    client = served(samples=tmp_path)
    shown = {r"caf\xe9", "cafe\u0301", "dog"}
    model = client.get("/v1/model").json()
    assert set(model["classes"]) == shown
    assert model["samples"] == [r"\xff"]
    response = classify(client, image())
    assert {c["name"] for c in response.json()["predictions"][0]["classes"]} == shown
    for target, index in ((r"caf\xe9", 0), ("caf\u00e9", 1), ("dog", 2)):
        response = client.post("/v1/explain", content=image(), params={"target": target},
                               headers={"content-type": "image/png"})
        assert response.json()["target"] == [r"caf\xe9", "cafe\u0301", "dog"][index]
    response = client.post("/v1/explain", content=image(), params={"target": "caf"},
                           headers={"content-type": "image/png"})
    assert response.status_code == 422
    assert "there is no class 'caf'; did you mean caf" in response.json()["error"]["message"]


@pytest.mark.parametrize(("disposition", "name"), [
    (b'filename="caf\xe9.png"', "caf\N{REPLACEMENT CHARACTER}.png"),
    (b"filename*=utf-8''caf%C3%A9.png", "caf\u00e9.png"),
    (b"filename*=UTF-8'en'caf%E9.png", "caf\N{REPLACEMENT CHARACTER}.png"),
    (b"filename=\"a.png\"; filename*=utf-8''b.png", None),
])
def test_a_file_of_a_form_may_have_any_name(served, image, disposition, name):
    body = (b'--b\r\nContent-Disposition: form-data; name="a"; ' + disposition + b"\r\n\r\n"
            + image() + b"\r\n--b--\r\n")
    response = served().post("/v1/classify", content=body, headers={
        "content-type": "multipart/form-data; boundary=b"})
    assert response.status_code == 200
    [prediction] = response.json()["predictions"]
    assert name is None or prediction["name"] == name
