"""Training on an emulated Raspberry Pi 4 and on x86_64: the same bundle, the same batches, the same result.

Rounding to int8 is not continuous: where the two machines' sums differ in the last bit, sooner or later one weight is
rounded the other way, and from there on two sound runs part by more than any tolerance of rounding errors. So
quantised training is compared step by step, each from the parameters and statistics that the emulated run had.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from firmware_tools import compile_training
from tests.pi.models import MODELS
from tests.pi.train import train

STEPS, BATCH = 20, 16
TOLERANCE = 1e-4
PARTED_MAX = 0.02  # of a mean loss, between two quantised runs that rounded some weights differently
RATES = {"momentum": 0.05, "adam": 0.01}
CASES = list(product(MODELS, RATES, ("none", "int8-weights", "int8")))
PLAIN = [case for case in CASES if case[-1] == "none"]
QUANTISED = [case for case in CASES if case[-1] != "none"]


@pytest.fixture(scope="module")
def courses(pi, tmp_path_factory):
    """The bundle of each case, and what one emulated process made of it: (bundle, losses and parameters)."""
    bundles, results = tmp_path_factory.mktemp("bundles"), tmp_path_factory.mktemp("results")
    for case in CASES:
        model, optimizer, quantize = case
        compiled = compile_training(MODELS[model](), optimizer=optimizer, quantize=quantize, batch_size=BATCH)
        bundle = compiled.save(bundles / f"{'-'.join(case)}.bundle")
        np.savez(
            bundle.with_suffix(".npz"), learning_rate=RATES[optimizer], **batches(compiled.manifest.data)
        )
    pi.run(Path(__file__).with_name("train.py"), bundles, results)

    def course(name):
        with np.load(results / f"{name}.npz") as file:
            return bundles / f"{name}.bundle", dict(file)

    return {case: course("-".join(case)) for case in CASES}


def batches(schema):
    """A task that can be learned: a pattern for each class, under noise."""
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((schema.n_classes, *schema.shape))
    y = rng.integers(0, schema.n_classes, (STEPS, BATCH))
    x = patterns[y] + 0.6 * rng.standard_normal((STEPS, BATCH, *schema.shape))
    return {"x": x.astype(np.float32), "y": y}


def apart(here, there):
    """The largest difference of each array."""
    assert here.keys() == there.keys()
    assert there["losses"].shape == (STEPS,)
    return {name: float(np.abs(here[name] - there[name]).max()) for name in here}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_training_under_emulation_learns(courses, case):
    """The loss falls, and every parameter moves."""
    there = dict(courses[case][1])
    losses = there.pop("losses")

    assert losses[-5:].mean() < 0.9 * losses[:5].mean()
    assert [name for name, values in there.items() if (values[0] == values[-1]).all()] == []


@pytest.mark.parametrize("case", PLAIN, ids="-".join)
def test_a_run_is_that_of_x86_64(courses, case):
    """Twenty steps on float weights have the losses and parameters of x86_64 to 1e-4, each of them."""
    bundle, there = courses[case]
    differences = apart(train(bundle), there)

    assert {n: d for n, d in differences.items() if not d <= TOLERANCE} == {}


@pytest.mark.parametrize("case", QUANTISED, ids="-".join)
def test_a_quantised_step_is_that_of_x86_64(courses, case):
    """Each of twenty quantised steps has x86_64's loss and new parameters to 1e-4 from the same old ones."""
    bundle, there = courses[case]
    differences = apart(train(bundle, course=there), there)

    assert {n: d for n, d in differences.items() if not d <= TOLERANCE} == {}


@pytest.mark.parametrize("case", QUANTISED, ids="-".join)
def test_quantised_runs_stay_together(pi, courses, case):
    """Left to themselves, twenty quantised steps come to x86_64's loss, but for weights rounded differently."""
    bundle, there = courses[case]
    here = train(bundle)
    parted = np.abs(here["losses"] - there["losses"]).max()
    pi.figures[f"largest difference of a loss in {STEPS} steps, {'-'.join(case)}"] = f"{parted:.1e}"

    assert abs(here["losses"][0] - there["losses"][0]) <= TOLERANCE
    assert abs(here["losses"][-5:].mean() - there["losses"][-5:].mean()) <= PARTED_MAX
