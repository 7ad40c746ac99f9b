"""Decodes the updates that many devices sent at the same moment together."""

import asyncio

from edge_client.wire import together
from edge_client.wire.together import Decoded

Model = tuple[tuple[int, ...], int]  # sizes of the tensors, and how many of them are statistics


class Decoding:
    """Collects what is asked for in one turn of the event loop, and decodes it in the next."""

    def __init__(self) -> None:
        self._waiting: dict[Model, list[tuple[bytes, asyncio.Future[Decoded]]]] = {}

    async def decode(self, frame: bytes, sizes: tuple[int, ...], statistics: int) -> Decoded:
        """The update in a frame, or what `sparse.decode` would raise."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._decode)
        future: asyncio.Future[Decoded] = loop.create_future()
        self._waiting.setdefault((sizes, statistics), []).append((frame, future))
        return await future

    def _decode(self) -> None:
        asked, self._waiting = self._waiting, {}
        for (sizes, statistics), group in asked.items():
            decoded = together.decode([frame for frame, _ in group], sizes, statistics)
            for (_, future), update in zip(group, decoded, strict=True):
                if not future.done():  # whoever waited may have been cancelled
                    future.set_result(update)
