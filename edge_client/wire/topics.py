"""MQTT topics of the fleet: build, parse, and the partition of a device. Direction is in the tree.

`d/<device>/…` goes up, `c/<device>/…` down, `b/<cohort>/…` to a cohort, `s/<service>/…` is service state,
`i/…` is for integrators.
Two ACL lines per device are enough: write `d/<self>/#`, read `c/<self>/#` (docs/wire.md §1).
"""

import hashlib
import re
from dataclasses import dataclass

from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.limits import ID_LENGTH_MAX

ROOT = "fedfleet/1"
UP_FILTER = f"{ROOT}/d/#"
SERVICE_FILTER = f"{ROOT}/s/#"

_ID = re.compile(rf"[a-z0-9-]{{1,{ID_LENGTH_MAX}}}")
_EPOCH = re.compile(r"[0-9a-f]{16}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")


def check_id(value: str, what: str = "id") -> str:
    """Return `value` when it is a valid name; raise LocalWireError naming `what` otherwise."""
    if not _ID.fullmatch(value):
        raise LocalWireError(
            f"{what} {value!r} is not valid: use 1 to {ID_LENGTH_MAX} characters of a-z, 0-9 and '-'"
        )
    return value


def partition(device: str, count: int) -> int:
    """Partition of a device's log entries: the first 4 bytes of SHA-256 of the id, modulo `count`."""
    return int.from_bytes(hashlib.sha256(device.encode()).digest()[:4], "big") % count


@dataclass(frozen=True, slots=True, order=True)
class Uid:
    """The name of one thing a device produced (I12): `device:job:epoch:seq`.

    `epoch` is 16 hex digits made with the device's state database; `seq` is its persisted counter.
    """

    device: str
    job: str
    epoch: str
    seq: int

    def __str__(self) -> str:
        return f"{self.device}:{self.job}:{self.epoch}:{self.seq}"

    @property
    def tag(self) -> int:
        """What an update carries of its uid: the first 4 bytes of SHA-256, little-endian.

        It ties a frame to the one name it was made for, so a copy under another topic is refused.
        """
        return int.from_bytes(hashlib.sha256(str(self).encode()).digest()[:4], "little")

    @classmethod
    def parse(cls, text: str) -> "Uid":
        """Parse `device:job:epoch:seq`; raise RemoteWireError on anything else."""
        parts = text.split(":")
        if len(parts) != 4:
            raise RemoteWireError("bad_uid", f"uid {text!r} is not device:job:epoch:seq")
        return cls(
            _name(parts[0], "device"), _name(parts[1], "job"), _epoch(parts[2]), _number(parts[3], "seq")
        )


# -- up: from a device ------------------------------------------------------------------------------


def state(device: str) -> str:
    """Retained birth and last will of a device."""
    return f"{ROOT}/d/{device}/state"


def info(device: str) -> str:
    """Retained description of a device, published when it changes."""
    return f"{ROOT}/d/{device}/info"


def ask(device: str) -> str:
    """A willing device asks to train for an offered job."""
    return f"{ROOT}/d/{device}/ask"


def get(device: str) -> str:
    """A device asks for a window of chunks of a blob."""
    return f"{ROOT}/d/{device}/get"


def task(device: str, job: str) -> str:
    """What a device is doing for a job, for people and dashboards."""
    return f"{ROOT}/d/{device}/task/{job}"


def evaluation(uid: Uid) -> str:
    """A device's evaluation of a version on its own hold-out."""
    return f"{ROOT}/d/{uid.device}/eval/{uid.job}/{uid.epoch}/{uid.seq}"


def update(uid: Uid, index: int) -> str:
    """Chunk `index` of an update."""
    return f"{ROOT}/d/{uid.device}/up/{uid.job}/{uid.epoch}/{uid.seq}/{index}"


# -- down: to one device, a cohort, or from a service -------------------------------------------------


def command_filter(device: str) -> str:
    """Everything sent to one device."""
    return f"{ROOT}/c/{device}/#"


def assign(device: str, job: str) -> str:
    """The answer to an ask: train, and from which base."""
    return f"{ROOT}/c/{device}/assign/{job}"


def end(device: str, job: str) -> str:
    """The job is over for this device: its workspace goes."""
    return f"{ROOT}/c/{device}/end/{job}"


def receipt(device: str) -> str:
    """The verdict on an update or evaluation, sent after the log's commit."""
    return f"{ROOT}/c/{device}/receipt"


def blob(device: str, digest: str, index: int) -> str:
    """Chunk `index` of the blob with this SHA-256 (64 hex digits)."""
    return f"{ROOT}/c/{device}/blob/{digest}/{index}"


def offer(cohort: str, job: str) -> str:
    """Retained announcement of a job; an empty payload withdraws it."""
    return f"{ROOT}/b/{cohort}/offer/{job}"


def offer_filter(cohort: str) -> str:
    """All offers to a cohort."""
    return f"{ROOT}/b/{cohort}/offer/+"


def version(cohort: str, job: str) -> str:
    """Retained notice of a job's newest version, for integrators; an empty payload when the job is deleted."""
    return f"{ROOT}/b/{cohort}/version/{job}"


def delta(cohort: str, job: str, version: int, index: int) -> str:
    """Chunk `index` of the delta that leads to a job's new version, for devices that follow it."""
    return f"{ROOT}/b/{cohort}/delta/{job}/{version}/{index}"


def delta_filter(cohort: str, job: str) -> str:
    """All deltas of a job."""
    return f"{ROOT}/b/{cohort}/delta/{job}/#"


def service_state(service: str) -> str:
    """Retained birth and last will of a service."""
    return f"{ROOT}/s/{service}/state"


