"""What is drawn inside the cards of a screen: tables stay within them at any width, and nothing is drawn for a zero."""

import pytest
from playwright.sync_api import expect

from tests.browser.stage import Stage

DEVICE = "ward-3-wrist"
OTHERS = ("ward-1-wrist", "ward-2-wrist")
JOBS = ("exercise", "falls-and-near-falls-of-ward-patients")
REASON = "data set 'wrist-imu' has 12 samples, the job wants 40"
VERSIONS = 6
STALE = 3  # versions that every other update is behind: bars of zero lie between those of the others
WIDTHS = (400, 560, 720, 900, 901, 1001, 1100, 1201, 1280, 1600)
OUTSIDE = """
[...document.querySelectorAll(".panel table, .panel tr")].filter((part) => !part.closest(".capped, .scroller"))
  .filter((part) => part.getBoundingClientRect().right > part.closest(".panel").getBoundingClientRect().right)
  .map((part) => `${part.closest(".panel").getAttribute("aria-label")}: ${part.textContent.slice(0, 60)}`)
"""
LAST_COLUMNS = """
[...document.querySelectorAll(".columns.wide-left > div:last-child .panel")].map((panel) => {
  const cell = panel.querySelector("thead th:last-child");
  return cell && Math.round(panel.getBoundingClientRect().right - cell.getBoundingClientRect().right);
}).filter((gap) => gap !== null)
"""
SQUEEZED = """
[...document.querySelectorAll(".timeline p")].filter((said) => said.getBoundingClientRect().width < 100)
  .map((said) => said.textContent)
"""
BARS = """
[...document.querySelectorAll(".bars .bar")].map((bar) => [
  Number(/: (\\d+)/.exec(bar.title)[1]),
  [...bar.querySelectorAll("i")].reduce((sum, drawn) => sum + drawn.getBoundingClientRect().height, 0),
])
"""


pytestmark = pytest.mark.usefixtures("browser")  # without one there is nothing to be set up


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Three devices in two jobs, one with a long name; one device declines the one and trains for the other."""
    stage = Stage(tmp_path_factory.mktemp("cards") / "state")
    stage.open()
    try:
        for name in JOBS:
            stage.job(name, lease_s=3600)
        stage.tell(*stage.births(DEVICE, *OTHERS, dataset="wrist-imu-of-the-left-and-the-right-hand"))
        for job in JOBS:
            for version in range(VERSIONS):
                bases = (version, max(0, version - STALE))
                stage.tell(
                    *(stage.evaluation(name, version, 0.5 + 0.05 * version, job=job) for name in OTHERS),
                    *(stage.update(name, job, base) for name, base in zip(OTHERS, bases, strict=True)),
                )
                stage.wait(f"/jobs/{job}", lambda seen, v=version: seen["version"] > v, "the version is made")
            stage.api.post(f"/jobs/{job}/versions/{VERSIONS - 1}/promote").raise_for_status()
        stage.tell(
            stage.update(DEVICE, JOBS[0], VERSIONS),
            stage.task(DEVICE, "training", job=JOBS[0]),
            stage.task(DEVICE, "declined", REASON, job=JOBS[1]),
            stage.rejection(DEVICE, "stale", "its base is 23 versions behind, at most 20 are taken", JOBS[1]),
        )
        stage.wait(f"/devices/{DEVICE}", lambda device: len(device["tasks"]) == len(JOBS), "it has two tasks")
        yield stage
        assert stage.stop() == 0
    finally:
        stage.close()


@pytest.mark.parametrize("address", [f"#/devices/{DEVICE}", "#/overview", *(f"#/jobs/{job}" for job in JOBS)])
def test_a_table_stays_in_its_card(at, address):
    """At every width that is supported no table, and no line of one, reaches over the right border of its card."""
    page = at(address)
    expect(page.locator(".panel table").first).to_be_visible()
    found = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        found[width] = page.evaluate(OUTSIDE)
    assert found == {width: [] for width in WIDTHS}


def test_the_tables_of_a_device_end_in_one_line(at):
    """The last columns of the cards beside the timeline are one below the other."""
    page = at(f"#/devices/{DEVICE}")
    expect(page.get_by_role("region", name="By job")).to_contain_text(REASON)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        gaps = page.evaluate(LAST_COLUMNS)
        assert len(gaps) == 3
        assert len(set(gaps)) == 1, f"{gaps} at {width} px"


def test_the_name_of_a_job_leaves_room_for_what_happened(at):
    """A long name breaks beside an entry of the timeline, instead of the entry into letters."""
    page = at(f"#/devices/{DEVICE}")
    expect(page.locator(".timeline")).to_contain_text(JOBS[1])
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate(SQUEEZED) == []


@pytest.mark.parametrize(
    ("address", "card"), [(f"#/jobs/{JOBS[0]}", "Staleness"), ("#/overview", "Updates folded, by minute")]
)
def test_nothing_is_drawn_for_a_zero(at, address, card):
    """A bar of the value zero has no height, and any other has one."""
    page = at(address)
    expect(page.get_by_role("region", name=card).locator(".bars")).to_be_visible()
    bars = page.evaluate(BARS)
    assert {value == 0 for value, _ in bars} == {True, False}
    assert [(value, height) for value, height in bars if (height > 0) != (value > 0)] == []
