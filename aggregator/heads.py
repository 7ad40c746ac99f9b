"""Cells of this program in the heads, decoded."""

from typing import TypeVar

import msgspec

from aggregator.errors import CorruptStateError

S = TypeVar("S")


def decode_head(key: str, value: bytes, kind: type[S]) -> S:
    """Decode a cell this program wrote; raise CorruptStateError when it is not of its form any more."""
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptStateError(f"head {key}: {error}") from error
