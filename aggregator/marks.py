"""What operators put on devices, in the heads `device/<device>`: tags, and that one is paused."""

import msgspec

from aggregator.errors import RefusedError
from aggregator.heads import decode_head
from broker_bridge.ports import Conflict, Heads

MARKS_PREFIX = "device/"
TAGS_MAX = 16  # of one device
TAG_LENGTH_MAX = 64  # characters of one tag


class Pause(msgspec.Struct, frozen=True):
    """Who paused a device, and when (Unix seconds)."""

    by: str
    at: float


class Mark(msgspec.Struct, frozen=True):
    """All that operators put on one device; `tags` are sorted."""

    tags: list[str] = []
    paused: Pause | None = None


NONE = Mark()


class Marks:
    """The marks of all devices, with the revision of each device's."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._marks: dict[str, tuple[int, Mark]] = {}

    async def load(self) -> None:
        """Take up what is stored."""
        changes = [c for c in await self._heads.list(MARKS_PREFIX) if c.value is not None]
        self._marks = {
            c.key.removeprefix(MARKS_PREFIX): (c.revision, decode_head(c.key, c.value, Mark))
            for c in changes
            if c.value is not None
        }

    def of(self, device: str) -> Mark:
        """A device's marks."""
        return self._marks.get(device, (0, NONE))[1]

    def all_paused(self) -> list[str]:
        """The devices that are to get no work."""
        return [device for device, (_, mark) in self._marks.items() if mark.paused is not None]

    def paused(self, device: str) -> bool:
        """Whether a device is to get no work."""
        return self.of(device).paused is not None

    def revision(self, device: str) -> int:
        """Of a device's marks: grows with each change, 0 before the first."""
        return self._marks.get(device, (0, NONE))[0]

    async def tag(self, device: str, tags: list[str]) -> None:
        """Replace a device's tags; raise RefusedError (`bad_tags`, `stale_etag`)."""
        await self._put(device, msgspec.structs.replace(self.of(device), tags=check(tags)))

    async def pause(self, device: str, pause: Pause | None) -> None:
        """Mark a device as paused, or, with None, as not paused; raise RefusedError (`stale_etag`)."""
        await self._put(device, msgspec.structs.replace(self.of(device), paused=pause))

    async def drop(self, device: str) -> None:
        """Forget a device's marks."""
        key = f"{MARKS_PREFIX}{device}"
        self._marks.pop(device, None)
        revision, _ = await self._heads.load(key)
        if revision:
            await self._heads.drop(key, revision)

    async def _put(self, device: str, mark: Mark) -> None:
        key, revision = f"{MARKS_PREFIX}{device}", self.revision(device)
        try:
            self._marks[device] = (await self._heads.swing(key, revision, msgspec.json.encode(mark)), mark)
        except Conflict as error:
            current, value = await self._heads.load(key)
            self._marks[device] = (current, decode_head(key, value, Mark) if value else NONE)
            raise RefusedError(
                "stale_etag", f"what is set on {device} was changed by somebody else; read it again"
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
