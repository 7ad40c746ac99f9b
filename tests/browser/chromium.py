"""Debian's chromium, driven by playwright."""

import contextlib
import os
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, sync_playwright

PATHS = ("chromium", "chromium-browser", "google-chrome")


def find() -> str | None:
    """The browser of this machine, None without one."""
    return next((path for name in PATHS if (path := shutil.which(name)) is not None), None)


@contextlib.contextmanager
def browser(path: str) -> Iterator[Browser]:
    """A browser without a window; as root chromium wants no sandbox."""
    options = ["--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb"]
    with sync_playwright() as play:
        started = play.chromium.launch(
            executable_path=path, args=[*options, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        )
        try:
            yield started
        finally:
            started.close()
