"""Each screen of the dashboard in a real browser: what it shows, and what its buttons do on the server."""

import re

import onnxruntime
import pytest
from playwright.sync_api import expect

from edge_client.wire.messages import DeviceState
from tests.browser.stage import Stage

DEVICES = [f"watch-{n}" for n in range(1, 7)]
VERSIONS = 12
NARROW = {"width": 400, "height": 800}
TOO_WIDE = """
document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll("main *")]
  .filter((element) => element.getBoundingClientRect().right > innerWidth).map((element) => element.outerHTML.slice(0, 90))
"""
TOO_TALL = """
[...document.querySelectorAll("tbody tr")].filter((row) => row.getBoundingClientRect().height > 120)
  .map((row) => row.textContent.slice(0, 90))
"""
SCREENS = (
    "#/overview",
    "#/devices",
    "#/devices/watch-1",
    "#/jobs",
    "#/jobs/exercise",
    "#/new-job",
    "#/versions",
    "#/updates",
    "#/events",
    "#/audit",
)


pytestmark = pytest.mark.usefixtures("browser")  # without one there is nothing to be set up


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Six devices that made twelve versions, one that declines, one that is lost, one whose updates are refused."""
    stage = Stage(tmp_path_factory.mktemp("screens") / "state")
    stage.open()
    try:
        stage.job(lease_s=3600)  # who trains is not to become late meanwhile
        stage.tell(*stage.births(*DEVICES, "spare-1"), *stage.births("van-1", state="lost"))
        for version in range(VERSIONS):
            pair = [DEVICES[version % 6], DEVICES[(version + 1) % 6]]
            stage.tell(
                *(
                    stage.evaluation(name, version, 0.3 + 0.05 * version + 0.02 * n)
                    for n, name in enumerate(pair)
                )
            )
            stage.tell(*(stage.update(name, base=max(0, version - 1)) for name in pair))
            stage.wait("/jobs/exercise", lambda job, v=version: job["version"] > v, "the version is made")
        stage.tell(
            stage.task("spare-1", "declined", "on battery"),
            stage.task("watch-1", "training"),
            stage.task("watch-2", "asking"),
            stage.rejection("watch-6", "stale", "its base is 23 versions behind, at most 20 are taken"),
        )
        stage.wait("/updates", lambda found: found["total"] == 2 * VERSIONS + 1, "all updates are noted")
        stage.wait("/fleet", lambda fleet: fleet["devices"]["doings"].get("training"), "a device trains")
        stage.api.put("/devices/watch-3/tags", json={"tags": ["lab"]})
        yield stage
        assert stage.stop() == 0
    finally:
        stage.close()


def figure(page, label):
    """The value of the figure with this label."""
    return page.locator(".figures > div", has=page.locator("dt", has_text=re.compile(f"^{label}$"))).locator(
        "b"
    )


@pytest.mark.parametrize("address", SCREENS)
def test_a_screen_keeps_nobody_out(at, page, barriers, address):
    """No screen breaks a rule of WCAG 2.1 AA, light and wide or dark and narrow; then it fits, and rows are rows."""
    page.emulate_media(color_scheme="light")
    at(address)
    assert barriers(page) == []
    page.set_viewport_size(NARROW)
    expect(page.locator("nav")).to_have_css("flex-direction", "row")
    page.emulate_media(color_scheme="dark")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(TOO_TALL) == []
    assert barriers(page) == []


def test_the_overview_shows_the_fleet_at_one_look(at):
    """It counts devices by what they do, and says what needs a person."""
    page = at("#/overview")

    expect(figure(page, "Online")).to_have_text("7")
    expect(figure(page, "Training")).to_have_text("1")
    expect(figure(page, "Lost")).to_have_text("1")
    expect(page.get_by_text("1 device is lost.")).to_be_visible()
    expect(page.get_by_text("1 device declines, most often: on battery")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("Accuracy over 13 versions: now"))).to_be_visible()
    expect(
        page.get_by_role("table").filter(has_text="Newest").or_(page.get_by_text("v12").first)
    ).to_be_visible()
    page.get_by_text("1 device is lost.").get_by_role("link").click()
    expect(page).to_have_url(re.compile(r"#/devices\?state=lost$"))
    expect(page.get_by_role("link", name="van-1")).to_be_visible()


def test_what_was_read_last_stays_when_the_server_fails(at, stage, complaints):
    """A screen that cannot be read again says so and goes on showing; one that never could offers to try again."""
    complaints.expect("ERR_FAILED")
    page = at("#/overview")
    page.route("**/api/v1/fleet", lambda route: route.abort())
    stage.api.put(
        "/devices/watch-3/tags", json={"tags": ["lab"]}
    )  # an event, upon which the page reads again
    expect(page.get_by_text("Shown as last read. The server does not answer.")).to_be_visible()
    expect(figure(page, "Lost")).to_have_text("1")
    page.reload()
    expect(page.get_by_role("heading", name="No answer")).to_be_visible()
    page.unroute("**/api/v1/fleet")
    page.get_by_role("button", name="Try again").click()
    expect(figure(page, "Lost")).to_have_text("1")


def test_a_link_of_the_navigation_leads_to_each_screen(at):
    """Screens are reached by name, and the page's title says which one it is."""
    page = at("#/")
    for word in ("Devices", "Jobs", "Versions", "Updates", "Events", "Audit", "Overview"):
        page.get_by_role("navigation").get_by_role("link", name=word).click()
        expect(page.locator("h1")).to_have_text(word)
        expect(page).to_have_title(f"{word} · fedfleet")


