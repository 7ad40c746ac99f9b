"""Takes the screenshots of docs/screens/: `python -m tests.browser.screens [directory]`, some two minutes.

A local fleet learns from the demo's recordings meanwhile, so the screens show what people will see.
"""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page

from tests.browser import chromium
from tests.browser.scene import scene, wait_for_version

WIDE = {"width": 1280, "height": 800}
SHORT = {"width": 1280, "height": 600}  # of long tables, whose letters take many bytes
NARROW = {"width": 400, "height": 800}
VERSIONS = 60
BYTES_MAX = 150_000
SHOTS = (  # name, address, size, theme
    ("overview", "#/overview", WIDE, "light"),
    ("overview-dark", "#/overview", WIDE, "dark"),
    ("overview-400", "#/overview", NARROW, "light"),
    ("devices", "#/devices", WIDE, "light"),
    ("devices-400", "#/devices", NARROW, "dark"),
    ("device", "#/devices/gym-rowing", WIDE, "light"),
    ("device-dark", "#/devices/{device}", WIDE, "dark"),
    ("job", "#/jobs/exercise", WIDE, "light"),
    ("job-dark", "#/jobs/exercise", WIDE, "dark"),
    ("job-400", "#/jobs/exercise", NARROW, "light"),
    ("jobs", "#/jobs", SHORT, "light"),
    ("new-job", "#/new-job", WIDE, "light"),
    ("versions", "#/jobs/exercise/versions", SHORT, "light"),
    ("updates", "#/updates", SHORT, "light"),
    ("updates-dark", "#/updates", SHORT, "dark"),
    ("events-dark", "#/events", SHORT, "dark"),
    ("audit", "#/audit", SHORT, "light"),
)


def main(directory: Path) -> None:
    """Take all of them."""
    path = chromium.find()
    if path is None:
        sys.exit("chromium is not installed; install it with: sudo apt-get install chromium")
    directory.mkdir(parents=True, exist_ok=True)
    with scene() as (fleet, job), chromium.browser(path) as browser:
        wait_for_version(job, VERSIONS)
        job.promote(VERSIONS - 15)
        for name, address, size, theme in SHOTS:
            shoot(
                browser,
                fleet.url + "/" + address.format(device=job.participation()["devices"][0]["device"]),
                size,
                theme,
                directory / f"{name}.png",
            )


def shoot(browser: Browser, address: str, size: dict[str, int], theme: str, path: Path) -> None:
    """One screen, once everything on it is there."""
    page = browser.new_page(viewport=size, color_scheme=theme, reduced_motion="reduce")
    page.goto(address)
    settle(page)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.save(path, optimize=True)  # with a palette the few red and amber pixels would lose their colour
    page.close()
    assert path.stat().st_size < BYTES_MAX, f"{path} is over {BYTES_MAX} B"


def settle(page: Page) -> None:
    """Wait until nothing is being loaded."""
    page.locator("h1").wait_for()
    page.locator(".skeleton").wait_for(state="detached")
    page.locator(".waiting-row").first.wait_for(state="detached")
    page.locator(".live.live").wait_for()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/screens"))
