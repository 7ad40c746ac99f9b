"""Bundles and test sets that people upload: blobs, listed by the heads `bundle/<digest>`."""

import asyncio
import contextlib
import hashlib
import re
import time
from pathlib import Path

import msgspec
import structlog

from aggregator import testset
from aggregator.errors import NotFoundError, RefusedError
from aggregator.heads import decode_head
from aggregator.testset import TestSet
from broker_bridge.ports import Conflict, CorruptBlob, Digest, MissingBlob, Ports
from broker_bridge.ports.files import storage_error
from edge_client.bundle import PARAMS, Bundle, BundleError, open_bundle
from edge_client.wire import grid
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.messages import BlobRef
from firmware_tools.errors import ToolError
from firmware_tools.inspect import inspect

BUNDLE_PREFIX = "bundle/"
_DIGEST = re.compile("[0-9a-f]{64}")

log = structlog.get_logger()


class BundleRecord(msgspec.Struct, frozen=True):
    """A stored bundle as people see it in a list; the head `bundle/<digest>`."""

    digest: str
    size: int
    name: str
    loss: str
    parameters: int
    uploaded_at: float


class BundleShelf:
    """Bundles as blobs, opened through a directory of verified copies."""

    def __init__(self, ports: Ports, cache: Path) -> None:
        self._ports = ports
        self._cache = cache

    async def add(self, data: bytes) -> tuple[Bundle, str]:
        """Check and store a bundle, return it and its digest; raise RefusedError (`bad_bundle`)."""
        path = self._copy_of(hashlib.sha256(data).hexdigest())
        _copy(path, data)
        try:
            await asyncio.to_thread(
                inspect, path
            )  # every member and graph: devices would fail on it one by one
            bundle = open_bundle(path)
            grid.decode(bundle.member(PARAMS), bundle.manifest.sizes)
        except (BundleError, ToolError, RemoteWireError) as error:
            path.unlink(missing_ok=True)  # the same bytes may be refused twice at the same time
            raise RefusedError("bad_bundle", str(error).replace(f"{path}: ", "")) from error
        digest = await self._ports.blobs.put(data)
        if (await self._ports.heads.load(f"{BUNDLE_PREFIX}{digest}"))[0]:
            return bundle, digest
        manifest = bundle.manifest
        entry = BundleRecord(
            digest, len(data), manifest.name, manifest.loss, manifest.parameters, round(time.time(), 3)
        )
        with contextlib.suppress(Conflict):  # somebody else stored it meanwhile
            await self._ports.heads.swing(f"{BUNDLE_PREFIX}{digest}", 0, msgspec.json.encode(entry))
        return bundle, digest

    async def list(self) -> list[BundleRecord]:
        """All stored bundles, by digest."""
        changes = await self._ports.heads.list(BUNDLE_PREFIX)
        return [decode_head(c.key, c.value, BundleRecord) for c in changes if c.value is not None]

    async def delete(self, digest: str) -> None:
        """Remove a bundle that no job uses, which the caller knows; raise NotFoundError."""
        key = f"{BUNDLE_PREFIX}{digest}"
        revision, _ = await self._ports.heads.load(key)
        if revision == 0:
            raise NotFoundError(f"there is no bundle {digest[:80]!r}")
        await self._ports.heads.drop(key, revision)
        await self._ports.blobs.delete(Digest(digest))
        self._copy_of(digest).unlink(missing_ok=True)

    async def open(self, digest: str) -> tuple[Bundle, BlobRef]:
        """Open a stored bundle; raise NotFoundError."""
        try:
            data = await self._ports.blobs.get(Digest(digest))
        except (MissingBlob, CorruptBlob) as error:
            copy = await self._again(digest)
            if copy is None:
                raise NotFoundError(f"there is no bundle {digest[:80]!r}; upload it first") from error
            log.error("bundle.damaged", error=str(error), mended=True)  # noqa: TRY400 - the message says what
            data = copy
        path = self._copy_of(digest)  # something has this digest, so it is one and names no other file
        _copy(path, data)
        try:
            return open_bundle(path), BlobRef(digest, len(data))
        except BundleError as error:
            path.unlink()
            raise NotFoundError(f"{digest[:12]} is stored, but is not a bundle") from error

    async def _again(self, digest: str) -> bytes | None:
        """Store a bundle again of which there is a sound copy, and return it."""
        if _DIGEST.fullmatch(digest) is None:
            return None
        try:
            data = self._copy_of(digest).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != digest:
            return None
        await self._ports.blobs.put(data)
        return data

    def _copy_of(self, digest: str) -> Path:
        return self._cache / f"{digest}.bundle"

    async def add_testset(self, data: bytes) -> str:
        """Check and store a test set, return its digest; raise RefusedError (`bad_testset`)."""
        await asyncio.to_thread(testset.read, data)
        return await self._ports.blobs.put(data)

    async def testset(self, digest: str) -> TestSet:
        """A stored test set; raise NotFoundError, or RefusedError (`bad_testset`) when it is something else."""
        try:
            data = await self._ports.blobs.get(Digest(digest))
        except (MissingBlob, CorruptBlob) as error:
            raise NotFoundError(f"there is no test set {digest[:80]!r}; upload it first") from error
        return await asyncio.to_thread(testset.read, data)


def _copy(path: Path, data: bytes) -> None:
    """Have a copy of a blob in the cache; raise StorageError. It is compared at each use, so it is not synced."""
    temporary = path.with_suffix(".part")
    try:
        if path.exists() and path.read_bytes() == data:
            return
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error
