from cvt.system.errors import did_you_mean, one_line


def test_a_near_name_is_suggested():
    assert did_you_mean("cvt13", ["cvt_13", "cvt_21"]) == "did you mean cvt_13?"


def test_without_a_near_name_all_are_listed():
    assert did_you_mean("resnet50", ["cvt_13", "cvt_21"]) == "choose from cvt_13, cvt_21"


def test_what_another_library_says_is_one_bearable_line():
    assert one_line(OSError("no\n  route\tto host")) == "no route to host"
    assert one_line(OSError()) == "OSError"
    assert len(one_line(OSError("x" * 1000))) == 300
