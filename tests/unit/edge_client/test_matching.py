"""Which data set may serve which job."""

import pytest

from edge_client.matching import mismatch, undeclared
from edge_client.wire.messages import DataSchema

KINDS = {
    "class": DataSchema((4,), 3),
    "labels": DataSchema((4,), 3, target="labels"),
    "values": DataSchema((4,), target="values", target_shape=(2,)),
    "none": DataSchema((4,), target="none"),
}


@pytest.mark.parametrize("have", KINDS)
@pytest.mark.parametrize("want", KINDS)
def test_targets_have_to_agree_unless_the_job_needs_none(have, want):
    """A data set serves jobs of its own kind, and those that reconstruct samples whatever they are labelled with."""
    assert (mismatch(KINDS[have], KINDS[want]) == "") == (want in (have, "none"))


@pytest.mark.parametrize(
    ("have", "want", "why"),
    [
        ("class", DataSchema((4,), 1, target="labels"), "samples have one of 3 classes, the job wants 1 label"),
        ("labels", DataSchema((4,), 4, target="labels"), "samples have 3 labels, the job wants 4"),
        ("values", DataSchema((4,), target="values", target_shape=(1,)), "values have shape [2], the job wants [1]"),
        ("none", DataSchema((4,), 3), "samples have no labels, the job wants one of 3 classes"),
        ("class", DataSchema((5,), target="none"), "axis 0 has 4 values, the job wants 5"),
    ],
)  # fmt: skip
def test_the_reason_names_both_sides(have, want, why):
    """What does not fit is said of both, so that a person sees which to change."""
    assert mismatch(KINDS[have], want) == why


def test_a_file_is_what_its_configuration_declares():
    """I8: fewer classes than declared are fine, more are not, but the largest label is a value and is not said."""
    assert undeclared(DataSchema((4,), 2), KINDS["class"]) == ""
    assert undeclared(DataSchema((4,), 99), KINDS["class"]) == (
        "a label is beyond the 3 classes that the configuration declares"
    )
    assert "the configuration declares 3" in undeclared(DataSchema((4,), 2, target="labels"), KINDS["labels"])
    assert undeclared(KINDS["none"], KINDS["none"]) == ""