def test_devices_are_searched_filtered_sorted_and_kept_in_the_address(at):
    """What is chosen is in the URL, so that it can be shared and reloaded; the reason to decline is a column."""
    page = at("#/devices")
    rows = page.locator(".virtual-body [role=row]")
    expect(rows).to_have_count(8)
    expect(rows.filter(has_text="spare-1")).to_contain_text("on battery")
    page.get_by_label("Search devices").fill("watch")
    expect(rows).to_have_count(6)
    page.get_by_label("Doing").select_option("training")
    expect(rows).to_have_count(1)
    expect(page).to_have_url(re.compile("q=watch.*doing=training"))
    page.reload()
    expect(rows).to_have_count(1)
    expect(page.get_by_label("Search devices")).to_have_value("watch")
    page.get_by_role("button", name="Clear").click()
    expect(rows).to_have_count(8)
    page.get_by_role("button", name="Updates").click()
    page.get_by_role("button", name="Updates").click()
    expect(page.get_by_role("columnheader", name="Updates")).to_have_attribute("aria-sort", "descending")
    expect(rows.first).to_contain_text("watch-")


def test_tags_are_put_on_many_devices_at_once(at, stage):
    """Chosen devices get a tag, and lose it again; the server has it."""
    page = at("#/devices?q=watch")
    page.get_by_label("Select watch-4").check()
    page.get_by_role("button", name="Select all 6").click()
    page.get_by_label("Tag", exact=True).last.fill("night")
    page.get_by_role("button", name="Add tag").click()
    expect(page.get_by_text("6 devices tagged night.")).to_be_visible()
    assert stage.api.get("/devices?tag=night").json()["total"] == 6
    page.get_by_label("Select watch-5").check()
    page.get_by_label("Tag", exact=True).last.fill("night")
    page.get_by_role("button", name="Remove tag").click()
    expect(page.get_by_text("1 device no longer tagged night.")).to_be_visible()
    assert stage.api.get("/devices/watch-5").json()["tags"] == []
    assert stage.api.get("/devices/watch-4").json()["tags"] == ["night"]


def test_a_device_says_why_it_does_not_train(at, stage):
    """A sentence says why, and the timeline what it did; a tag is put on it here, too."""
    page = at("#/devices/spare-1")
    expect(page.get_by_text("It declined: on battery.")).to_be_visible()
    expect(page.locator(".timeline")).to_contain_text("connected")
    expect(page.locator(".facts")).to_contain_text("onnxruntime 1.32.0")
    page.get_by_label("New tag").fill("roof")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_role("button", name="Remove the tag roof")).to_be_visible()
    assert stage.api.get("/devices/spare-1").json()["tags"] == ["roof"]
    page.goto(f"{stage.address}/#/devices/watch-1")
    expect(page.locator(".why")).to_contain_text("It is training")
    expect(page.locator(".timeline")).to_contain_text("update accepted")
    page.goto(f"{stage.address}/#/devices/van-1")
    expect(page.locator(".why")).to_contain_text("Its connection broke without a farewell")


