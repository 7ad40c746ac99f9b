"""A real fleet, broker and daemons included, from an empty page to a trained model, in a real browser."""

import re

import numpy as np
import onnxruntime
import pytest
from playwright.sync_api import expect

from aggregator.sdk import Fleet, Shard
from tests.e2e.server import small_bundle

SLOW_MS = 60_000  # for daemons that start and train on two busy cores

pytestmark = pytest.mark.usefixtures("browser")  # without one there is nothing to be set up


@pytest.fixture(scope="module")
def fleet():
    """Two devices with data that can be learned: the class is where the signal is high."""
    random = np.random.default_rng(0)
    shards = []
    for _ in range(2):
        y = random.integers(0, 3, 120)
        x = random.normal(0, 0.3, (120, 2, 8)).astype(np.float32)
        x[np.arange(120), :, 2 * y] += 2
        shards.append(Shard(x, y))
    with Fleet.local(data=shards, dataset="wrist") as fleet:
        yield fleet


def test_a_model_is_trained_from_the_browser_alone(fleet, page, tmp_path):
    """Upload, start, watch the versions come, promote, download: nothing else is needed, and the page is never reloaded."""
    bundle = tmp_path / "wrist.bundle"
    bundle.write_bytes(small_bundle().to_bytes())
    page.goto(f"{fleet.url}/#/new-job")
    page.locator("input[type=file]").set_input_files(bundle)
    expect(page.get_by_text("wrist.bundle is stored.")).to_be_visible()
    page.evaluate("window.same = true")
    page.get_by_label("Name", exact=True).fill("live")
    page.get_by_label("Data set").fill("wrist")
    page.get_by_label("Updates a version is made of").fill("2")
    page.get_by_label("More fields, as JSON").fill('{"retry_s": 1, "training": {"steps": 5, "density": 0.5}}')
    page.get_by_role("button", name="Start the job").click()
    expect(page.locator("h1")).to_have_text("live")
    version = page.locator(".figures > div").nth(1).locator("b")
    expect(version).to_have_text(re.compile("[3-9]|[0-9]{2,}"), timeout=SLOW_MS)
    expect(page.get_by_role("img", name=re.compile("^Accuracy over"))).to_be_visible(timeout=SLOW_MS)
    expect(page.get_by_role("region", name="Participation")).to_contain_text("device-1")
    page.get_by_role("navigation").get_by_role("link", name="Overview").click()
    expect(page.locator(".figures")).to_contain_text(re.compile("Online2of 2"))
    expect(page.get_by_role("heading", name="live")).to_be_visible()
    page.get_by_role("navigation").get_by_role("link", name="Devices").click()
    page.get_by_role("link", name="device-2").click()
    expect(page.locator(".timeline")).to_contain_text("update accepted", timeout=SLOW_MS)
    page.get_by_role("link", name="live").first.click()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Stop live").click()
    expect(page.get_by_text("stopped by a person")).to_be_visible()
    page.get_by_role("link", name="All versions").click()
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("as INT8$")).first.click()
    download.value.save_as(tmp_path / "model.onnx")
    onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert page.evaluate("window.same") is True
