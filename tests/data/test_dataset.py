import pytest
import torch

from cvt.config import Preprocess
from cvt.data.dataset import Dataset, LabeledImages, relabel, split, subset
from cvt.data.sources.builtin import digits
from cvt.system.errors import InputError


def test_a_subset_keeps_the_share_of_each_class():
    train = digits().train
    some = subset(train, 100, 0)
    assert len(some) == 100
    counts = torch.bincount(torch.tensor(some.labels))
    assert counts.min() >= 9
    assert counts.max() <= 11
    assert subset(train, 10, 0).labels != ()
    assert sorted(subset(train, 10, 0).labels) == list(range(10))
    assert set(subset(train, 50, 0).names) <= set(some.names)
    assert subset(train, 100, 1).names != some.names
    with pytest.raises(InputError, match="9 training images are too few for 10 classes"):
        subset(train, 9, 0)


def labelled(classes, labels):
    return LabeledImages(classes=classes, labels=labels, names=[str(i) for i in range(len(labels))],
                    fetch=str.encode)


def test_labels_are_matched_by_name():
    images = labelled(("b", "a"), (0, 1, 1))
    assert relabel(images, ("a", "b", "c")).labels == (1, 0, 0)
    assert relabel(images, ("a", "b", "c")).classes == ("a", "b", "c")
    with pytest.raises(InputError, match="have the class 'b', which the model was not trained on; "
                                         "it knows a, c"):
        relabel(images, ("a", "c"))
    with pytest.raises(InputError, match=r"the class 'b', .*; it is spelled 'b ' there"):
        relabel(images, ("a", "b "))


def test_many_classes_are_matched_in_a_moment():
    classes = tuple(f"class {i}" for i in range(20_000))
    labels = tuple(range(20_000))
    assert relabel(labelled(classes[::-1], labels), classes).labels == labels[::-1]


def test_halves_whose_labels_count_in_other_classes_are_rejected():
    train, val = labelled(("a", "b"), (0, 1)), labelled(("b", "a"), (0, 1))
    with pytest.raises(InputError, match="train has the classes a, b, val has b, a; give both"):
        Dataset(train=train, val=val, preprocess=Preprocess())
    both = Dataset(train=train, val=relabel(val, train.classes), preprocess=Preprocess()).all
    assert [both.classes[label] for label in both.labels] == ["a", "b", "b", "a"]


def test_a_class_of_one_image_is_called_by_its_name():
    with pytest.raises(InputError, match="photos has the class 'rare' with one image"):
        split(labelled(("cat", "rare"), (0, 0, 1)), 0.5, 0, "photos")
