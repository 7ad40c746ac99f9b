"""The command line: what it finds, what it imports, what it says and returns."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edge_client import cli
from edge_client.store import open_store

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """Entry points as pyproject.toml declares them, whether this tree is installed or not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = tmp_path / "site" / "fedfleet-0.dist-info"
    folder.mkdir(parents=True)
    lines = []
    for group in (cli.GROUP, f"{cli.GROUP}.device"):
        lines += [f"[{group}]", *(f"{k} = {v}" for k, v in project["entry-points"][group].items())]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: fedfleet\nVersion: {project['version']}\n"
    )
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv("PYTHONPATH", f"{folder.parent}{os.pathsep}{ROOT}")


@pytest.fixture
def config(tmp_path):
    """A configuration without data sets."""
    path = tmp_path / "device.toml"
    path.write_text('[device]\nid = "d"\nstate_dir = "state"\n[broker]\nhost = "127.0.0.1"\nport = 9\n')
    return path


@pytest.mark.parametrize("command", ["--help", "--version", "device --help", "device status --help"])
def test_help_loads_neither_numpy_nor_mqtt(command):
    """The command starts light: asking for help imports no numpy, MQTT or server module."""
    code = (
        "import sys; from edge_client.cli import main\n"
        f"try: main({command.split()!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'numpy', 'onnxruntime', 'paho', 'fastapi', 'aggregator', 'broker_bridge'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert out.endswith("loaded: []\n")


@pytest.mark.parametrize("command", [[], ["device"]])
def test_every_command_is_described_in_one_whole_line(command):
    """Help has a description of each command that fits its line and is not cut."""
    text = CliRunner().invoke(cli.main, [*command, "--help"], terminal_width=80).output
    rows = text.partition("Commands:\n")[2].splitlines()
    assert len(rows) >= 8
    assert [row for row in rows if not re.fullmatch(r"  [a-z]+ +[A-Z].*[^.]\.", row)] == []


def test_missing_extra_is_named(monkeypatch):
    """A command whose dependencies are not installed says which extra brings them."""
    entry = EntryPoint("up", "aggregator.commands.up:up", cli.GROUP)

    def load(_self):
        raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")

    monkeypatch.setattr(EntryPoint, "load", load)
    with pytest.raises(click.ClickException, match=r"pip install 'fedfleet\[server\]' \(fastapi"):
        cli._load(entry)


def test_own_broken_module_is_not_taken_for_a_missing_extra():
    """A missing module of our own is a broken installation and is raised as it is."""
    with pytest.raises(ModuleNotFoundError):
        cli._load(EntryPoint("x", "aggregator.no_such_module:x", cli.GROUP))


def test_unknown_key_exits_2_naming_it(config):
    """Exit code 2 and the nearest key answer a typo in the configuration."""
    config.write_text(config.read_text().replace("host", "hots"))
    result = CliRunner().invoke(cli.main, ["device", "status", "--config", str(config)])

    assert result.exit_code == 2
    assert "did you mean broker.host?" in result.output


def test_status_shows_the_state_in_both_forms(config, tmp_path):
    """`device status` prints a readable table, and the same as JSON."""
    open_store(tmp_path / "state").close()
    runner = CliRunner()
    plain = runner.invoke(cli.main, ["device", "status", "--config", str(config)])
    parsed = runner.invoke(cli.main, ["device", "status", "--config", str(config), "--json"])

    assert (plain.exit_code, parsed.exit_code) == (0, 0)
    assert "waiting for a receipt: 0" in plain.output
    assert json.loads(parsed.output)["outbox"] == []
