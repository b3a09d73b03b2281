import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from cvt.data.config import DataConfig
from cvt.data.load import load_dataset
from cvt.data.sources.builtin import digits, fashion_mnist
from cvt.data.sources.folder import folder
from cvt.system.errors import InputError


def paint(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(path)


def write_idx(path, array, pack=False):
    data = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape)
    data += array.astype(np.uint8).tobytes()
    if pack:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def write_fashion(home, pack=False):
    home.mkdir(parents=True, exist_ok=True)
    for half, n in (("train", 20), ("t10k", 10)):
        images = np.arange(n * 28 * 28).reshape(n, 28, 28) % 256
        write_idx(home / f"{half}-images-idx3-ubyte", images, pack)
        write_idx(home / f"{half}-labels-idx1-ubyte", np.arange(n) % 10, pack)


def test_digits_hold_out_a_fifth_of_each_class():
    data = digits()
    assert (len(data.train), len(data.val)) == (1437, 360)
    assert min(np.bincount(data.val.labels)) >= 34
    assert not set(data.train.names) & set(data.val.names)


def test_the_split_depends_on_its_seed_alone():
    assert digits(seed=1).val.names == digits(seed=1).val.names
    assert digits(seed=1).val.names != digits(seed=2).val.names


def test_digits_use_the_whole_range_of_gray():
    pixels = np.stack([np.asarray(digits().train.read(i)) for i in range(9)])
    assert pixels.shape == (9, 8, 8, 3)
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_dataset_statistics_are_those_of_its_training_images():
    data = digits()
    pixels = np.stack([np.asarray(data.train.read(i)) for i in range(len(data.train))]) / 255
    assert data.preprocess.mean[0] == pytest.approx(pixels.mean(), abs=2e-3)
    assert data.preprocess.std[0] == pytest.approx(pixels.std(), abs=2e-3)


@pytest.mark.parametrize("pack", [False, True])
def test_fashion_mnist_is_read_from_idx_files(tmp_path, pack):
    write_fashion(tmp_path, pack)
    data = fashion_mnist(tmp_path)
    assert (len(data.train), len(data.val)) == (20, 10)
    assert data.val.classes[data.val.labels[9]] == "Ankle boot"
    assert np.asarray(data.train.read(1))[0, :3, 0].tolist() == [16, 17, 18]


def test_fashion_mnist_is_read_from_where_torchvision_puts_it(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    write_fashion(raw)
    assert len(fashion_mnist(tmp_path).train) == 20


def test_a_truncated_idx_file_is_named(tmp_path):
    write_fashion(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte.*truncated"):
        fashion_mnist(tmp_path)


def test_a_corrupt_gzip_file_is_named(tmp_path):
    write_fashion(tmp_path, pack=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz is corrupt"):
        fashion_mnist(tmp_path)


def test_labels_that_do_not_match_the_images_are_rejected(tmp_path):
    write_fashion(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3))
    with pytest.raises(InputError, match="20 train images but 3 labels"):
        fashion_mnist(tmp_path)


def test_idx_files_of_another_dataset_are_rejected(tmp_path):
    write_fashion(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.arange(10) * 3)
    with pytest.raises(InputError, match="has the t10k label 27, and Fashion-MNIST has 10 classes"):
        fashion_mnist(tmp_path)


def test_a_folder_with_train_and_val_keeps_its_split(tmp_path):
    for name in ("train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "val/dog/3.png"):
        paint(tmp_path / name)
    data = folder(tmp_path)
    assert data.train.classes == ("cat", "dog")
    assert data.train.labels == (0, 0, 1)
    assert data.val.labels == (1,)
    assert data.val.names == [str(tmp_path / "val/dog/3.png")]


def test_a_folders_classes_are_in_natural_order_in_both_halves(tmp_path):
    for name in ("1", "2", "10", "a2", "a10"):
        paint(tmp_path / "train" / name / "1.png")
    for name in ("10", "2"):
        paint(tmp_path / "val" / name / "1.png")
    data = folder(tmp_path)
    assert data.train.classes == data.val.classes == ("1", "2", "10", "a2", "a10")
    assert data.val.labels == (1, 2)


def test_a_folder_of_classes_is_split_by_the_seed(tmp_path):
    for name in ("a", "b"):
        for i in range(10):
            paint(tmp_path / name / f"{i}.png", i)
    data = load_dataset(DataConfig(name="folder", root=str(tmp_path), val_fraction=0.3))
    assert sorted(data.val.labels) == [0, 0, 0, 1, 1, 1]
    assert set(data.train.names).isdisjoint(data.val.names)
    assert len(set(data.train.names) | set(data.val.names)) == 20


@pytest.mark.parametrize(("names", "message"), [
    ([], "no images"),
    (["cat/notes.txt"], "no images"),
    (["cat/1.png", "cat/2.png"], "the single class 'cat'"),
    (["train/a/1.png", "train/b/1.png", "val/c/1.png"], "class 'c'.*lacks"),
    (["a/1.png", "b/1.png", "b/2.png"], "one image"),
    (["a/1.png", "b/1.png", "b/2.png"], "the class 'a' with one image"),
    (["cat/1.png", "cat/2.png", "Cat/1.png", "Cat/2.png"], "the classes 'Cat' and 'cat' are"),
    (["train/cat/1.png", "train/b/1.png", "val/cat /1.png"], "'cat ', .*; it is spelled 'cat'"),
    (["train/1/1.png", "train/b/1.png", "val/01/1.png"], "'01', which .* it is spelled '1' there"),
    (["Train/a/1.png", "VAL/a/1.png"], "Train has the single class 'a'"),
    (["train/1.png", "val/1.png"], "train has 1 images, but not in sub-directories"),
    (["val/a/1.png", "val/b/1.png"], "val/ but no train/"),
])
def test_a_folder_that_cannot_be_trained_on_says_why(tmp_path, names, message):
    for name in names:
        if name.endswith(".png"):
            paint(tmp_path / name)
        else:
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).write_text("text")
    with pytest.raises(InputError, match=message):
        folder(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a directory"):
        folder(tmp_path / "nowhere")


@pytest.mark.parametrize("values", [
    {"name": "folder"}, {"name": "digits", "root": "x"}, {"val_fraction": 1.0}, {"workers": -1},
    {"name": "mnist"},
])
def test_data_options_that_make_no_sense_are_rejected(values):
    with pytest.raises(InputError):
        DataConfig(**values)