def test_devices_are_paused_resumed_and_forgotten(at, stage):
    """One at its page, many in the table; a connected one cannot be forgotten, so there is no button for it."""
    stage.tell(*stage.births("old-1", "old-2", "old-3"))
    page = at("#/devices/old-1")
    expect(page.get_by_role("button", name="Forget", exact=True)).to_have_count(0)
    page.get_by_role("button", name="Pause", exact=True).click()
    page.get_by_role("button", name="Pause old-1").click()
    expect(page.get_by_text("It was paused by local")).to_be_visible()
    assert stage.api.get("/devices/old-1").json()["paused"]["by"] == "local"
    page.get_by_role("button", name="Resume", exact=True).click()
    page.get_by_role("button", name="Resume old-1").click()
    expect(page.get_by_role("button", name="Pause", exact=True)).to_be_visible()
    page = at("#/devices?q=old")
    page.get_by_label("Select old-2").check()
    page.get_by_role("button", name="Select all 3").click()
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_text("3 devices paused.")).to_be_visible()
    expect(page.locator(".virtual-body [role=row]").filter(has_text="paused by local")).to_have_count(3)
    stage.tell(
        *(stage.event(name, "state", DeviceState("disconnected", 2)) for name in ("old-1", "old-2", "old-3"))
    )
    for name in ("old-1", "old-2", "old-3"):
        page = at(f"#/devices/{name}")
        page.get_by_role("button", name="Forget", exact=True).click()
        page.get_by_role("button", name=f"Forget {name}").click()
        expect(page.locator("h1")).to_have_text("Devices")
        assert stage.api.get(f"/devices/{name}").status_code == 404


def test_a_job_shows_how_good_it_is_and_what_it_costs(at):
    """Accuracy with its spread, staleness, participation, and bits per parameter against the bound."""
    page = at("#/jobs/exercise")

    expect(figure(page, "Version")).to_have_text(str(VERSIONS))
    expect(figure(page, "Updates")).to_have_text(str(2 * VERSIONS))
    expect(page.get_by_role("img", name=re.compile("^Staleness of 24 updates"))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("bits a parameter"))).to_be_visible()
    expect(page.get_by_role("region", name="Participation")).to_contain_text("watch-6")
    page.get_by_text("All fields").click()
    expect(page.get_by_text("training.density", exact=True)).to_be_visible()


def test_a_job_is_paused_resumed_and_stopped_after_a_question(at, stage):
    """Each takes a confirmation, Escape is a no, and the server does it."""
    stage.job("steered")
    page = at("#/jobs/steered")
    page.get_by_role("button", name="Pause", exact=True).click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert stage.api.get("/jobs/steered").json()["state"] == "running"
    page.get_by_role("button", name="Pause", exact=True).click()
    page.get_by_role("button", name="Pause steered").click()
    expect(page.get_by_role("button", name="Resume", exact=True)).to_be_visible()
    assert stage.api.get("/jobs/steered").json()["state"] == "paused"
    page.get_by_role("button", name="Resume", exact=True).click()
    page.get_by_role("button", name="Resume steered").click()
    expect(page.get_by_role("button", name="Pause", exact=True)).to_be_visible()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Stop steered").click()
    expect(page.get_by_text("stopped by a person")).to_be_visible()
    assert stage.api.get("/jobs/steered").json()["state"] == "ended"
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete steered").click()
    expect(page.locator("h1")).to_have_text("Jobs")
    assert stage.api.get("/jobs/steered").status_code == 404


def test_two_people_who_steer_a_job_do_not_overrule_each_other(at, stage, complaints):
    """Who acts on an older state than the server's is told so, and nothing happens."""
    complaints.expect("412")
    stage.job("shared")
    page = at("#/jobs/shared")

    def somebody_was_faster(route):
        stage.api.post("/jobs/shared/pause")
        route.continue_()

    page.route("**/jobs/shared/stop", somebody_was_faster)
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Stop shared").click()
    expect(page.get_by_text("this was changed since you read it")).to_be_visible()
    expect(page.get_by_role("button", name="Resume", exact=True)).to_be_visible()
    assert stage.api.get("/jobs/shared").json()["state"] == "paused"
    stage.api.post("/jobs/shared/stop")


