"""Who changed what through the API: the newest AUDIT_KEPT changes, in a ring of heads `audit/<slot>`."""

import msgspec

from aggregator.heads import decode_head
from broker_bridge.ports import Conflict, Heads

AUDIT_PREFIX = "audit/"
AUDIT_KEPT = 1000  # changes by people: weeks of a busy fleet


class AuditEntry(msgspec.Struct, frozen=True):
    """One change through the API; `actor` is a token's name, or "local" where none is needed.

    Of `fedfleet token` the actor is the user of the machine, `method` "command", `path` the token's name.
    """

    number: int
    at: float
    actor: str
    role: str
    action: str
    method: str
    path: str
    status: int


class AuditLog:
    """Written before the change is answered, so that nobody is told of one that was not noted."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._revisions: dict[str, int] = {}
        self.entries: list[AuditEntry] = []  # oldest first

    async def load(self) -> None:
        """Take up what is stored."""
        changes = [c for c in await self._heads.list(AUDIT_PREFIX) if c.value is not None]
        self._revisions = {c.key: c.revision for c in changes}
        entries = [decode_head(c.key, c.value, AuditEntry) for c in changes if c.value is not None]
        self.entries = sorted(entries, key=lambda entry: entry.number)

    async def add(self, entry: AuditEntry) -> AuditEntry:
        """Store a change under the next number, in the place of the oldest; return it."""
        while True:
            number = self.entries[-1].number + 1 if self.entries else 1
            numbered = msgspec.structs.replace(entry, number=number)
            key = f"{AUDIT_PREFIX}{number % AUDIT_KEPT:04d}"
            self.entries.append(numbered)  # at once: another change may be noted meanwhile
            try:
                expected = self._revisions.get(key, 0)
                self._revisions[key] = await self._heads.swing(key, expected, msgspec.json.encode(numbered))
            except Conflict:  # another server noted a change
                await self.load()
                continue
            except BaseException:
                self.entries.remove(numbered)
                raise
            del self.entries[:-AUDIT_KEPT]
            return numbered
