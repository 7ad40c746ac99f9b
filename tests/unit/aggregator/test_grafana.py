"""The Grafana dashboard beside the metrics of a server."""

import json
import re
from pathlib import Path

BOARD = json.loads((Path(__file__).parents[3] / "examples/grafana/fedfleet.json").read_text())


def test_the_dashboard_shows_metrics_that_exist(drive, bundle):
    """Every metric and label of its expressions is at `/metrics`, and every metric is on it."""

    async def body(site):
        await site.start_job(bundle)
        async with site.api() as api:
            text = (await api.get("http://127.0.0.1/metrics")).text
        known = dict(re.findall(r"^# TYPE (fedfleet_\w+) (\w+)$", text, re.MULTILINE))
        known |= {f"{name}_bucket": kind for name, kind in known.items() if kind == "histogram"}
        queries = [t["expr"] for panel in BOARD["panels"] for t in panel["targets"]]
        queries.append(next(v["query"] for v in BOARD["templating"]["list"] if v["name"] == "job"))
        used = {name for query in queries for name in re.findall(r"fedfleet_\w+", query)}
        assert used <= set(known)
        shown = {name.removesuffix("_bucket") for name in used}
        assert {name.removesuffix("_bucket") for name in known} == shown
        assert {label for query in queries for label in re.findall(r"[{,](\w+)=", query)} == {"state", "job"}
        counters = [name for name in used if known[name] == "counter"]
        assert all(f"rate({name}" in " ".join(queries) for name in counters)
        ids = [panel["id"] for panel in BOARD["panels"]]
        assert len(set(ids)) == len(ids) == 14

    drive(body)
