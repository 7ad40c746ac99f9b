"""What was folded of a job since its last commit, and what is known of it besides the sums. Pure."""

from collections import Counter
from dataclasses import dataclass, field

from aggregator.bounds import Bounds, norm_bin
from aggregator.fold import Cached, Fold
from aggregator.sums import Ints
from edge_client.wire import sparse
from edge_client.wire.sparse import Update

CODEC_BYTE = 3  # of a frame (docs/wire.md §4)


@dataclass(slots=True)
class Buffer:
    """The updates of the next version; `bounds` weigh them. `counting` of them have a gain above 0.

    `sizes` int64 are those of the tensors of weights.
    """

    fold: Fold
    bounds: Bounds
    sizes: Ints
    counting: int = 0
    first_at: float = 0.0
    devices: list[str] = field(default_factory=list)
    of_device: Counter[str] = field(default_factory=Counter)
    norms: dict[int, int] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_frames: int = 0
    bits_bound: int = 0

    def add(
        self,
        device: str,
        update: Update,
        frame: bytes,
        *,
        wire_bytes: int,
        at: float,
        cached: Cached | None = None,
    ) -> int:
        """Fold one update; return the gain it was given."""
        if not self.devices:
            self.first_at = at
        norm = update.norm()
        gain = self.bounds.gain(norm, self.of_device[device])
        self.fold.add(update, gain, cached)
        self.counting += gain > 0
        self.devices.append(device)
        self.of_device[device] += 1
        number = norm_bin(norm)
        self.norms[number] = self.norms.get(number, 0) + 1
        self.bytes_up += wire_bytes
        self.bytes_frames += len(frame)
        self.bits_bound += round(8 * sparse.bound_bytes(update.weights, self.sizes, frame[CODEC_BYTE]))
        return gain
