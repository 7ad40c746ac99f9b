"""Bundles of each loss: their graphs, what they learn, what evaluation says, and what is refused."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from edge_client.bundle import EVAL, INFER, TRAIN
from edge_client.training import EVAL_BATCH, TrainingSession
from edge_client.wire import grid
from edge_client.wire.messages import DataSchema
from examples.models.gru import gru
from firmware_tools import compile_training
from firmware_tools.errors import ModelError, OptionError
from firmware_tools.export import export_model
from firmware_tools.layers import Net

FEATURES = 12


def dense(outputs, *, closing="", hidden=16, flat=False):
    """A small network from [N, 12] to [N, outputs], or to [N] when `flat`."""
    net = Net("dense", (FEATURES,), seed=0)
    x = net.add("Relu", net.dense("x", "first", (hidden, FEATURES)))
    x = net.dense(x, "last", (outputs, hidden), output="" if closing or flat else "logits")
    if closing:
        net.add(closing, x, output="logits")
    if flat:
        net.add("Squeeze", x, net.graph.ints(1), output="logits")
    return net.model(() if flat else (outputs,))


def samples(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, FEATURES)).astype(np.float32)


def opened(tmp_path, model, **options):
    return TrainingSession(compile_training(model, quantize="none", **options).save(tmp_path / "n.bundle"))


def interface(compiled, member):
    """Names, dtypes and shapes of a graph's inputs, without the model's tensors, and outputs."""
    graph = onnx.load_from_string(compiled.members[member]).graph
    own = {t.name for t in compiled.manifest.table}
    own |= {f"{n}@momentum" for n in own} | {"learning_rate"}

    def shown(values):
        return {
            v.name: (
                TensorProto.DataType.Name(v.type.tensor_type.elem_type),
                [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
            )
            for v in values
            if v.name not in own and "@next" not in v.name
        }

    return shown(graph.input), shown(graph.output)


def learn(session, x, y, steps=300, rate=0.05):
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(0, len(x), 32)
        session.step(x[rows], None if y is None else y[rows], rate)


SCALAR = ("FLOAT", [])


@pytest.mark.parametrize(
    ("loss", "outputs", "labels", "answers", "figure"),
    [
        ("cross_entropy", 3, {"y": ("INT64", ["batch"])}, {"logits": 3}, {"correct": ("INT64", [])}),
        ("bce_with_logits", 3, {"y": ("UINT8", ["batch", 3])}, {"logits": 3}, {"correct": ("INT64", [])}),
        ("mse", 3, {"y": ("FLOAT", ["batch", 3])}, {"prediction": 3}, {"error": SCALAR}),
        ("reconstruction", 12, {}, {"reconstruction": 12}, {"errors": ("FLOAT", ["batch"])}),
    ],
)
def test_graphs_have_the_documented_interface(loss, outputs, labels, answers, figure):
    """Inputs and outputs of the three graphs are those of docs/bundle.md for each loss."""
    compiled = compile_training(dense(outputs), loss=loss, quantize="none")
    ins = {"x": ("FLOAT", ["batch", FEATURES]), **labels}
    given = {name: ("FLOAT", ["batch", width]) for name, width in answers.items()}

    assert interface(compiled, TRAIN) == (ins, {"loss": SCALAR})
    assert interface(compiled, EVAL) == (ins, {"loss": SCALAR, "loss_weight": SCALAR, **figure})
    assert interface(compiled, INFER)[1] == given | (figure if "errors" in figure else {})


@pytest.mark.parametrize(
    ("loss", "outputs", "schema"),
    [
        ("cross_entropy", 3, DataSchema((12,), 3)),
        ("bce_with_logits", 3, DataSchema((12,), 3, target="labels")),
        ("mse", 3, DataSchema((12,), target="values", target_shape=(3,))),
        ("reconstruction", 12, DataSchema((12,), target="none")),
    ],
)
def test_the_schema_says_what_samples_are_labelled_with(loss, outputs, schema):
    """What data sets must match follows from the loss and the model's output."""
    assert compile_training(dense(outputs), loss=loss).manifest.data == schema


