"""Models that do not fit are refused with a reason that says what to do; those that nearly fit are made to."""

import contextlib

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_client.bundle import INFER
from edge_client.training import TrainingSession
from firmware_tools import CompileError, compile_training, source
from firmware_tools.commands import bundle
from firmware_tools.errors import ModelError, OptionError


def build(path, *options):
    """`fedfleet bundle build`, as a person calls it."""
    words = ["build", str(path), "--out", str(path.with_suffix(".bundle")), *options]
    return CliRunner().invoke(bundle, words)


def saved(folder, model, **external):
    path = folder / "m.onnx"
    onnx.save(model, path, **external)
    return path


def two_headed(models):
    """An MLP with a second output, of 3 classes."""
    model = models.mlp()
    weight = np.ones((16, 3), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "other.weight"))
    model.graph.node.append(helper.make_node("MatMul", ["c", "other.weight"], ["other"]))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", 3]))
    return model


def open_image(models):
    """A LeNet whose height and width are left open."""
    model = models.lenet()
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[2].dim_param, dims[3].dim_param = "height", "width"
    return model


def test_a_dynamic_axis_is_named_with_its_symbol_and_the_remedy(models):
    """An open extent is refused with axis, symbol and the option that fixes it."""
    with pytest.raises(ModelError, match=r"axis 2 of input 'in' .*\('height'\).*--shape 1,HEIGHT,WIDTH"):
        compile_training(open_image(models))


def test_a_shape_fixes_what_is_dynamic(models, tmp_path):
    """With --shape the model compiles to the bundle of the static one."""
    static, fixed = saved(tmp_path, models.lenet()), tmp_path / "open.onnx"
    onnx.save(open_image(models), fixed)
    results = [build(static), build(fixed, "--shape", "1,14,14")]

    assert [r.exit_code for r in results] == [0, 0]
    assert static.with_suffix(".bundle").read_bytes() == fixed.with_suffix(".bundle").read_bytes()


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((1, 14), "3 axes"), ((2, 14, 14), "axis 1 of input 'in' is 1"), ((1, 0, 14), "not positive")],
)
def test_a_shape_at_odds_with_the_model_is_refused(models, shape, reason):
    """The shape must have the model's axes and agree with its static extents."""
    with pytest.raises(OptionError, match=reason):
        compile_training(open_image(models), shape=shape)


def test_one_of_several_outputs_is_chosen_by_name(models):
    """`output` picks the head that is trained; the other leaves the graphs."""
    compiled = compile_training(two_headed(models), output="other")
    names = [t.name for t in compiled.manifest.tensors]

    assert compiled.manifest.data.n_classes == 3
    assert names == ["w1", "b1", "other.weight"]


def test_several_outputs_without_a_choice_are_listed(models, tmp_path):
    """Without --output, or with a wrong one, the message lists the names there are."""
    path = saved(tmp_path, two_headed(models))
    open_choice, wrong = build(path), build(path, "--output", "logits")

    assert "2 outputs (out, other); choose one with --output" in open_choice.output
    assert "no output 'logits'; it has: out, other" in wrong.output
    assert build(path, "--output", "out").exit_code == 0


def test_external_data_beside_the_model_is_loaded(models, tmp_path):
    """A model whose weights are in a file beside it gives the bundle of the whole one."""
    (tmp_path / "split").mkdir()
    whole = compile_training(saved(tmp_path, models.lenet()))
    split = saved(
        tmp_path / "split", models.lenet(), save_as_external_data=True, location="w.bin", size_threshold=0
    )

    assert split.stat().st_size < 4000
    assert compile_training(split).to_bytes() == whole.to_bytes()


@pytest.mark.parametrize(
    ("location", "reason"),
    [("gone.bin", "put 'gone.bin' beside"), ("../w.bin", "leads out"), ("/etc/hostname", "leads out")],
)
def test_external_data_elsewhere_is_refused(models, tmp_path, location, reason):
    """A missing file is named, and no file outside the model's folder is read."""
    (tmp_path / "in").mkdir()
    path = saved(
        tmp_path / "in", models.mlp(), save_as_external_data=True, location="w.bin", size_threshold=0
    )
    (tmp_path / "in" / "w.bin").rename(tmp_path / "w.bin")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = location
    path.write_bytes(model.SerializeToString())

    with pytest.raises(ModelError, match=f"'w1' .*{reason}"):
        compile_training(path)


def test_external_data_through_a_link_is_refused(models, tmp_path):
    """A link in the folder that leads out of it is not followed."""
    (tmp_path / "in").mkdir()
    path = saved(
        tmp_path / "in", models.mlp(), save_as_external_data=True, location="w.bin", size_threshold=0
    )
    (tmp_path / "in" / "w.bin").rename(tmp_path / "w.bin")
    (tmp_path / "in" / "w.bin").symlink_to(tmp_path / "w.bin")

    with pytest.raises(ModelError, match="leads out of its folder"):
        compile_training(path)


