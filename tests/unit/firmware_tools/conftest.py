"""Makes the modules beside the tests importable under pytest's importlib mode."""

import importlib.util
import sys
from pathlib import Path

import pytest


def _beside(name):
    spec = importlib.util.spec_from_file_location(
        f"firmware_test_{name}", Path(__file__).with_name(f"{name}.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


for _name in ("derivatives", "cases", "random_cases", "recurrences"):
    _beside(_name)


@pytest.fixture(scope="session")
def models():
    """The module `models.py` beside this file."""
    return _beside("models")