def fleet_state() -> str:
    """Retained counts of devices and jobs, for integrators."""
    return f"{ROOT}/i/fleet"


def job_state(job: str) -> str:
    """Retained state of a job, for integrators; an empty payload when the job is deleted."""
    return f"{ROOT}/i/job/{job}"


# -- parse ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StateTopic:
    """`d/<device>/state`."""

    device: str


@dataclass(frozen=True, slots=True)
class InfoTopic:
    """`d/<device>/info`."""

    device: str


@dataclass(frozen=True, slots=True)
class AskTopic:
    """`d/<device>/ask`."""

    device: str


@dataclass(frozen=True, slots=True)
class GetTopic:
    """`d/<device>/get`."""

    device: str


@dataclass(frozen=True, slots=True)
class TaskTopic:
    """`d/<device>/task/<job>`."""

    device: str
    job: str


@dataclass(frozen=True, slots=True)
class EvaluationTopic:
    """`d/<device>/eval/<job>/<epoch>/<seq>`."""

    uid: Uid


@dataclass(frozen=True, slots=True)
class UpdateTopic:
    """`d/<device>/up/<job>/<epoch>/<seq>/<index>`."""

    uid: Uid
    index: int


UpTopic = StateTopic | InfoTopic | AskTopic | GetTopic | TaskTopic | EvaluationTopic | UpdateTopic


@dataclass(frozen=True, slots=True)
class AssignTopic:
    """`c/<device>/assign/<job>`."""

    job: str


@dataclass(frozen=True, slots=True)
class EndTopic:
    """`c/<device>/end/<job>`."""

    job: str


@dataclass(frozen=True, slots=True)
class ReceiptTopic:
    """`c/<device>/receipt`."""


@dataclass(frozen=True, slots=True)
class BlobTopic:
    """`c/<device>/blob/<digest>/<index>`."""

    digest: str
    index: int


@dataclass(frozen=True, slots=True)
class OfferTopic:
    """`b/<cohort>/offer/<job>`."""

    cohort: str
    job: str


@dataclass(frozen=True, slots=True)
class DeltaTopic:
    """`b/<cohort>/delta/<job>/<version>/<index>`."""

    cohort: str
    job: str
    version: int
    index: int


@dataclass(frozen=True, slots=True)
class ServiceTopic:
    """`s/<service>/state`."""

    service: str


DownTopic = AssignTopic | EndTopic | ReceiptTopic | BlobTopic | OfferTopic | DeltaTopic | ServiceTopic


def parse_up(topic: str) -> UpTopic:
    """Parse a topic a device publishes to; raise RemoteWireError (`bad_topic`) when it is none of them."""
    match _split(topic):
        case ["d", device, "state"]:
            return StateTopic(_name(device, "device"))
        case ["d", device, "info"]:
            return InfoTopic(_name(device, "device"))
        case ["d", device, "ask"]:
            return AskTopic(_name(device, "device"))
        case ["d", device, "get"]:
            return GetTopic(_name(device, "device"))
        case ["d", device, "task", job]:
            return TaskTopic(_name(device, "device"), _name(job, "job"))
        case ["d", device, "eval", job, epoch, seq]:
            return EvaluationTopic(_uid(device, job, epoch, seq))
        case ["d", device, "up", job, epoch, seq, index]:
            return UpdateTopic(_uid(device, job, epoch, seq), _number(index, "chunk index"))
    raise RemoteWireError("bad_topic", f"no device publishes to {topic!r}")


def parse_down(topic: str) -> DownTopic:
    """Parse a topic a device subscribes to; raise RemoteWireError (`bad_topic`) when it is none of them."""
    match _split(topic):
        case ["c", _, "assign", job]:
            return AssignTopic(_name(job, "job"))
        case ["c", _, "end", job]:
            return EndTopic(_name(job, "job"))
        case ["c", _, "receipt"]:
            return ReceiptTopic()
        case ["c", _, "blob", digest, index]:
            if not _DIGEST.fullmatch(digest):
                raise RemoteWireError("bad_topic", f"{digest!r} is not a SHA-256 in hex")
            return BlobTopic(digest, _number(index, "chunk index"))
        case ["b", cohort, "offer", job]:
            return OfferTopic(_name(cohort, "cohort"), _name(job, "job"))
        case ["b", cohort, "delta", job, version, index]:
            number = _number(version, "version")
            return DeltaTopic(
                _name(cohort, "cohort"), _name(job, "job"), number, _number(index, "chunk index")
            )
        case ["s", service, "state"]:
            return ServiceTopic(_name(service, "service"))
    raise RemoteWireError("bad_topic", f"no device reads {topic!r}")


def _split(topic: str) -> list[str]:
    if not topic.startswith(f"{ROOT}/"):
        raise RemoteWireError("bad_topic", f"topic {topic!r} is not under {ROOT}/")
    return topic[len(ROOT) + 1 :].split("/")


def _name(value: str, what: str) -> str:
    if not _ID.fullmatch(value):
        raise RemoteWireError("bad_topic", f"{what} {value!r} in a topic is not a valid name")
    return value


def _epoch(value: str) -> str:
    if not _EPOCH.fullmatch(value):
        raise RemoteWireError("bad_topic", f"epoch {value!r} is not 16 hex digits")
    return value


def _number(value: str, what: str) -> int:
    if not _NUMBER.fullmatch(value):
        raise RemoteWireError("bad_topic", f"{what} {value!r} is not a decimal number")
    number = int(value)
    if number >= 2**32:
        raise RemoteWireError("bad_topic", f"{what} {number} does not fit 32 bits")
    return number


def _uid(device: str, job: str, epoch: str, seq: str) -> Uid:
    return Uid(_name(device, "device"), _name(job, "job"), _epoch(epoch), _number(seq, "seq"))
