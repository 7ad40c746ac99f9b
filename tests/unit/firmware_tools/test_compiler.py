"""From an inference model to a bundle that learns, and back to an inference model."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edge_client.bundle import EVAL, INFER, TRAIN, open_bundle
from edge_client.training import TrainingSession, initial_params
from edge_client.wire import grid
from firmware_tools import compile_training
from firmware_tools.errors import ExportError, ModelError, NotDifferentiable, OptionError
from firmware_tools.export import export_model
from firmware_tools.zoo import cnn1d


def trained(compiled, tmp_path, data, steps, rate=0.02):
    """A session that has taken `steps` steps over (x, y)."""
    x, y = data
    session = TrainingSession(compiled.save(tmp_path / "net.bundle"))
    size = compiled.manifest.batch_size
    for step in range(steps):
        rows = np.arange(step * size, (step + 1) * size) % len(x)
        session.step(x[rows], y[rows], rate)
    return session


def predict(model, x):
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x})
    return logits


def on_grid(session):
    tensors = session.bundle.manifest.table
    return [grid.to_grid(session.params[t.name], t.step_exp) for t in tensors]


@pytest.mark.parametrize("quantize", ["int8-weights", "none"])
@pytest.mark.parametrize("name", ["cnn1d", "lenet", "mlp"])
def test_compiled_model_learns(models, tmp_path, name, quantize):
    """A compiled 1-D CNN, LeNet and MLP reach 95 % on unseen samples of a task they can learn."""
    model, shape, classes, steps = {
        "cnn1d": (cnn1d(widths=(8, 12, 16)), (6, 100), 7, 120),
        "lenet": (models.lenet(), (1, 14, 14), 5, 80),
        "mlp": (models.mlp(), (12,), 4, 150),
    }[name]
    x, y = models.blobs(shape, classes, 1200)
    held_x, held_y = models.blobs(shape, classes, 300, seed=1)
    session = trained(compile_training(model, quantize=quantize), tmp_path, (x, y), steps)

    assert session.evaluate(held_x, held_y).accuracy >= 0.95


def test_int8_export_answers_as_the_trained_model(models, tmp_path):
    """The int8 export holds int8 weights and gives the fake-quantised model's answers; fp32 nearly so."""
    x, y = models.blobs((1, 14, 14), 5, 640, noise=2.5)
    compiled = compile_training(models.lenet())
    session = trained(compiled, tmp_path, (x, y), 40)
    values = on_grid(session)
    tensors = compiled.manifest.table
    session.load(
        {t.name: grid.from_grid(v, t.step_exp).reshape(t.shape) for t, v in zip(tensors, values, strict=True)}
    )
    int8 = export_model(compiled.members[INFER], compiled.manifest, values, format="int8", version="3")
    fp32 = export_model(compiled.members[INFER], compiled.manifest, values)
    accuracy = session.evaluate(x, y).accuracy
    reference = ort.InferenceSession(compiled.members[INFER], providers=["CPUExecutionProvider"])
    (want,) = reference.run(None, {"x": x, **session.params})

    np.testing.assert_allclose(predict(int8, x), want, rtol=1e-4, atol=1e-4)
    assert float((predict(int8, x).argmax(axis=1) == y).mean()) == accuracy
    assert float((predict(fp32, x).argmax(axis=1) == y).mean()) == pytest.approx(accuracy, abs=0.02)
    stored = {t.data_type: t.name for t in onnx.load_from_string(int8).graph.initializer}
    assert TensorProto.INT8 in stored
    assert len(int8) < 0.45 * len(fp32)
    properties = {p.key: p.value for p in onnx.load_from_string(int8).metadata_props}
    assert properties == {"name": "net", "version": "3", "format": "int8"}


def test_fp32_export_of_version_0_is_the_source_model(models):
    """Without quantisation the export of the initial parameters answers as the model that was compiled."""
    source = models.mlp()
    compiled = compile_training(source, quantize="none")
    values = grid.decode(compiled.members["params.keyframe"], compiled.manifest.sizes).values
    exported = export_model(compiled.members[INFER], compiled.manifest, values)
    x, _ = models.blobs((12,), 4, 50)

    np.testing.assert_allclose(predict(exported, x), predict(source.SerializeToString(), x), atol=2e-3)


def test_int8_export_needs_int8_training(models):
    """A model trained without fake quantisation is not exported as int8."""
    compiled = compile_training(models.mlp(), quantize="none")

    with pytest.raises(ExportError, match="quantize=none"):
        export_model(compiled.members[INFER], compiled.manifest, [], format="int8")


def test_same_input_gives_the_same_bytes(models):
    """Compiling twice gives identical bundle files."""
    assert compile_training(models.lenet()).to_bytes() == compile_training(models.lenet()).to_bytes()


