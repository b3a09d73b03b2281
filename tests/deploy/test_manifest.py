import dataclasses
import json
import subprocess
import sys

import pytest

from cvt.config import Preprocess
from cvt.deploy.manifest import MANIFEST, Manifest, hash_files
from cvt.system.errors import InputError
from cvt.weights.card import ModelCard


@pytest.fixture
def card(tiny):
    return ModelCard(model=tiny(), preprocess=Preprocess(size=64, mean=(0.1, 0.2, 0.3)),
                     classes=tuple("abcdefghij"))


@pytest.fixture
def made(tmp_path, card):
    """An exported model's directory, and its manifest."""
    (tmp_path / "model.xml").write_text("<net/>")
    (tmp_path / "model.bin").write_bytes(b"weights")
    manifest = Manifest(format="openvino", precision="int8", graph="model.xml",
                        hashes=hash_files(tmp_path), card=card,
                        parity={"difference": 1e-06, "agreement": 1.0, "images": 10},
                        versions={"openvino": "2025.0"})
    manifest.save(tmp_path)
    return tmp_path, manifest


def edit(directory, **fields):
    path = directory / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_it_reads_back_what_was_written(made):
    directory, manifest = made

    assert Manifest.load(directory) == manifest
    assert set(manifest.hashes) == {"model.xml", "model.bin"}
    assert json.loads((directory / MANIFEST).read_text())["schema"] == 1


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_an_edited_file_is_rejected_unless_unverified(made, name):
    directory, manifest = made
    with (directory / name).open("ab") as file:
        file.write(b"x")

    with pytest.raises(InputError, match=rf"{name} is corrupt or was edited"):
        Manifest.load(directory)
    assert Manifest.load(directory, verify=False) == manifest


def test_a_missing_file_is_named(made):
    directory, _ = made
    (directory / "model.bin").unlink()

    with pytest.raises(InputError, match=r"lacks model\.bin.*copy the whole directory"):
        Manifest.load(directory, verify=False)


def test_a_directory_without_a_manifest_is_no_exported_model(tmp_path):
    with pytest.raises(InputError, match=r"has no manifest\.json.*`cvt export`"):
        Manifest.load(tmp_path)
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        Manifest.load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\x00", "{}"])
def test_a_corrupt_manifest_is_one_line(made, text):
    directory, _ = made
    (directory / MANIFEST).write_text(text)

    with pytest.raises(InputError, match=r"manifest\.json") as error:
        Manifest.load(directory)
    assert "\n" not in str(error.value)


def test_a_newer_schema_is_rejected_whatever_else_it_says(made):
    directory, _ = made
    edit(directory, schema=2, engine="new")

    with pytest.raises(InputError, match="has schema 2, this version reads 1; install"):
        Manifest.load(directory)


@pytest.mark.parametrize("name", ["../model.xml", "/etc/passwd", "a/b", "a\\b", "..", "", "C:x",
                                  "manifest.json"])
def test_a_file_outside_the_directory_is_rejected(made, name):
    directory, _ = made
    edit(directory, graph=name, hashes={name: "0"})

    with pytest.raises(InputError, match="is not the name of a file beside manifest"):
        Manifest.load(directory)


@pytest.mark.parametrize(("fields", "message"), [
    ({"format": "tflite"}, "format='tflite'"), ({"precision": "int4"}, "precision='int4'"),
    ({"format": ["onnx"]}, "format="),
    ({"graph": "other.xml"}, "not among the hashes"), ({"graph": 3}, "graph=3 must be"),
    ({"hashes": []}, "hashes="), ({"hashes": {"model.xml": 1}}, "hashes="),
    ({"parity": {"difference": "small"}}, "parity="), ({"versions": None}, "versions="),
    ({"schema": "1"}, "schema='1'"), ({"schema": 0}, "schema=0"), ({"extra": 1}, "unknown key"),
    ({"card": None}, "card is not"), ({"card": {"model": 1, "preprocess": 2}}, "stages=None"),
    ({"card": {"classes": ["a"]}}, "card is not")])
def test_an_invalid_manifest_is_rejected(made, fields, message):
    directory, _ = made
    edit(directory, **fields)

    with pytest.raises(InputError, match=message):
        Manifest.load(directory)


def test_numbers_that_are_none_are_rejected(made):
    _, manifest = made
    with pytest.raises(InputError, match="parity="):
        dataclasses.replace(manifest, parity={"difference": float("nan")})


def test_it_needs_no_torch():
    done = subprocess.run([sys.executable, "-c",
                           "import sys, cvt.deploy.manifest, cvt.system.extras\n"
                           "print({'torch', 'numpy', 'openvino'} & set(sys.modules))"],
                          capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("set()\n", "")
