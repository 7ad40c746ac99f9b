"""Makes the hand-built models importable under pytest's importlib mode."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models():
    """The module `models.py` beside this file."""
    path = Path(__file__).with_name("models.py")
    spec = importlib.util.spec_from_file_location("firmware_test_models", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