def test_bundle_opens_with_verified_members(models, tmp_path):
    """The written file opens on the device and its parameters are the model's, to the grid step."""
    source = models.mlp()
    opened = open_bundle(compile_training(source, name="m", axes=("feature",)).save(tmp_path / "m.bundle"))
    params = initial_params(opened)

    assert opened.manifest.name == "m"
    assert opened.manifest.data.shape == (12,)
    assert list(params) == ["w1", "b1", "w2", "b2"]
    for tensor in source.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        step = 2.0 ** next(t.step_exp for t in opened.manifest.tensors if t.name == tensor.name)
        assert np.abs(params[tensor.name] - value).max() <= step / 2


def test_graphs_have_the_documented_interface(models):
    """Inputs and outputs of the three graphs are named as the manifest's docstring says."""
    members = compile_training(models.mlp()).members

    def names(member):
        graph = onnx.load_from_string(members[member]).graph
        return [i.name for i in graph.input], [o.name for o in graph.output]

    params = ["w1", "b1", "w2", "b2"]
    slots = [f"{p}@momentum" for p in params]
    state = params + slots
    assert names(TRAIN) == (["x", "y", "learning_rate", *state], ["loss", *(f"{n}@next" for n in state)])
    assert names(EVAL) == (["x", "y", *params], ["loss", "loss_weight", "correct"])
    assert names(INFER) == (["x", *params], ["logits"])


def test_momentum_step_is_the_documented_update(models, tmp_path):
    """Two steps follow v' = m v + g, w' = w - lr v' with the gradient that plain SGD reveals."""
    x, y = models.blobs((12,), 4, 32)
    plain = TrainingSession(compile_training(models.mlp(), optimizer="sgd").save(tmp_path / "s"))
    heavy = TrainingSession(compile_training(models.mlp(), momentum=0.5).save(tmp_path / "m"))
    first = plain.params["w1"]
    plain.step(x, y, 0.1)
    g1 = (first - plain.params["w1"]) / 0.1
    heavy.step(x, y, 0.1)
    plain.load(heavy.params)
    second = plain.params["w1"]
    plain.step(x, y, 0.1)
    g2 = (second - plain.params["w1"]) / 0.1
    heavy.step(x, y, 0.1)

    np.testing.assert_allclose(heavy.params["w1"], second - 0.1 * (0.5 * g1 + g2), atol=1e-6)


def test_frozen_tensors_leave_the_graph_and_the_table(models):
    """Globs choose what is trained; nothing else is in the tensor table or gets a gradient."""
    full = compile_training(models.lenet())
    head = compile_training(models.lenet(), trainable=("fc2.*",))

    def count(compiled):
        return len(onnx.load_from_string(compiled.members[TRAIN]).graph.node)

    assert [t.name for t in head.manifest.tensors] == ["fc2.weight", "fc2.bias"]
    assert count(head) < count(full) / 2


def test_batch_normalisation_is_frozen(models, tmp_path):
    """Running statistics are constants, not parameters, even of a model exported in training mode."""
    rng = np.random.default_rng(0)
    weights = {"w": models.he(rng, 6, 12), "scale": np.ones(6, np.float32), "shift": np.zeros(6, np.float32)}
    weights |= {"mean": np.full(6, 0.1, np.float32), "var": np.full(6, 2, np.float32)}
    nodes = [
        helper.make_node("Gemm", ["in", "w"], ["a"], transB=1),
        helper.make_node(
            "BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["out", "m", "v"], training_mode=1
        ),
    ]
    compiled = compile_training(models.model_of(nodes, weights, (12,), 6), optimizer="sgd")
    x, y = models.blobs((12,), 6, 600)
    session = trained(compiled, tmp_path, (x, y), 60, rate=0.3)

    assert [t.name for t in compiled.manifest.tensors] == ["w", "scale", "shift"]
    assert session.evaluate(x, y).accuracy > 0.9


def test_normalisation_is_compiled_into_the_graphs(models, tmp_path):
    """Raw samples through a normalising bundle equal normalised samples through a plain one."""
    x, y = models.blobs((6, 100), 7, 64)
    mean, std = np.arange(6, dtype=np.float32), np.full(6, 2, np.float32)
    raw = x * std[:, None] + mean[:, None]
    net = cnn1d(widths=(4, 4, 4))
    plain = TrainingSession(compile_training(net).save(tmp_path / "a"))
    built_in = TrainingSession(compile_training(net, normalize=(mean, std)).save(tmp_path / "b"))

    assert built_in.evaluate(raw, y).loss == pytest.approx(plain.evaluate(x, y).loss, rel=1e-4)


def test_closing_softmax_is_stripped_and_said(models):
    """A model that ends in Softmax trains on its logits, and the bundle says so."""
    compiled = compile_training(models.mlp(softmax=True))

    assert "Softmax" in compiled.notes[0]
    assert "Softmax" not in [n.op_type for n in onnx.load_from_string(compiled.members[INFER]).graph.node]


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_other_opsets_compile(models, opset):
    """Older models are converted up, newer ones are taken as they are."""
    assert compile_training(models.mlp(opset=opset)).manifest.opset == max(opset, 18)