def test_labels_are_learnt_each_for_itself(tmp_path):
    """Multi-label: a closing Sigmoid is stripped, the loss falls, accuracy is the share of right decisions."""
    x = samples(400)
    y = (x[:, :3] > [0.0, 0.5, -0.5]).astype(np.uint8)
    session = opened(tmp_path, dense(3, closing="Sigmoid"), loss="bce_with_logits")
    before = session.evaluate(x, y)
    learn(session, x, y)
    after = session.evaluate(x, y)
    infer = onnx.load_from_string(session.bundle.member(INFER))
    logits = ort.InferenceSession(infer.SerializeToString()).run(None, {"x": x, **session.params})[0]

    assert "Sigmoid" not in [node.op_type for node in infer.graph.node]
    assert after.loss < 0.3 * before.loss
    assert after.accuracy > 0.95
    assert after.accuracy == pytest.approx(((logits > 0) == y).mean())


def test_a_single_label_is_a_binary_classifier(tmp_path):
    """One logit [N, 1] is a label by itself."""
    x = samples(300)
    y = (x[:, :1] > 0).astype(np.uint8)
    session = opened(tmp_path, dense(1), loss="bce_with_logits")
    learn(session, x, y)

    assert session.evaluate(x, y).accuracy > 0.95


@pytest.mark.parametrize("flat", [False, True])
def test_values_are_learnt(tmp_path, flat):
    """Regression: targets [n, 1] serve an output [N, 1] and an output [N]; the error is the mean absolute one."""
    x = samples(400)
    y = x[:, :1] - 2 * x[:, 1:2]
    session = opened(tmp_path, dense(1, flat=flat), loss="mse")
    before = session.evaluate(x, y)
    learn(session, x, y, rate=0.01)
    after = session.evaluate(x, y)
    infer = ort.InferenceSession(session.bundle.member(INFER))
    off = infer.run(None, {"x": x, **session.params})[0].reshape(-1, 1) - y

    assert after.loss < 0.05 * before.loss
    assert after.loss == pytest.approx((off**2).mean(), rel=1e-4)
    assert after.error == pytest.approx(np.abs(off).mean(), rel=1e-4)
    assert after.accuracy is None


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_reconstruction_learns_normal_samples_and_gives_their_threshold(tmp_path, quantize):
    """The target is the normalised sample; the threshold is the quantile of the errors that inference gives."""
    rng = np.random.default_rng(0)
    basis, mean, std = rng.standard_normal((2, FEATURES)), np.arange(12.0), np.full(12, 5.0)
    normal = (rng.standard_normal((500, 2)) @ basis * std + mean).astype(np.float32)
    strange = (rng.standard_normal((100, FEATURES)) * std * 2 + mean).astype(np.float32)
    compiled = compile_training(
        dense(12), loss="reconstruction", normalize=(mean, std), quantize=quantize, threshold_share=0.9
    )
    session = TrainingSession(compiled.save(tmp_path / "a.bundle"))
    before = session.evaluate(normal, None)
    learn(session, normal, None, steps=600)
    after = session.evaluate(normal, None)
    infer = ort.InferenceSession(session.bundle.member(INFER))
    output, errors = infer.run(None, {"x": normal, **session.params})
    unusual = infer.run(["errors"], {"x": strange, **session.params})[0]

    assert after.loss < 0.2 * before.loss
    np.testing.assert_allclose(
        errors, ((output - (normal - mean) / std) ** 2).mean(axis=1), rtol=1e-3, atol=1e-6
    )
    assert after.threshold == pytest.approx(np.sort(errors)[449], rel=1e-4)
    assert (errors <= after.threshold * (1 + 1e-4)).mean() == pytest.approx(0.9, abs=0.003)
    assert (unusual > after.threshold).mean() > 0.9


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_an_exported_detector_brings_its_threshold(tmp_path, form):
    """The exported model gives the errors, and its metadata the threshold, its share and the version it is of."""
    x = samples(64)
    compiled = compile_training(dense(12), loss="reconstruction", quantize="int8-weights")
    session = TrainingSession(compiled.save(tmp_path / "a.bundle"))
    threshold = session.evaluate(x, None).threshold
    values = [grid.to_grid(session.params[t.name], t.step_exp) for t in compiled.manifest.table]
    data = export_model(
        compiled.members[INFER], compiled.manifest, values, form, "7", threshold=(threshold, 6)
    )
    model = ort.InferenceSession(data)
    given = model.get_modelmeta().custom_metadata_map
    errors = model.run(["errors"], {"x": x})[0]

    assert np.float32(given["threshold"]) == np.float32(threshold)
    assert (given["threshold_share"], given["threshold_version"], given["version"]) == ("0.95", "6", "7")
    assert (errors > threshold).mean() == pytest.approx(0.05, abs=0.03)


