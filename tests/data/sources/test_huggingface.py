import numpy as np
import pytest
from PIL import Image

from cvt.data.config import DataConfig
from cvt.data.copy.run import copy
from cvt.data.load import load_dataset
from cvt.data.sources.folder import folder
from cvt.data.sources.huggingface import huggingface
from cvt.data.sources.shards import shards
from cvt.system.errors import InputError

datasets = pytest.importorskip("datasets")


def half(n, start=0, **columns):
    shades = [Image.fromarray(np.full((8, 8, 3), start + i, np.uint8)) for i in range(n)]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])}
    rows = {"image": shades, "label": [(start + i) % 2 for i in range(n)], **columns}
    kinds = {name: features.get(name, datasets.ClassLabel(names=["a", "b"])) for name in rows}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def test_a_saved_dataset_is_read_with_its_splits(tmp_path):
    datasets.DatasetDict(train=half(10), test=half(4, 20)).save_to_disk(tmp_path / "set")
    data = load_dataset(DataConfig(name="huggingface", root=str(tmp_path / "set")))
    assert data.train.classes == ("even", "odd")
    assert (len(data.train), len(data.val)) == (10, 4)
    assert data.train.read(7).getpixel((0, 0)) == (7, 7, 7)
    assert data.val.read(3).getpixel((0, 0)) == (23, 23, 23)
    assert data.val.labels[3] == 1


def test_parquet_files_in_a_directory_are_read_and_split(tmp_path):
    (tmp_path / "set").mkdir()
    half(20).to_parquet(tmp_path / "set/train.parquet")
    data = huggingface(str(tmp_path / "set"), val_fraction=0.3)
    assert sorted(data.val.labels) == [0, 0, 0, 1, 1, 1]
    for i, name in enumerate(data.val.names):
        assert name == f"train {data.val.read(i).getpixel((0, 0))[0]}"


def test_columns_are_chosen_where_there_are_several(tmp_path):
    half(10, coarse=[0] * 10).save_to_disk(tmp_path / "set")
    root = str(tmp_path / "set")
    with pytest.raises(InputError, match=r"2 columns of ClassLabel .* with data\.label_column"):
        huggingface(root)
    with pytest.raises(InputError, match="no column 'lable'; did you mean label"):
        huggingface(root, label_column="lable")
    with pytest.raises(InputError, match=r"'image'.*data\.label_column takes ClassLabel"):
        huggingface(root, label_column="image")
    assert huggingface(root, label_column="label").train.classes == ("even", "odd")


def test_a_split_is_chosen_by_name(tmp_path):
    datasets.DatasetDict(train=half(10), one=half(2), two=half(3)).save_to_disk(tmp_path / "set")
    assert len(huggingface(str(tmp_path / "set"), val_split="two").val) == 3
    with pytest.raises(InputError, match="no split 'three'"):
        huggingface(str(tmp_path / "set"), val_split="three")


def test_a_hidden_test_set_is_rejected(tmp_path):
    hidden = half(4).to_dict() | {"label": [-1] * 4}
    test = datasets.Dataset.from_dict(hidden, features=half(1).features)
    datasets.DatasetDict(train=half(10), test=test).save_to_disk(tmp_path / "set")
    with pytest.raises(InputError, match="the split test has images without a label"):
        huggingface(str(tmp_path / "set"))


def test_a_missing_label_is_rejected_and_a_missing_image_named(tmp_path):
    rows = half(10).to_dict()
    rows["image"][7] = None
    features = half(1).features
    datasets.DatasetDict(train=datasets.Dataset.from_dict(rows, features=features),
                         test=half(4)).save_to_disk(tmp_path / "set")
    data = huggingface(str(tmp_path / "set"))
    assert len(data.train) == 10
    with pytest.raises(OSError, match="its row has no image"):
        data.train.fetch(7)
    rows["label"][2] = None
    datasets.DatasetDict(train=datasets.Dataset.from_dict(rows, features=features),
                         test=half(4)).save_to_disk(tmp_path / "other")
    with pytest.raises(InputError, match="the split train has images without a label"):
        huggingface(str(tmp_path / "other"))


