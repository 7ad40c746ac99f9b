"""The daemon as a process: its signals, its lock on the state, and patience when storage fails at the start."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import structlog

from edge_client.config import DeviceConfig
from edge_client.daemon import Daemon
from edge_client.logs import configure_logging
from edge_client.storage import HeldError, Patience, hold, passing
from edge_client.store import StoreBusyError, StoreError, open_store

_log = structlog.get_logger("fedfleet.device")


def run(config: DeviceConfig, *, log_json: bool = False) -> None:
    """Run a device until SIGTERM or SIGINT; raise ConfigError or StoreError when it cannot start.

    While the state cannot be written it waits, at the start as later.
    """
    configure_logging(json=log_json)
    config.password()
    stopped, daemons = threading.Event(), list[Daemon]()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopped.set()
        for daemon in daemons:
            daemon.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with contextlib.ExitStack() as held:
        storage = Patience()
        while not stopped.is_set() and not daemons:
            try:
                daemons.append(_open(config, held))
            except (StoreBusyError, OSError) as error:
                if isinstance(error, OSError) and not passing(error):
                    raise
                now = time.monotonic()
                storage.failed(str(error), now)
                _log.error("storage_failed", reason=str(error), retry_s=storage.until - now)
                stopped.wait(storage.until - now)
        if daemons and not stopped.is_set():
            daemons[0].serve()


def _open(config: DeviceConfig, held: contextlib.ExitStack) -> Daemon:
    """A daemon over the state, which is locked and open until `held` closes."""
    with contextlib.ExitStack() as opened:
        opened.enter_context(_locked(config.state_dir))
        store = opened.enter_context(contextlib.closing(open_store(config.state_dir)))
        daemon = Daemon(config, store)
        held.enter_context(opened.pop_all())
        return daemon


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the state for this process, before anything in it is opened; raise StoreError when another has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold(folder / "lock")
    except HeldError as error:
        raise StoreError(
            f"device.state_dir {folder}: another daemon (process {error.pid or 'unknown'}) uses this state; "
            "stop it, or give this one its own"
        ) from error
    except OSError as error:
        if passing(error):
            raise
        raise StoreError(f"device.state_dir {folder}: cannot be written: {error.strerror}") from error
    with lock:
        yield
