"""How soon the dashboard's Overview is there, what it weighs, and how its table scrolls.

    python bench/dashboard.py [--devices 10000] [--versions 400] [--loads 9]

A real aggregator over SQLite with so many devices and versions, and Debian's chromium on the same machine. Each load is
of a fresh profile, so nothing is cached. A page is interactive when the figures and the curve are drawn and a link of
the navigation takes a click; times count from the navigation's begin (`performance.timeOrigin`). The baseline is the
page of the same browser and server that shows a plain JSON answer. They hold for the load of the machine they ran on.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser

from aggregator.dashboard import site
from tests.browser import chromium
from tests.browser.stage import Stage

BOUND_MS, BOUND_BYTES = 1000, 150_000
# Notes when figures and curve are in the page; the next frame shows them.
WATCH = """
new MutationObserver((_, observer) => {
  if (document.querySelector(".figures b") && document.querySelector(".chart canvas")) {
    observer.disconnect();
    requestAnimationFrame(() => setTimeout(() => { document.documentElement.dataset.shownAt = performance.now(); }));
  }
}).observe(document, { childList: true, subtree: true });
"""
FRAMES_COUNT = 120
FRAMES = """
(element, count) => new Promise((resolve) => {
  const times = [];
  const step = (now) => {
    times.push(now);
    element.scrollTop += 400;
    if (times.length < count) requestAnimationFrame(step);
    else resolve(times);
  };
  requestAnimationFrame(step);
})
"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
SENT = "performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))"


def fill(stage: Stage, devices: int, versions: int) -> None:
    """Devices that were born, every third of which declines, and versions that some evaluated."""
    names = [f"dev-{n:05d}" for n in range(devices)]
    stage.job(buffer_size=1)
    stage.tell(*stage.births(*names), *(stage.task(n, "declined", "on battery") for n in names[::3]))
    for number in range(versions):
        stage.tell(
            stage.evaluation(names[number % devices], number, 0.9 - 0.5 / (1 + number / 20)),
            stage.evaluation(names[(number + 7) % devices], number, 0.85 - 0.5 / (1 + number / 20)),
            stage.update(names[number % devices], base=number),
        )
        stage.wait("/jobs/exercise", lambda job, n=number: job["version"] > n, "the version is made")


def load(browser: Browser, address: str) -> tuple[float, float, int]:
    """Milliseconds to the first paint and until it is interactive, and bytes over the wire."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.add_init_script(WATCH)
    page.goto(f"{address}/#/overview")
    page.locator("html[data-shown-at]").wait_for()
    shown, painted = float(page.evaluate("document.documentElement.dataset.shownAt")), page.evaluate(PAINT)
    page.get_by_role("navigation").get_by_role("link", name="Jobs").click(timeout=1000)
    page.get_by_role("heading", name="Jobs", level=1).wait_for()
    sent = page.evaluate(
        f"{SENT}.filter((e) => !e.name.includes('/api/')).reduce((n, e) => n + e.transferSize, 0)"
    )
    context.close()
    return painted, shown, sent


def scroll(browser: Browser, address: str) -> tuple[float, float, float]:
    """Median and 95th percentile of the time between frames while the table of devices scrolls, and a search, in ms."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(f"{address}/#/devices")
    page.get_by_role("link", name="dev-00000").wait_for()
    frames: list[float] = page.locator(".virtual").evaluate(FRAMES, FRAMES_COUNT)
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(frames))
    began = time.perf_counter()
    page.get_by_label("Search devices").fill("dev-0427")
    page.get_by_text("10 devices found").wait_for()
    searched = 1000 * (time.perf_counter() - began)
    context.close()
    return statistics.median(gaps), gaps[int(0.95 * len(gaps))], searched


def plain(browser: Browser, address: str) -> float:
    """Milliseconds until the same browser shows a JSON answer of the same server."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{address}/api/v1/health")
    took: float = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    context.close()
    return took


def main() -> None:
    """Fill, load, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=400)
    parser.add_argument("--loads", type=int, default=9)
    options = parser.parse_args()
    path = chromium.find()
    if path is None:
        sys.exit("chromium is not installed; install it with: sudo apt-get install chromium")
    with tempfile.TemporaryDirectory() as directory, chromium.browser(path) as browser:
        stage = Stage(Path(directory) / "state")
        stage.open()
        try:
            fill(stage, options.devices, options.versions)
            load(browser, stage.address)  # the first one starts the browser's processes
            base = statistics.median(plain(browser, stage.address) for _ in range(options.loads))
            median, tail, searched = scroll(browser, stage.address)
            found = [load(browser, stage.address) for _ in range(options.loads)]
        finally:
            stage.close()
    zipped = sum(len(file.zipped) for file in site.load().values())
    shown = sorted(interactive for _, interactive, _ in found)
    print(f"{options.devices} devices, {options.versions} versions, {options.loads} loads of a fresh profile")
    print(f"a plain answer in the same browser   median {base:6.0f} ms")
    print(f"overview, first paint                median {statistics.median(p for p, _, _ in found):6.0f} ms")
    print(
        f"overview, interactive                median {statistics.median(shown):6.0f} ms, worst {shown[-1]:.0f} ms (bound {BOUND_MS})"
    )
    print(f"scrolling 400 px a frame             median {median:6.0f} ms, 95 % {tail:.0f} ms between frames")
    print(f"a search, from the last key          {searched:13.0f} ms")
    print(f"over the wire, without the API's answers    {found[0][2] / 1000:6.1f} kB")
    print(
        f"all files, gzipped                          {zipped / 1000:6.1f} kB (bound {BOUND_BYTES / 1000:.0f})"
    )


if __name__ == "__main__":
    main()
