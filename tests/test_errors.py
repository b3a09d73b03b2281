from cvt.errors import did_you_mean


def test_a_near_name_is_suggested():
    assert did_you_mean("cvt13", ["cvt_13", "cvt_21"]) == "did you mean cvt_13?"


def test_without_a_near_name_all_are_listed():
    assert did_you_mean("resnet50", ["cvt_13", "cvt_21"]) == "choose from cvt_13, cvt_21"
