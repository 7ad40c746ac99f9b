"""Control messages: frozen msgspec structs, JSON on the wire, readable with any MQTT client.

Unknown keys are ignored, so that a newer peer may say more; a wrong type is a RemoteWireError naming the
field. Durations are relative (`lease_s`): a Raspberry Pi has no clock battery (docs/wire.md §3).
"""

from typing import Literal, TypeVar

import msgspec

from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.limits import JSON_BYTES_MAX

PROTOCOL = 1
# Codecs of updates by name (wire/sparse.py); whoever names none speaks the first.
CODECS = ("ternary", "q4", "q8", "sign", "dense-fp16", "dense-fp32")
Target = Literal["class", "labels", "values", "none"]


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """Root of all messages."""


class DataSchema(Message, frozen=True):
    """Shape of one sample (without the batch axis) and what it is labelled with; what a data set must match.

    `target` is one `class` of `n_classes`, any of `n_classes` `labels`, float32 `values` of `target_shape`, or
    `none`: a job without a target takes samples whatever they are labelled with.
    """

    shape: tuple[int, ...]
    n_classes: int = 0
    axes: tuple[str, ...] = ()  # a name per axis of `shape`, for error messages
    target: Target = "class"
    target_shape: tuple[int, ...] = ()

    @property
    def labelling(self) -> str:
        """What samples are labelled with, for people."""
        match self.target:
            case "class":
                return f"one of {self.n_classes} classes"
            case "labels":
                return f"{self.n_classes} label{'s' * (self.n_classes != 1)}"
            case "values":
                return f"values of shape {list(self.target_shape)}"
            case "none":
                return "no labels"


class DatasetInfo(Message, frozen=True):
    """One data set that a device's custodian has declared."""

    name: str
    data: DataSchema
    n_samples: int


class DeviceState(Message, frozen=True):
    """Birth, farewell and last will of a device. A will whose `conn_seq` is below the last birth's is stale."""

    state: Literal["ready", "disconnected", "lost"]
    conn_seq: int
    cohort: str = "all"
    jobs: tuple[str, ...] = ()  # jobs whose workspace the device holds; ended ones are answered with JobEnd


class DeviceInfo(Message, frozen=True):
    """What a device is and can do; retained, published when it changes."""

    software: str
    protocol: int
    arch: str
    runtime: str  # e.g. "onnxruntime 1.31.1"
    codecs: tuple[str, ...]
    datasets: tuple[DatasetInfo, ...] = ()


class BlobRef(Message, frozen=True):
    """A content-addressed blob: SHA-256 in hex and size in bytes."""

    digest: str
    size: int


class Offer(Message, frozen=True):
    """A job is open. Devices with a matching data set may ask to train."""

    job: str
    dataset: str
    data: DataSchema
    bundle: BlobRef
    retry_s: float = 60.0  # a device that asked and heard nothing asks again after about this long
    deadline: float | None = (
        None  # Unix seconds at which the offer expires; advisory on a device without a clock
    )
    samples_min: int = 1  # a device with fewer samples declines


class Ask(Message, frozen=True):
    """A device is willing to train. `ask` numbers its asks; a repeated ask carries the same number."""

    job: str
    ask: int
    n_samples: int
    holds: int | None = None  # version of the model the device already has
    codecs: tuple[str, ...] = CODECS[:1]


class UplinkPlan(Message, frozen=True):
    """Lets a device choose an update's density by its own link, so that publishing takes `budget_s` at most.

    `parameters` is the number of weights, of which a density is a share.
    """

    parameters: int
    budget_s: float
    density_min: float
    density_max: float


class TrainingPlan(Message, frozen=True):
    """How to train once assigned; `uplink` None: the density is as given."""

    steps: int
    batch_size: int
    learning_rate: float
    density: float  # share of parameters an update carries, 0 < density <= 1
    norm_max: float  # L2 norm to which the device clips its update before compression
    seed: int = 0
    codec: str = CODECS[0]
    uplink: UplinkPlan | None = None


class Assignment(Message, frozen=True):
    """Train now, from this base. `ask` echoes the ask it answers; any other is ignored by the device."""

    job: str
    ask: int
    version: int
    version_hash: str  # first 8 bytes of SHA-256 of the model's grid, hex (wire/grid.py)
    bundle: BlobRef
    model: tuple[BlobRef, ...]  # one key-frame, or the deltas that lead from `holds` to `version`
    plan: TrainingPlan
    lease_s: float
    not_before_s: float = 0.0
    follow: bool = (
        False  # the broker hands out new versions' deltas, and it pays to listen while the lease lasts
    )