def test_local_functions_are_inlined(models):
    """A model that calls its own function compiles like the expanded one."""
    body = [helper.make_node("MatMul", ["p", "q"], ["r"]), helper.make_node("Relu", ["r"], ["s"])]
    function = helper.make_function("own", "Dense", ["p", "q"], ["s"], body, [helper.make_opsetid("", 18)])
    nodes = [
        helper.make_node("Dense", ["in", "w1"], ["a"], domain="own"),
        helper.make_node("MatMul", ["a", "w2"], ["out"]),
    ]
    rng = np.random.default_rng(0)
    weights = {"w1": models.he(rng, 12, 8), "w2": models.he(rng, 8, 3)}
    model = models.model_of(nodes, weights, (12,), 3, functions=[function])

    assert [t.name for t in compile_training(model).manifest.tensors] == ["w1", "w2"]


def test_reserved_names_are_moved_out_of_the_way(models):
    """A model may call its weights `y` or `loss`; they get other names in the bundle."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Gemm", ["in", "y", "loss"], ["out"], transB=1)]
    model = models.model_of(nodes, {"y": models.he(rng, 3, 12), "loss": np.zeros(3, np.float32)}, (12,), 3)

    assert [t.name for t in compile_training(model).manifest.tensors] == ["y_", "loss_"]


def refused_models(models):
    rng = np.random.default_rng(0)
    w = {"w": models.he(rng, 12, 4)}
    dense = helper.make_node("MatMul", ["in", "w"], ["a"])
    yield (
        "Round",
        NotDifferentiable,
        models.model_of([dense, helper.make_node("Round", ["a"], ["out"])], w, (12,), 4),
    )
    two = [dense, helper.make_node("Relu", ["a"], ["out"]), helper.make_node("Neg", ["a"], ["more"])]
    yield "2 outputs", ModelError, models.model_of(two, w, (12,), 4, outputs=("out", "more"))
    double = models.mlp()
    double.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    yield "not float32", ModelError, double
    broken = models.mlp()
    broken.graph.node[0].input[1] = "absent"
    yield "not a valid ONNX model", ModelError, broken
    infinite = models.mlp()
    infinite.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(
            np.full((12, 16), np.inf, np.float32), infinite.graph.initializer[0].name
        )
    )
    yield "not finite", ModelError, infinite
    fixed = [dense, helper.make_node("Reshape", ["a", "shape"], ["out"])]
    yield (
        "shapes do not fit|output has shape",
        ModelError,
        models.model_of(fixed, w | {"shape": np.array([1, 4])}, (12,), 4),
    )


@pytest.mark.parametrize("index", range(6))
def test_unfit_models_are_refused(models, index):
    """What cannot be trained is refused with an error that names the reason."""
    reason, error, model = list(refused_models(models))[index]

    with pytest.raises(error, match=reason):
        compile_training(model)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"trainable": ("nothing*",)}, "matches none"),
        ({"n_classes": 9}, "n_classes is 9"),
        ({"axes": ("a", "b")}, "2 axis names"),
        ({"normalize": ([0.0], [1.0])}, "12 channels"),
        ({"normalize": ([0.0] * 12, [0.0] * 12)}, "deviations positive"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"batch_size": 0}, "batch size"),
        ({"optimizer": "lion"}, "lion"),
        ({"weight_decay": 0.1}, "weight decay is adamw's"),
        ({"optimizer": "adamw", "weight_decay": -1.0}, "weight decay -1"),
        ({"proximal": -0.1}, "proximal -0.1"),
        ({"clip_norm": float("nan")}, "clip norm nan"),
        ({"loss": "hinge"}, "known: cross_entropy, bce_with_logits, mse, reconstruction"),
        ({"quantize": "int4"}, "int4"),
    ],
)
def test_wrong_options_are_refused(models, options, reason):
    """An option out of range or at odds with the model is an OptionError that says which."""
    with pytest.raises(OptionError, match=reason):
        compile_training(models.mlp(), **options)


def test_unreadable_file_is_refused(tmp_path):
    """A file that is no ONNX model gives a ModelError with its name."""
    (tmp_path / "m.onnx").write_bytes(b"not a model")

    with pytest.raises(ModelError, match=r"m\.onnx"):
        compile_training(tmp_path / "m.onnx")


def test_zero_weights_survive_quantisation(models, tmp_path):
    """A channel of zeros has a harmless scale: the first step is finite and moves it."""
    model = models.mlp()
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(np.zeros((16, 4), np.float32), "w2"))
    x, y = models.blobs((12,), 4, 32)
    session = TrainingSession(compile_training(model).save(tmp_path / "z"))
    session.step(x, y, 0.1)

    assert np.isfinite(session.params["w2"]).all()
    assert session.params["w2"].any()
