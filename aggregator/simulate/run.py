"""One run: a strategy and a seed, from the first ask to the stop, as a loop over virtual time."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from aggregator.engine import TICK_S
from aggregator.gini import gini
from aggregator.holdout import score
from aggregator.simulate.availability import availability
from aggregator.simulate.behaviour import Behaviour
from aggregator.simulate.clock import Clock
from aggregator.simulate.config import Config
from aggregator.simulate.devices import Devices
from aggregator.simulate.partition import Shards, parts
from aggregator.simulate.residuals import Residuals
from aggregator.simulate.results import Line, Writer
from aggregator.simulate.server import Server
from aggregator.simulate.site import Site
from aggregator.simulate.sources import Data
from aggregator.simulate.work import Look
from aggregator.simulate.workers import Workers, result
from aggregator.spec import JobSpec
from edge_client.bundle import Bundle
from edge_client.wire.messages import Metrics

STALL_S = 86400.0  # without an accepted update for so long nothing will come of it
RESIDUAL_BYTES = 2  # a float16 a weight
DIGITS = 6  # of virtual seconds and figures in result lines


@dataclass(frozen=True, slots=True)
class Scene:
    """What all strategies of a seed have in common."""

    config: Config
    seed: int
    data: Data
    bundle: Bundle
    shards: Shards


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is."""

    seconds: float
    version: int
    uploads: int
    accuracy: float | None
    bytes_up: int
    bytes_down: int
    done: bool = False


def perform(
    scene: Scene,
    spec: JobSpec,
    workers: Workers,
    *,
    state: Path,
    writer: Writer,
    report: Callable[[Progress], None],
) -> None:
    """Run until a stop of the configuration or an end of the job; `state` is a directory for what is on disk."""
    count, weights = len(scene.shards), scene.bundle.manifest.parameters
    with Residuals(state / "residuals", count, RESIDUAL_BYTES * weights) as residuals:
        run = _Run(scene, spec, workers, residuals=residuals, writer=writer, report=report)
        run.go()


