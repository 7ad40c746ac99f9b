"""The demo's one set of numbers: what federated, local and centralised training all share."""

from dataclasses import dataclass

from aggregator.demo import data
from firmware_tools.compiler import CompiledBundle, compile_training
from firmware_tools.zoo import cnn1d

JOB = "exercise"
SEED = 0
BATCH_SIZE = 32
LEARNING_RATE = 0.02
STEPS = 20  # local steps of one update
BUFFER_SIZE = 4  # updates of one version
CONCURRENCY = 8
SERVER_LR = 1.5  # 5 % of each update's values arrive at once and error feedback brings the rest later
DENSITY = 0.05
DOWNLINK_DENSITY = 1.0  # with 0.1 two of four runs missed the gate, which has to hold (bench/README.md)
VERSIONS_MAX = 320
PATIENCE = 100  # evaluations without a better hold-out accuracy
LEASE_S = 30.0
RETRY_S = 3.0
HOLDOUT = 0.2
GAP = 1


@dataclass(frozen=True)
class Budget:
    """Optimiser steps and how often the stopping rule looks, so that every arm gets the same of both.

    A version of the federation costs STEPS * BUFFER_SIZE steps in all; the centralised arm takes as many
    between two looks, and each local arm its device's share of them.
    """

    steps_per_look: int
    looks_max: int = VERSIONS_MAX


def centralised() -> Budget:
    """Budget of one model on everybody's data."""
    return Budget(STEPS * BUFFER_SIZE)


def local(devices: int) -> Budget:
    """Budget of one device on its own data."""
    return Budget(STEPS * BUFFER_SIZE // devices)


def bundle() -> CompiledBundle:
    """The training bundle: a three-layer 1-D CNN of 24 599 parameters with int8 fake-quantised weights."""
    return compile_training(
        cnn1d(channels=6, length=data.WINDOW, classes=data.CLASSES, seed=SEED),
        name=JOB,
        optimizer="momentum",
        momentum=0.9,
        learning_rate=LEARNING_RATE,
        quantize="int8-weights",
        batch_size=BATCH_SIZE,
        normalize=(data.MEAN, data.DEVIATION),
        axes=data.AXES,
    )


def spec(digest: str) -> dict[str, object]:
    """The job spec of the federated arm."""
    return {
        "name": JOB,
        "bundle": digest,
        "dataset": data.DATASET,
        "buffer_size": BUFFER_SIZE,
        "concurrency": CONCURRENCY,
        "server_lr": SERVER_LR,
        "lease_s": LEASE_S,
        "retry_s": RETRY_S,
        "downlink_density": DOWNLINK_DENSITY,
        "seed": SEED,
        "training": {"steps": STEPS, "density": DENSITY},
        "end": {"versions_max": VERSIONS_MAX, "patience": PATIENCE},
    }
