import pytest

from cvt.system.device import pick_device
from cvt.system.errors import InputError


@pytest.mark.parametrize("name", ["banana", "", "meta", "hpu", "vulkan", "cuda:99", "xpu:99"])
def test_a_device_that_cannot_be_used_is_rejected_in_one_line(name):
    with pytest.raises(InputError, match=r"cannot be used \(.*\); try cpu or auto$"):
        pick_device(name)
