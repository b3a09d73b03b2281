"""docs/claims.md says what the kept results say."""

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest

from cvt.cli import main
from cvt.studies.ablate.report import claims_of, table_of, to_markdown
from cvt.studies.ablate.results import Outcome, compare, mean_and_std
from cvt.studies.ablate.tables import STUDIES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/claims.md").read_text()
RESULTS = sorted((ROOT / "docs/ablations").glob("*/ablation.json"))
KEPT = [(path.parent, name, study) for path in RESULTS
        for name, study in json.loads(path.read_text())["studies"].items()]
each = pytest.mark.parametrize(("home", "name", "study"), KEPT,
                               ids=[f"{home.name}-{name}" for home, name, _ in KEPT])


@pytest.mark.parametrize("line", re.findall(r"^cvt ablate .*$", PAGE, re.MULTILINE))
def test_the_commands_are_understood(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main([*shlex.split(line)[1:], "--print_config"]) == 0


@each
def test_pages_are_those_of_the_results(home, name, study):
    assert (home / f"{name}.md").read_text() == to_markdown(name, study)
    assert (home / f"{name}.png").is_file()
    assert table_of(study) in PAGE
    assert claims_of(study) in PAGE
    assert f"ablations/{home.name}/{name}.md" in PAGE


@each
def test_figures_and_verdicts_follow_from_the_runs(home, name, study):
    outcomes = {(row["label"], row["images"]): [
        Outcome(**{k: v for k, v in run.items() if k != "run"}) for run in row["runs"]]
        for row in study["rows"]}
    assert [row.label for row in STUDIES[name].rows] == list(dict.fromkeys(
        label for label, _ in outcomes))
    for row in study["rows"]:
        found = outcomes[row["label"], row["images"]]
        assert [o.seed for o in found] == study["seeds"]
        assert len(found) >= 3
        assert (row["mean"], row["std"]) == pytest.approx(mean_and_std(found))
    claims = {(c.one, c.other): c for c in STUDIES[name].claims}
    for kept in study["comparisons"]:
        n = kept["images"]
        again = asdict(compare(claims[kept["one"], kept["other"]], outcomes[kept["one"], n],
                               outcomes[kept["other"], n], n))
        for key, value in again.items():
            assert kept[key] == (pytest.approx(value) if isinstance(value, (float, tuple))
                                 else value)