def named(names, labels, start=0):
    """Images of the shades from `start` on, of the classes `names`."""
    shades = [Image.fromarray(np.full((8, 8, 3), start + i, np.uint8)) for i in range(len(labels))]
    return datasets.Dataset.from_dict(
        {"image": shades, "label": labels}, features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}))


def called(images):
    return [images.classes[label] for label in images.labels]


@pytest.mark.parametrize("names", [["cat", "ant", "dog"], ["dog", "cat"], ["dog", "cat", "ant"]])
def test_the_classes_of_another_split_are_matched_by_name(tmp_path, names):
    test = named(names, [0, 1, 1, 0], 50)
    datasets.DatasetDict(train=named(["dog", "ant", "cat"], [0, 1, 2] * 2),
                         test=test).save_to_disk(tmp_path / "set")

    data = huggingface(str(tmp_path / "set"))

    assert data.train.classes == data.val.classes == ("dog", "ant", "cat")
    assert called(data.val) == [names[0], names[1], names[1], names[0]]
    assert called(data.all) == ["dog", "ant", "cat"] * 2 + called(data.val)


@pytest.mark.parametrize(("names", "message"), [
    (["cat", "emu"], "the split test of .* has the class 'emu', which the split train lacks; add"),
    (["cat", "ant", "emu"], "has the class 'emu', which the split train lacks"),
    (["ant ", "cat"], "the class 'ant ', which the split train lacks; it is spelled 'ant' there"),
    (["Cat", "ant"], "the class 'Cat', .*; it is spelled 'cat' there"),
])
def test_a_class_that_the_training_split_lacks_is_rejected_by_name(tmp_path, names, message):
    datasets.DatasetDict(train=named(["ant", "cat"], [0, 1]),
                         test=named(names, [0, 1])).save_to_disk(tmp_path / "set")
    with pytest.raises(InputError, match=message):
        huggingface(str(tmp_path / "set"))


def test_names_that_do_not_tell_classes_apart_are_rejected(tmp_path):
    named(["1", "01", "2"], [0, 1, 2] * 4).save_to_disk(tmp_path / "set")
    with pytest.raises(InputError, match="set: the classes '1' and '01' are the same number"):
        huggingface(str(tmp_path / "set"))


def test_a_split_without_class_labels_is_rejected(tmp_path):
    plain = named(["ant", "cat"], [0, 1]).cast_column("label", datasets.Value("int64"))
    train = named(["ant", "cat"], [0, 1])
    for test, message in ((plain, "the column 'label' of the split test .* takes ClassLabel"),
                          (train.rename_column("label", "kind"), "no column 'label'")):
        datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / message[:10])
        with pytest.raises(InputError, match=message):
            huggingface(str(tmp_path / message[:10]))


@pytest.mark.parametrize("to", ["folder", "shards"])
@pytest.mark.parametrize("names", [["dog", "ant", "cat"], ["1", "0", "2"], ["0", "1", "10", "2"]])
def test_a_copy_gives_every_image_its_class(tmp_path, to, names):
    labels = [i % len(names) for i in range(8)]
    datasets.DatasetDict(train=named(names, labels), test=named(names[::-1], labels, 50)
                         ).save_to_disk(tmp_path / "set")
    config = DataConfig(name="huggingface", root=str(tmp_path / "set"))

    copy(config, tmp_path / "out", to=to)

    data, small = load_dataset(config), {"folder": folder, "shards": shards}[to](tmp_path / "out")
    for half, other in ((data.train, small.train), (data.val, small.val)):
        reported = {half.read(i).tobytes(): name for i, name in enumerate(called(half))}
        assert {other.read(i).tobytes(): name for i, name in enumerate(called(other))} == reported
    if to == "shards":
        assert small.train.classes == data.train.classes == tuple(names)


def test_what_is_no_dataset_says_why(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match="cannot be loaded as a dataset: "):
        huggingface(str(tmp_path / "set"))
    datasets.DatasetDict(test=half(4)).save_to_disk(tmp_path / "only")
    with pytest.raises(InputError, match=r"the splits test; one must be train"):
        huggingface(str(tmp_path / "only"))


def test_options_of_another_source_are_rejected():
    with pytest.raises(InputError, match=r"data\.subset=x is for data\.name=huggingface"):
        DataConfig(subset="x")