class VersionNotice(Message, frozen=True):
    """The newest version of a job, for integrators; hold-out figures are the devices' own, newest known.

    `keyframe` is the whole model as a blob: whoever may ask for blobs gets what the server exports, also after the end.
    `bits_per_parameter` is what an update of the version took, `bytes_to_bound` its bytes over the entropy bound; both
    are null where no update made it. `bytes_delta` leads from the version before; where `lossless` it left nothing out.
    """

    job: str
    version: int
    version_hash: str
    at: float
    updates: int
    accuracy: float | None = None
    loss: float | None = None
    keyframe: BlobRef | None = None
    bits_per_parameter: float | None = None
    bytes_to_bound: float | None = None
    bytes_delta: int = 0
    lossless: bool = True


class JobEnd(Message, frozen=True):
    """The job is over for this device; it removes the workspace and says so."""

    job: str
    reason: str


class BlobRequest(Message, frozen=True):
    """Send `count` chunks of a blob from chunk `start` on, each of `chunk_bytes` bytes but the last."""

    digest: str
    start: int
    count: int
    chunk_bytes: int


class Metrics(Message, frozen=True):
    """Mean figures over `n` samples; beside the loss the one that the job's loss calls for (bundle.MEASURES).

    `accuracy` is the share of right classes, or of right decisions over all labels, `error` the mean absolute
    error, `threshold` the reconstruction error that the bundle's share of the samples does not pass.
    """

    n: int
    loss: float
    accuracy: float | None = None
    error: float | None = None
    threshold: float | None = None


class Evaluation(Message, frozen=True):
    """A device's hold-out metrics of version `version` before training from it, and after."""

    version: int
    before: Metrics
    after: Metrics | None = None
    steps: int = 0
    train_s: float = 0.0
    memory_bytes: int = 0  # peak resident size of the trainer child
    residual_norm: float = 0.0  # L2 norm of what the update left out, should it be accepted
    density: float = 0.0  # share of the weights that the update carries
    uplink_bytes_s: float = 0.0  # the device's uplink as measured before this update; 0: not yet


class TaskStatus(Message, frozen=True):
    """What a device does for a job; `reason` says why when it declined or failed."""

    state: Literal["declined", "asking", "pulling", "training", "uploading", "failed", "ended"]
    rev: int  # grows with each status of this device and job, so a late one is told from a new one
    reason: str = ""
    progress: float | None = None  # share of the training steps done, 0 to 1


class Receipt(Message, frozen=True):
    """The verdict on one uid, sent only after it is durable.

    `accepted` and `rejected` are final; `incomplete` asks for the chunks in `missing` again,
    as [first, last] ranges, both included.
    """

    uid: str
    verdict: Literal["accepted", "rejected", "incomplete"]
    code: str = ""
    message: str = ""
    missing: tuple[tuple[int, int], ...] = ()


class ServiceState(Message, frozen=True):
    """Birth and last will of a service; devices hold their uploads while the bridge is down."""

    state: Literal["up", "down"]
    conn_seq: int


class FleetState(Message, frozen=True):
    """For integrators: how many devices and jobs are in each state."""

    devices: dict[str, int]
    jobs: dict[str, int]


class JobState(Message, frozen=True):
    """For integrators: a job with its newest smoothed hold-out figures, null before there are any."""

    job: str
    state: Literal["running", "paused", "ended"]
    reason: str  # why it ended, "" before
    version: int
    promoted: int | None
    accuracy: float | None
    loss: float | None
    updates: int  # in versions
    training: int  # devices that hold a place
    waiting: int  # devices that wait for one


# Rejections after which the device keeps the refused mass for its next update: the update was sound, but its base
# was not usable any more, or the server failed on it. Every other rejection drops it: sent again it would fail again.
KEEP_MASS_CODES = frozenset({"stale", "resync", "internal"})


def common_codec(wanted: str, spoken: tuple[str, ...]) -> str | None:
    """The codec for a device that speaks these: the wanted one, else the first of ours, else None."""
    return wanted if wanted in spoken else next((codec for codec in CODECS if codec in spoken), None)


M = TypeVar("M", bound=Message)
_encoder = msgspec.json.Encoder()
_decoders: dict[type, msgspec.json.Decoder[Message]] = {}


def encode(message: Message) -> bytes:
    """Encode a message as JSON; raise LocalWireError when it is larger than JSON_BYTES_MAX."""
    data = _encoder.encode(message)
    if len(data) > JSON_BYTES_MAX:
        raise LocalWireError(f"{type(message).__name__} of {len(data)} B is over {JSON_BYTES_MAX} B")
    return data


def decode(kind: type[M], data: bytes) -> M:
    """Decode JSON into `kind`; raise RemoteWireError (`too_large`, `bad_message`) naming the field."""
    if len(data) > JSON_BYTES_MAX:
        raise RemoteWireError("too_large", f"{kind.__name__} of {len(data)} B is over {JSON_BYTES_MAX} B")
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        return decoder.decode(data)  # type: ignore[return-value]  # the table is keyed by the decoder's type
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteWireError("bad_message", f"{kind.__name__}: {error}") from error
