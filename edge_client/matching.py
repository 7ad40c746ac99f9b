"""May this data set serve that job? Pure comparisons that name what does not fit."""

from edge_client.wire.messages import DataSchema


def mismatch(have: DataSchema, want: DataSchema, *, who: str = "the job wants") -> str:
    """Why data of schema `have` cannot be used where `want` is asked for; "" when it can.

    Axis names are compared only when both sides give them; a job without a target takes any.
    """
    if len(have.shape) != len(want.shape):
        return f"samples have {len(have.shape)} axes {list(have.shape)}, {who} {len(want.shape)} {list(want.shape)}"
    if have.axes and want.axes and have.axes != want.axes:
        return f"axes are {', '.join(have.axes)}, {who} {', '.join(want.axes)}"
    names = want.axes or have.axes
    for axis, (ours, theirs) in enumerate(zip(have.shape, want.shape, strict=True)):
        if ours != theirs:
            name = f" ({names[axis]})" if names else ""
            return f"axis {axis}{name} has {ours} values, {who} {theirs}"
    return _target_mismatch(have, want, who)


def undeclared(found: DataSchema, declared: DataSchema) -> str:
    """Why a file is not what its configuration declares; fewer classes than declared are fine.

    The largest label of a file is a value of the data, so it is not said (I8).
    """
    if found.target != "class" or declared.target != "class":
        return mismatch(found, declared, who="the configuration declares")
    if found.n_classes > declared.n_classes:
        return f"a label is beyond the {declared.n_classes} classes that the configuration declares"
    same_classes = DataSchema(found.shape, declared.n_classes)
    return mismatch(same_classes, declared, who="the configuration declares")


def _target_mismatch(have: DataSchema, want: DataSchema, who: str) -> str:
    if want.target == "none":
        return ""
    if have.target != want.target:
        return f"samples have {have.labelling}, {who} {want.labelling}"
    if have.n_classes != want.n_classes:
        what = "labels have" if want.target == "class" else "samples have"
        kind = "classes" if want.target == "class" else "labels"
        return f"{what} {have.n_classes} {kind}, {who} {want.n_classes}"
    if have.target_shape != want.target_shape:
        return f"values have shape {list(have.target_shape)}, {who} {list(want.target_shape)}"
    return ""
