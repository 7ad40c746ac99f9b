"""Gradient rules of activation functions."""

import math

from firmware_tools.autodiff.elementwise import fit, mask, rising
from firmware_tools.autodiff.graph import FLOAT, Graph
from firmware_tools.autodiff.registry import Call, Gradients, expansion, gradient

SELU_ALPHA, SELU_GAMMA = 1.6732631921768188, 1.0507010221481323  # the defaults of the ONNX operator
GELU_CUBIC = 0.044715  # Hendrycks & Gimpel 2016 (arXiv:1606.08415), the tanh approximation


@gradient("Relu")
def relu(call: Call) -> Gradients:
    """Slope 1 where x > 0."""
    return [call.graph.add("Mul", call.dy, rising(call.graph, call.y))]


@gradient("LeakyRelu")
def leaky_relu(call: Call) -> Gradients:
    """Slope 1 where x > 0, alpha elsewhere."""
    g, alpha = call.graph, call.attribute("alpha", 0.01)
    return [g.add("Mul", call.dy, _steps(g, call.x, alpha, 1.0))]


@gradient("PRelu")
def prelu(call: Call) -> Gradients:
    """As LeakyRelu; the slope below zero is an operand itself and takes min(x, 0)."""
    g, slope = call.graph, call.input(1)
    dx = dslope = None
    if call.wanted[0]:
        above = mask(g, "Greater", call.x, g.scalar(0.0))
        falling = g.add("Mul", slope, g.add("Sub", g.scalar(1.0), above))
        dx = g.add("Mul", call.dy, g.add("Add", above, falling))
    if call.wanted[1]:
        dslope = fit(call, g.add("Mul", call.dy, g.add("Min", call.x, g.scalar(0.0))), 1)
    return [dx, dslope]


@gradient("ThresholdedRelu")
def thresholded_relu(call: Call) -> Gradients:
    """Slope 1 where x > alpha."""
    g = call.graph
    return [g.add("Mul", call.dy, mask(g, "Greater", call.x, g.scalar(call.attribute("alpha", 1.0))))]


@gradient("Elu", "Celu")
def elu(call: Call) -> Gradients:
    """Slope 1 where x > 0; elsewhere alpha exp(x) (Elu) or exp(x / alpha) (Celu)."""
    g, alpha, below = call.graph, call.attribute("alpha", 1.0), _negative_part(call)
    if call.node.op_type == "Celu":
        tail = g.add("Exp", g.add("Div", below, g.scalar(alpha)))
    else:
        tail = _exp_tail(g, below, call.x, alpha)
    return [g.add("Mul", call.dy, tail)]


@gradient("Selu")
def selu(call: Call) -> Gradients:
    """The slope of Elu, scaled by gamma."""
    g = call.graph
    tail = _exp_tail(g, _negative_part(call), call.x, call.attribute("alpha", SELU_ALPHA))
    gamma = g.scalar(call.attribute("gamma", SELU_GAMMA))
    return [g.add("Mul", call.dy, g.add("Mul", tail, gamma))]


@gradient("Sigmoid")
def sigmoid(call: Call) -> Gradients:
    """Slope y (1 - y)."""
    g = call.graph
    return [g.add("Mul", call.dy, g.add("Sub", call.y, g.add("Mul", call.y, call.y)))]


@gradient("Tanh")
def tanh(call: Call) -> Gradients:
    """Slope 1 - y^2."""
    g = call.graph
    return [g.add("Mul", call.dy, g.add("Sub", g.scalar(1.0), g.add("Mul", call.y, call.y)))]


@gradient("HardSigmoid")
def hard_sigmoid(call: Call) -> Gradients:
    """Slope alpha where 0 < y < 1."""
    g = call.graph
    inside = g.add("And", g.add("Greater", call.y, g.scalar(0.0)), g.add("Less", call.y, g.scalar(1.0)))
    steps = g.add("Cast", inside, to=FLOAT)
    return [g.add("Mul", call.dy, g.add("Mul", steps, g.scalar(call.attribute("alpha", 0.2))))]


