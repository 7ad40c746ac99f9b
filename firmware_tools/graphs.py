"""The three graphs of a bundle, from the forward pass: one training step, evaluation, inference."""

from collections.abc import Mapping, Sequence

import onnx

from edge_client.bundle import OptimizerSpec
from firmware_tools.autodiff import differentiate
from firmware_tools.autodiff.graph import FLOAT, Shape, value_info
from firmware_tools.autodiff.reverse import lower
from firmware_tools.autodiff.simplify import simplified
from firmware_tools.errors import CompileError, OptionError
from firmware_tools.forward import Forward
from firmware_tools.objective import Objective
from firmware_tools.optimizer import append_update
from firmware_tools.padding import whole


def train_graph(
    forward: Forward,
    shapes: dict[str, Shape],
    parameters: Sequence[str],
    objective: Objective,
    spec: OptimizerSpec,
) -> onnx.ModelProto:
    """One step: inputs and outputs as the manifest names them. Raises OptionError or NotDifferentiable."""
    graph = forward.graph.copy()
    seed = objective.append(graph, forward.source)
    # Only the model's own nodes are walked: the loss has already given its gradient.
    gradients = differentiate(graph, shapes, objective.output, seed, parameters)
    for parameter in parameters:
        if parameter not in gradients:
            raise OptionError(
                f"trainable tensor {parameter!r} has no differentiable influence on the {objective.output}"
            )
    lower(graph, shapes)
    graph.nodes = simplified(graph.nodes)
    append_update(graph, spec, shapes, gradients)
    for statistic, value in forward.carried.items():
        graph.add("Identity", value, output=f"{statistic}@next")
    own = {p: shapes[p] for p in parameters}
    state = {**own, **{s: shapes[s] for s in forward.carried}, **spec.state(own)}
    inputs = [
        value_info("x", FLOAT, shapes["x"]),
        *objective.inputs(),
        value_info("learning_rate", FLOAT, ()),
        *(value_info(name, FLOAT, shape) for name, shape in {**state, **spec.base(own)}.items()),
    ]
    outputs = [value_info("loss", FLOAT, ())]
    outputs += [value_info(f"{name}@next", FLOAT, shape) for name, shape in state.items()]
    return graph.model("train", inputs, outputs)


def eval_graph(forward: Forward, inputs: Mapping[str, Shape], objective: Objective) -> onnx.ModelProto:
    """Loss and further figures of a batch."""
    graph = forward.graph.copy()
    outputs = objective.append_figures(graph, forward.source)
    x, *model = (value_info(n, FLOAT, s) for n, s in inputs.items())
    return graph.model("eval", [x, *objective.inputs(), *model], outputs)


def infer_graph(forward: Forward, inputs: Mapping[str, Shape], objective: Objective) -> onnx.ModelProto:
    """The answers to a batch."""
    graph = forward.graph.copy()
    outputs = objective.append_answers(graph, forward.source)
    return graph.model("infer", [value_info(n, FLOAT, s) for n, s in inputs.items()], outputs)


def serialized(model: onnx.ModelProto) -> bytes:
    """The bytes of a graph that onnx's checker finds valid; raises CompileError."""
    whole(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CompileError(f"the graph {model.graph.name} is not valid: {error}") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data
