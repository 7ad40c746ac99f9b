"""The losses a bundle can train with: each writes the scalar `loss` and returns its gradient, the seed of backward.

The gradients are written by hand: in these forms what a rule for each operator would compute twice is shared,
and none overflows. All are means over the batch.
"""

from collections.abc import Sequence

import numpy as np

from firmware_tools.autodiff.graph import FLOAT, Graph


def cross_entropy(
    graph: Graph, logits: str, labels: str, n_classes: int, *, loss: str, weights: Sequence[float] = ()
) -> str:
    """Softmax cross-entropy of `logits` float32 [N, n_classes] and `labels` int64 [N].

    The gradient is (softmax - onehot) / N. With a weight for each class, label y counts w_y / (sum of the weights of
    the batch's labels) instead of 1 / N, as in PyTorch. A label outside 0…n_classes-1 adds nothing (the device
    checks labels before training).
    """
    onehot = _onehot(graph, labels, n_classes)
    if weights:
        onehot = graph.add("Mul", onehot, _row(graph, weights))
        total = graph.add("ReduceSum", onehot, keepdims=0)
    else:
        total = _count(graph, labels)
    share = graph.add("Div", onehot, total)
    log_p = graph.add("LogSoftmax", logits, axis=1)
    graph.add("Neg", graph.add("ReduceSum", graph.add("Mul", log_p, share), keepdims=0), output=loss)
    p = graph.add("Exp", log_p)
    if weights:
        expected = graph.add("Mul", p, graph.add("ReduceSum", share, graph.ints(1), keepdims=1))
    else:
        expected = graph.add("Div", p, total)
    return graph.add("Sub", expected, share)


def binary_cross_entropy(
    graph: Graph, logits: str, labels: str, *, loss: str, weights: Sequence[float] = ()
) -> str:
    """Sigmoid cross-entropy of `logits` float32 [N, L] and `labels` uint8 [N, L] of 0 and 1, mean over N·L.

    The gradient is (sigmoid - y) / (N·L). A weight for each label multiplies the term of its 1s, as PyTorch's
    pos_weight does: w·y·softplus(-z) + (1 - y)·softplus(z).
    """
    y = graph.add("Cast", labels, to=FLOAT)
    minus = graph.add("Neg", logits)
    one = graph.scalar(1.0)
    # softplus(z) = z + softplus(-z), so one of the two is enough.
    penalty, doubt = graph.add("Softplus", minus), graph.add("Sigmoid", minus)
    if weights:
        factor = graph.add("Add", graph.add("Mul", y, _row(graph, [w - 1.0 for w in weights])), one)
        penalty, doubt = graph.add("Mul", factor, penalty), graph.add("Mul", factor, doubt)
    absent = graph.add("Sub", one, y)
    graph.add(
        "ReduceMean", graph.add("Add", graph.add("Mul", absent, logits), penalty), keepdims=0, output=loss
    )
    return graph.add("Div", graph.add("Sub", absent, doubt), _count(graph, logits))


def squared_error(graph: Graph, output: str, target: str, *, loss: str) -> str:
    """Mean squared error of two float32 tensors of one shape; the gradient is 2 (output - target) / size."""
    off = graph.add("Sub", output, target)
    graph.add("ReduceMean", graph.add("Mul", off, off), keepdims=0, output=loss)
    return graph.add("Mul", off, graph.add("Div", graph.scalar(2.0), _count(graph, output)))


def _onehot(graph: Graph, labels: str, n_classes: int) -> str:
    classes = graph.constant(np.arange(n_classes, dtype=np.int64)[None, :])
    column = graph.add("Unsqueeze", labels, graph.ints(1))
    return graph.add("Cast", graph.add("Equal", column, classes), to=FLOAT)


def _row(graph: Graph, values: Sequence[float]) -> str:
    return graph.constant(np.asarray(values, dtype=np.float32)[None, :])


def _count(graph: Graph, tensor: str) -> str:
    return graph.add("Cast", graph.add("Size", tensor), to=FLOAT)
