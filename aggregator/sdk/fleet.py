"""A fleet, from a notebook or a product, in a few lines."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from aggregator.sdk import calls
from aggregator.sdk.calls import Listing, Record
from aggregator.sdk.events import Event
from aggregator.sdk.job import Job
from aggregator.sdk.models import bundle_of, fields_of
from aggregator.sdk.wire import Wire

if TYPE_CHECKING:
    from aggregator.sdk.local import Local, Shard


class Fleet:
    """The server at `url`; `token` is from `fedfleet token create`.

    Unless given they are the variables FEDFLEET_SERVER and FEDFLEET_TOKEN, else what `fedfleet login` kept.

    Raises FleetError with the server's code and reason, and so does everything here.
    """

    def __init__(self, url: str | None = None, *, token: str | None = None) -> None:
        self._wire = Wire(url, token)
        self._local: Local | None = None
        self.url = self._wire.url

    @classmethod
    def local(
        cls,
        devices: int = 8,
        data: "str | Sequence[Shard]" = "watch",
        *,
        dataset: str = "data",
        broker: str = "auto",
    ) -> Self:
        """A whole fleet on this machine in a temporary directory: server, broker and device daemons.

        `data` is "watch", the demo's recordings (data set `wrist-imu`, at most 16 devices), or for each device a
        `Shard` of your own, as the data set named `dataset`. `close`, leaving a `with`, or the end of this process ends
        all of it.
        """
        from aggregator.sdk.local import Local  # noqa: PLC0415 - most fleets are elsewhere

        local = Local(devices, data, dataset=dataset, broker=broker)
        try:
            fleet = cls(local.url)
        except BaseException:
            local.close()
            raise
        fleet._local = local
        return fleet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, and a local fleet with it."""
        self._wire.close()
        if self._local is not None:
            self._local.close()

    def __repr__(self) -> str:
        return f"<Fleet {self.url}>"

    def federate(
        self,
        model: Any,
        *,
        name: str,
        dataset: str,
        loss: str | None = None,
        strategy: str = "fedbuff",
        target: Record | None = None,
        example: Any = None,
        compile_options: Record | None = None,
        testset: bytes | None = None,
        **spec: Any,
    ) -> Job:
        """Train `model` on the devices that have `dataset`, and return the job.

        `model` is an ONNX file or ModelProto, a torch module with an `example` batch, or a bundle; `loss`
        ("cross_entropy" unless given) and `compile_options` are how it is compiled (`compile_training`). `target`
        ends the job: any of `accuracy`, `loss`, `versions`, `deadline_s`, `patience`. `testset` is an .npz that the
        server evaluates versions on. `spec` are further fields of a job, such as `buffer_size=8` or
        `training={"steps": 50}`.
        """
        fields = fields_of(
            {"name": name, "dataset": dataset, "strategy": strategy, **spec}, target, compile_options
        )
        bundle = bundle_of(model, name=name, loss=loss, example=example, options=compile_options or {})
        if testset is not None:
            fields["testset"] = self.upload_testset(testset)
        return self.start({**fields, "bundle": self.upload(bundle)})

    # -- jobs and bundles ----------------------------------------------------------------------------

    def start(self, spec: Record) -> Job:
        """Start a job from a spec that names a stored bundle."""
        return Job(self._wire, self._wire.do(calls.post("/jobs", spec)))

    def validate(self, spec: Record) -> Record:
        """Check a spec as `start` would; the spec with all its fields."""
        checked: Record = self._wire.do(calls.post("/jobs/validate", spec))["spec"]
        return checked

    def jobs(self) -> list[Job]:
        """All jobs, by name."""
        return [Job(self._wire, facts) for facts in self._wire.all(Listing("/jobs", "jobs"))]

    def job(self, name: str) -> Job:
        """The job of this name."""
        return Job(self._wire, self._wire.do(calls.get(calls.job_path(name))))

    def upload(self, bundle: bytes) -> str:
        """Store a bundle; its digest."""
        return self._wire.do(calls.upload("/bundles", bundle))

    def upload_testset(self, data: bytes | Path) -> str:
        """Store an .npz for evaluation on the server; its digest."""
        data = data.read_bytes() if isinstance(data, Path) else data
        return self._wire.do(calls.upload("/testsets", data))

    def bundles(self) -> list[Record]:
        """Stored bundles."""
        return self._wire.all(Listing("/bundles", "bundles"))

    def delete_bundle(self, digest: str) -> None:
        """Delete a bundle that no job uses."""
        self._wire.do(calls.delete(f"/bundles/{calls.segment(digest)}"))

    # -- devices and what happens --------------------------------------------------------------------

    def devices(
        self,
        *,
        state: str | None = None,
        cohort: str | None = None,
        tag: str | None = None,
        q: str | None = None,
        paused: bool | None = None,
    ) -> list[Record]:
        """Devices by id; filters hold together, `q` is text in ids, tags, software, data sets and reasons."""
        return self._wire.all(calls.devices(state, cohort, tag, q, paused=paused))

    def device(self, device: str) -> Record:
        """One device with its timeline."""
        return self._wire.do(calls.get(calls.device_path(device)))

    def why(self, device: str) -> list[Record]:
        """Why it trains or does not: of each job that has not ended `job`, `training` and a sentence, `text`."""
        return self._wire.do(calls.why(device))

    def tag(self, device: str, tags: Iterable[str]) -> Record:
        """Replace a device's tags."""
        return self._wire.do(calls.tag(device, list(tags)))

    def pause(self, device: str) -> Record:
        """Give a device no more work; what it trains now it may finish."""
        return self._wire.do(calls.order(device, "pause"))

    def resume(self, device: str) -> Record:
        """Let a device work again."""
        return self._wire.do(calls.order(device, "resume"))

    def forget(self, device: str) -> Record:
        """Remove what is known of a device that is not connected; what was known of it. Its updates stay folded."""
        return self._wire.do(calls.order(device, "forget"))

    def summary(self) -> Record:
        """The fleet at one look: devices by state and by what they do, update rate, bytes, alerts."""
        return self._wire.do(calls.get("/fleet"))

    def updates(self, *, verdict: str | None = None, job: str | None = None) -> list[Record]:
        """Verdicts on the newest updates, newest first."""
        return self._wire.all(calls.updates(verdict, job))

    def events(self, kinds: Iterable[str] | None = None, *, after: str | None = None) -> Iterator[Event]:
        """What happens (after the event of this id), for ever; a `reset` says that some events were lost."""
        return self._wire.events(kinds, after)

    def recent_events(self, kinds: Iterable[str], limit: int) -> list[Event]:
        """The newest events that the server still has, oldest first."""
        return self._wire.do(calls.recent_events(kinds, limit))

    def audit(self) -> list[Record]:
        """Who changed what, newest first."""
        return self._wire.all(Listing("/audit", "audit"))

    def health(self) -> Record:
        """Whether the server works, and its bridge's counters."""
        return self._wire.do(calls.get("/health"))
