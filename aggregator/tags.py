"""Words that operators put on devices, in the heads `tags/<device>`."""

import msgspec

from aggregator.errors import RefusedError
from aggregator.heads import decode_head
from broker_bridge.ports import Conflict, Heads

TAGS_PREFIX = "tags/"
TAGS_MAX = 16  # of one device
TAG_LENGTH_MAX = 64  # characters of one tag


class Tags:
    """The tags of all devices, with the revision of each device's."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._tags: dict[str, tuple[int, list[str]]] = {}

    async def load(self) -> None:
        """Take up what is stored."""
        changes = [c for c in await self._heads.list(TAGS_PREFIX) if c.value is not None]
        self._tags = {
            c.key.removeprefix(TAGS_PREFIX): (c.revision, decode_head(c.key, c.value, list[str]))
            for c in changes
            if c.value is not None
        }

    def of(self, device: str) -> list[str]:
        """A device's tags, sorted."""
        return self._tags.get(device, (0, []))[1]

    def revision(self, device: str) -> int:
        """Of a device's tags: grows with each change, 0 before the first."""
        return self._tags.get(device, (0, []))[0]

    async def put(self, device: str, tags: list[str]) -> None:
        """Replace a device's tags; raise RefusedError (`bad_tags`, `stale_etag`)."""
        kept = check(tags)
        key, revision = f"{TAGS_PREFIX}{device}", self.revision(device)
        try:
            self._tags[device] = (
                await self._heads.swing(key, revision, msgspec.json.encode(kept)),
                kept,
            )
        except Conflict as error:
            current, value = await self._heads.load(key)
            self._tags[device] = (current, decode_head(key, value, list[str]) if value else [])
            raise RefusedError(
                "stale_etag", f"the tags of {device} were changed by another server; read them again"
            ) from error


def check(tags: list[str]) -> list[str]:
    """Tags sorted and once each; raise RefusedError (`bad_tags`)."""
    for tag in tags:
        if not 1 <= len(tag) <= TAG_LENGTH_MAX or not tag.isprintable() or tag != tag.strip():
            raise RefusedError(
                "bad_tags",
                f"the tag {tag[:80]!r} is not 1 to {TAG_LENGTH_MAX} printable characters without blanks around them",
            )
    kept = sorted(set(tags))
    if len(kept) > TAGS_MAX:
        raise RefusedError("bad_tags", f"a device has at most {TAGS_MAX} tags, not {len(kept)}")
    return kept
