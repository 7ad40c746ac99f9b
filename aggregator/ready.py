"""Waits until a server that a supervisor started answers."""

import time
from typing import Any

from aggregator.sdk import Fleet, FleetError
from aggregator.supervise import POLL_S, Supervisor, SupervisorError

READY_S = 30.0  # a cold start with 1 000 versions takes seconds; a loaded small machine ten times that


def wait_ready(supervisor: Supervisor, signals: list[int]) -> dict[str, Any]:
    """Tend the processes until the API answers, and return its health, or a signal came; raise SupervisorError."""
    deadline = time.monotonic() + READY_S
    with Fleet(supervisor.url) as fleet:
        while not signals:
            try:
                return fleet.health()
            except FleetError as error:
                lost = supervisor.hopeless()
                if lost is not None:
                    raise SupervisorError(
                        f"{lost.name} cannot be started; the end of {lost.log_path} is above"
                    ) from error
                if time.monotonic() > deadline:
                    raise SupervisorError(
                        f"the aggregator did not answer in {READY_S:g} s; its log is "
                        f"{supervisor.state_dir / 'aggregator.log'} ({error})"
                    ) from error
            supervisor.tend()
            time.sleep(POLL_S)
    return {}
