"""Kills the process it is loaded in, once, at a named point: Python imports this by itself when it is on the path.

The product knows nothing of it. CHAOS_POINTS is a JSON list of `process` (a word of the command line), `target`
(module:attribute), `when` (before or after a call), `nth`, `only` (position and text of an argument) and `marker`,
a file that is made first, so that a process that comes back lives. CHAOS_SET is a JSON object of module:constant to
value, for waits that a test shortens.
"""

import functools
import importlib
import inspect
import json
import os
import signal
import sys
from pathlib import Path

POINTS = json.loads(os.environ.get("CHAOS_POINTS", "[]"))
CONSTANTS = json.loads(os.environ.get("CHAOS_SET", "{}"))


class Point:
    """Counts the calls of a function, and strikes."""

    def __init__(self, facts):
        self.when, self.left, self.marker = facts["when"], facts["nth"], facts["marker"]
        self.position, self.text = facts.get("only") or (0, None)

    def pass_by(self, when, arguments):
        """Strike when this is the point."""
        if when != self.when or (self.text is not None and not self._meant(arguments)):
            return
        self.left -= 1
        if self.left == 0:
            try:
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return  # another process was first
            os.kill(os.getpid(), signal.SIGKILL)

    def _meant(self, arguments):
        return str(getattr(arguments[self.position], "value", arguments[self.position])) == self.text

    def wrapped(self, function):
        """The function with the point around it."""

        @functools.wraps(function)
        async def later(*arguments, **named):
            self.pass_by("before", arguments)
            result = await function(*arguments, **named)
            self.pass_by("after", arguments)
            return result

        @functools.wraps(function)
        def now(*arguments, **named):
            self.pass_by("before", arguments)
            result = function(*arguments, **named)
            self.pass_by("after", arguments)
            return result

        return later if inspect.iscoroutinefunction(function) else now


def arm(facts):
    """Put the point around its target."""
    module, _, path = facts["target"].partition(":")
    holder = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        holder = getattr(holder, parent)
    setattr(holder, name, Point(facts).wrapped(getattr(holder, name)))


def shorten(name, value):
    """Give a module's constant another value."""
    module, _, constant = name.partition(":")
    loaded = importlib.import_module(module)
    assert hasattr(loaded, constant), name
    setattr(loaded, constant, value)


for each in POINTS:
    if each["process"] in sys.orig_argv and not Path(each["marker"]).exists():
        arm(each)
for name, value in CONSTANTS.items():
    if name.partition(".")[0] in sys.orig_argv:
        shorten(name, value)
