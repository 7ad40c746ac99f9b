"""What people see of jobs, versions, devices and bundles: plain dictionaries for API and commands."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from aggregator.engine import Engine
from aggregator.errors import NotFoundError, RefusedError
from aggregator.fleet import DeviceRecord
from aggregator.gini import gini
from aggregator.history import VersionRecord
from aggregator.job import Job
from aggregator.reported import Reported
from edge_client.wire.messages import Message, Metrics

View = dict[str, Any]


def job(engine: Engine, name: str) -> View:
    """One job with its newest figures; raise NotFoundError."""
    find_job(engine, name)
    return jobs(engine, [name])[0]


def jobs(engine: Engine, names: Sequence[str]) -> list[View]:
    """These jobs, which exist, in one pass over the devices: there may be ten thousand of them."""
    states: dict[str, Counter[str]] = {name: Counter() for name in names}
    rejected: dict[str, Counter[str]] = {name: Counter() for name in names}
    for device in engine.fleet.devices.values():
        for name, task in device.tasks.items():
            if name not in states:
                continue
            rejected[name].update(task.rejected)
            if task.status is not None and device.state == "ready":
                states[name][task.status.state] += 1
    return [_job(engine, name, dict(states[name]), dict(rejected[name])) for name in names]


def _job(engine: Engine, name: str, states: dict[str, int], rejected: dict[str, int]) -> View:
    found, record = engine.jobs[name], engine.store.records[name]
    updates = sum(r.updates for r in found.history.records)
    late = sum(tau * n for r in found.history.records for tau, n in r.staleness.items())
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
        "updates": updates,
        "buffered": found.buffered,
        "staleness_mean": late / updates if updates else 0.0,
        "training": len(found.leases.held),
        "waiting": len(found.leases.waiting),
        "participants": len(found.participants),
        "device_states": states,
        "rejected": rejected,
        "parameters": found.bundle.parameters,
        "participation_gini": gini(_contributions(found).values()),
        "testset": _newest_on_testset(found),
        "bytes_up": sum(r.bytes_up for r in found.history.records),
        **_price(found, found.history.records),
        **_newest_report(found.history.records),
        "lag_norm": found.manifest.lag_norm,
        "downlink_mode": "lossless" if found.spec.downlink_density == 1 else "lossy",
        "fans_out": found.audience.pays,
        "bytes_per_version": _mean([r.bytes_delta for r in found.history.records[1:]]),
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
    view |= _price(found, [record])
    view |= record.reported.mean()
    return view


def participation(engine: Engine, name: str) -> View:
    """Updates folded by device, those that took part in vain included, and how evenly they are shared out."""
    found = find_job(engine, name)
    counts = _contributions(found)
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
    return {"gini": gini(counts.values()), "updates": total, "devices": devices}


def _contributions(found: Job) -> dict[str, int]:
    return dict.fromkeys(found.participants, 0) | dict(found.learner.contributions)


def _newest_on_testset(found: Job) -> View | None:
    """The newest version's figures on the job's test set, with its number."""
    if not found.history.on_testset:
        return None
    newest = max(found.history.on_testset)
    return {"version": newest, **_figures(found.history.on_testset[newest])}


def _price(found: Job, records: Sequence[VersionRecord]) -> View:
    """Bits an update takes per parameter, and its bytes over the entropy bound; null before there is one."""
    updates, frames = sum(r.updates for r in records), sum(r.bytes_frames for r in records)
    bound = sum(r.bytes_bound for r in records)
    return {
        "bits_per_parameter": 8 * frames / (updates * found.bundle.parameters) if updates else None,
        "bytes_to_bound": frames / bound if bound else None,
    }


def _newest_report(records: Sequence[VersionRecord]) -> View:
    """What devices told of their updates from the newest version that any did train from."""
    newest = next((r.reported for r in reversed(records) if r.reported.devices), Reported())
    return newest.mean()


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


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
