"""What devices say of the updates they made from a version, put together. Pure."""

import msgspec

from edge_client.wire.messages import Evaluation


class Reported(msgspec.Struct):
    """Sums over the devices that trained from a version; `measured` of them know their uplink."""

    devices: int = 0
    residual_norm: float = 0.0
    density: float = 0.0
    measured: int = 0
    uplink_bytes_s: float = 0.0

    def add(self, evaluation: Evaluation) -> None:
        """Take a device's evaluation in; one that did not train says nothing of an update."""
        if evaluation.after is None:
            return
        self.devices += 1
        self.residual_norm += evaluation.residual_norm
        self.density += evaluation.density
        if evaluation.uplink_bytes_s > 0:
            self.measured += 1
            self.uplink_bytes_s += evaluation.uplink_bytes_s

    def mean(self) -> dict[str, float | None]:
        """Means over the devices; None where none reported."""
        return {
            "residual_norm": self.residual_norm / self.devices if self.devices else None,
            "density": self.density / self.devices if self.devices else None,
            "uplink_bytes_s": self.uplink_bytes_s / self.measured if self.measured else None,
        }
