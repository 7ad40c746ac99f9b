"""Decodes the updates that many devices sent at the same moment together."""

import asyncio
from collections.abc import Sequence

import structlog

from edge_client.wire import together
from edge_client.wire.together import Decoded

log = structlog.get_logger()

Model = tuple[tuple[int, ...], int]  # sizes of the tensors, and how many of them are statistics


def attempt(frames: Sequence[bytes], sizes: Sequence[int], statistics: int) -> Sequence[Decoded | None]:
    """Each frame's update or error; None for all when decoding them together meets a bug: each is then decoded alone.

    Only the frame that uncovers it is to suffer, not those that happened to come beside it.
    """
    try:
        return together.decode(frames, sizes, statistics)
    except Exception:  # whatever it is, whose frame it was shows when each is decoded alone
        log.exception("not_decoded_together", frames=len(frames))
        return [None] * len(frames)


class Decoding:
    """Collects what is asked for in one turn of the event loop, and decodes it in the next."""

    def __init__(self) -> None:
        self._waiting: dict[Model, list[tuple[bytes, asyncio.Future[Decoded | None]]]] = {}

    async def decode(self, frame: bytes, sizes: tuple[int, ...], statistics: int) -> Decoded | None:
        """The update in a frame, or what `sparse.decode` would raise; None when that remains to be seen."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._decode)
        future: asyncio.Future[Decoded | None] = loop.create_future()
        self._waiting.setdefault((sizes, statistics), []).append((frame, future))
        return await future

    def _decode(self) -> None:
        asked, self._waiting = self._waiting, {}
        for (sizes, statistics), group in asked.items():
            decoded = attempt([frame for frame, _ in group], sizes, statistics)
            for (_, future), update in zip(group, decoded, strict=True):
                if not future.done():  # whoever waited may have been cancelled
                    future.set_result(update)
