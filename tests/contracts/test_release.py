"""What is published: one version, the files meant for it, workflows that call what exists."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import cvt

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE = PROJECT["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def script(name):
    spec = importlib.util.spec_from_file_location(f"release_{name}", ROOT / f"release/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


contents, advisories = script("contents"), script("audit")


def listed(builder, root):
    return {file.distribution_path for file in builder(str(root)).recurse_included_files()}


def tracked():
    # An unpacked sdist has no history to be compared with; `make dist` compared it as it was built.
    if (ROOT / "PKG-INFO").exists():
        pytest.skip("there is no version control to compare the files of an sdist with; in a "
                    "clone there is")
    return contents.tracked()


# The version


def test_the_version_is_in_one_place():
    assert PACKAGE["dynamic"] == ["version"]
    assert "version" not in PACKAGE
    assert PROJECT["tool"]["hatch"]["version"] == {"path": "src/cvt/__init__.py"}
    assert SdistBuilder(str(ROOT)).metadata.version == cvt.__version__
    assigned = [path for path in (ROOT / "src").rglob("*.py")
                if re.search(r"^__version__ *=", path.read_text(), re.MULTILINE)]
    assert assigned == [ROOT / "src/cvt/__init__.py"]


def test_the_newest_release_in_the_changelog_is_this_version():
    first, *releases = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(),
                                  re.MULTILINE)

    assert first == "Unreleased"
    assert releases[:1] in ([], [cvt.__version__])
    assert len(set(releases)) == len(releases)


def test_the_citation_agrees_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())

    assert citation["title"].startswith(f"{PACKAGE['name']},")
    assert citation["license"] == PACKAGE["license"]
    assert citation.get("version", cvt.__version__) == cvt.__version__


def test_each_tool_for_developing_is_pinned():
    pins = {re.sub(r"[-_.]+", "-", name).lower() for name in
            re.findall(r"^([\w.-]+)==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)}

    assert len(pins) == len((ROOT / "constraints.txt").read_text().splitlines())
    extras = PACKAGE["optional-dependencies"]
    ours, *needs = extras["dev"]
    for extra in re.fullmatch(r"cvt-torch\[(.+)\]", ours)[1].split(","):
        needs += extras[extra]
    for need in needs:
        assert re.match(r"[\w.-]+", need)[0].replace("_", "-").lower() in pins


# The files


FORCED = {"pyproject.toml", ".gitignore"}  # in every sdist of hatchling's, but not in its list
ODD = (".venv/lib/a.py", "runs/demo/best.safetensors", "dist/old.whl", "docs/_build/index.html",
       "docs/ablations/digits/runs/a.json", ".mypy_cache/a.json", ".pytest_cache/a",
       ".ruff_cache/a", ".hypothesis/a", ".import_linter_cache/a", "data/a.png", ".env", "key",
       "notes.md", "scratch/a.py", "src/cvt/__pycache__/a.pyc", "src/cvt_torch.egg-info/PKG-INFO",
       "tests/__pycache__/a.pyc", "ablations/a.json", "explained/a.png")


def test_odd_files_of_a_working_directory_stay_out(tmp_path):
    for name in ("pyproject.toml", ".gitignore", "README.md", "LICENSE", "src/cvt/__init__.py",
                 "src/cvt/py.typed", "docs/index.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ODD:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    assert listed(SdistBuilder, tmp_path) == {
        "README.md", "LICENSE", "src/cvt/__init__.py", "src/cvt/py.typed", "docs/index.md"}
    assert listed(WheelBuilder, tmp_path) == {"cvt/__init__.py", "cvt/py.typed"}


def test_the_sdist_has_the_whole_repository():
    assert tracked() - listed(SdistBuilder, ROOT) == FORCED


def test_the_wheel_has_the_package_and_its_data():
    names = listed(WheelBuilder, ROOT)

    assert set(contents.NEEDED) <= names
    assert {name for name in names if not name.startswith("cvt/")} == set()
    assert sum((ROOT / "src" / name).stat().st_size for name in names) < contents.MOST


@pytest.fixture
def built(tmp_path, monkeypatch):
    """built(sdist, wheel): a folder with two archives of empty files."""
    monkeypatch.setattr(contents, "tracked", lambda: {"README.md", "src/cvt/__init__.py"})
    (tmp_path / "empty").touch()

    def make(sdist, wheel):
        with tarfile.open(tmp_path / "cvt_torch-1.tar.gz", "w:gz") as file:
            for name in sdist:
                file.add(tmp_path / "empty", f"cvt_torch-1/{name}")
        with zipfile.ZipFile(tmp_path / "cvt_torch-1-py3-none-any.whl", "w") as file:
            for name in wheel:
                file.writestr(name, "")
        return str(tmp_path)

    return make


SDIST = ("PKG-INFO", "README.md", "src/cvt/__init__.py")
WHEEL = ("cvt/__init__.py", "cvt_torch-1.dist-info/METADATA", *contents.NEEDED)


def test_what_was_built_is_compared_with_version_control(built, capsys):
    assert contents.main(built(SDIST, WHEEL)) == 0
    assert contents.main(built((*SDIST, "runs/a"), WHEEL)) == 1
    assert "cvt_torch-1.tar.gz: odd, for it is not under version control: runs/a\n" in (
        capsys.readouterr().out)
    assert contents.main(built(SDIST, (*WHEEL[:-1], "tests/a.py"))) == 1
    out = capsys.readouterr().out
    assert "whl: odd, for it is not under version control: tests/a.py\n" in out
    assert f"whl: missing: {contents.NEEDED[-1]}\n" in out


def test_a_wheel_too_large_is_reported(built, monkeypatch, capsys):
    monkeypatch.setattr(contents, "MOST", 100)

    assert contents.main(built(SDIST, WHEEL)) == 1
    assert "bytes; at most 100\n" in capsys.readouterr().out


def test_a_wheel_that_does_not_install_fails_loudly(tmp_path):
    """With a false Python, which makes no environment."""
    (tmp_path / "a.whl").touch()

    done = subprocess.run([ROOT / "release/smoke.sh", tmp_path / "a.whl"], capture_output=True,
                          text=True, check=False, env={"PATH": "/usr/bin:/bin", "PYTHON": "false",
                                                       "TMPDIR": str(tmp_path)})

    assert done.returncode == 1
    assert "FAILED: the wheel does not work" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.whl"]


# Advisories


def answer(*vulns):
    package = {"name": "torch", "version": "2.15.0", "vulns": list(vulns)}
    return [sys.executable, "-c", f"print({json.dumps({'dependencies': [package]})!r})"]


def fails(line):
    return [sys.executable, "-c", f"import sys; sys.exit({line!r})"]


def test_an_advisory_fails_the_check_and_is_named(capsys):
    vuln = {"id": "PYSEC-2026-1", "fix_versions": ["2.15.1"], "aliases": []}

    assert advisories.audit(answer(vuln)) == 1
    assert "torch 2.15.0: PYSEC-2026-1, mended in 2.15.1\n" in capsys.readouterr().out
    assert advisories.audit(answer()) == 0
    assert capsys.readouterr().out == "pip-audit: nothing known against 1 packages\n"


@pytest.mark.parametrize("line", [
    "Traceback (most recent call last):\nrequests.exceptions.ConnectionError: Max retries exceeded",
    "Traceback (most recent call last):\npip_audit._service.interface.ServiceError",
    "ERROR:pip_audit._cli:Could not connect to OSV's vulnerability feed"])
def test_advisories_out_of_reach_are_reported_in_a_line_and_pass(line, capsys):
    assert advisories.audit(fails(line)) == 0
    assert capsys.readouterr().out == (
        "pip-audit: not audited, for the advisories cannot be reached\n")


def test_a_slow_service_is_not_waited_for(capsys):
    assert advisories.audit([sys.executable, "-c", "import time; time.sleep(60)"], 0.2) == 0
    assert capsys.readouterr().out == (
        "pip-audit: not audited, for the advisories took more than 0.2 s\n")


def test_an_error_of_the_audit_itself_fails(capsys):
    assert advisories.audit(fails("pip-audit: error: unrecognized arguments: --old")) == 1
    assert "unrecognized arguments" in capsys.readouterr().err


def test_an_advisory_is_passed_over_only_with_a_reason():
    assert advisories.ignored("# why\n\nPYSEC-1  only on Windows\n") == ["PYSEC-1"]
    with pytest.raises(ValueError, match="no reason for PYSEC-2"):
        advisories.ignored("PYSEC-2\n")
    advisories.ignored((ROOT / "release/advisories.txt").read_text())


@pytest.mark.slow
def test_pip_audit_takes_the_options_and_reads_the_pins():
    dry = [*advisories.COMMAND, "--ignore-vuln", "PYSEC-1", "--dry-run"]
    done = subprocess.run(dry, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"would have audited {len(pins)} packages" in done.stderr


# Workflows


def steps(workflow):
    for name, job in yaml.safe_load(workflow.read_text())["jobs"].items():
        for step in job["steps"]:
            yield name, step


def test_each_workflow_calls_targets_that_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    called = {target for workflow in WORKFLOWS for _, step in steps(workflow)
              for target in re.findall(r"\bmake ([\w-]+)", step.get("run", ""))}

    assert called == {"check", "docs", "dist", "test"}
    assert called <= targets


def test_workflows_may_do_no_more_than_they_must():
    for workflow in WORKFLOWS:
        content = yaml.safe_load(workflow.read_text())
        assert content["permissions"] == {"contents": "read"}
        writing = {name: job["permissions"] for name, job in content["jobs"].items()
                   if "permissions" in job}
        assert writing == ({"publish": {"id-token": "write"}} if workflow.stem == "release" else {})
    # What gets the token runs nothing of what was built.
    release, = (workflow for workflow in WORKFLOWS if workflow.stem == "release")
    assert not [step for name, step in steps(release) if name == "publish" and "run" in step]


def test_the_tests_run_on_each_python_that_is_promised():
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())[
        "jobs"]["test"]["strategy"]["matrix"]["python"]
    promised = [line.split(" :: ")[-1] for line in PACKAGE["classifiers"]
                if re.search(r":: 3\.\d+$", line)]

    assert matrix == promised
    assert PACKAGE["requires-python"] == f">={matrix[0]}"


def test_dependabot_watches_pins_and_actions():
    content = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())

    assert content["version"] == 2
    assert [entry["package-ecosystem"] for entry in content["updates"]] == ["pip", "github-actions"]
