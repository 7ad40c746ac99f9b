"""What a trained version is as an ordinary INT8 model: the same answers, in integers."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edge_client.bundle import INFER
from edge_client.training import TrainingSession
from edge_client.wire import grid
from firmware_tools import compile_training
from firmware_tools.errors import ExportError
from firmware_tools.export import export_model

PARITY = 0.005  # share of answers that may differ between training's rounding and the exported model


def network(models, seed=0):
    """Two convolutions with BatchNormalization, a residual connection, and a dense layer; 1x12x12 to 4 classes."""
    rng = np.random.default_rng(seed)
    weights = {
        "c1": models.he(rng, 8, 1, 3, 3),
        "c2": models.he(rng, 8, 8, 3, 3),
        "b2": models.he(rng, 8, 1)[:, 0],
    }
    nodes = [helper.make_node("Conv", ["in", "c1"], ["z1"], pads=[1, 1, 1, 1])]
    for i in (1, 2):
        weights |= {f"s{i}": rng.choice([-1.0, 1.2], 8).astype(np.float32), f"t{i}": np.zeros(8, np.float32)}
        weights |= {f"m{i}": np.zeros(8, np.float32) + 0.01 * i, f"v{i}": np.ones(8, np.float32) * i}
    norm = [[f"z{i}", f"s{i}", f"t{i}", f"m{i}", f"v{i}"] for i in (1, 2)]
    nodes += [
        helper.make_node("BatchNormalization", norm[0], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "c2", "b2"], ["z2"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", norm[1], ["n2"]),
        helper.make_node("Add", ["n2", "p1"], ["a"]),
        helper.make_node("Relu", ["a"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "d", "e"], ["out"], transB=1),
    ]
    weights |= {"d": models.he(rng, 4, 8), "e": np.zeros(4, np.float32)}
    return models.model_of(nodes, weights, (1, 12, 12), 4)


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory):
    """A compiled bundle, a session after training with rounded activations, and its values on the grid."""
    compiled = compile_training(network(models), quantize="int8", optimizer="adam", learning_rate=0.01)
    path = compiled.save(tmp_path_factory.mktemp("export") / "n.bundle")
    session = TrainingSession(path)
    x, y = models.waves((1, 12, 12), 4, 640)
    for step in range(120):
        rows = np.arange(step * 32, (step + 1) * 32) % len(x)
        session.step(x[rows], y[rows], 0.01)
    values = [grid.to_grid(session.params[t.name], t.step_exp) for t in compiled.manifest.table]
    table = compiled.manifest.table
    session.load(
        {t.name: grid.from_grid(v, t.step_exp).reshape(t.shape) for t, v in zip(table, values, strict=True)}
    )
    return compiled, session, values


def answers(model, x):
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_int8_answers_as_the_fake_quantised_model(models, trained):
    """The exported QDQ model and the one that was trained agree on all but half a per cent of unseen samples."""
    compiled, session, values = trained
    x, y = models.waves((1, 12, 12), 4, 1000, seed=1)
    exported = export_model(compiled.members[INFER], compiled.manifest, values, format="int8", version="7")
    accuracy = session.evaluate(x, y).accuracy
    ours = answers(exported, x)
    reference = ort.InferenceSession(compiled.members[INFER], providers=["CPUExecutionProvider"])
    (want,) = reference.run(None, {"x": x, **session.params})

    assert accuracy > 0.8
    assert float((ours.argmax(axis=1) != want.argmax(axis=1)).mean()) <= PARITY
    assert float((ours.argmax(axis=1) == y).mean()) == pytest.approx(accuracy, abs=PARITY)
    assert np.abs(ours - want).max() < 0.1 * np.abs(want).max()


def test_int8_holds_integers_only_and_folds_normalisation(trained):
    """Weights are int8 and biases int32, all scales are constants, and no BatchNormalization or Clip is left."""
    compiled, _, values = trained
    model = onnx.load_from_string(
        export_model(compiled.members[INFER], compiled.manifest, values, format="int8")
    )
    operators = Counter(node.op_type for node in model.graph.node)
    constants = {t.name: t for t in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    makers = {n.output[0]: n for n in model.graph.node}

    assert operators == {
        "QuantizeLinear": 4, "DequantizeLinear": 10, "Conv": 2, "Gemm": 1, "Relu": 2, "MaxPool": 1, "Add": 1,
        "GlobalAveragePool": 1, "Flatten": 1,
    }  # fmt: skip
    for product in products:
        kinds = [constants.get(makers[name].input[0]) for name in product.input]
        assert [k.data_type if k else None for k in kinds] == [None, TensorProto.INT8, TensorProto.INT32]
    for node in model.graph.node:
        if node.op_type.endswith("Linear"):
            assert set(node.input[1:]) <= constants.keys()
    assert [i.name for i in model.graph.input] == ["x"]


def test_the_runtime_fuses_it_into_integer_kernels(trained, tmp_path):
    """Stock ONNX Runtime turns products of the exported model into integer ones."""
    compiled, _, values = trained
    model = export_model(compiled.members[INFER], compiled.manifest, values, format="int8")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    fused = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)

    assert fused["QLinearConv"] + fused["QGemm"] >= 2


def test_fp32_drops_the_rounding_and_keeps_the_statistics(models, trained):
    """The fp32 export has no quantisation, and the running moments are constants of its BatchNormalizations."""
    compiled, session, values = trained
    x, y = models.waves((1, 12, 12), 4, 500, seed=2)
    exported = export_model(compiled.members[INFER], compiled.manifest, values)
    model = onnx.load_from_string(exported)

    assert not [n.op_type for n in model.graph.node if n.op_type.endswith("Linear") or n.op_type == "Clip"]
    assert sum(n.op_type == "BatchNormalization" for n in model.graph.node) == 2
    accuracy = float((answers(exported, x).argmax(axis=1) == y).mean())
    assert accuracy == pytest.approx(session.evaluate(x, y).accuracy, abs=0.02)


def test_int8_needs_observed_ranges(models):
    """I8: version 0 of a model has no ranges yet, and no sample is asked for: the refusal says what to export."""
    compiled = compile_training(models.lenet(), quantize="int8")
    values = grid.decode(compiled.members["params.keyframe"], compiled.manifest.sizes).values

    with pytest.raises(ExportError, match="no device has observed a range"):
        export_model(compiled.members[INFER], compiled.manifest, values, format="int8")
    assert export_model(compiled.members[INFER], compiled.manifest, values)


def test_the_models_own_quantisation_stays(models):
    """A QuantizeLinear that the model came with is part of the model, in fp32 as well."""
    scale, zero = np.array(0.05, np.float32), np.array(128, np.uint8)
    source = models.mlp()
    source.graph.initializer.extend(
        onnx.numpy_helper.from_array(v, n) for v, n in ((scale, "s"), (zero, "z"))
    )
    relu = next(n for n in source.graph.node if n.op_type == "Relu")
    following = [
        helper.make_node("QuantizeLinear", ["relu", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], [relu.output[0]]),
    ]
    relu.output[0] = "relu"
    index = list(source.graph.node).index(relu) + 1
    nodes = [*source.graph.node[:index], *following, *source.graph.node[index:]]
    del source.graph.node[:]
    source.graph.node.extend(nodes)
    compiled = compile_training(source)
    values = grid.decode(compiled.members["params.keyframe"], compiled.manifest.sizes).values
    exported = onnx.load_from_string(export_model(compiled.members[INFER], compiled.manifest, values))

    assert sum(n.op_type == "QuantizeLinear" for n in exported.graph.node) == 1
