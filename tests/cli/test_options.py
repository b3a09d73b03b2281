"""No option is passed over in silence."""

import pytest

from cvt.cli import main


@pytest.mark.parametrize(("line", "printed"), [
    ("train --json", "--json is for --dry_run"),
    ("train --dry_run --find_lr", "two things to do"),
    ("train --dry_run --quiet", "--dry_run replaces nothing"),
    ("train --find_lr --overwrite", "--find_lr replaces nothing"),
    ("ablate position --sizes 100", "--sizes is for the study data"),
    ("export cvt_nano.digits out --to onnx --split all", "about the images of --data"),
    ("export cvt_nano.digits out --to onnx --max_drop 5", "about the images of --data")])
def test_an_option_that_would_do_nothing_is_rejected(line, printed, capsys):
    assert main(line.split()) == 2
    assert printed in capsys.readouterr().err


@pytest.mark.parametrize("line", [
    "data check --data.name digits --image-size 16",
    "data check --data.name digits --image_size=16"])
@pytest.mark.slow
def test_hyphens_and_underscores_are_the_same(line, capsys):
    assert main(line.split()) == 0
    assert capsys.readouterr().out
