import csv

import numpy as np
import pytest
from PIL import Image

from cvt.cli import main
from cvt.system.errors import InputError
from cvt.train.lr_finder import suggest


def test_the_steepest_descent_and_the_minimum_are_found():
    rates = np.geomspace(1e-6, 1, 100)
    losses = 2.3 - 1.5 / (1 + (1e-3 / rates) ** 1.5) + (rates / 0.05) ** 2
    result = suggest(rates, losses)
    assert 3e-4 <= result.steepest <= 3e-3
    assert 5e-3 <= result.min_loss <= 5e-2


def test_a_loss_that_never_falls_has_no_suggestion():
    with pytest.raises(InputError, match="does not fall at any learning rate"):
        suggest(np.geomspace(1e-6, 1, 100), np.linspace(2, 3, 100))


@pytest.mark.slow
def test_the_command_leaves_a_plot_and_a_table(tiny_file, tmp_path, capsys):
    assert main(["train", f"--model={tiny_file}", "--image_size=8", "--find-lr",
                 f"--output={tmp_path / 'run'}"]) == 0
    assert "try --optim.lr" in capsys.readouterr().out
    with Image.open(tmp_path / "run/lr_finder.png") as plot:
        assert plot.size == (1050, 600)
    rows = list(csv.DictReader((tmp_path / "run/lr_finder.csv").read_text().splitlines()))
    assert float(rows[0]["lr"]) == pytest.approx(1e-6)
    assert len(rows) > 20
    assert main(["train", f"--model={tiny_file}", "--image_size=8", "--epochs=1",
                 "--optim.warmup_epochs=0", f"--output={tmp_path / 'run'}", "--quiet"]) == 0