def test_a_detector_nobody_has_evaluated_has_no_threshold():
    """Without figures of devices the metadata has none, rather than a made-up one."""
    compiled = compile_training(dense(12), loss="reconstruction")
    values = grid.decode(compiled.members["params.keyframe"], compiled.manifest.sizes).values
    exported = onnx.load_from_string(export_model(compiled.members[INFER], compiled.manifest, values))

    assert "threshold" not in {p.key for p in exported.metadata_props}


def test_samples_of_several_axes_may_be_reconstructed_flat(tmp_path):
    """An output with as many values as the sample is compared in its own shape."""
    net = Net("folded", (3, 4), seed=0)
    net.dense(net.add("Flatten", "x"), "dense", (12, 12), output="logits")
    session = opened(tmp_path, net.model((12,)), loss="reconstruction")
    x = samples(64).reshape(64, 3, 4)
    before = session.evaluate(x, None).loss
    learn(session, x, None)

    assert session.evaluate(x, None).loss < 0.5 * before


def test_weighted_figures_do_not_depend_on_batches(tmp_path):
    """With class weights the mean of a data set is weighted too, however it falls into batches."""
    weights = np.array([1.0, 20.0, 0.5])
    session = opened(tmp_path, dense(3), class_weights=weights)
    rng = np.random.default_rng(0)
    x, y = samples(2 * EVAL_BATCH + 7), np.sort(rng.integers(0, 3, 2 * EVAL_BATCH + 7))
    each = np.array([session.evaluate(x[i : i + 1], y[i : i + 1]).loss for i in range(len(x))])

    assert session.evaluate(x, y).loss == pytest.approx(
        (weights[y] * each).sum() / weights[y].sum(), rel=1e-5
    )


def test_class_weights_turn_the_balance(tmp_path):
    """A rare class that weighs more is found more often."""
    x = samples(600)
    y = (x[:, 0] + samples(600, 1)[:, 0] > 2.2).astype(np.int64)
    recall = {}
    for weight in (1.0, 20.0):
        session = opened(tmp_path, dense(2), class_weights=(1.0, weight))
        learn(session, x, y, steps=150)
        logits = ort.InferenceSession(session.bundle.member(INFER)).run(None, {"x": x, **session.params})[0]
        recall[weight] = (logits.argmax(axis=1)[y == 1] == 1).mean()

    assert recall[20.0] > recall[1.0] + 0.2


