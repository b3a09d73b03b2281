"""What the charts of studies show."""

import pytest

from cvt.studies.charts import _by_row


def study(*top1):
    mean = sum(top1) / len(top1)
    return {"title": "a study", "data": {"name": "digits"}, "seeds": [0, 1, 2], "rows": [
        {"label": "a", "mean": mean, "runs": [{"top1": value} for value in top1]}]}


@pytest.mark.parametrize(("top1", "arrows"), [
    ((50.0, 60.0, 55.0), ["<", ">"]), ((50.0, 50.1, 50.2), []), ((100.0, 99.0, 99.9), ["<", ">"])])
def test_an_interval_that_the_chart_cuts_off_ends_in_an_arrow(top1, arrows):
    axes, = _by_row(study(*top1)).axes

    assert [line.get_marker() for line in axes.lines if line.get_marker() in "<>"] == arrows
    low, high = axes.get_xlim()
    assert all(low < value <= high for value in top1)
