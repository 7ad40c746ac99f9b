"""Numbers that the environment sets for a run of the tests, such as `make chaos CHAOS_SEED=7`."""

import os

import pytest


def number(name, default, kind=int):
    """The variable of this name; raise UsageError, which ends pytest with the text, when it is none above 0."""
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if value <= 0:
        raise pytest.UsageError(f"{name} is {text!r}; give a number above 0, as {name}=7, or leave it out")
    return value
