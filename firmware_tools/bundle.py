"""Writes training bundles: the same content always gives the same bytes (docs/bundle.md)."""

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edge_client.bundle import MANIFEST, MEMBERS, FileSpec, Manifest
from edge_client.wire.limits import FRAME_BYTES_MAX
from firmware_tools.errors import OptionError

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can state; a real one would change the digest
_UNIX_FILE = 0o100644 << 16


def describe(members: Mapping[str, bytes]) -> dict[str, FileSpec]:
    """The manifest's file table for these members."""
    return {name: FileSpec(hashlib.sha256(members[name]).hexdigest(), len(members[name])) for name in MEMBERS}


def pack(manifest: Manifest, members: Mapping[str, bytes]) -> bytes:
    """Bytes of a bundle; raise OptionError when it is larger than one blob may be."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in (MANIFEST, *MEMBERS):
            data = members[name] if name in members else msgspec.json.format(msgspec.json.encode(manifest))
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix, on every platform
            entry.external_attr = _UNIX_FILE
            archive.writestr(entry, data)
    if buffer.tell() > FRAME_BYTES_MAX:
        raise OptionError(f"the bundle has {buffer.tell()} B; {FRAME_BYTES_MAX} B can be published")
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    """Replace `path` atomically; raise OptionError. What fails, as on a full disk, leaves nothing behind."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    if not path.parent.is_dir():
        raise OptionError(f"{path} cannot be written: there is no directory {path.parent}; make it first")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
