"""A tiny fleet: three classes of four values, which an MLP of 67 parameters tells apart."""

import numpy as np
import pytest

from aggregator.simulate import config

SAMPLES = 240


@pytest.fixture(scope="session")
def data_file(tmp_path_factory):
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=SAMPLES).astype(np.int64)
    centres = np.array([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]], dtype=np.float32)
    x = centres[y] + rng.normal(0, 0.5, (SAMPLES, 4)).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, x=x, y=y, owner=np.arange(SAMPLES) % 6)
    return path


@pytest.fixture
def table(data_file):
    """A configuration as TOML gives it; tests change it."""
    return {
        "data": {"source": str(data_file), "partition": {"kind": "dirichlet", "alpha": 1.0}},
        "model": {"builtin": "mlp", "hidden": [8], "optimizer": "sgd", "quantize": "none"},
        "fleet": {"devices": 8, "jitter": 0.3},
        "job": {
            "concurrency": 4,
            "buffer_size": 2,
            "training": {"steps": 4, "batch_size": 8, "learning_rate": 0.3, "density": 0.3},
        },
        "stop": {"uploads": 24},
        "evaluate": {"every": 6},
    }


@pytest.fixture
def parsed(tmp_path):
    """Check a table."""
    return lambda table: config.parse(table, tmp_path)
