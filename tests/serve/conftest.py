"""Real servers on loopback: uvicorn in a thread, a tiny CvT, and an httpx client."""

import contextlib
import io
import logging
import threading
import time

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from cvt.config import CvTConfig, Preprocess, StageConfig
from cvt.model import CvT
from cvt.predict.predictor import Predictor
from cvt.serve.app import Server
from cvt.serve.config import ServeConfig
from cvt.serve.explainer import make_explainer
from cvt.serve.run import GracefulServer, listen
from cvt.serve.telemetry import LOG
from cvt.weights.models import load_model, save_model

CLASSES = ("ant", "bee", "cat", "<b>dog</b>")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, telling):
    """The directory of a CvT of two stages and four classes."""
    home = tmp_path_factory.mktemp("serve") / "trained"
    torch.manual_seed(0)
    stages = (StageConfig(dim=8, num_heads=1, depth=1, embed_kernel=7, embed_stride=4,
                          embed_padding=2),
              StageConfig(dim=16, num_heads=2, depth=2, cls_token=True))
    model = telling(CvT(CvTConfig(stages=stages, num_classes=4, image_size=32)))
    save_model(home, model, Preprocess(size=32), CLASSES)
    return home


@pytest.fixture(scope="session")
def predictor(trained):
    """The predictor of the trained model."""
    return Predictor(trained)


@pytest.fixture
def slow(predictor, monkeypatch):
    """slow(seconds): from now on the network takes that long for each batch."""
    real = predictor._session

    def slow(seconds):
        def session(batch):
            time.sleep(seconds)
            return real(batch)

        monkeypatch.setattr(predictor, "_session", session)

    return slow


@pytest.fixture
def served(trained, predictor):
    """served(api_key=None, samples=None, **limits): a client of a new server."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(_served(trained, predictor, **options))


@pytest.fixture(scope="module")
def client(trained, predictor):
    """A client of one server with the default limits."""
    with _served(trained, predictor) as client:
        yield client


@contextlib.contextmanager
def _served(trained, predictor, *, api_key=None, samples=None, explainable=True, **limits):
    model, card = load_model(trained)
    config = ServeConfig(port=0, **limits)
    server = Server(predictor, config, name="tiny", samples=samples, api_key=api_key,
                    explainer=make_explainer(model, card, "tiny", config.max_pixels)
                    if explainable else None)
    LOG.setLevel(logging.CRITICAL)
    with listen(config) as taken:
        uvicorn = GracefulServer(server)
        thread = threading.Thread(target=uvicorn.run, kwargs={"sockets": [taken]})
        thread.start()
        while not uvicorn.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = taken.getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, limits=httpx.Limits(
                max_connections=None)) as client:
            client.server, client.port = server, port
            try:
                yield client
            finally:
                client.close()
                uvicorn.should_exit = True
                thread.join(30)
    assert not thread.is_alive()


def png(seed=0, size=(40, 36)):
    """A PNG file with an image that differs for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def image():
    """image(seed=0, size=(40, 36)): a PNG file's bytes."""
    return png


@pytest.fixture
def classify():
    """classify(client, data, **params): the response to one image."""
    return lambda client, data, **params: client.post(
        "/v1/classify", content=data, params=params, headers={"content-type": "image/png"})