def test_a_job_is_started_once_the_server_would_take_it(at, stage, complaints):
    """What is wrong is said beside its field in the server's words; what is right can be started."""
    complaints.expect("422")
    page = at("#/new-job")
    start = page.get_by_role("button", name="Start the job")
    expect(start).to_be_disabled()
    page.get_by_label("Name", exact=True).fill("Not A Name")
    page.get_by_label("Data set").fill("wrist")
    expect(page.get_by_label("Name", exact=True)).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Name", exact=True).fill("from-the-browser")
    page.get_by_label("Updates a version is made of").fill("0")
    expect(page.get_by_label("Updates a version is made of")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Updates a version is made of").fill("3")
    page.get_by_label("Versions", exact=True).fill("5")
    page.get_by_label("More fields, as JSON").fill('{"training": {"steps": 7}}')
    expect(page.get_by_text("The server would start it: 143 parameters.")).to_be_visible()
    start.click()
    expect(page.locator("h1")).to_have_text("from-the-browser")
    spec = stage.api.get("/jobs/from-the-browser").json()["spec"]
    assert (spec["buffer_size"], spec["training"]["steps"], spec["end"]["versions_max"]) == (3, 7, 5)
    stage.api.post("/jobs/from-the-browser/stop")


def test_a_bundle_is_uploaded_from_the_form(at, stage, tmp_path, complaints):
    """A file that is no bundle is refused with the server's reason, one that is can be chosen."""
    complaints.expect("422")
    page = at("#/new-job")
    bad, good = tmp_path / "bad.bundle", tmp_path / "good.bundle"
    bad.write_bytes(b"not a bundle")
    good.write_bytes(stage.bundle.to_bytes())
    page.locator("input[type=file]").set_input_files(bad)
    expect(page.locator(".notice.bad")).to_be_visible()
    page.locator("input[type=file]").set_input_files(good)
    expect(page.get_by_text("good.bundle is stored.")).to_be_visible()
    expect(page.get_by_label("Bundle", exact=True)).to_contain_text("143 parameters")


def test_a_version_is_downloaded_and_promoted(at, stage, tmp_path):
    """The model that the browser saves runs; the promoted version is marked, here and on the server."""
    page = at("#/jobs/exercise/versions")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download version 12 as INT8").click()
    download.value.save_as(tmp_path / "model.onnx")
    onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert download.value.suggested_filename == "exercise-v12-int8.onnx"
    page.get_by_role("button", name="Promote version 11").click()
    page.get_by_role("button", name="Promote", exact=True).click()
    expect(page.get_by_role("row").filter(has_text="v11")).to_contain_text("promoted")
    assert stage.api.get("/jobs/exercise").json()["promoted_version"] == 11
    page.get_by_role("button", name="Take the promotion of version 11 back").click()
    expect(page.get_by_role("row").filter(has_text="v11")).not_to_contain_text("promoted")
    assert stage.api.get("/jobs/exercise").json()["promoted_version"] is None


def test_updates_say_why_one_was_rejected(at):
    """Verdicts are filtered, and a rejected update has its code and reason."""
    page = at("#/updates?verdict=rejected")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("its base is 23 versions behind")
    expect(rows).to_contain_text("stale")
    page.get_by_label("Verdict").select_option("accepted")
    expect(rows).to_have_count(2 * VERSIONS)


def test_events_come_by_themselves(at, stage):
    """What happens is there within a moment, without a reload, and kinds that are switched off are not."""
    page = at("#/events?kinds=device")
    entries = page.locator(".event-list li")
    before = entries.filter(has_text="watch-6").count()
    stage.tell(*stage.births("watch-6"))
    expect(entries.filter(has_text="watch-6")).to_have_count(before + 2)
    expect(entries.first).to_contain_text("fedfleet 0.1.0")
    expect(page.locator(".event-list")).not_to_contain_text("accepted")


def test_the_audit_log_says_who_did_what(at, stage):
    """A change made elsewhere appears while one looks."""
    page = at("#/audit")
    expect(page.locator("tbody")).to_contain_text("start job")
    stage.api.put("/devices/watch-6/tags", json={"tags": ["seen"]})
    expect(page.locator("tbody tr").first).to_contain_text("/devices/watch-6/tags")


def test_the_theme_is_a_choice_that_stays(at, page):
    """Light, dark or as the system says; a reload keeps it."""
    page.emulate_media(color_scheme="light")
    at("#/overview")
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(colour)
    page.get_by_role("button", name="Colours as the system has them; change").click()
    page.get_by_role("button", name="Light colours; change").click()
    expect(page.get_by_role("button", name="Dark colours; change")).to_be_visible()
    dark = page.evaluate(colour)
    assert dark != light
    page.reload()
    expect(page.get_by_role("button", name="Dark colours; change")).to_be_visible()
    assert page.evaluate(colour) == dark


def test_everything_is_reached_with_the_keyboard(at):
    """Tab begins with a way past the navigation; Enter follows a link, and a dialog keeps the focus."""
    page = at("#/jobs")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_role("link", name="exercise").focus()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("exercise")
    page.get_by_role("button", name="Pause", exact=True).focus()
    page.keyboard.press("Enter")
    for _ in range(6):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || document.activeElement.closest('dialog') !== null"
        )
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Pause", exact=True)).to_be_focused()
