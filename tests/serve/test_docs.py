"""docs/serving.md and deploy/ match the server."""

import re
import shlex
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from cvt.cli import main
from cvt.serve.config import ServeConfig
from cvt.serve.errors import ERROR_CODES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/serving.md").read_text()


def lines(kind):
    for block in re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL):
        yield from block.splitlines()


@pytest.mark.parametrize("line", [line for line in lines("sh") if line.startswith("cvt ")])
def test_its_commands_can_be_called(line, capsys):
    arguments = shlex.split(line, comments=True)[1:]
    assert main([*arguments, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["port"] == 8000


def test_its_requests_succeed(client, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("shirt.png", "dress.png")):
        Path(name).write_bytes(image(i))
    own = f"localhost:{client.port}"
    commands = [line for line in lines("sh") if line.startswith("curl ")]
    assert len(commands) == 4
    for line in commands:
        done = subprocess.run(shlex.split(line.replace("localhost:8000", own)),
                              capture_output=True, check=True)
        assert done.stdout.startswith(b'{"')
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code.replace("localhost:8000", own), {})


def test_it_lists_every_limit_and_every_code():
    documented = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", PAGE, re.MULTILINE))
    assert documented == {code: str(status) for code, (status, _) in ERROR_CODES.items()}
    for code, (status, meaning) in ERROR_CODES.items():
        assert f"| `{code}` | {status} | {meaning} |" in PAGE
    options = set(re.findall(r"--(\w+)", PAGE))
    assert {f.name for f in fields(ServeConfig)} - {"port"} <= options


def test_the_container_has_the_packages_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    known = {*project["dependencies"], *extras["serve"], *extras["openvino"]}
    needed = [line for line in (ROOT / "deploy/runtime.txt").read_text().splitlines()
              if not line.startswith("#")]
    assert needed == sorted(needed)
    assert [line for line in needed if line not in known] == []


def test_the_probes_use_paths_of_the_server(client):
    deployment, service = yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text())
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        assert client.get(container[probe]["httpGet"]["path"]).status_code == 200
    main_options = ["serve", *container["args"], "--print_config"]
    assert main(main_options) == 0
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
