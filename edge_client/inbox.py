"""What a message to the device means: topic and payload to one event, or a RemoteWireError. Pure."""

from edge_client import events as ev
from edge_client.wire import chunks, frame, topics
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.messages import Assignment, JobEnd, Offer, Receipt, ServiceState, decode

BRIDGE = "bridge"  # services whose name begins so take updates


def read(topic: str, payload: bytes) -> ev.Event | None:
    """The event a control message stands for; None when it is for somebody else."""
    match topics.parse_down(topic):
        case topics.AssignTopic(job):
            assignment = decode(Assignment, payload)
            _same(assignment.job, job)
            return ev.Assigned(assignment)
        case topics.EndTopic(job):
            end = decode(JobEnd, payload)
            _same(end.job, job)
            return ev.JobEnded(end)
        case topics.ReceiptTopic():
            receipt = decode(Receipt, payload)
            topics.Uid.parse(receipt.uid)
            return ev.ReceiptSeen(receipt)
        case topics.OfferTopic(_, job):
            if not payload:  # a cleared retained message: only its owner can send it, a lost link cannot
                return ev.OfferWithdrawn(job)
            offer = decode(Offer, payload)
            _same(offer.job, job)
            return ev.OfferSeen(offer)
        case topics.ServiceTopic(service) if service.startswith(BRIDGE) and payload:
            state = decode(ServiceState, payload)
            return ev.BridgeState(service, state.state == "up", state.conn_seq)
    return None


def chunk(topic: topics.BlobTopic, payload: bytes) -> bytes | None:
    """The bytes of a blob's chunk; None when the server has no such blob. Raises RemoteWireError."""
    if not payload:
        return None
    kind, _, body = frame.decode(payload)
    if kind is not frame.Kind.CHUNK:
        raise RemoteWireError("bad_frame", f"a {kind.name} frame where a CHUNK was expected")
    part = chunks.decode(body)
    if part.index != topic.index or part.digest.hex() != topic.digest[:16]:
        raise RemoteWireError("bad_chunk", f"chunk {part.index} of another blob on {topic}")
    return part.data


def _same(said: str, topic: str) -> None:
    if said != topic:
        raise RemoteWireError("bad_message", f"job {said!r} in a message to job {topic!r}")