def test_sequences_are_classified(tmp_path):
    """A recurrent network learns to tell rising windows from falling ones."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 160)
    slope = np.linspace(-1, 1, 100) * (2 * y - 1)[:, None]
    x = (slope[:, None, :] + 0.3 * rng.standard_normal((160, 6, 100))).astype(np.float32)
    session = opened(tmp_path, gru(classes=2))
    learn(session, x, y, steps=40, rate=0.05)

    assert session.bundle.manifest.data == DataSchema((6, 100), 2)
    assert session.evaluate(x, y).accuracy > 0.95


@pytest.mark.parametrize(
    ("model", "options", "error", "reason"),
    [
        (dense(1), {"loss": "cross_entropy"}, ModelError, r"\['batch', 1\]; loss cross_entropy needs"),
        (dense(2, flat=False), {"loss": "mse", "n_classes": 2}, OptionError, "loss mse has no classes"),
        (dense(1, flat=True), {"loss": "bce_with_logits"}, ModelError, r"needs \[batch, labels\]"),
        (dense(7), {"loss": "reconstruction"}, ModelError, r"shape \[12\] it needs as many values"),
        (dense(3), {"class_weights": (1.0, 2.0)}, OptionError, "2 class weights for the model's 3 logits"),
        (dense(2), {"class_weights": (1.0, 0.0)}, OptionError, "positive"),
        (dense(2), {"class_weights": (1.0, float("nan"))}, OptionError, "positive"),
        (dense(2), {"loss": "mse", "class_weights": (1.0, 1.0)}, OptionError, "loss mse has neither"),
        (dense(2), {"threshold_share": 0.9}, OptionError, "loss cross_entropy has none"),
        (dense(12), {"loss": "reconstruction", "threshold_share": 1.5}, OptionError, "not in"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_loss_is_refused(model, options, error, reason):
    """The error says what the loss needs and what there is."""
    with pytest.raises(error, match=reason):
        compile_training(model, **options)


def test_a_closing_activation_that_the_loss_does_not_bring_stays():
    """Regression to a range through a Sigmoid keeps it: it is part of the model."""
    infer = onnx.load_from_string(compile_training(dense(2, closing="Sigmoid"), loss="mse").members[INFER])

    assert [n.op_type for n in infer.graph.node if "prediction" in n.output] == ["Sigmoid"]


@pytest.mark.parametrize(("loss", "weights"), [("bce_with_logits", (1.0, 3.0, 0.5)), ("bce_with_logits", ()),
                                               ("mse", ()), ("reconstruction", ())])  # fmt: skip
def test_twenty_steps_are_pytorchs(tmp_path, loss, weights):
    """Whole training of each loss: parameters after 20 steps of SGD equal PyTorch's to 1e-4, norm-relative."""
    torch = pytest.importorskip("torch")
    outputs = FEATURES if loss == "reconstruction" else 3
    x = samples(160)
    y = {"bce_with_logits": (x[:, :3] > 0).astype(np.uint8), "mse": x[:, 3:6] * 2, "reconstruction": None}[
        loss
    ]
    session = opened(tmp_path, dense(outputs), loss=loss, class_weights=weights, optimizer="sgd")
    first, last = torch.nn.Linear(FEATURES, 16), torch.nn.Linear(16, outputs)
    net = torch.nn.Sequential(first, torch.nn.ReLU(), last)
    names = ("first.weight", "first.bias", "last.weight", "last.bias")
    net.load_state_dict(
        dict(zip(net.state_dict(), (torch.tensor(session.params[n]) for n in names), strict=True))
    )
    descent = torch.optim.SGD(net.parameters(), lr=0.1)
    weigh = torch.tensor(weights) if weights else None
    measure = (
        torch.nn.BCEWithLogitsLoss(pos_weight=weigh) if loss == "bce_with_logits" else torch.nn.MSELoss()
    )
    for start in range(0, 160, 8):
        rows = slice(start, start + 8)
        target = x[rows] if y is None else y[rows]
        wanted = measure(net(torch.tensor(x[rows])), torch.tensor(target, dtype=torch.float32))
        descent.zero_grad()
        wanted.backward()
        descent.step()
        got = session.step(x[rows], None if y is None else y[rows], 0.1)
        assert got == pytest.approx(wanted.item(), rel=1e-4)

    for name, tensor in zip(names, net.parameters(), strict=True):
        off = np.linalg.norm(session.params[name] - tensor.detach().numpy())
        assert off <= 1e-4 * np.linalg.norm(tensor.detach().numpy())
