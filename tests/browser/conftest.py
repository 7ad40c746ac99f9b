"""A real browser, and pages that fail their test when they complain."""

import os

import pytest
from playwright.sync_api import expect

from tests.browser import chromium

try:
    from axe_playwright_python.sync_playwright import Axe
except ImportError:  # the browser's tests are skipped without it, with the reason
    Axe = None

WIDE = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def browser():
    """One browser for a module: its loop runs on this thread, so it ends before other modules begin."""
    path = chromium.find()
    if path is None or Axe is None:
        reason = (
            "chromium is not installed (apt-get install chromium)"
            if Axe
            else "axe-playwright-python is not installed"
        )
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, and CI has to run the browser's tests")
        pytest.skip(reason)
    with chromium.browser(path) as started:
        yield started


class Complaints(list):
    """What the browser's console said at levels of error and warning, and exceptions that nobody caught."""

    def watch(self, page):
        """Listen to a page."""
        page.on("console", lambda said: said.type in ("error", "warning") and self.append(said.text))
        page.on("pageerror", lambda error: self.append(str(error)))

    def __init__(self):
        super().__init__()
        self._expected = []

    def expect(self, *parts):
        """Texts with one of these are what the test provokes."""
        self._expected += parts

    def left(self):
        """What the test has not provoked."""
        return [text for text in self if not any(part in text for part in self._expected)]


@pytest.fixture
def complaints():
    return Complaints()


@pytest.fixture
def page(browser, complaints):
    """A page of a fresh profile; violations of the policy, failed requests and exceptions fail the test."""
    context = browser.new_context(viewport=WIDE, reduced_motion="reduce", accept_downloads=True)
    context.set_default_timeout(15_000)
    page = context.new_page()
    complaints.watch(page)
    yield page
    context.close()
    assert complaints.left() == []


@pytest.fixture(scope="session")
def barriers():
    """The function that names what keeps people out of a page: rules of WCAG 2.1 AA that it breaks, and where."""

    def found(page):
        result = Axe().run(
            page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
        )
        return [
            f"{broken['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
            for broken in result.response["violations"]
            for node in broken["nodes"]
        ]

    return found


@pytest.fixture
def at(page, stage):
    """Go to a screen of the module's `stage` and wait until it is there."""

    def go(address):
        page.goto(f"{stage.address}/{address}")
        expect(page.locator("h1")).to_be_visible()
        expect(page.locator(".skeleton")).to_have_count(0)
        expect(page.get_by_text("Live", exact=True)).to_be_visible()
        return page

    return go
