"""`fedfleet demo`: sixteen daemons on real recordings, a real broker, and the comparison."""

import fcntl
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.progress import Progress

from aggregator.demo import baselines, data, plan, report
from aggregator.demo.devices import Devices
from aggregator.demo.live import Look, accuracy
from aggregator.ready import wait_ready
from aggregator.sdk import Fleet, FleetError
from aggregator.supervise import Supervisor, SupervisorError, until_signalled
from broker_bridge.broker import BrokerError

LOOK_S = 1.0
LINE_S = 10.0  # between lines where there is no terminal to redraw
STOPPED = "stopped by a signal"
STALL_S = 120.0  # no new version for this long: something is broken, and the logs say what
FAREWELL_S = 15.0  # for the devices to remove the job's workspace and say so

EXIT_CODES = (
    "Exit codes: 0 passed, 1 a condition failed or the demo could not run (it says which), 2 wrong usage."
)


@click.command(epilog="Example: DEMO_JSON=figures.json fedfleet demo\n\n" + EXIT_CODES)
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".demo"),
    show_default=True,
    help="Where shards, states, logs and the trained model go.",
)
@click.option(
    "--broker", type=click.Choice(["auto", "mosquitto", "iotcore"]), default="auto", show_default=True
)
@click.option(
    "--json-file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="DEMO_JSON",
    help="Also write the figures as JSON; the variable DEMO_JSON does the same.",
)
def demo(directory: Path, broker: str, json_file: Path | None) -> None:
    """Federate exercise recognition over sixteen smartwatches and compare it with the alternatives.

    Broker, bridge, aggregator and sixteen device daemons run as processes of their own on loopback; each
    device holds one arm of one person, and two people are never seen by any. Ends by itself within five
    minutes on two cores.
    """
    console = Console()
    try:
        with _alone(directory), until_signalled() as signals:
            result = _run(console, directory, broker, signals)
    except (data.DataError, SupervisorError, BrokerError, FleetError, DemoError) as error:
        raise click.ClickException(str(error)) from error
    console.print(report.table(result))
    console.print(report.facts(result))
    console.print(f"model: {directory / 'exercise-int8.onnx'}")
    if json_file is not None:
        result.write_json(json_file)
    failures = report.failures(result)
    for words in failures:
        console.print(f"[bold red]failed:[/bold red] {words}")
    sys.exit(1 if failures else 0)


class DemoError(Exception):
    """The demo cannot go on; the message says why and where to look."""


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DemoError(
                f"another demo is running in {directory}; wait for it, or choose another --directory"
            ) from error
        yield


def _run(console: Console, directory: Path, broker: str, signals: list[int]) -> report.Result:
    started = time.monotonic()
    run = directory / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    shards, unseen = data.load()
    bundle = plan.bundle().save(run / "exercise.bundle")
    supervisor = Supervisor(run / "server", 0, 0, broker)
    try:
        supervisor.start()
        wait_ready(supervisor, signals)
        if signals:
            raise DemoError(STOPPED)
        assert supervisor.broker is not None
        console.print(
            f"{supervisor.broker.kind} on port {supervisor.broker.port}, API on port {supervisor.http_port}, "
            f"{len(shards)} devices, {len(unseen.y)} windows of people they never saw; logs in {run}"
        )
        with Fleet(supervisor.url) as fleet:
            fleet.start(plan.spec(fleet.upload(bundle.read_bytes())))
            with Devices(run / "devices", shards, supervisor.broker.port) as devices:
                look = _watch(console, fleet, supervisor, devices, unseen, signals)
            found = fleet.job(plan.JOB)
            job, versions = found.facts, found.versions()
            bridge = fleet.health()["bridge"]
            chosen = job["best_version"] if job["best_version"] is not None else job["version"]
            federated = accuracy(found.model("fp32", chosen).data, unseen)
            int8 = found.model("int8", chosen).data
    finally:
        supervisor.stop()
    (directory / "exercise-int8.onnx").write_bytes(int8)
    local, central = _baselines(console, bundle, shards, unseen, signals)
    updates = sum(version["updates"] for version in versions)
    return report.Result(
        local_only=local,
        federated=federated,
        centralised=central,
        int8=accuracy((directory / "exercise-int8.onnx").read_bytes(), unseen),
        versions=job["version"],
        updates=updates,
        bytes_up=bridge["bytes_up"],
        bytes_down=bridge["bytes_down"],
        bytes_up_dense=updates * 4 * job["parameters"],
        bytes_per_update=job["bytes_up"] / max(1, updates),
        bytes_int8_model=len(int8),
        parameters=job["parameters"],
        staleness_mean=job["staleness_mean"],
        chosen_version=chosen,
        end=look.job["reason"],
        seconds=time.monotonic() - started,
    )


def _watch(  # noqa: PLR0917 - what is watched, in the order it is made
    console: Console,
    fleet: Fleet,
    supervisor: Supervisor,
    devices: Devices,
    unseen: data.Shard,
    signals: list[int],
) -> Look:
    started = moved = line_due = time.monotonic()
    look: Look | None = None
    with Live(console=console, refresh_per_second=4) as live:
        while True:
            supervisor.tend()
            before, look = look, Look.take(fleet, unseen, look)
            now = time.monotonic()
            live.update(look.table(now - started))
            if not console.is_terminal and now >= line_due:
                console.print(look.line(now - started))
                line_due = now + LINE_S
            if before is None or look.job["updates"] != before.job["updates"]:
                moved = now
            if look.job["state"] == "ended" and (_workspaces(look) == 0 or now - moved > FAREWELL_S):
                return look
            if signals:
                raise DemoError(STOPPED)
            if devices.dead():
                raise DemoError(f"daemons ended: {', '.join(devices.dead())}; see their daemon.log")
            if look.job["state"] == "running" and now - moved > STALL_S:
                raise DemoError(f"no update for {STALL_S:g} s; see the logs")
            time.sleep(LOOK_S)


def _workspaces(look: Look) -> int:
    """Devices that have not said yet that they removed the job's workspace."""
    tasks = [device["tasks"].get(plan.JOB) for device in look.devices]
    return sum(t is not None and t["status"] is not None and t["status"]["state"] != "ended" for t in tasks)


def _baselines(
    console: Console, bundle: Path, shards: list[data.Shard], unseen: data.Shard, signals: list[int]
) -> tuple[float, float]:
    """Mean accuracy of each device alone, and that of all data in one place."""
    local: list[float] = []
    line_due = time.monotonic() + LINE_S

    def look() -> None:
        nonlocal line_due
        if signals:
            raise DemoError(STOPPED)
        if not console.is_terminal and time.monotonic() >= line_due:
            what = (
                f"device {len(local) + 1} of {len(shards)} alone" if len(local) < len(shards) else "all data"
            )
            console.print(f"to compare with, training on {what} …")
            line_due = time.monotonic() + LINE_S

    if not console.is_terminal:
        console.print()  # the table of the federation leaves its last line open
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("local-only and centralised training", total=2 * len(shards))
        alone = baselines.local_only(bundle, shards, unseen, plan.local(len(shards)), plan.SEED, look=look)
        for result in alone:
            local.append(result.accuracy)
            progress.advance(task)
        central = baselines.centralised(bundle, shards, unseen, plan.centralised(), plan.SEED, look=look)
        progress.advance(task, len(shards))
    return float(np.mean(local)), central.accuracy
