"""One process a role on one engine: a second one is refused with the first one's process id."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from broker_bridge.ports import PortError
from broker_bridge.ports.files import storage_error
from broker_bridge.ports.open import SQLITE
from edge_client.storage import HeldError, hold

WAIT_S = 2.0  # one that was just told to end, or whose supervisor was killed, is gone by then
POLL_S = 0.05


@contextlib.contextmanager
def claimed(url: str, role: str) -> Iterator[None]:
    """Hold `role` on an engine for this process; raise PortError when another process has it.

    An engine in memory has no second process.
    """
    if not url.startswith(SQLITE):
        yield
        return
    path = Path(url.removeprefix(SQLITE))
    lock_path = path.with_name(f"{path.name}.{role}.lock")
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            lock_path.parent.mkdir(parents=True, exist_ok=True)
            lock = hold(lock_path)
            break
        except HeldError as error:
            if time.monotonic() > deadline:
                raise PortError(
                    f"{path} is in use by another {role} (process {error.pid or 'unknown'}); "
                    "stop it, or choose another file"
                ) from error
        except OSError as error:
            raise storage_error(lock_path, error) from error
        time.sleep(POLL_S)
    with lock:
        yield
