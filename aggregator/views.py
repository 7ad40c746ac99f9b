"""What people see of jobs, versions, devices and bundles: plain dictionaries for API and commands."""

from collections.abc import Sequence
from typing import Any

import msgspec

from aggregator.engine import Engine
from aggregator.errors import NotFoundError, RefusedError
from aggregator.fleet import DeviceRecord
from aggregator.history import Totals, VersionRecord
from aggregator.job import Job
from aggregator.reported import Reported
from edge_client.wire.messages import Message, Metrics

View = dict[str, Any]


def job(engine: Engine, name: str) -> View:
    """One job with its newest figures; raise NotFoundError."""
    found, record = find_job(engine, name), engine.store.records[name]
    totals, tally = found.history.totals, engine.fleet.tally(name)
    versions = len(found.history.records) - 1
    late = sum(tau * n for tau, n in totals.staleness.items())
    return {
        "name": name,
        "state": record.state,
        "reason": record.reason,
        "damage": record.damage,
        "created_at": record.created_at,
        "ended_at": record.ended_at,
        "version": found.version,
        "best_version": found.best(),
        "promoted_version": found.promoted,
        **_figures(found.history.newest),
        "updates": totals.updates,
        "buffered": found.buffered,
        "staleness_mean": late / totals.updates if totals.updates else 0.0,
        "training": len(found.leases.held),
        "waiting": len(found.leases.waiting),
        "participants": len(found.participants),
        "device_states": dict(tally.doing),
        "rejected": dict(tally.rejected),
        "parameters": found.bundle.parameters,
        "participation_gini": found.gini(),
        "testset": _newest_on_testset(found),
        "bytes_up": totals.bytes_up,
        **_price(found, totals),
        **_newest_report(found.history.records),
        "lag_norm": found.manifest.lag_norm,
        "downlink_mode": "lossless" if found.spec.downlink_density == 1 else "lossy",
        "fans_out": found.audience.pays,
        "bytes_per_version": totals.bytes_delta / versions if versions else None,
        "spec": msgspec.to_builtins(record.spec),
    }


def version(found: Job, record: VersionRecord) -> View:
    """One version with its figures; those of hold-outs are weighted means of that version alone."""
    view: View = msgspec.to_builtins(record)
    del view["holdout"], view["reported"]
    view |= {"holdout_n": record.holdout.n, "holdout_devices": record.holdout.devices}
    view |= _figures(record.holdout.mean())
    view["holdout_spread"] = record.holdout.spread()
    measured = found.history.on_testset.get(record.version)
    view["testset"] = None if measured is None else _figures(measured)
    view["staleness"] = {str(tau): n for tau, n in sorted(record.staleness.items())}
    view["stored"] = record.version in found.recent
    view["promoted"] = record.version == found.promoted
    view["parent"] = found.history.records[record.version - 1].manifest if record.version else None
    view |= _price(found, record)
    view |= record.reported.mean()
    return view


def participation(engine: Engine, name: str) -> View:
    """Updates folded by device, those that took part in vain included, and how evenly they are shared out."""
    found = find_job(engine, name)
    counts = found.contributions()
    total = sum(counts.values())
    devices = []
    for device_id, updates in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        known = engine.fleet.devices.get(device_id)
        task = known.tasks.get(name) if known else None
        devices.append(
            {
                "device": device_id,
                "updates": updates,
                "share": updates / total if total else 0.0,
                "rejected": dict(task.rejected) if task else {},
            }
        )
    return {"gini": found.gini(), "updates": total, "devices": devices}


def _newest_on_testset(found: Job) -> View | None:
    """The newest version's figures on the job's test set, with its number."""
    if not found.history.on_testset:
        return None
    newest = max(found.history.on_testset)
    return {"version": newest, **_figures(found.history.on_testset[newest])}


def _price(found: Job, of: VersionRecord | Totals) -> View:
    """Bits an update takes per parameter, and its bytes over the entropy bound; null before there is one."""
    values = of.updates * found.bundle.parameters
    return {
        "bits_per_parameter": 8 * of.bytes_frames / values if values else None,
        "bytes_to_bound": of.bytes_frames / of.bytes_bound if of.bytes_bound else None,
    }


def _newest_report(records: Sequence[VersionRecord]) -> View:
    """What devices told of their updates from the newest version that any did train from."""
    newest = next((r.reported for r in reversed(records) if r.reported.devices), Reported())
    return newest.mean()


def _figures(metrics: Metrics | None) -> View:
    """Hold-out figures, null where there is none yet or where the job's loss has no such figure."""
    names = ("loss", "accuracy", "error", "threshold")
    return {name: None if metrics is None else getattr(metrics, name) for name in names}


def device(engine: Engine, record: DeviceRecord) -> View:
    """One device with what operators put on it."""
    view: View = msgspec.to_builtins(record)
    view["info"] = None if record.info is None else full(record.info)
    for name, task in record.tasks.items():
        view["tasks"][name]["status"] = None if task.status is None else full(task.status)
    mark: View = msgspec.to_builtins(engine.marks.of(record.device))
    return {**view, **mark}


def full(message: Message) -> View:
    """All fields of a message; on the wire those with their default are left out."""
    return {name: msgspec.to_builtins(getattr(message, name)) for name in message.__struct_fields__}


def find_version(found: Job, number: int) -> VersionRecord:
    """The record of a version; raise NotFoundError naming those there are."""
    if not 0 <= number <= found.version:
        raise NotFoundError(f"job {found.spec.name} has no version {number}; it has 0 to {found.version}")
    return found.history.records[number]


def find_job(engine: Engine, name: str) -> Job:
    """The job of this name; raise NotFoundError naming those there are."""
    found = engine.jobs.get(name)
    if name in engine.store.damaged:
        raise RefusedError("damaged", f"job {name} cannot be loaded; `fedfleet doctor` says what is damaged")
    if found is None:
        known = ", ".join(sorted(engine.jobs)) or "none"
        raise NotFoundError(f"no job named {name[:80]}; there are: {known}")
    return found
