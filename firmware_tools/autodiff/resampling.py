"""Images made larger or smaller, written as operators that have gradient rules.

Every mode of Resize is linear and works along one axis after the other, so it is a product with a matrix an axis. The
matrix is not derived from the many modes but observed: it is what ONNX Runtime makes of the identity.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from edge_client.runtime import ort
from firmware_tools.autodiff.graph import Array, Graph, value_info
from firmware_tools.autodiff.registry import Call, expansion


@expansion("DepthToSpace")
def depth_to_space(call: Call) -> None:
    """Blocks of channels move into space, in either mode."""
    channels, (height, width) = call.shape(call.x)[1], call.spatial(call.x)
    size = call.attribute("blocksize", 1)
    fewer = channels // size**2
    if call.attribute("mode", "DCR") == "DCR":
        split, order = (size, size, fewer, height, width), [0, 3, 4, 1, 5, 2]
    else:
        split, order = (fewer, size, size, height, width), [0, 1, 4, 2, 5, 3]
    _rearrange(call, split, order, (fewer, height * size, width * size))


@expansion("SpaceToDepth")
def space_to_depth(call: Call) -> None:
    """Blocks of space move into the channels."""
    channels, (height, width) = call.shape(call.x)[1], call.spatial(call.x)
    size = call.attribute("blocksize", 1)
    low, narrow = height // size, width // size
    order = [0, 3, 5, 1, 2, 4]
    _rearrange(call, (channels, low, size, narrow, size), order, (channels * size**2, low, narrow))


def _rearrange(call: Call, split: Sequence[int], order: Sequence[int], joined: Sequence[int]) -> None:
    g = call.graph
    parts = g.add("Transpose", g.add("Reshape", call.x, g.ints(-1, *split)), perm=list(order))
    g.add("Reshape", parts, g.ints(-1, *joined), output=call.y)


@expansion("Resize", settings=(1, 2, 3))
def resize(call: Call) -> None:
    """The last two axes, in any mode but `tf_crop_and_resize`: the gradient goes back by the transposed weights."""
    g, before, after = call.graph, call.shape(call.x), call.shape(call.y)
    call.spatial(call.x)
    changed = [axis for axis, (n, m) in enumerate(zip(before, after, strict=True)) if n != m]
    if any(axis < max(2, len(before) - 2) for axis in changed):
        raise call.refused("only the last two axes, and neither batch nor channels, may change")
    if call.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise call.refused("regions of interest are not supported")
    if call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refused("give sizes that need no policy")
    value = call.x
    for axis in changed:
        matrix = _observed(call, axis, before[axis], after[axis])
        if axis == len(before) - 1:
            value = g.add("MatMul", value, g.constant(matrix))
        else:
            value = g.add("MatMul", g.constant(np.ascontiguousarray(matrix.T)), value)
    g.add("Identity", value, output=call.y)


def _observed(call: Call, axis: int, extent: int, result: int) -> Array:
    """The matrix [extent, result] by which this node resizes one axis."""
    given = {a.name: call.attribute(a.name, None) for a in call.node.attribute if a.name != "axes"}
    g = Graph(call.graph.opset)
    scales = call.constant(2)
    if scales is not None and scales.size:
        axes = list(call.attribute("axes", range(len(call.shape(call.x)))))
        factor = float(scales[[a % len(call.shape(call.x)) for a in axes].index(axis)])
        how = ["", g.constant(np.array([1, 1, 1, factor], np.float32))]
    else:
        how = ["", "", g.ints(1, 1, extent, result)]
    g.add("Resize", "rows", *how, output="resized", **given)
    shapes = {"rows": (1, 1, extent, extent), "resized": (1, 1, extent, result)}
    model = g.model("resize", *([value_info(n, TensorProto.FLOAT, s)] for n, s in shapes.items()))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (resized,) = session.run(["resized"], {"rows": np.eye(extent, dtype=np.float32)[None, None]})
    matrix: Array = np.asarray(resized)[0, 0]
    return matrix
