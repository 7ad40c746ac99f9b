"""Ten thousand devices in a real browser: the table stays smooth, and what devices say of themselves stays text."""

import re

import pytest
from playwright.sync_api import expect

from edge_client.wire.messages import TaskStatus
from tests.browser.stage import Stage

DEVICES = 10_000
HOSTILE = '<img src=x onerror="window.hurt=1">'
ELEMENTS_MAX = 1500  # of the page, however many devices there are
ROW_PX = 40
SCROLL_ON = """
(element, steps) => new Promise((resolve) => {
  const step = (left) => {
    if (left === 0) return resolve();
    element.scrollTop += 200;
    requestAnimationFrame(() => step(left - 1));
  };
  step(steps);
})
"""


pytestmark = pytest.mark.usefixtures("browser")  # without one there is nothing to be set up


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A server with ten thousand devices, every third of which declines; one is hostile."""
    stage = Stage(tmp_path_factory.mktemp("many") / "state")
    names = [f"dev-{n:05d}" for n in range(DEVICES - 1)]
    born = stage.births(*names)[::2]  # most have not introduced themselves yet
    stage.open()
    try:
        stage.job()
        reasons = ("on battery", "metered link", "too hot: 81 °C")
        stage.tell(
            *born,
            *(stage.task(name, "declined", reasons[n % 7 % 3]) for n, name in enumerate(names) if n % 3 == 0),
            *stage.births("hostile", software=HOSTILE, dataset=HOSTILE),
            stage.event(
                "hostile",
                "task",
                TaskStatus("failed", 1, f"{HOSTILE}</td><script>window.hurt=2</script>"),
                "exercise",
            ),
            stage.rejection("hostile", "norm", HOSTILE),
        )
        stage.wait("/updates", lambda found: found["total"] == 1, "the rejection is noted")
        stage.wait(
            "/fleet", lambda fleet: fleet["devices"]["doings"].get("declined") == 3333, "the fleet is there"
        )
        yield stage
        assert stage.stop() == 0
    finally:
        stage.close()


@pytest.fixture
def table(page, stage):
    """The page with the table of devices."""
    page.goto(f"{stage.address}/#/devices")
    expect(page.get_by_text(f"{DEVICES:,} devices, {DEVICES:,} online")).to_be_visible()
    return page


@pytest.fixture
def asked(page):
    """Addresses of windows of the table that the page has asked for."""
    found = []
    page.on("request", lambda request: "/fleet/devices" in request.url and found.append(request.url))
    return found


def test_ten_thousand_rows_are_as_many_elements_as_are_in_sight(table, asked):
    """The end, the middle and the begin are there with their own rows, each for a window or two from the server."""
    place = table.locator(".virtual")
    assert place.get_attribute("aria-rowcount") == str(DEVICES + 1)
    for index in (DEVICES - 1, DEVICES // 2, 0):
        asked.clear()
        place.evaluate("(element, top) => element.scrollTo({top})", index * ROW_PX)
        name = "hostile" if index == DEVICES - 1 else f"dev-{index:05d}"
        expect(table.get_by_role("link", name=name)).to_be_visible()
        assert table.evaluate("document.querySelectorAll('*').length") < ELEMENTS_MAX
        assert len(asked) <= 2
    asked.clear()
    place.evaluate(SCROLL_ON, 60)
    expect(table.get_by_role("link", name="dev-00300")).to_be_visible()
    assert len(asked) <= 5, "rows that were scrolled past within a window are not asked for again"


def test_a_search_over_ten_thousand_waits_until_one_has_typed(table, asked):
    """It finds ids and reasons, facets count what is left, and not every letter is a request."""
    rows = table.locator(".virtual-body [role=row]")
    search = table.get_by_label("Search devices")
    asked.clear()
    search.press_sequentially("dev-0427")
    expect(rows).to_have_count(10)
    assert len(asked) <= 4
    search.fill("metered")
    expect(table.get_by_text(re.compile(r"^[\d,]+ devices found$"))).to_be_visible()
    expect(rows.first).to_contain_text("metered link")
    expect(table.get_by_label("Reason")).to_have_count(
        0
    )  # all that are left have one: nothing to choose from
    search.fill("")
    table.get_by_label("Reason").select_option("too hot: 81 °C")
    expect(rows.first).to_contain_text("too hot")
    expect(table).to_have_url(re.compile("reason=too"))


def test_a_tag_is_put_on_thousands_with_its_progress_shown(table, stage):
    """All that a search finds are tagged, in steps."""
    table.goto(f"{stage.address}/#/devices?q=dev-00")
    table.get_by_label("Select dev-00000").check()
    table.get_by_role("button", name="Select all 1,000").click()
    expect(table.get_by_text("1,000 devices selected")).to_be_visible()
    table.get_by_label("Tag", exact=True).last.fill("pilot")
    table.get_by_role("button", name="Add tag").click()
    expect(table.get_by_role("progressbar")).to_be_visible()
    expect(table.get_by_text("1,000 devices tagged pilot.")).to_be_visible()
    assert stage.api.get("/devices?tag=pilot").json()["total"] == 1000


def test_the_overview_counts_ten_thousand(page, stage):
    """Counts and reasons are of all devices."""
    page.goto(f"{stage.address}/#/overview")
    expect(page.locator(".figures")).to_contain_text("10,000")
    expect(page.get_by_text("3,333 devices decline")).to_be_visible()


def test_what_a_device_says_is_text_wherever_it_is_shown(page, stage, complaints):
    """Names, tags, reasons, software and data sets of a hostile device are shown as they are, and nothing of them runs."""
    complaints.expect("404")
    stage.api.put("/devices/hostile/tags", json={"tags": [HOSTILE[:60]]})
    for address in (
        "#/overview",
        "#/devices?q=hostile",
        "#/devices/hostile",
        "#/updates",
        "#/events",
        f"#/devices?software={HOSTILE}",
        f"#/devices/{HOSTILE}",
        f"#/jobs/{HOSTILE}",
    ):
        page.goto(f"{stage.address}/{address}")
        page.reload()
        expect(page.locator("main")).to_contain_text(
            re.compile("onerror|no device named|no job named|There is no|hostile|fail")
        )
        expect(page.locator(".skeleton")).to_have_count(0)
        assert page.locator("main img, main script").count() == 0
    assert page.evaluate("window.hurt") is None
    page.goto(f"{stage.address}/#/devices/hostile")
    expect(page.locator(".facts")).to_contain_text(HOSTILE)
    expect(page.locator(".why")).to_contain_text("<script>")
    expect(page.get_by_role("button", name=f"Remove the tag {HOSTILE[:60]}")).to_be_visible()
