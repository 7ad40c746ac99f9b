"""The three graphs of a bundle, from the forward pass: one training step, evaluation, inference."""

from collections.abc import Mapping, Sequence

import onnx

from edge_client.bundle import OptimizerSpec
from firmware_tools.autodiff import count_correct, cross_entropy, differentiate
from firmware_tools.autodiff.graph import DYNAMIC, FLOAT, INT64, Shape, value_info
from firmware_tools.autodiff.simplify import simplified
from firmware_tools.errors import CompileError, OptionError
from firmware_tools.forward import Forward
from firmware_tools.optimizer import append_update


def train_graph(
    forward: Forward, shapes: dict[str, Shape], parameters: Sequence[str], classes: int, spec: OptimizerSpec
) -> onnx.ModelProto:
    """One step: inputs and outputs as the manifest names them. Raises OptionError or NotDifferentiable."""
    graph = forward.graph.copy()
    seed = cross_entropy(graph, "logits", "y", classes, loss="loss")
    # Only the model's own nodes are walked: the loss has already given its gradient.
    gradients = differentiate(graph, shapes, "logits", seed, parameters)
    for parameter in parameters:
        if parameter not in gradients:
            raise OptionError(f"trainable tensor {parameter!r} has no differentiable influence on the logits")
    graph.nodes = simplified(graph.nodes)
    append_update(graph, spec, shapes, gradients)
    for statistic, value in forward.carried.items():
        graph.add("Identity", value, output=f"{statistic}@next")
    own = {p: shapes[p] for p in parameters}
    state = {**own, **{s: shapes[s] for s in forward.carried}, **spec.state(own)}
    inputs = [
        value_info("x", FLOAT, shapes["x"]),
        value_info("y", INT64, (DYNAMIC,)),
        value_info("learning_rate", FLOAT, ()),
        *(value_info(name, FLOAT, shape) for name, shape in {**state, **spec.base(own)}.items()),
    ]
    outputs = [value_info("loss", FLOAT, ())]
    outputs += [value_info(f"{name}@next", FLOAT, shape) for name, shape in state.items()]
    return graph.model("train", inputs, outputs)


def eval_graph(forward: Forward, inputs: Mapping[str, Shape], classes: int) -> onnx.ModelProto:
    """Loss and number of correct answers of a batch."""
    graph = forward.graph.copy()
    cross_entropy(graph, "logits", "y", classes, loss="loss")
    count_correct(graph, "logits", "y", correct="correct")
    ins = [value_info(n, FLOAT, s) for n, s in inputs.items()]
    ins.insert(1, value_info("y", INT64, (DYNAMIC,)))
    return graph.model("eval", ins, [value_info("loss", FLOAT, ()), value_info("correct", INT64, ())])


def infer_graph(forward: Forward, inputs: Mapping[str, Shape], classes: int) -> onnx.ModelProto:
    """The answers to a batch."""
    ins = [value_info(n, FLOAT, s) for n, s in inputs.items()]
    return forward.graph.model("infer", ins, [value_info("logits", FLOAT, (DYNAMIC, classes))])


def serialized(model: onnx.ModelProto) -> bytes:
    """The bytes of a graph that onnx's checker finds valid; raises CompileError."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CompileError(f"the compiled {model.graph.name} graph is not valid: {error}") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data
