"""Writes the paddings of a compiled graph for all axes, because ONNX Runtime gets those of some axes wrong.

Where it moves a transposition through a Pad (1.32's transpose optimizer), it permutes `pads` as if they were for
every axis, and the graph fails when it runs or pads elsewhere. Models with channels last meet it.
"""

import numpy as np
import onnx
from onnx import numpy_helper


def whole(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each Pad of constant `axes` written without them, changed in place.

    A Pad of a tensor whose rank onnx does not infer stays as it is.
    """
    graph = model.graph
    some = [node for node in graph.node if node.op_type == "Pad" and len(node.input) > 3 and node.input[3]]
    if not some:
        return model
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    infos = (*inferred.input, *inferred.value_info, *inferred.output)
    ranks = {i.name: len(i.type.tensor_type.shape.dim) for i in infos if i.type.tensor_type.HasField("shape")}
    constants = {t.name: t for t in graph.initializer}
    ranks |= {name: len(t.dims) for name, t in constants.items()}
    for node in some:
        rank, names = ranks.get(node.input[0]), (node.input[1], node.input[3])
        if not rank or not constants.keys() >= set(names):
            continue
        pads, axes = (numpy_helper.to_array(constants[name]) for name in names)
        full = np.zeros((2, rank), np.int64)
        full[:, axes % rank] = pads.reshape(2, -1)
        name = f"{node.output[0]}%pads"
        graph.initializer.append(numpy_helper.from_array(full.ravel(), name))
        node.input[:] = [node.input[0], name, *([node.input[2]] if node.input[2] else [])]
    used = {name for node in graph.node for name in node.input}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return model
