"""Tokens, roles, and a connection that breaks, in a real browser."""

import json
import re

import pytest
from playwright.sync_api import expect

from edge_client.wire.messages import DeviceState
from tests.browser.stage import Stage
from tests.e2e.conftest import until
from tests.e2e.server import fedfleet
from tests.proxy import Proxy

RATE_BYTES_S = 1e9  # the line is to break, not to be slow


pytestmark = pytest.mark.usefixtures("browser")  # without one there is nothing to be set up


@pytest.fixture
def stage(tmp_path):
    """A server of this test's own."""
    stage = Stage(tmp_path / "state")
    stage.open()
    stage.job()
    stage.tell(*stage.births("watch-1"))
    yield stage
    stage.close()


def token(stage, role, name):
    """A token of this role."""
    printed = fedfleet(
        "token", "create", "--name", name, "--role", role, "--state-dir", stage.directory, "--json"
    )
    return json.loads(printed.stdout)["token"]


def sign_in(page, secret):
    """Enter a token."""
    page.get_by_label("Token").fill(secret)
    page.get_by_role("button", name="Sign in").click()


def test_a_token_is_asked_for_and_kept_in_this_tab_alone(stage, page, barriers, complaints):
    """A wrong token is refused with the server's reason, a right one lets in, and signing out forgets it."""
    complaints.expect("401")
    secret = token(stage, "admin", "ada")
    page.goto(f"{stage.address}/#/devices")
    expect(page.get_by_role("heading", name="Sign in to your fleet")).to_be_visible()
    assert barriers(page) == []
    sign_in(page, "ff_wrong")
    expect(page.get_by_role("alert")).to_be_visible()
    sign_in(page, secret)
    expect(page.locator("h1")).to_have_text("Devices")
    expect(page.locator(".caller")).to_contain_text("ada admin")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    assert page.evaluate("[localStorage.length, document.cookie, Object.values(sessionStorage).join()]") == [
        0,
        "",
        secret,
    ]
    page.reload()
    expect(page.locator("h1")).to_have_text("Devices")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in to your fleet")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_viewer_sees_everything_but_what_changes_it(stage, page, complaints):
    """Buttons and screens of other roles are not there; what is tried nevertheless is refused in the server's words."""
    complaints.expect("401", "403")
    secret = token(stage, "viewer", "vic")
    page.goto(f"{stage.address}/#/jobs/exercise")
    sign_in(page, secret)
    expect(page.locator("h1")).to_have_text("exercise")
    for name in ("Pause", "Stop", "Delete"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    expect(page.get_by_text("need the role operator; yours is viewer")).to_be_visible()
    expect(page.get_by_role("link", name="Audit")).to_have_count(0)
    page.goto(f"{stage.address}/#/devices")
    expect(page.get_by_role("link", name="watch-1")).to_be_visible()
    expect(page.get_by_role("checkbox")).to_have_count(0)
    page.goto(f"{stage.address}/#/new-job")
    expect(page.get_by_text("Starting a job needs the role operator; yours is viewer.")).to_be_visible()
    page.goto(f"{stage.address}/#/audit")
    expect(page.get_by_text("needs the role admin; vic is viewer")).to_be_visible()


def test_a_revoked_token_ends_the_session(stage, page, complaints):
    """The page asks for another token as soon as it is refused, and says why."""
    complaints.expect("401")
    secret = token(stage, "operator", "olga")
    token(stage, "admin", "ada")  # with none left nobody would need one
    page.goto(f"{stage.address}/#/jobs")
    sign_in(page, secret)
    expect(page.get_by_role("link", name="exercise")).to_be_visible()
    fedfleet("token", "revoke", "olga", "--state-dir", stage.directory)
    page.goto(
        f"{stage.address}/#/jobs/exercise"
    )  # a click would come too late where the page asked meanwhile
    expect(page.get_by_role("heading", name="Sign in to your fleet")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("token")


def test_a_page_goes_on_when_its_server_was_away(stage, page, complaints):
    """It says that it reconnects, and shows what happened meanwhile without being reloaded."""
    complaints.expect("ERR_")
    page.goto(f"{stage.address}/#/devices")
    rows = page.locator(".virtual-body [role=row]")
    expect(rows).to_have_count(1)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.evaluate("window.same = true")
    assert stage.stop() == 0
    expect(page.get_by_text(re.compile("Reconnecting|Connecting"))).to_be_visible()
    stage.tell(*stage.births("watch-2"))
    stage.open(stage.port)
    expect(page.get_by_text("Live", exact=True)).to_be_visible(timeout=20_000)
    expect(rows).to_have_count(2, timeout=20_000)
    stage.tell(stage.event("watch-2", "state", DeviceState("lost", 1)))
    expect(rows.filter(has_text="watch-2")).to_contain_text("lost")
    assert page.evaluate("window.same") is True


def test_a_broken_connection_goes_on_after_the_last_event(stage, page, complaints):
    """When the line breaks the page asks for the events after the last one that it saw, and none is missed."""
    complaints.expect("ERR_")
    asked = []
    page.on("request", lambda request: request.url.endswith("/events") and asked.append(request.headers))
    line = Proxy(stage.port, rate=RATE_BYTES_S)
    try:
        page.goto(f"http://127.0.0.1:{line.port}/#/events?kinds=device")
        expect(page.get_by_text("Live", exact=True)).to_be_visible()
        stage.tell(*stage.births("watch-3"))
        expect(page.locator(".event-list")).to_contain_text("watch-3")
        newest = stage.api.get("/events/recent").json()["events"][0]["id"]
        line.cut()
        stage.api.put("/devices/watch-1/tags", json={"tags": ["meanwhile"]})
        expect(page.locator(".event-list")).to_contain_text("meanwhile")
        until(lambda: len(asked) >= 2, "the page follows again")
        assert [headers.get("last-event-id") for headers in asked][:2] == [None, newest]
        page.goto("about:blank")
    finally:
        line.close()


def test_an_empty_server_says_what_to_do_first(page, tmp_path, barriers):
    """Without devices and jobs each screen says how to get some."""
    stage = Stage(tmp_path / "empty")
    stage.open()
    try:
        for screen, words in (
            ("overview", "Start the first"),
            ("devices", "fedfleet device run"),
            ("jobs", "Start one here"),
            ("versions", "There is no job so far"),
            ("updates", "as devices send them"),
            ("audit", "Nobody changed anything yet"),
        ):
            page.goto(f"{stage.address}/#/{screen}")
            expect(page.get_by_text(words).first).to_be_visible()
            assert barriers(page) == []
        page.goto("about:blank")
    finally:
        stage.close()
