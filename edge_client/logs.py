"""How the device logs: one line an event on stderr; and a stream that no full disk breaks."""

import contextlib
import io
import logging
import sys
from typing import TextIO, cast

import structlog


class _Unfailing(io.TextIOBase):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def unfailing(stream: TextIO) -> TextIO:
    """A stream that may be a file on a full disk: a line that cannot be written is no reason to end."""
    return cast("TextIO", _Unfailing(stream))


def configure_logging(*, json: bool) -> None:
    """Log to stderr, one line an event: key=value, or JSON."""
    renderer = structlog.processors.JSONRenderer() if json else structlog.processors.LogfmtRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(unfailing(sys.stderr)),
    )
