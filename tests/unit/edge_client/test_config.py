"""The configuration file: what is accepted, and what is said about mistakes."""

import msgspec
import pytest

from edge_client.config import ConfigError, load
from edge_client.wire.messages import DataSchema

GOOD = """
[device]
id = "pi-1"
state_dir = "state"
[broker]
host = "broker.local"
[data.gestures]
path = "gestures.npz"
shape = [6, 128]
classes = 5
axes = ["channel", "time"]
"""


@pytest.fixture
def write(tmp_path):
    """Write a configuration and return its path."""

    def put(text):
        path = tmp_path / "device.toml"
        path.write_text(text)
        return path

    return put


def test_good_file_is_loaded_with_paths_relative_to_it(write, tmp_path):
    """A minimal file loads, defaults are filled in, and relative paths start at the file's folder."""
    config = load(write(GOOD))

    assert config.state_dir == tmp_path / "state"
    assert config.data["gestures"].path == str(tmp_path / "gestures.npz")
    assert config.data["gestures"].schema.shape == (6, 128)
    assert (config.broker.port, config.device.cohort, config.trainer.nice) == (1883, "all", 10)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("host =", "hots =", "unknown key broker.hots; did you mean broker.host?"),
        ("classes =", "clases =", "unknown key data.gestures.clases; did you mean data.gestures.classes?"),
        ("[broker]", "[brokr]", "unknown key brokr; did you mean broker?"),
        ('id = "pi-1"', "id = 1", "device.id: expected `str`, got `int`"),
        ('host = "broker.local"', "", "broker: object missing required field `host`"),
        ('id = "pi-1"', 'id = "Pi 1"', "device.id 'Pi 1' is not valid"),
        ("classes = 5", "classes = 1", "data.gestures.classes: 1 is not between 2 and 65535"),
        ("classes = 5", "labels = 0", "data.gestures.labels: 0 is not between 1 and 65535"),
        ("classes = 5", "values = []", "data.gestures.values: [] has no values"),
        ("classes = 5", "values = [3, 0]", "data.gestures.values: [3, 0] has no values"),
        (
            "classes = 5",
            "classes = 5\nlabels = 5",
            "data.gestures: classes and labels are given; samples have at most",
        ),
        ("[6, 128]", "[6, 0]", "data.gestures.shape"),
        ('["channel", "time"]', '["time"]', "data.gestures.axes: 1 names for 2 axes"),
        ("[device]", "[device", "not valid TOML"),
        ("[data.gestures]", '[data]\ngestures = "x"\n[x]', "unknown key x"),
    ],
)
def test_mistake_is_named_with_its_key_and_file(write, old, new, said):
    """A mistake is answered with the file, the key, and the nearest known key when it is a typo."""
    path = write(GOOD.replace(old, new))

    with pytest.raises(ConfigError) as caught:
        load(path)

    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "schema"),
    [
        ("classes = 5", DataSchema((6, 128), 5)),
        ("labels = 5", DataSchema((6, 128), 5, target="labels")),
        ("values = [1]", DataSchema((6, 128), target="values", target_shape=(1,))),
        ("", DataSchema((6, 128), target="none")),
    ],
)
def test_a_data_set_says_what_its_samples_are_labelled_with(write, line, schema):
    """One of classes, labels and values, or nothing for samples alone."""
    declared = load(write(GOOD.replace("classes = 5", line))).data["gestures"].schema

    assert declared == msgspec.structs.replace(schema, axes=("channel", "time"))


def test_password_that_others_can_read_is_refused(write, tmp_path):
    """A password file is read only when nobody else can read it."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    secret.chmod(0o644)
    config = load(write(GOOD.replace("[broker]", '[broker]\npassword_file = "secret"')))

    with pytest.raises(ConfigError, match="chmod 600"):
        config.password()

    secret.chmod(0o600)
    assert config.password() == "hunter2"
