"""The built dashboard, in memory: a few files, each with its type, its ETag and its gzip form."""

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

BUILT = Path(__file__).with_name("built")
SOURCE = Path(__file__).with_name("source")
PAGE = "index.html"
STAMP = "build.json"  # which sources it was built from
# What makes a build: everything but what npm installs. The same list is in source/vite.config.ts.
SOURCES = ("index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "src/**/*")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# No inline script or style, nothing from elsewhere, no plug-ins, no frames, no forms that leave; and no string becomes
# markup or code: what devices say is shown as text, and a mistake there is an error instead of a hole.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


@dataclass(frozen=True)
class File:
    """One file as it is answered; one with a hash in its name never changes."""

    data: bytes
    zipped: bytes
    media_type: str
    etag: str
    lasting: bool


def load(directory: Path = BUILT) -> dict[str, File]:
    """All files that are served, by path below `/`; empty when there is no build (a checkout in which it failed)."""
    return {
        str(path.relative_to(directory)): _file(path, lasting=path.parent != directory)
        for path in sorted(directory.rglob("*"))
        if path.suffix in TYPES
    }


def digest_of_sources(source: Path = SOURCE) -> str:
    """SHA-256 over names and contents of the sources, as the build computes it."""
    paths = {path for pattern in SOURCES for path in source.glob(pattern) if path.is_file()}
    whole = hashlib.sha256()
    for name, path in sorted((path.relative_to(source).as_posix(), path) for path in paths):
        whole.update(f"{name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def built_from(directory: Path = BUILT) -> str:
    """The digest of the sources that the build was made of."""
    stamp: dict[str, str] = json.loads((directory / STAMP).read_text())
    return stamp["sources"]


def _file(path: Path, *, lasting: bool) -> File:
    data = path.read_bytes()
    etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    return File(data, gzip.compress(data, 9, mtime=0), TYPES[path.suffix], etag, lasting)
