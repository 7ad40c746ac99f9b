"""Entry point of a broker's child process: ties its life to the parent's, then becomes the broker.

Run by path, `python broker_child.py <parent pid> mosquitto <program> <config>` or `… iotcore <config>`, and
imports nothing of this project, so that it starts fast and wherever the package lies.
"""

import ctypes
import logging
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, however it ends; survives exec.

    The signal comes when the *thread* that made this process ends, so a broker is started from a thread
    that lives as long as the program.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended before the request was made
        os._exit(0)


def serve_iotcore(config: str) -> None:
    """Run rumqttd in this process for ever."""
    from iotcore.iotcore import IotCoreBroker  # noqa: PLC0415 - optional dependency, absent on servers

    logging.basicConfig(level=logging.WARNING)
    # rumqttd routes each message inside an error span, so its records are noise rather than errors.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    IotCoreBroker(config_path=config).run_forever()


def main(arguments: list[str]) -> None:
    """Become the broker that `arguments` name."""
    parent, kind, *rest = arguments
    die_with_parent(int(parent))
    if kind == "mosquitto":
        program, config = rest
        os.execv(program, [program, "-c", config])  # noqa: S606 - no shell, and the parent chose the program
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    serve_iotcore(rest[0])


if __name__ == "__main__":
    main(sys.argv[1:])
