"""What can be said to fedfleet is written down: each command, option, route, topic, message, code and key."""

import re
import typing
from importlib.metadata import entry_points
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from aggregator.api.app import create_app
from aggregator.engine import Engine
from aggregator.simulate.config import Config
from aggregator.spec import PARTS, JobSpec
from broker_bridge.ports import open_ports
from edge_client.cli import GROUP, main
from edge_client.config import DeviceConfig
from edge_client.wire import messages, topics

ROOT = Path(__file__).parent.parent
TEXT = "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
CODES_IN = ("edge_client/wire", "broker_bridge")
_WORD = r"(?<![\w-]){}(?![\w-])"


def documented(word):
    """Whether the documents have this word, as a whole."""
    return re.search(_WORD.format(re.escape(word)), TEXT) is not None


def commands():
    """(words, command) of `fedfleet` and all below it."""
    found = [((), main)]
    for entry in entry_points(group=GROUP):
        command = entry.load()
        found.append(((entry.name,), command))
        if isinstance(command, click.Group):
            with click.Context(command) as ctx:
                names = command.list_commands(ctx)
                found += [((entry.name, name), command.get_command(ctx, name)) for name in names]
    return found


def structs(root):
    """A struct type and all it holds."""
    found, todo = [], [root]
    while todo:
        kind = todo.pop()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            if kind not in found:
                found.append(kind)
                todo += [field.type for field in msgspec.structs.fields(kind)]
        else:
            todo += typing.get_args(kind)
    return found


@pytest.mark.parametrize(
    ("words", "command"), commands(), ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_and_option_is_documented(words, command):
    """A command or an option that is added without its line in the documents fails here."""
    assert documented(" ".join(("fedfleet", *words)))
    options = [name for p in command.params for name in p.opts if name.startswith("--")]
    assert [name for name in options if not documented(name)] == []


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids="-".join)
def test_every_help_has_an_example_and_exit_codes(words):
    """Whoever asks a command for help gets something to copy and what its exit codes mean."""
    result = CliRunner().invoke(main, [*words, "--help"])
    text = " ".join(result.output.split())

    assert result.exit_code == 0
    assert "Example" in text
    assert "Exit codes" in text


def test_every_route_is_documented(tmp_path):
    """Each method and path of the OpenAPI document has its line."""
    document = create_app(Engine(open_ports("memory:"), tmp_path)).openapi()
    routes = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    assert len(routes) >= 12
    assert [route for route in routes if not documented(route)] == []


@pytest.mark.parametrize("kind", [JobSpec, *PARTS.values()])
def test_every_field_of_a_job_is_documented(kind):
    """A field of the job spec without its line fails here."""
    assert [name for name in kind.__struct_fields__ if not documented(name)] == []


def test_every_topic_is_documented():
    """Each function of wire/topics.py that makes a topic has that topic in the documents."""
    uid = topics.Uid("<dev>", "<job>", "<epoch>", "<seq>")
    made = [
        *(make("<dev>") for make in (topics.state, topics.info, topics.ask, topics.get, topics.receipt)),
        *(make("<dev>", "<job>") for make in (topics.task, topics.assign, topics.end)),
        *(make("<cohort>", "<job>") for make in (topics.offer, topics.version)),
        topics.evaluation(uid),
        topics.update(uid, "<n>"),
        topics.blob("<dev>", "<digest>", "<n>"),
        topics.delta("<cohort>", "<job>", "<version>", "<n>"),
        topics.service_state("<service>"),
        topics.fleet_state(),
        topics.job_state("<job>"),
    ]
    makers = [
        name
        for name, value in vars(topics).items()
        if callable(value) and getattr(value, "__annotations__", {}).get("return") is str
    ]
    assert len(made) == len(
        set(makers) - {"check_id", "_name", "_epoch"} - {m for m in makers if "filter" in m}
    )
    assert [t for t in made if t.removeprefix(f"{topics.ROOT}/") not in TEXT] == []


def test_every_message_and_field_is_documented():
    """Each message of wire/messages.py and each of its fields is in the documents."""
    kinds = [
        kind
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, messages.Message) and kind is not messages.Message
    ]
    assert len(kinds) > 15
    missing = [kind.__name__ for kind in kinds if not documented(kind.__name__)]
    missing += [f"{k.__name__}.{f}" for k in kinds for f in k.__struct_fields__ if not documented(f)]
    assert missing == []


def test_every_rejection_code_is_documented():
    """I11: each code a peer can be answered with is in the documents."""
    sources = [path.read_text() for folder in CODES_IN for path in (ROOT / folder).rglob("*.py")]
    raised = r"(?:RemoteWireError|Reject)\(\s*\"([a-z_]+)\""
    codes = {code for source in sources for code in re.findall(raised, source)}

    assert {"norm", "stale", "resync", "conflict", "too_large"} <= codes
    assert sorted(code for code in codes if not documented(f"`{code}`") and f"`{code}`" not in TEXT) == []


def test_every_refusal_of_the_api_is_documented():
    """Each code of a problem document is in the documents."""
    sources = [path.read_text() for path in (ROOT / "aggregator").rglob("*.py")]
    raised = r"(?:RefusedError\(\s*|problem\(\d+, )\"([a-z_]+)\""
    codes = {code for source in sources for code in re.findall(raised, source)}

    assert {"bad_spec", "unsupported", "exists", "internal"} <= codes
    assert sorted(code for code in codes if f"`{code}`" not in TEXT) == []


def test_every_configuration_key_is_documented():
    """Each key of a device's TOML file is in the documents."""
    keys = {field for kind in structs(DeviceConfig) for field in kind.__struct_fields__}

    assert "memory_max_mb" in keys
    assert sorted(key for key in keys if not re.search(rf"[.`\[]{key}[`\].]", TEXT)) == []


def test_every_key_of_a_simulation_is_documented():
    """Each key of the simulator's TOML file is in its document."""
    text = (ROOT / "docs/simulate.md").read_text()
    keys = {field for kind in structs(Config) for field in kind.__struct_fields__}
    kinds = {kind.__struct_config__.tag for kind in structs(Config) if kind.__struct_config__.tag}

    assert len(keys) > 50
    assert sorted(key for key in keys | kinds if not re.search(_WORD.format(re.escape(key)), text)) == []


def test_every_test_that_a_promise_names_exists():
    """A promise whose test was renamed or removed fails here."""
    promises = "".join((ROOT / name).read_text() for name in ("README.md", "docs/reliability.md"))
    named = set(re.findall(r"`(test_\w+)`", promises))
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) >= 30
    assert [name for name in sorted(named) if f"def {name}(" not in sources] == []
