"""How x̂ moves from one version to the next, decided by the bytes of its delta. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from aggregator.hidden import Exact, State, follow
from edge_client.wire import grid
from edge_client.wire.grid import Grid

DELTA_BYTES_MIN = (
    128  # topic and chunk header around a delta are as many: leaving values out saves little below
)


@dataclass(frozen=True, slots=True)
class Delta:
    """The state that `data`, a DELTA frame, leads to; `density` is that of hidden.follow, 1 when all was sent."""

    state: State
    data: bytes
    density: float


def least(
    version: int,
    exact: Sequence[Exact],
    model: Sequence[Grid],
    step_exps: Sequence[int],
    density: float,
    *,
    statistics: int = 0,
) -> Delta:
    """The delta to `version`, from the one before it with x̂ = `model`; `exact` is the server's model x.

    Everything is sent when that takes no more bytes than the `density` share would, or than DELTA_BYTES_MIN: a few
    values as they are can be less than many by one scale, and a lag that costs nothing to avoid is avoided.
    """

    def made(share: float) -> Delta:
        state = follow(exact, model, step_exps, share, statistics=statistics)
        return Delta(state, grid.encode_delta(version, version - 1, state.model, model), share)

    whole = made(1.0)
    if density >= 1 or len(whole.data) <= DELTA_BYTES_MIN:
        return whole
    part = made(density)
    return whole if len(whole.data) <= len(part.data) else part
