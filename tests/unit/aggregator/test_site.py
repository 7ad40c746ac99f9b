"""The dashboard's files: built from the sources that are here, small, and served so that nothing foreign runs."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from aggregator.dashboard import site
from aggregator.tokens import Tokens

BYTES_MAX = 150_000  # gzipped, in all
ROOT = Path(__file__).parents[3]
LINES_MAX = 250


def test_what_is_built_is_of_these_sources():
    """A change of the dashboard's source that was not built is caught here: run `make dashboard`."""
    assert site.built_from() == site.digest_of_sources()


def test_a_change_of_any_source_changes_the_digest(tmp_path):
    """Names and contents count, and what npm installs does not."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.ts").write_text("1")
    first = site.digest_of_sources(tmp_path)
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "x.js").write_text("2")
    assert site.digest_of_sources(tmp_path) == first
    (tmp_path / "src" / "a.ts").rename(tmp_path / "src" / "b.ts")
    assert site.digest_of_sources(tmp_path) != first


def test_the_whole_dashboard_is_small():
    """Page, script, style and icon together stay below 150 kB gzipped."""
    files = site.load()
    total = sum(len(file.zipped) for file in files.values())

    assert {Path(name).suffix for name in files} == {".html", ".js", ".css", ".svg"}
    assert 20_000 < total < BYTES_MAX


def test_the_page_names_nothing_that_is_not_its_own():
    """No script or style is inline, and no address leads elsewhere."""
    page = site.load()[site.PAGE].data.decode()

    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=", page) == []
    assert [a for a in re.findall(r'(?:src|href)="([^"]*)"', page) if not a.startswith("/assets/")] == []


def test_no_source_writes_markup():
    """What devices say reaches the page as text alone."""
    sources = [*(site.SOURCE / "src").rglob("*.ts"), *(site.SOURCE / "src").rglob("*.tsx")]
    banned = ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(")

    assert len(sources) > 30
    assert [(p.name, word) for p in sources for word in banned if word in p.read_text()] == []
    assert [p.name for p in sources if len(p.read_text().splitlines()) > LINES_MAX] == []


def test_the_lock_of_its_packages_names_no_registry():
    """Whoever builds it uses the registry of their own configuration; a digest says that packages are the same."""
    lock = (site.SOURCE / "package-lock.json").read_text()

    assert '"resolved"' not in lock
    assert lock.count('"integrity"') >= 10


def test_files_are_served_with_a_strict_policy_and_kept_by_their_hash(drive):
    """The page is asked for each time, assets are kept for ever, and nobody needs a token for either."""

    async def body(made):
        await made.step()
        await Tokens(made.ports.heads).create("ada", "admin", lifetime_s=None, now=made.clock())
        async with made.api() as api:
            api.base_url = "http://127.0.0.1"
            page = await api.get("/")
            assert page.status_code == 200
            assert page.headers["Content-Security-Policy"] == site.POLICY
            assert "unsafe" not in site.POLICY
            assert page.headers["Cache-Control"] == "no-cache"
            assert page.headers["X-Content-Type-Options"] == "nosniff"
            assert (await api.get("/", headers={"If-None-Match": page.headers["ETag"]})).status_code == 304
            for address in re.findall(r'(?:src|href)="(/assets/[^"]*)"', page.text):
                asset = await api.get(address)
                assert asset.status_code == 200
                assert asset.headers["Cache-Control"] == "public, max-age=31536000, immutable"
                assert asset.headers["Content-Encoding"] == "gzip"
                plain = await api.get(address, headers={"Accept-Encoding": "identity"})
                assert plain.content == asset.content
                assert "Content-Encoding" not in plain.headers
            assert (await api.get("/assets/none.js")).status_code == 404
            assert (await api.get("/assets/..%2Fbuild.json")).status_code == 404
            assert (await api.get("/api/v1/jobs")).status_code == 401
            for method, address in (("POST", "/assets/x/"), ("DELETE", "/assets/x/"), ("POST", "/")):
                assert (await api.request(method, address)).status_code == 401
            lying = {"Host": "x/assets/"}  # a URL of this name is one of the dashboard's, the path is not
            assert (await api.get("/api/v1/jobs", headers=lying)).status_code in (400, 401)
            assert (await api.get("/api/v1/health")).headers["Cache-Control"] == "no-store"

    drive(body)


@pytest.mark.timeout(120)
def test_the_wheel_has_what_is_built_and_not_the_sources(tmp_path):
    """A user needs neither node nor the TypeScript."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = [n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("aggregator/dashboard/")]

    built = {f"aggregator/dashboard/built/{name}" for name in (*site.load(), site.STAMP)}
    assert set(names) == built | {"aggregator/dashboard/__init__.py", "aggregator/dashboard/site.py"}