def test_external_data_cut_short_is_refused(models, tmp_path):
    """Data that end too early are an error of the model, which names the tensor."""
    path = saved(tmp_path, models.mlp(), save_as_external_data=True, location="w.bin", size_threshold=0)
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(data[:100])

    with pytest.raises(ModelError, match="'w1'"):
        compile_training(path)


def test_a_model_in_memory_needs_its_data(models, tmp_path):
    """A ModelProto whose data were not loaded has no folder to find them in; the path is asked for."""
    path = saved(tmp_path, models.mlp(), save_as_external_data=True, location="w.bin", size_threshold=0)

    with pytest.raises(ModelError, match="give the model's path"):
        compile_training(onnx.load(path, load_external_data=False))


def test_too_large_models_are_refused_before_loading(models, tmp_path, monkeypatch):
    """Size and limit are named: of one file, of a model with its data, and of a model in memory."""
    path = saved(tmp_path, models.mlp())
    (tmp_path / "split").mkdir()
    split = saved(
        tmp_path / "split", models.mlp(), save_as_external_data=True, location="w.bin", size_threshold=0
    )
    monkeypatch.setattr(source, "MODEL_BYTES_MAX", 1200)
    loads = []
    monkeypatch.setattr(source, "load_external_data_for_tensor", lambda *_: loads.append(1))

    assert split.stat().st_size < 1200
    for model in (path, split, models.mlp()):
        with pytest.raises(ModelError, match=r"\d+ B; models of up to 1200 B"):
            compile_training(model)
    assert loads == []


def test_custom_domains_are_refused_by_node_and_domain(models):
    """The message names the node, its type and the domain, imported or not."""
    model = models.mlp()
    model.graph.node[2].domain = "com.microsoft"
    with pytest.raises(ModelError, match=r"'c' of type Relu .* domain 'com.microsoft'"):
        compile_training(model)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(ModelError, match=r"'c' of type Relu .* domain 'com.microsoft'"):
        compile_training(model)


def test_sub_graphs_are_refused_by_node(models):
    """Control flow is refused with the node that holds it."""
    branch = helper.make_graph(
        [helper.make_node("Identity", ["d"], ["e"])],
        "branch",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
    )
    weights = {"w": np.ones((12, 4), np.float32), "yes": np.array(True)}
    nodes = [
        helper.make_node("MatMul", ["in", "w"], ["d"]),
        helper.make_node("If", ["yes"], ["out"], name="choice", then_branch=branch, else_branch=branch),
    ]

    with pytest.raises(ModelError, match=r"'choice' of type If .*sub-graph"):
        compile_training(models.model_of(nodes, weights, (12,), 4))


@pytest.mark.parametrize(
    ("kind", "name"),
    [(TensorProto.FLOAT16, "float16"), (TensorProto.DOUBLE, "float64"), (TensorProto.BFLOAT16, "bfloat16")],
)
def test_other_precisions_become_float32(models, tmp_path, kind, name):
    """A float16, bfloat16 or double model trains in float32, with its values, and the bundle says so."""
    model = models.mlp(opset=18)
    for info in (model.graph.input[0], model.graph.output[0]):
        info.type.tensor_type.elem_type = kind
    kept = {}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        kept[tensor.name] = values.astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    model.graph.node[2].input[0] = "cast"
    model.graph.node.insert(2, helper.make_node("Cast", ["b"], ["cast"], to=kind))
    compiled = compile_training(model, quantize="none")
    session = TrainingSession(compiled.save(tmp_path / "m.bundle"))
    x, y = models.blobs((12,), 4, 64)
    losses = [session.step(x, y, 0.1) for _ in range(10)]

    assert any(name in note for note in compiled.notes)
    assert losses[-1] < losses[0] / 2
    np.testing.assert_allclose(TrainingSession(tmp_path / "m.bundle").params["w1"], kept["w1"], atol=1e-4)
    graph = onnx.load_from_string(compiled.members[INFER]).graph
    assert {i.type.tensor_type.elem_type for i in graph.input} == {TensorProto.FLOAT}


@pytest.mark.parametrize("opset", [5, 99])
def test_opsets_out_of_reach_are_refused_with_the_range(models, opset):
    """What onnx's converter cannot bring into range is refused with the opsets that are taken."""
    model = models.mlp()
    model.opset_import[0].version = opset

    with pytest.raises(ModelError, match=f"opset {opset} cannot be converted .* opset 18 to 22"):
        compile_training(model)


@pytest.mark.parametrize("opset", [7, 9, 11, 25])
def test_opsets_in_reach_are_converted(models, opset):
    """Models as old as opset 7, and newer ones than devices run, are brought into range."""
    model = models.mlp()
    model.opset_import[0].version = opset

    assert compile_training(model).manifest.opset in (18, 22)


