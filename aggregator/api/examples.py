"""Examples of answers for the OpenAPI document; a test compares their fields with what the server really answers."""

from typing import Any

import msgspec

from aggregator.spec import JobSpec

DIGEST = "8c5f0a4e8e0f2e0b6a1f7d3c9b5a4e3d2c1b0a9f8e7d6c5b4a39281706f5e4d3"
PARENT = "1be264493f90efb3ea7b1e08ba6afcf4b4751d5edc0ad0ed94c6903bba1b2186"
AT = 1795571000.0
SPEC: dict[str, Any] = {
    "name": "exercise",
    "bundle": DIGEST,
    "dataset": "wrist-imu",
    "strategy": "fedbuff",
    "end": {"target_accuracy": 0.75, "versions_max": 200},
}
_FIGURES: dict[str, Any] = {"loss": 0.61, "accuracy": 0.78, "error": None, "threshold": None}
_PRICE: dict[str, Any] = {
    "bits_per_parameter": 0.47,
    "bytes_to_bound": 1.12,
    "residual_norm": 0.8,
    "density": 0.05,
    "uplink_bytes_s": 250000.0,
}
JOB: dict[str, Any] = {
    "name": "exercise",
    "state": "running",
    "reason": "",
    "damage": "",
    "created_at": AT,
    "ended_at": None,
    "version": 17,
    "best_version": 15,
    "promoted_version": 15,
    **_FIGURES,
    "updates": 68,
    "buffered": 2,
    "staleness_mean": 1.3,
    "training": 8,
    "waiting": 5,
    "participants": 16,
    "device_states": {"training": 8, "asking": 5},
    "rejected": {"stale": 1},
    "parameters": 24599,
    "participation_gini": 0.12,
    "testset": None,
    "bytes_up": 98000,
    **_PRICE,
    "lag_norm": 0.0,
    "downlink_mode": "lossless",
    "fans_out": False,
    "bytes_per_version": 5200.0,
    "spec": msgspec.to_builtins(msgspec.convert(SPEC, JobSpec)),
}
VERSION: dict[str, Any] = {
    "version": 17,
    "at": AT,
    "manifest": DIGEST,
    "updates": 4,
    "devices": ["watch-1", "watch-7"],
    "staleness": {"0": 2, "1": 2},
    "bytes_up": 5800,
    "bytes_frames": 5600,
    "bytes_bound": 5000,
    "bytes_keyframe": 31000,
    "bytes_delta": 5200,
    "lag_norm": 0.0,
    "lossless": True,
    "holdout_n": 240,
    "holdout_devices": 3,
    **_FIGURES,
    "holdout_spread": 0.06,
    "testset": None,
    "stored": True,
    "promoted": False,
    "parent": PARENT,
    **_PRICE,
}
DEVICE: dict[str, Any] = {
    "device": "watch-7",
    "state": "ready",
    "conn_seq": 3,
    "cohort": "all",
    "seen": AT,
    "info": None,
    "tasks": {
        "exercise": {
            "status": {"state": "declined", "rev": 4, "reason": "on battery", "progress": None},
            "at": AT,
            "accepted": 9,
            "rejected": {"stale": 1},
        }
    },
    "tags": ["building 7", "lab"],
    "paused": {"by": "ci", "at": AT},
}
MOMENT: dict[str, Any] = {
    "at": AT,
    "kind": "task",
    "job": "exercise",
    "what": "declined",
    "detail": "on battery",
}
VERDICT: dict[str, Any] = {
    "number": 69,
    "at": AT,
    "uid": "watch-7:exercise:0123456789abcdef:10",
    "device": "watch-7",
    "job": "exercise",
    "verdict": "rejected",
    "code": "stale",
    "reason": "its base is 23 versions behind, at most 20 are taken",
    "bytes": None,
}
AUDIT: dict[str, Any] = {
    "number": 12,
    "at": AT,
    "actor": "ci",
    "role": "operator",
    "action": "stop_job",
    "method": "POST",
    "path": "/api/v1/jobs/exercise/stop",
    "status": 200,
}
EVENT: dict[str, Any] = {"id": "f0aa6c61-8", "kind": "audit", "data": AUDIT}
BUNDLE: dict[str, Any] = {
    "digest": DIGEST,
    "size": 220170,
    "name": "exercise",
    "loss": "cross_entropy",
    "parameters": 24599,
    "uploaded_at": AT,
    "jobs": ["exercise"],
}
PARTICIPATION: dict[str, Any] = {
    "gini": 0.12,
    "updates": 68,
    "devices": [{"device": "watch-7", "updates": 9, "share": 0.13, "rejected": {"stale": 1}}],
}
ME: dict[str, Any] = {"name": "ci", "role": "operator"}
FLEET: dict[str, Any] = {
    "at": AT,
    "devices": {
        "total": 16,
        "states": {"ready": 15, "lost": 1},
        "doings": {"training": 8, "waiting": 5, "declined": 2, "away": 1},
        "declined": [{"reason": "on battery", "devices": 2}],
        "software": [{"software": "0.1.0", "devices": 16}],
    },
    "updates": {"accepted": 68, "rejected": 1, "codes": {"stale": 1}, "minutes": [0, 12, 16]},
    "cost": {"updates": 68, "bytes_up": 98000, "bytes_dense": 6690928},
    "alerts": [{"level": "warn", "text": "1 device is lost.", "job": "", "state": "lost", "doing": ""}],
}
WHY: dict[str, Any] = {
    "because": [{"job": "exercise", "training": False, "text": "It declined: on battery."}],
}
ROW: dict[str, Any] = {
    "device": "watch-7",
    "state": "ready",
    "doing": "declined",
    "job": "exercise",
    "reason": "on battery",
    "seen": AT,
    "cohort": "all",
    "tags": ["building 7", "lab"],
    "software": "0.1.0",
    "accepted": 9,
    "rejected": 1,
}
ROWS: dict[str, Any] = {
    "total": 1,
    "devices": [ROW],
    "facets": {
        "state": {"ready": 1},
        "doing": {"declined": 1},
        "reason": {"on battery": 1},
        "cohort": {"all": 1},
        "tag": {"building 7": 1, "lab": 1},
        "software": {"0.1.0": 1},
    },
}


def page(field: str, item: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The answer of a list."""
    return {field: [item], "next": None, "total": 1, **more}
