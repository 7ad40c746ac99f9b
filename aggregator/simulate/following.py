"""Which devices listen to the deltas that the broker hands out, and what they can build.

Pure. The rules are those of edge_client/following.py and chain.py.
"""

from dataclasses import dataclass

from edge_client.chain import DELTAS_MAX
from edge_client.wire.grid import Grid
from edge_client.wire.messages import Assignment

Model = tuple[Grid, ...]


@dataclass(slots=True)
class Newest:
    """The newest version that a device can build, `deltas` of them beyond what it pulled or trained from."""

    version: int
    version_hash: str
    model: Model
    until: float
    follows: bool
    deltas: int = 0


class Followers:
    """Devices that were asked to follow; all others have no entry."""

    def __init__(self) -> None:
        self._newest: dict[int, Newest] = {}

    def get(self, device: int) -> Newest | None:
        """What a device can build by what it heard; None when it heard nothing that it still has."""
        return self._newest.get(device)

    def listening(self) -> list[int]:
        """Those who get the next delta, in the order in which they began."""
        return [device for device, newest in self._newest.items() if newest.follows]

    def heed(self, device: int, assignment: Assignment, base: Model, now: float) -> tuple[bool, bool]:
        """Do as an assignment says: whether its version has to be pulled, and whether a subscription changes."""
        before = self._newest.get(device)
        reaches = before is not None and before.version >= assignment.version
        followed = before is not None and before.follows
        if before is None or not reaches:
            before = Newest(assignment.version, assignment.version_hash, base, 0.0, follows=False)
        before.follows, before.until = assignment.follow, now + assignment.not_before_s + assignment.lease_s
        if reaches or assignment.follow:
            self._newest[device] = before
        else:
            self._newest.pop(device, None)
        return not reaches, followed != assignment.follow

    def trained(self, device: int) -> None:
        """The workspace has what was trained from: deltas of before are used up."""
        newest = self._newest.get(device)
        if newest is not None:
            newest.deltas = 0
            if not newest.follows:
                del self._newest[device]

    def heard(self, device: int, delta: Newest, now: float) -> bool:
        """A delta to this version came; False when it shows a gap, which ends the listening."""
        own = self._newest.get(device)
        if own is None or not own.follows or delta.version <= own.version:
            return True
        if now > own.until or delta.version > own.version + 1 or own.deltas >= DELTAS_MAX:
            own.follows = False
            return False
        own.version, own.version_hash, own.model = delta.version, delta.version_hash, delta.model
        own.deltas += 1
        return True

    def forget(self, device: int) -> None:
        """The device knows no more of what it heard."""
        self._newest.pop(device, None)
