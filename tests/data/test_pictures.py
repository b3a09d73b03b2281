import pytest
import torch

from cvt.data.builtin import digits
from cvt.data.pictures import subset
from cvt.errors import InputError


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
    with pytest.raises(InputError, match="9 training pictures are too few for 10 classes"):
        subset(train, 9, 0)