@gradient("HardSwish")
def hard_swish(call: Call) -> Gradients:
    """Slope clip(x / 6 + 1/2, 0, 1), and x / 6 more where |x| < 3."""
    g = call.graph
    gate = g.add("HardSigmoid", call.x, alpha=1.0 / 6.0, beta=0.5)
    inside = mask(g, "Less", g.add("Abs", call.x), g.scalar(3.0))
    bend = g.add("Mul", g.add("Mul", call.x, g.scalar(1.0 / 6.0)), inside)
    return [g.add("Mul", call.dy, g.add("Add", gate, bend))]


@gradient("Softplus")
def softplus(call: Call) -> Gradients:
    """Slope sigmoid(x)."""
    g = call.graph
    return [g.add("Mul", call.dy, g.add("Sigmoid", call.x))]


@gradient("Softsign")
def softsign(call: Call) -> Gradients:
    """Slope 1 / (1 + |x|)^2."""
    g = call.graph
    width = g.add("Add", g.add("Abs", call.x), g.scalar(1.0))
    return [g.add("Div", call.dy, g.add("Mul", width, width))]


@gradient("Gelu")
def gelu(call: Call) -> Gradients:
    """Slope Phi(x) + x phi(x); with `tanh`, that of the approximation (arXiv:1606.08415 §2)."""
    g, x, half, one = call.graph, call.x, call.graph.scalar(0.5), call.graph.scalar(1.0)
    square = g.add("Mul", x, x)
    if call.attribute("approximate", "none") == "tanh":
        width = math.sqrt(2.0 / math.pi)
        cubic = g.add("Add", g.add("Mul", square, g.scalar(width * GELU_CUBIC)), g.scalar(width))
        t = g.add("Tanh", g.add("Mul", x, cubic))
        inner = g.add("Add", g.add("Mul", square, g.scalar(3.0 * width * GELU_CUBIC)), g.scalar(width))
        bend = g.add("Mul", g.add("Mul", x, g.add("Sub", one, g.add("Mul", t, t))), inner)
        slope = g.add("Mul", g.add("Add", g.add("Add", t, one), bend), half)
    else:
        spread = g.add("Erf", g.add("Mul", x, g.scalar(math.sqrt(0.5))))
        normal = g.add("Mul", g.add("Add", spread, one), half)
        density = g.add(
            "Mul", g.add("Exp", g.add("Mul", square, g.scalar(-0.5))), g.scalar(1 / math.sqrt(2 * math.pi))
        )
        slope = g.add("Add", normal, g.add("Mul", x, density))
    return [g.add("Mul", call.dy, slope)]


@gradient("Softmax")
def softmax(call: Call) -> Gradients:
    """Input gradient y (dy - sum of dy y along the axis)."""
    g = call.graph
    weighted = g.add("Mul", call.dy, call.y)
    total = g.add("ReduceSum", weighted, g.ints(call.axis(-1)), keepdims=1)
    return [g.add("Sub", weighted, g.add("Mul", call.y, total))]


@gradient("LogSoftmax")
def log_softmax(call: Call) -> Gradients:
    """Input gradient dy - exp(y) times the sum of dy along the axis."""
    g = call.graph
    total = g.add("ReduceSum", call.dy, g.ints(call.axis(-1)), keepdims=1)
    return [g.add("Sub", call.dy, g.add("Mul", g.add("Exp", call.y), total))]


def _negative_part(call: Call) -> str:
    return call.graph.add("Min", call.x, call.graph.scalar(0.0))


def _steps(graph: Graph, x: str, low: float, high: float) -> str:
    """`high` where x > 0 and `low` elsewhere."""
    above = graph.add("Mul", mask(graph, "Greater", x, graph.scalar(0.0)), graph.scalar(high - low))
    return graph.add("Add", above, graph.scalar(low))


def _exp_tail(graph: Graph, below: str, x: str, alpha: float) -> str:
    """1 where x > 0 and alpha exp(x) elsewhere; `below` is min(x, 0)."""
    tail = graph.add("Exp", below)
    if alpha == 1.0:
        return tail
    lift = graph.add("Mul", mask(graph, "Greater", x, graph.scalar(0.0)), graph.scalar(1.0 - alpha))
    return graph.add("Add", graph.add("Mul", tail, graph.scalar(alpha)), lift)


@expansion("Mish")
def mish(call: Call) -> None:
    """The product x tanh(softplus(x)) (arXiv:1908.08681 §2)."""
    g = call.graph
    g.add("Mul", call.x, g.add("Tanh", g.add("Softplus", call.x)), output=call.y)
