import pytest
from PIL import Image

from cvt.data.config import DataConfig, guess_source
from cvt.data.dataset import find_splits
from cvt.data.load import load_dataset
from cvt.data.sources.folder import folder
from cvt.system.errors import InputError


def paint(home, *names):
    for name in names:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg"):
            Image.new("RGB", (8, 8)).save(path)
        else:
            path.touch()


def classes(home, *directories, n=2):
    for directory in directories:
        for name in ("cat", "dog"):
            paint(home, *(f"{directory}/{name}/{i}.png" for i in range(n)))


@pytest.mark.parametrize("names", [
    ("Train", "Val"), ("TRAIN", "VAL"), ("training", "validation"), ("train", "valid"),
    ("train", "dev"), ("Training Set", "Validation Set"), ("train_images", "val_images"),
    ("train2017", "val2017"), ("imagenette_train", "imagenette_val"), ("seg_train", "seg_val")])
def test_usual_names_of_splits_are_known(tmp_path, names):
    classes(tmp_path, names[0], n=4)
    classes(tmp_path, names[1], n=1)
    data = folder(tmp_path)
    assert data.train.classes == ("cat", "dog")
    assert (len(data.train), len(data.val), data.messages) == (8, 2, ())


@pytest.mark.parametrize("name", ["test", "Test", "testing", "eval", "TEST"])
def test_test_images_are_for_validation_where_there_is_no_other(tmp_path, name):
    classes(tmp_path, "train", name)
    data = folder(tmp_path)
    assert len(data.val) == 4
    assert data.notes == (f"{tmp_path / name}/ is used for validation, because there is no "
                          f"{tmp_path / 'val'}/",)


def test_test_images_beside_validation_images_are_not_used(tmp_path):
    classes(tmp_path, "train", "valid", "test")
    data = folder(tmp_path)
    assert not any("test" in name.split("/")[-3] for name in data.all.names)
    assert data.notes == (
        f"{tmp_path / 'test'}/ is used neither to train nor to validate; cvt evaluate --data.name "
        f"folder --data.root {tmp_path / 'test'} scores it",)


def test_a_training_split_alone_is_split(tmp_path):
    classes(tmp_path, "Train", n=10)
    data = folder(tmp_path, 0.3)
    assert (len(data.train), len(data.val)) == (14, 6)
    assert "0.3 of each class" in data.notes[0]


def test_a_class_called_train_is_a_class(tmp_path):
    paint(tmp_path, *(f"{name}/{i}.png" for name in ("bus", "train", "car") for i in range(5)))
    assert folder(tmp_path).train.classes == ("bus", "car", "train")


def test_an_archive_unpacked_into_its_own_name_is_entered(tmp_path):
    classes(tmp_path, "seg_train/seg_train", "seg_test/seg_test")
    paint(tmp_path, "seg_pred/seg_pred/1.jpg", "seg_pred/seg_pred/2.jpg")
    data = folder(tmp_path)
    assert (len(data.train), len(data.val)) == (4, 4)
    assert "2 images beside the class directories" in data.messages[0]


@pytest.mark.parametrize(("directories", "words"), [
    (["fold1", "fold2"], "hold the same directories, cat, dog, so it is not clear"),
    (["photos"], "the single directory 'photos', which has the directories cat, dog; give data.r"),
    (["set/train", "set/val"], "the single directory 'set', which has the directories train, val"),
    (["train", "extra"], "train/ with directories in it beside extra/"),
    (["val"], "has val/ but no train/"),
    (["train", "val", "valid"], "val/, valid/, which are all names of the val split"),
    (["a_train", "a_test", "b_train", "b_test"], "several pairs of splits"),
    (["trainA", "trainB", "testA"], "names of splits, not of classes")])
def test_directories_that_are_no_classes_are_rejected(tmp_path, directories, words):
    classes(tmp_path, *directories)
    with pytest.raises(InputError, match="has ") as error:
        folder(tmp_path)
    assert words in str(error.value)


@pytest.mark.parametrize(("names", "words"), [
    (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png", "dog/test/1.png"],
     "move cat/test to test/cat, and the others likewise"),
    (["images/1.png", "masks/1.png"], "parts of a dataset for detection or segmentation"),
    (["train/1.png", "test/1.png"], "train has 1 images, but not in sub-directories"),
    (["1.png", "2.png"], "has 2 images, but not in sub-directories"),
    (["cat/1.png", "dog/1.heix", "dog/2.svg"],
     "dog has no image that can be read: 1 .heix, 1 .svg (formats"),
    (["cat/1.png", "dog/1.mp4"], "dog has no image that can be read: 1 .mp4 (not images)")])
def test_files_that_are_no_images_of_a_class_are_rejected(tmp_path, names, words):
    paint(tmp_path, *names)
    with pytest.raises(InputError, match="has ") as error:
        folder(tmp_path)
    assert words in str(error.value)


def test_a_class_that_is_a_link_to_nowhere_is_an_error(tmp_path):
    classes(tmp_path, ".")
    (tmp_path / "bird").symlink_to("/mnt/nas/bird")
    with pytest.raises(InputError, match="bird is a link to /mnt/nas/bird that cannot be opened"):
        folder(tmp_path)


def test_classes_may_be_links(tmp_path):
    classes(tmp_path, "elsewhere", n=5)
    (tmp_path / "photos").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert folder(tmp_path / "photos").train.classes == ("cat", "dog")


def test_what_lies_beside_the_classes_is_counted(tmp_path):
    classes(tmp_path, "train", "val")
    paint(tmp_path, "train/stray.jpg", "val/stray.png", "readme.txt", "train/cat/x.svg",
          "train/.DS_Store", "labels/cat.xml", "train/empty/.DS_Store", "unlabelled/1.jpg")
    data = folder(tmp_path)
    assert data.train.classes == ("cat", "dog")
    assert data.messages == (
        "left out: 1 .svg (formats that are not read: convert them to JPEG or PNG); 1 .txt, 1 .xml "
        "(not images); 3 images beside the class directories; 1 class directories without images; "
        "2 hidden or system files",)


def test_an_evaluation_holds_out_everything(tmp_path):
    paint(tmp_path, "one/cat/1.png")
    config = DataConfig(name="folder", root=str(tmp_path / "one"))
    with pytest.raises(InputError, match="single class"):
        load_dataset(config)
    data = load_dataset(config, hold_out=False)
    assert (len(data.train), len(data.val), data.val.classes) == (0, 1, ("cat",))


@pytest.mark.parametrize("name", ["test", "train", "val"])
def test_an_evaluation_takes_a_split_alone(tmp_path, name):
    classes(tmp_path, name)
    data = load_dataset(DataConfig(name="folder", root=str(tmp_path)), hold_out=False)
    assert (len(data.train), len(data.val)) == (0, 4)


def test_an_archive_in_place_of_a_directory_is_to_be_unpacked(tmp_path):
    (tmp_path / "photos.zip").touch()
    with pytest.raises(InputError, match=r"photos\.zip is not a directory; unpack it"):
        folder(tmp_path / "photos.zip")


def test_an_archive_beside_what_was_unpacked_from_it_is_no_source(tmp_path):
    classes(tmp_path, ".")
    (tmp_path / "photos.tar").touch()
    assert guess_source(str(tmp_path)) == "folder"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "000.tar").touch()
    assert guess_source(str(tmp_path / "other")) == "shards"


def test_names_that_share_no_other_word_are_no_pair():
    assert find_splits(["train_station", "bus stop", "test tube"], "x") == {}
    assert find_splits(["train", "val_small"], "x") == {"train": ["train"]}