def damages():
    yield "no output", lambda m: m.graph.ClearField("output")
    yield "not a valid ONNX model", lambda m: m.graph.ClearField("node")
    yield "no node computes output 'in'", lambda m: setattr(m.graph.output[0], "name", "in")
    yield "not a valid ONNX model", lambda m: m.graph.input[0].type.tensor_type.ClearField("shape")
    yield (
        "has 0 inputs",
        lambda m: m.graph.initializer.append(numpy_helper.from_array(np.ones((1, 12), np.float32), "in")),
    )
    yield "0 axes", lambda m: m.graph.input[0].type.tensor_type.shape.ClearField("dim")
    yield "not a valid ONNX model", lambda m: setattr(m.graph.initializer[0], "raw_data", b"123")
    yield "not a valid ONNX model", lambda m: setattr(m.graph.node[2], "op_type", "Unheard")
    yield "input 'in' is int64", lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 7)
    yield "'b1' do not fit", lambda m: m.graph.initializer[1].dims.__setitem__(0, 7)


@pytest.mark.parametrize("index", range(10))
def test_broken_graphs_are_refused(models, index):
    """A graph that is empty, cut or inconsistent is a ModelError that names the fault."""
    reason, damage = list(damages())[index]
    model = models.mlp()
    damage(model)

    with pytest.raises(ModelError, match=reason):
        compile_training(model)


def test_a_window_larger_than_its_input_is_refused(models):
    """A negative extent, which onnx infers for it, is refused with the tensor's name."""
    nodes = [
        helper.make_node("MaxPool", ["in"], ["pooled"], kernel_shape=[9], strides=[2]),
        helper.make_node("GlobalAveragePool", ["pooled"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["out"]),
    ]
    model = models.model_of(nodes, {"w": np.ones((3, 4), np.float32)}, (3, 4), 4)

    with pytest.raises(ModelError, match="'pooled': a window is larger"):
        compile_training(model)


def test_names_that_are_no_text_are_refused(models, tmp_path):
    """Bytes of a damaged file in the place of a name are shown as they are."""
    data = models.mlp().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data.replace(b"b1", b"\xfe1"))

    with pytest.raises(ModelError, match=r"not UTF-8|not a valid ONNX model"):
        compile_training(path)


@pytest.mark.parametrize("names", [["same"] * 5, [f"Add%{i}:Add" for i in range(30, 35)]])
def test_names_of_nodes_need_not_be_unique(models, tmp_path, names):
    """Nodes of one name, or named as the compiler names its own, give graphs that ONNX Runtime loads."""
    model = models.mlp()
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    session = TrainingSession(compile_training(model).save(tmp_path / "m.bundle"))

    assert np.isfinite(session.step(*models.blobs((12,), 4, 8), 0.1))


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04" + bytes(100)])
def test_a_refusal_is_one_line_and_leaves_no_file(tmp_path, content):
    """Garbage gives exit code 1, one line on what is wrong, and no bundle."""
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    result = build(path)

    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_reason_of_several_lines_is_one_line(models, tmp_path):
    """What onnx says over several lines is joined, and says which node is meant."""
    model = models.mlp()
    model.graph.node[2].op_type = "Unheard"
    result = build(saved(tmp_path, model))

    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "Unheard" in result.output
    assert not (tmp_path / "m.bundle").exists()


def test_a_bundle_that_cannot_be_written_leaves_no_file(models, tmp_path, monkeypatch):
    """A full disk is one line and exit code 1; neither bundle nor a part of it stays."""
    path = saved(tmp_path, models.mlp())

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = build(path)

    assert result.exit_code == 1
    assert "m.bundle cannot be written: No space left" in result.output
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_is_missing_is_named(models, tmp_path):
    """A bundle into a directory that is not there says which one to make."""
    with pytest.raises(OptionError, match=r"cannot be written: there is no directory .*/none; make it first"):
        compile_training(models.mlp()).save(tmp_path / "none" / "m.bundle")


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3))
def test_damaged_bytes_never_surprise(tmp_path_factory, models, changes):
    """Whatever bytes of a model file change, it compiles or is refused with a CompileError."""
    data = bytearray(models.mlp(softmax=True).SerializeToString())
    # Damage to weights is no damage to the form, so what is changed lies around them.
    values = [bytes(t.raw_data) for t in models.mlp(softmax=True).graph.initializer]
    inside = {p for v in values for p in range(data.find(v), data.find(v) + len(v))}
    outside = sorted(set(range(len(data))) - inside)
    for place, value in changes:
        data[outside[place % len(outside)]] = value
    path = tmp_path_factory.mktemp("fuzz") / "m.onnx"
    path.write_bytes(data)

    with contextlib.suppress(CompileError):
        assert compile_training(path).manifest.tensors
