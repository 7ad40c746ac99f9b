"""Looks for damage in a server's state directory: database, blobs, heads, versions and log; changes nothing."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path

import msgspec

from aggregator import snapshot
from aggregator.deadletters import PREFIX as DEAD_PREFIX
from aggregator.deadletters import DeadLetter
from aggregator.errors import CorruptStateError
from aggregator.heads import decode_head
from aggregator.jobstore import SPEC_PREFIX, JobRecord
from aggregator.memo import MEMO_KEY, Memo
from aggregator.versions import blobs_of, load_manifest
from broker_bridge import cells, deadletters
from broker_bridge.ports import CorruptBlob, Digest, Kind, MissingBlob, audit
from broker_bridge.records import EvaluationRecord, EventRecord, RejectionRecord, UpdateRecord
from edge_client.finding import Finding, NothingThereError, room
from edge_client.wire import frame
from edge_client.wire.errors import RemoteWireError

RECORDS = {
    Kind.UPDATE: UpdateRecord,
    Kind.EVALUATION: EvaluationRecord,
    Kind.EVENT: EventRecord,
    Kind.REJECTION: RejectionRecord,
}
LOG_SHOWN = 20  # damaged entries named; they come in runs
_MEMO = msgspec.msgpack.Decoder(Memo).decode
_CHAIN = "the manifests are read instead"


def examine(state_dir: Path) -> list[Finding]:
    """All that was looked at, problems and sound parts alike; raise NothingThereError where no server has run."""
    database = state_dir / audit.DATABASE
    if not database.exists():
        missing = f"there is no {database.name}" if state_dir.is_dir() else "there is no such directory"
        raise NothingThereError(
            f"{state_dir}: no server has run here: {missing}; give the --state-dir of fedfleet up"
        )
    first = asyncio.run(_stored(state_dir, database))
    problems = {finding.what for finding in first if not finding.ok}
    if problems:  # a running server may have replaced something between two looks: damage is there in both
        again = asyncio.run(_stored(state_dir, database))
        first = [finding for finding in again if finding.ok or finding.what in problems]
    return [room(state_dir), *first]


async def _stored(state_dir: Path, database: Path) -> list[Finding]:
    blobs = audit.StoredBlobs(state_dir / "blobs")
    findings = [finding async for finding in _blobs(blobs)]
    heads: dict[str, bytes] = {}
    try:
        with audit.reading(database) as connection:
            problems = audit.problems(connection)
            detail = "; ".join(problems) or "sound"
            findings.append(Finding("database fleet.db", ok=not problems, detail=detail))
            if not problems:
                heads = audit.heads(connection)
                findings += [finding async for finding in _heads(heads, blobs)]
                findings += _log(connection)
    except sqlite3.Error as error:
        findings.append(Finding("database fleet.db", ok=False, detail=f"cannot be read: {error}"))
    missed = " ".join(finding.detail for finding in findings if not finding.ok)
    return [*findings, *[finding async for finding in _aside(blobs, heads, missed)]]


async def _blobs(blobs: audit.StoredBlobs) -> AsyncIterator[Finding]:
    count = 0
    async for digest in blobs.list():
        count += 1
        try:
            await blobs.get(digest)
        except MissingBlob:  # deleted since it was listed
            continue
        except CorruptBlob as error:
            yield Finding(f"blob {digest[:12]}", ok=False, detail=str(error))
    yield Finding("blobs", ok=True, detail=f"{count} looked at")


async def _aside(blobs: audit.StoredBlobs, heads: dict[str, bytes], missed: str) -> AsyncIterator[Finding]:
    """Copies that were put aside; a problem only while a head names the blob, or a problem of `missed` does."""
    for path in blobs.put_aside():
        ok = True
        try:
            await blobs.get(Digest(path.name))
            now = "is sound again"
        except (MissingBlob, CorruptBlob):
            ok = path.name not in missed and not any(path.name.encode() in value for value in heads.values())
            now = "is not needed any more" if ok else "is missing since"
        detail = f"was damaged and {now}; {path} is the damaged copy, only kept for a look: it may be deleted"
        yield Finding(f"blob {path.name[:12]}", ok=ok, detail=detail)


async def _heads(heads: dict[str, bytes], blobs: audit.StoredBlobs) -> AsyncIterator[Finding]:
    names = [key.removeprefix(SPEC_PREFIX) for key in heads if key.startswith(SPEC_PREFIX)]
    for name in names:
        try:
            yield Finding(f"job {name}", ok=True, detail=await _job(name, heads, blobs))
        except CorruptStateError as error:
            yield Finding(f"job {name}", ok=False, detail=str(error))
    for key in [key for key in heads if key.startswith(DEAD_PREFIX)]:
        letter = decode_head(key, heads[key], DeadLetter)
        yield Finding(
            f"dead letter {letter.uid}", ok=False, detail=f"{letter.reason}; its body is blob {letter.body}"
        )
    for key in [key for key in heads if key.startswith(deadletters.PREFIX)]:
        message = decode_head(key, heads[key], deadletters.DeadMessage)
        detail = (
            f"the bridge failed on it: {message.reason}; {message.size} B, the first of them in head {key}"
        )
        yield Finding(f"dead message {message.topic}", ok=False, detail=detail)
    if MEMO_KEY in heads:
        yield await _found("memo", _memo(heads[MEMO_KEY], blobs), "the log is read again instead")
    for name in names:
        if snapshot.PREFIX + name in heads:
            yield await _found(f"history of {name}", _history(heads[snapshot.PREFIX + name], blobs), _CHAIN)


async def _found(what: str, look: Awaitable[int], remedy: str) -> Finding:
    """The finding of a look that gives bytes, or raises when what it looks at is damaged."""
    try:
        return Finding(what, ok=True, detail=f"{await look:,} B")
    except (MissingBlob, CorruptBlob, msgspec.DecodeError) as error:
        return Finding(what, ok=False, detail=f"{error}; {remedy}")


async def _memo(value: bytes, blobs: audit.StoredBlobs) -> int:
    data = await blobs.get(Digest(value.decode(errors="replace")))
    _MEMO(data)
    return len(data)


async def _history(value: bytes, blobs: audit.StoredBlobs) -> int:
    data = await blobs.get(Digest(value.decode(errors="replace")))
    size = len(data)
    for segment in snapshot.decode(data).segments:
        part = await blobs.get(Digest(segment.digest))
        snapshot.decode_segment(part)
        size += len(part)
    return size


async def _job(name: str, heads: dict[str, bytes], blobs: audit.StoredBlobs) -> str:
    """What a sound job is; raise CorruptStateError naming what is damaged."""
    record = decode_head(SPEC_PREFIX + name, heads[SPEC_PREFIX + name], JobRecord)
    if record.state == "deleted":
        return "deleted; its name stays taken"
    await _need(
        blobs, record.bundle.digest, "its bundle", "; upload the same again, then start the server again"
    )
    key = cells.version_key(name)
    if key not in heads:
        return f"{record.state}, without a version yet"
    cell = decode_head(key, heads[key], cells.VersionCell)
    newest = manifest = await load_manifest(blobs, cell.manifest)
    if newest.version != cell.version:
        raise CorruptStateError(f"head {key} says version {cell.version}, its manifest {newest.version}")
    cached: dict[str, str] = {}
    while True:
        if manifest.version == record.promoted:
            await _need(
                blobs, manifest.keyframe.digest, f"the model of its promoted version {record.promoted}"
            )
        cached = {device: entry.frame.digest for device, entry in manifest.cached.items()} | cached
        if not manifest.parent:
            break
        before = await load_manifest(blobs, manifest.parent)
        if before.version != manifest.version - 1:
            raise CorruptStateError(f"version {manifest.version} follows version {before.version}")
        manifest = before
    own = (newest.slots, newest.cache_sums)
    for ref in [*blobs_of(newest), *(ref for ref in own if ref is not None)]:
        await _need(blobs, ref.digest, f"a blob of its newest version {newest.version}")
    for device, digest in cached.items():
        await _need(blobs, digest, f"the cached update of {device}")
    lost = f"; before: {record.damage}" if record.damage else ""
    return f"{record.state}, versions 0 to {newest.version} in one chain{lost}"


async def _need(blobs: audit.StoredBlobs, digest: str, what: str, remedy: str = "") -> None:
    try:
        await blobs.get(Digest(digest))
    except (MissingBlob, CorruptBlob) as error:
        raise CorruptStateError(f"{what}: {error}{remedy}") from error


def _log(connection: sqlite3.Connection) -> Iterator[Finding]:
    sound = damaged = 0
    for uid, kind, body in audit.entries(connection):
        try:
            decoded = msgspec.msgpack.decode(body, type=RECORDS[Kind(kind)])
            if isinstance(decoded, UpdateRecord):
                frame.decode(decoded.frame)
            sound += 1
        except (msgspec.DecodeError, RemoteWireError, ValueError) as error:
            damaged += 1
            if damaged <= LOG_SHOWN:
                yield Finding(f"log entry {uid}", ok=False, detail=str(error))
    yield Finding("log", ok=not damaged, detail=f"{sound} sound entries, {damaged} damaged")
