"""What samples are labelled with, as arrays: one rule for data files and for batches.

No message carries a value of the data (I8).
"""

import numpy as np
import numpy.typing as npt

from edge_client.wire.messages import DataSchema, Target

Targets = npt.NDArray[np.int64] | npt.NDArray[np.uint8] | npt.NDArray[np.float32]

DTYPES: dict[Target, type[np.generic]] = {"class": np.int64, "labels": np.uint8, "values": np.float32}
FORMS: dict[Target, str] = {
    "class": "int64 [n]",
    "labels": "uint8 [n, labels] of 0 and 1",
    "values": "float32 [n, …]",
}


def check_batch(schema: DataSchema, x: npt.NDArray[np.generic], y: npt.NDArray[np.generic] | None) -> None:
    """Raise ValueError, naming what and the fix, when a batch is not of this schema.

    Takes about 2 µs: of the values only the largest label is looked for.
    """
    if x.dtype != np.float32 or x.shape[1:] != schema.shape:
        raise ValueError(f"x is {form(x)}, not {_form(np.float32, schema.shape)}: {_fix(x, np.float32, 'x')}")
    if schema.target == "none":
        if y is not None:
            raise ValueError("y is given, but the model is trained on x alone: pass None")
        return
    if y is None:
        raise ValueError(f"y is missing: pass {wanted(schema)}")
    kind = DTYPES[schema.target]
    if y.dtype != kind or y.shape[1:] != target_shape(schema):
        raise ValueError(f"y is {form(y)}, not {wanted(schema)}: {_fix(y, kind, 'y')}")
    if len(y) != len(x):
        raise ValueError(f"x has {len(x)} samples, but y has {len(y)}: pass one label for each")
    if not in_range(schema, y):
        raise ValueError(f"y holds a label that is not from 0 to {_largest(schema)}: number labels from 0 on")


def wanted(schema: DataSchema) -> str:
    """The form of y in words: dtype, shape and range."""
    if schema.target == "none":
        return "no y"
    text = _form(DTYPES[schema.target], target_shape(schema))
    return text if schema.target == "values" else f"{text} of 0 to {_largest(schema)}"


def target_shape(schema: DataSchema) -> tuple[int, ...]:
    """Shape of y for one sample."""
    return (schema.n_classes,) if schema.target == "labels" else schema.target_shape


def in_range(schema: DataSchema, y: npt.NDArray[np.generic]) -> bool:
    """Whether all labels can be; values may be any."""
    if schema.target == "values" or not y.size:
        return True
    # Read without a sign, a negative label is larger than any.
    unsigned = y.view(np.uint64) if schema.target == "class" else y
    return int(unsigned.max()) <= _largest(schema)


def form(array: npt.NDArray[np.generic]) -> str:
    """Dtype and shape of an array, for people."""
    return f"{array.dtype} {list(array.shape)}"


def _form(kind: type[np.generic], shape: tuple[int, ...]) -> str:
    return f"{np.dtype(kind).name} [{', '.join(['n', *map(str, shape)])}]"


def _largest(schema: DataSchema) -> int:
    return schema.n_classes - 1 if schema.target == "class" else 1


def _fix(array: npt.NDArray[np.generic], kind: type[np.generic], name: str) -> str:
    if array.dtype != kind:
        return f"convert it with {name}.astype(np.{np.dtype(kind).name})"
    return f"reshape {name}, or compile the bundle for such samples"
