"""How soon a new version is on a device that follows: from the commit on the server to the delta on its disk.

    python bench/visible.py [--devices 4] [--deltas 200]

A real server (`fedfleet up`), broker and daemons on loopback; the demo's network, every update makes a version. Both
clocks are this machine's. Prints quantiles in milliseconds.
"""

import argparse
import datetime as dt
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from aggregator.demo import data, plan
from aggregator.demo.devices import Devices
from aggregator.ready import wait_ready
from aggregator.sdk import Fleet
from aggregator.supervise import Supervisor, until_signalled

WAIT_S = 300.0


def kept(folder: Path) -> list[tuple[int, float]]:
    """Versions and Unix times of the deltas that a device kept."""
    found = []
    for line in (folder / "daemon.log").read_text().splitlines():
        if "event=delta_kept" in line:
            fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
            at = dt.datetime.fromisoformat(fields["timestamp"])
            found.append((int(fields["version"]), at.timestamp()))
    return found


def main() -> None:
    """Run the fleet and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--deltas", type=int, default=200)
    options = parser.parse_args()
    shards = data.load()[0][: options.devices]
    with tempfile.TemporaryDirectory() as name, until_signalled() as signals:
        folder = Path(name)
        bundle = plan.bundle().save(folder / "net.bundle").read_bytes()
        supervisor = Supervisor(folder / "server", 0, 0, "auto")
        try:
            supervisor.start()
            wait_ready(supervisor, signals)
            with Fleet(f"http://127.0.0.1:{supervisor.http_port}") as fleet:
                fields = plan.spec(fleet.upload(bundle)) | {"buffer_size": 1, "fanout": "always", "end": {}}
                job = fleet.start(fields)
                with Devices(folder / "devices", shards, supervisor.broker.port):
                    homes = [folder / "devices" / shard.name for shard in shards]
                    deadline = time.monotonic() + WAIT_S
                    while sum(len(kept(home)) for home in homes) < options.deltas and not signals:
                        if time.monotonic() > deadline:
                            sys.exit(f"fewer than {options.deltas} deltas within {WAIT_S:g} s")
                        supervisor.tend()
                        time.sleep(1.0)
                    committed = {v["version"]: v["at"] for v in job.versions()}
                    delays = [1000 * (at - committed[v]) for home in homes for v, at in kept(home)]
        except subprocess.SubprocessError as error:
            sys.exit(str(error))
        finally:
            supervisor.stop()
    figures = {f"p{q}_ms": round(float(np.percentile(delays, q)), 1) for q in (50, 95, 100)}
    print(json.dumps({"deltas": len(delays), "devices": options.devices, **figures}))


if __name__ == "__main__":
    main()