class _Run:
    def __init__(
        self,
        scene: Scene,
        spec: JobSpec,
        workers: Workers,
        *,
        residuals: Residuals,
        writer: Writer,
        report: Callable[[Progress], None],
    ) -> None:
        config, seed, count = scene.config, scene.seed, len(scene.shards)
        self._config, self._scene = config, scene
        self._workers, self._writer, self._report = workers, writer, report
        self._clock = Clock()
        self._server = Server(spec, scene.bundle)
        self._devices = Devices(config.fleet, count, seed)
        self._behaviour = Behaviour(
            Site(
                config=config,
                seed=seed,
                bundle=str(scene.bundle.path),
                clock=self._clock,
                server=self._server,
                workers=workers,
                devices=self._devices,
                times=availability(config.fleet, count, seed),
                residuals=residuals,
                parts=lambda device: parts(scene.shards, scene.data, config.data, device),
            )
        )
        samples = len(scene.data.x_test)
        self._samples = min(config.evaluate.samples or samples, samples)
        self._looks: deque[tuple[Line, Future[Metrics]]] = deque()
        self._last: tuple[int, Future[Metrics]] | None = None
        self._noted: tuple[int, int] | None = None  # version and uploads of the last point
        self._accuracy: float | None = None
        self._best: Line | None = None
        self._accepted_at = 0.0

    def go(self) -> None:
        """The loop."""
        clock, server, every = self._clock, self._server, self._config.evaluate.every
        self._behaviour.start()
        self._look()
        tick, looked = TICK_S, 0
        while server.over is None:
            if clock.next_at is None or clock.next_at > tick:
                clock.now, tick = tick, tick + TICK_S
                self._behaviour.lead()
            else:
                clock.pop()
            if server.accepted > looked:
                looked, self._accepted_at = server.accepted, clock.now
                if looked % every == 0:
                    self._look()
            self._write(wait=self._config.stop.target_accuracy is not None)
            reason = self._stop()
            if reason is not None:
                server.stop(reason)
            self._report(self._progress())
        if self._noted != (server.job.version, server.accepted):
            self._look()
        self._write(wait=True)
        self._writer.line(self._summary())
        self._report(replace(self._progress(), done=True))

    def _stop(self) -> str | None:
        stop, server = self._config.stop, self._server
        if stop.uploads is not None and server.accepted >= stop.uploads:
            return f"{stop.uploads} uploads"
        if stop.versions is not None and server.job.version >= stop.versions:
            return f"{stop.versions} versions"
        if stop.seconds is not None and self._clock.now >= stop.seconds:
            return f"{stop.seconds:g} virtual seconds"
        if stop.target_accuracy is not None and (self._accuracy or 0.0) >= stop.target_accuracy:
            return f"accuracy {stop.target_accuracy:g}"
        if self._clock.now - self._accepted_at >= STALL_S:
            return f"no update was accepted for {STALL_S:g} virtual seconds"
        return None

    # -- what is written -------------------------------------------------------------------------------

    def _look(self) -> None:
        """Begin an evaluation of the newest version; what else there is to say is taken down now."""
        version = self._server.job.version
        if self._last is None or self._last[0] != version:
            look = Look(str(self._scene.bundle.path), self._server.job.state.model, self._samples)
            self._last = version, self._workers.evaluate(look)
        self._noted = version, self._server.accepted
        self._looks.append((self._figures(), self._last[1]))

    def _write(self, *, wait: bool) -> None:
        """Write the points whose evaluations are there, in order."""
        while self._looks and (wait or self._looks[0][1].done()):
            line, future = self._looks.popleft()
            metrics = result(future)
            line["loss"] = round(metrics.loss, DIGITS)
            for name in ("accuracy", "error", "threshold"):
                value = getattr(metrics, name)
                line[name] = None if value is None else round(value, DIGITS)
            self._accuracy = line["accuracy"]
            if self._best is None or score(metrics) > self._best["score"]:
                self._best = {"score": score(metrics), "version": line["version"]}
            self._writer.line(line)

    def _figures(self) -> Line:
        traffic, counts, history = self._behaviour.traffic, self._behaviour.counts, self._server.job.history
        version = self._server.job.version
        staleness: dict[int, int] = {}
        for record in history.records:
            for tau, updates in record.staleness.items():
                staleness[tau] = staleness.get(tau, 0) + updates
        return {
            "kind": "point",
            "time": round(self._clock.now, DIGITS),
            "version": version,
            "uploads": self._server.accepted,
            "bytes_up_payload": traffic.frames,
            "bytes_up": traffic.up,
            "bytes_down": traffic.down,
            "bytes_down_model": traffic.model,
            "bytes_down_bundles": traffic.bundles,
            "bytes_down_per_version": round(sum(r.bytes_delta for r in history.records) / max(1, version), 1),
            "bytes_down_per_participation": round(traffic.model / max(1, counts.participations), 1),
            "staleness": {str(tau): staleness[tau] for tau in sorted(staleness)},
            "gini": round(gini(self._devices.accepted.tolist()), DIGITS),
        }

    def _summary(self) -> Line:
        server, counts = self._server, self._behaviour.counts
        return {
            **self._writer.lines[-1],
            "kind": "summary",
            "end": server.over,
            "best_version": None if self._best is None else self._best["version"],
            "model_hash": server.job.manifest.model_hash,
            "accepted": server.accepted,
            "rejected": dict(sorted(server.rejected.items())),
            "buffered": server.job.buffered,
            "duplicates": server.duplicates,
            "open": self._behaviour.open,
            **asdict(counts),
        }

    def _progress(self) -> Progress:
        traffic, server = self._behaviour.traffic, self._server
        return Progress(
            self._clock.now, server.job.version, server.accepted, self._accuracy, traffic.up, traffic.down
        )
