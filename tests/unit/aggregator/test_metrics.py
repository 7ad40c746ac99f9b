"""`/metrics` over memory ports: names, units, and no label that grows with the fleet."""

import re

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from broker_bridge import cells
from broker_bridge.cells import BridgeCell
from edge_client.wire.messages import DeviceState


def samples(text):
    """Values by name and labels."""
    families = list(text_string_to_metric_families(text))
    return {(s.name, tuple(s.labels.items())): s.value for family in families for s in family.samples}


def test_figures_of_the_fleet_are_exported(drive, bundle):
    """Devices by state, updates, staleness, bytes and the bridge's verdicts are counted in base units."""

    async def body(site):
        await site.start_job(bundle, buffer_size=2)
        await site.say("dev-1", "state", DeviceState("ready", 1))
        for seed in range(4):
            await site.update("dev-1", seed, base=0)
        await site.evaluate("dev-1", 0, 0.75)
        await site.step()
        bridge = BridgeCell(1.0, bytes_up=10, accepted=4, rejected={"norm": 2})
        await site.ports.heads.swing(f"{cells.BRIDGE_PREFIX}main", 0, msgspec.json.encode(bridge))
        async with site.api() as api:
            response = await api.get("http://127.0.0.1/metrics")
        found = samples(response.text)
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert found["fedfleet_devices", (("state", "ready"),)] == 1
        assert found["fedfleet_jobs", (("state", "running"),)] == 1
        assert found["fedfleet_job_version", (("job", "job"),)] == 2
        assert found["fedfleet_job_accuracy_ratio", (("job", "job"),)] == 0.75
        assert found["fedfleet_job_updates_folded_total", (("job", "job"),)] == 4
        assert found["fedfleet_job_uplink_bytes_total", (("job", "job"),)] > 0
        buckets = {
            dict(labels)["le"]: value
            for (name, labels), value in found.items()
            if name == "fedfleet_job_staleness_versions_bucket"
        }
        assert (buckets["0"], buckets["1"], buckets["+Inf"]) == (2, 4, 4)
        assert found["fedfleet_bridge_updates_rejected_total", (("code", "norm"),)] == 2
        assert found["fedfleet_storage_failing", ()] == 0

    drive(body)


def test_no_label_names_a_device(drive, bundle):
    """A fleet of any size has the same number of series; all names begin with fedfleet."""

    async def body(site):
        await site.start_job(bundle)
        counts = []
        for round_ in range(2):
            for n in range(20):
                await site.say(f"dev-{round_}-{n}", "state", DeviceState("ready", 1))
            await site.step()
            async with site.api() as api:
                text = (await api.get("http://127.0.0.1/metrics")).text
            counts.append(len(samples(text)))
            assert "dev-0" not in text
            assert all(name.startswith("fedfleet_") for name, _ in samples(text))
        assert counts[0] == counts[1]

    drive(body)


def test_metrics_need_a_token_where_one_is_needed(drive):
    """A stranger beyond loopback reads no metrics."""

    async def body(site):
        async with site.api(loopback=False) as api:
            assert (await api.get("http://127.0.0.1/metrics")).status_code == 401

    drive(body)


def test_every_metric_is_documented(drive, bundle, request):
    """Each name in the export has its line in docs/api.md."""
    text = (request.config.rootpath / "docs/api.md").read_text()

    async def body(site):
        await site.start_job(bundle)
        async with site.api() as api:
            exported = (await api.get("http://127.0.0.1/metrics")).text
        names = re.findall(r"^# TYPE (fedfleet_\w+) ", exported, re.MULTILINE)
        assert len(names) > 15
        assert [name for name in names if f"`{name}" not in text] == []

    drive(body)
