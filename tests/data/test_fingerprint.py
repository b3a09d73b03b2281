import json
import shutil
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from cvt.data import fingerprint as module
from cvt.data.config import DataConfig
from cvt.data.fingerprint import differences, digest, fingerprint
from cvt.data.load import load_dataset
from cvt.data.sources.builtin import digits


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def of(root, name="folder", **options):
    return fingerprint(load_dataset(DataConfig(name=name, root=str(root), **options)))


def test_a_dataset_that_was_moved_or_is_named_otherwise_is_the_same(photos, tmp_path, monkeypatch):
    one = of(photos)
    assert json.loads(json.dumps(one)) == one
    shutil.copytree(photos, tmp_path / "elsewhere" / "deep")
    assert of(tmp_path / "elsewhere" / "deep") == one
    monkeypatch.chdir(tmp_path)
    assert of("photos") == one


def test_another_split_is_other_data(photos):
    assert differences(of(photos, val_fraction=0.5),
                       of(photos, val_fraction=0.5, split_seed=1)) == [
        "the names of the training images", "the contents of the training images",
        "the names of the validation images", "the contents of the validation images"]
    assert differences(of(photos, val_fraction=0.3), of(photos, val_fraction=0.5))[:2] == [
        "6 training images, were 8", "training images by class: 3 of 'ant', were 4, 3 of 'bee', "
        "were 4"]


@pytest.mark.parametrize("limit", [0, module.MAX_HASHED_BYTES])
def test_an_image_that_is_gone_later_is_other_data_and_no_error(photos, monkeypatch, limit):
    monkeypatch.setattr(module, "MAX_HASHED_BYTES", limit)
    dataset = load_dataset(DataConfig(name="folder", root=str(photos)))
    before = fingerprint(dataset)
    (photos / "ant/0.png").unlink()
    assert differences(before, fingerprint(dataset)) in (
        ["the contents of the training images"], ["the contents of the validation images"])


@pytest.mark.slow
def test_sizes_of_every_source_are_known_without_reading(photos, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [(path, name) for name in ("ant", "bee") for path in sorted((photos / name).iterdir())]
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for i, (path, name) in enumerate(rows):
            archive.add(path, f"{i:03}.png")
            (tmp_path / "label").write_text(name)
            archive.add(tmp_path / "label", f"{i:03}.cls")
    (tmp_path / "shards").mkdir()
    (tmp_path / "all.tar").rename(tmp_path / "shards/all.tar")
    (tmp_path / "table.csv").write_text("path,label\n" + "".join(f"{p},{n}\n" for p, n in rows))
    datasets.Dataset.from_dict(
        {"image": [str(path) for path, _ in rows], "label": [name == "bee" for _, name in rows]},
        features=datasets.Features({"image": datasets.Image(),
                                    "label": datasets.ClassLabel(names=["ant", "bee"])})
    ).save_to_disk(tmp_path / "hf")
    for name, root in (("folder", photos), ("shards", tmp_path / "shards"),
                       ("manifest", tmp_path / "table.csv"), ("huggingface", tmp_path / "hf")):
        dataset = load_dataset(DataConfig(name=name, root=str(root)))
        for half in (dataset.train, dataset.val):
            assert [half.size(i) for i in range(len(half))] == [
                len(half.fetch(i)) for i in range(len(half))], name


def test_arrays_are_hashed(monkeypatch):
    one = digits()
    assert one.train.size is None
    assert digest(one) == digest(digits())
    assert digest(one) != digest(digits(seed=1))


def test_many_classes_are_not_all_listed():
    before = {"classes": [f"class {i}" for i in range(20_000)],
              **{half: {"counts": [1] * 20_000, "names": "", "labels": "", "contents": ""}
                 for half in ("training", "validation")}}
    now = json.loads(json.dumps(before))
    now["classes"][5] = "new"
    start = time.process_time()
    words, = differences(before, now)
    assert time.process_time() - start < 1  # a hundredth of it; by pairs of classes a minute
    assert words == "20000 classes, were 20000; gone: class 5; new: new"
    now = json.loads(json.dumps(before))
    now["training"]["counts"][:5] = [2] * 5
    assert differences(before, now) == [
        "20,005 training images, were 20,000", "training images by class: 2 of 'class 0', were 1, "
        "2 of 'class 1', were 1, 2 of 'class 2', were 1 and 2 classes more"]
