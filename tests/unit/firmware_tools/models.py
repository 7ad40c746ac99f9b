"""Small inference models built by hand, as a user's exporter would write them."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model_of(nodes, weights, shape, classes, *, opset=18, outputs=("out",), functions=()):
    """A model from float32 input `in` [N, *shape] to `outputs`."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", classes]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid("own", 1)] if functions else [])]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions)
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def he(rng, *shape):
    """He-initialised float32 weights of an [out, in, …] kernel."""
    return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)


def mlp(seed=0, classes=4, *, opset=18, softmax=False):
    """12-16-`classes` with MatMul and Add, as Keras exports it."""
    rng = np.random.default_rng(seed)
    weights = {"w1": he(rng, 16, 12).T.copy(), "b1": np.zeros(16, np.float32)}
    weights |= {"w2": he(rng, classes, 16).T.copy(), "b2": np.zeros(classes, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["in", "w1"], ["a"]),
        helper.make_node("Add", ["a", "b1"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w2"], ["d"]),
        helper.make_node("Add", ["d", "b2"], ["e" if softmax else "out"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["e"], ["out"], axis=-1))
    return model_of(nodes, weights, (12,), classes, opset=opset)


def lenet(seed=0):
    """Two convolutions with 2x2 pools and two dense layers on 1x14x14 images, 5 classes, as PyTorch exports it."""
    rng = np.random.default_rng(seed)
    weights = {"conv1.weight": he(rng, 8, 1, 5, 5), "conv1.bias": np.zeros(8, np.float32)}
    weights |= {"conv2.weight": he(rng, 16, 8, 3, 3), "conv2.bias": np.zeros(16, np.float32)}
    weights |= {"fc1.weight": he(rng, 32, 144), "fc1.bias": np.zeros(32, np.float32)}
    weights |= {"fc2.weight": he(rng, 5, 32), "fc2.bias": np.zeros(5, np.float32)}
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["in", "conv1.weight", "conv1.bias"], ["a"], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], **pool),
        helper.make_node("Conv", ["c", "conv2.weight", "conv2.bias"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("MaxPool", ["e"], ["f"], **pool),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "fc1.weight", "fc1.bias"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["i"]),
        helper.make_node("Gemm", ["i", "fc2.weight", "fc2.bias"], ["out"], transB=1),
    ]
    return model_of(nodes, weights, (1, 14, 14), 5)


def blobs(shape, classes, n, seed=0, noise=0.6):
    """A learnable task: a random pattern per class under noise; float32 [n, *shape], int64 [n]."""
    patterns = np.random.default_rng(99).standard_normal((classes, *shape))
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = patterns[y] + noise * rng.standard_normal((n, *shape))
    return x.astype(np.float32), y.astype(np.int64)


def waves(shape, classes, n, seed=0, noise=0.3):
    """A learnable task without position: the class is the frequency along the longest axis, the phase is random."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    axis = int(np.argmax(shape))
    places = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    rows = [n, *[1] * len(shape)]
    phase = rng.uniform(0, 2 * np.pi, rows)
    x = np.sin(2 * np.pi * (1 + y).reshape(rows) * places / shape[axis] + phase)
    return (x + noise * rng.standard_normal((n, *shape))).astype(np.float32), y.astype(np.int64)
