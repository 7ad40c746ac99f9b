"""All runs of a configuration: every strategy with every seed, on one set of workers."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import msgspec

from aggregator.errors import RefusedError, StrategyError
from aggregator.simulate import models, partition, results, sources, traces
from aggregator.simulate.config import Config, Trace
from aggregator.simulate.errors import SimulationError
from aggregator.simulate.results import Line, Result
from aggregator.simulate.run import Progress, Scene, perform
from aggregator.simulate.workers import Workers, share
from aggregator.spec import JobSpec, check_bundle

Report = Callable[[str, int, Progress | None], None]  # of a strategy and a seed; None: it was there already


class Simulation:
    """A configuration with its data and models at hand; raises SimulationError for whatever cannot be run.

    Everything is checked here, for all strategies and seeds, before the first run begins.
    """

    def __init__(self, config: Config, state: Path) -> None:
        self._config, self._state = config, state
        self._data = sources.load(config.data)
        self._digest = self._data.digest
        self._scenes = {seed: self._scene(seed) for seed in config.seeds}
        self._plan = [self._checked(label, seed) for label in config.labels for seed in config.seeds]

    def run(self, out: Path, workers: int, report: Report, *, fresh: bool = False) -> list[Result]:
        """Perform what is not in `out` yet; return all results, strategies in order and seeds within them."""
        missing = []
        for scene, spec, head in self._plan:
            if fresh or results.read(results.path(out, head), head) is None:
                missing.append((scene, spec, head))
            else:
                report(head["spec"]["strategy"], scene.seed, None)
        if missing:
            share(self._data, self._state)
            with Workers(workers, self._state) as pool:
                for scene, spec, head in missing:
                    self._perform(scene, spec, head, pool, out, report)
        found = []
        for _, _, head in self._plan:
            done = results.read(results.path(out, head), head)
            if done is None:
                raise SimulationError(f"{results.path(out, head)}: changed by another program")
            found.append(done)
        return found

    def _perform(  # noqa: PLR0917 - a run and what it needs
        self, scene: Scene, spec: JobSpec, head: Line, pool: Workers, out: Path, report: Report
    ) -> None:
        label = head["spec"]["strategy"]

        def said(progress: Progress) -> None:
            report(label, scene.seed, progress)

        with results.writing(results.path(out, head), head) as writer:
            try:
                perform(scene, spec, pool, state=self._state, writer=writer, report=said)
            except StrategyError as error:
                raise SimulationError(f"{label!r} with seed {scene.seed}: {error}") from error

    def _scene(self, seed: int) -> Scene:
        bundle = models.build(self._config.model, self._data, seed, self._state / f"seed{seed}.bundle")
        shards = partition.deal(self._data, self._config.data, self._config.fleet.devices, seed)
        return Scene(self._config, seed, self._data, bundle, shards)

    def _checked(self, label: str, seed: int) -> tuple[Scene, JobSpec, Line]:
        scene = self._scenes[seed]
        digest = hashlib.sha256(scene.bundle.path.read_bytes()).hexdigest()
        spec = self._config.spec(label, seed, digest)
        try:
            check_bundle(spec, scene.bundle.manifest)
        except RefusedError as error:
            raise SimulationError(f"strategy {label!r}: {error}") from error
        return scene, spec, results.header(self._described(label, scene, spec))

    def _described(self, label: str, scene: Scene, spec: JobSpec) -> Line:
        """All that a run depends on; of files their contents, so that where they lie does not matter."""
        config = self._config
        fleet: Line = msgspec.to_builtins(config.fleet)
        for name in ("speed", "link"):
            trace = getattr(config.fleet, name)
            if isinstance(trace, Trace):
                fleet[name] = {"kind": "trace", "sha256": traces.digest(trace.csv)}
        data: Line = msgspec.to_builtins(config.data)
        data |= {"source": self._digest, "samples": len(scene.data.x), "test_samples": len(scene.data.x_test)}
        evaluate: Line = msgspec.to_builtins(config.evaluate)
        del evaluate["targets"]  # they are looked for in the results
        described: Line = {
            "software": version("fedfleet"),
            "strategy": label,
            "seed": scene.seed,
            "devices": len(scene.shards),
            "parameters": scene.bundle.manifest.parameters,
            "job": msgspec.to_builtins(spec),
            "data": data,
            "fleet": {**fleet, "devices": len(scene.shards)},
            "stop": msgspec.to_builtins(config.stop),
            "evaluate": evaluate,
        }
        return described


@contextmanager
def state_directory(folder: Path | None) -> Iterator[Path]:
    """A directory for what runs keep on disk, removed afterwards; in `folder`, or where temporary files go."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fedfleet-simulate-", dir=folder) as name:
        yield Path(name)
