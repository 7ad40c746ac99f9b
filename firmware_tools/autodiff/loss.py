"""The losses a bundle can train with, and the count of correct answers."""

import numpy as np

from firmware_tools.autodiff.graph import FLOAT, INT64, Graph


def cross_entropy(graph: Graph, logits: str, labels: str, n_classes: int, *, loss: str) -> str:
    """Softmax cross-entropy, mean over the batch: writes the scalar `loss`, returns its gradient.

    `logits` float32 [N, n_classes], `labels` int64 [N]; the gradient (softmax - onehot) / N has the logits'
    shape. A label outside 0…n_classes-1 adds nothing (the device checks labels before training).
    """
    classes = graph.constant(np.arange(n_classes, dtype=np.int64)[None, :])
    column = graph.add("Unsqueeze", labels, graph.ints(1))
    onehot = graph.add("Cast", graph.add("Equal", column, classes), to=FLOAT)
    count = graph.add("Cast", graph.add("Size", labels), to=FLOAT)
    share = graph.add("Div", onehot, count)
    log_p = graph.add("LogSoftmax", logits, axis=1)
    total = graph.add("ReduceSum", graph.add("Mul", log_p, share), keepdims=0)
    graph.add("Neg", total, output=loss)
    softmax = graph.add("Div", graph.add("Exp", log_p), count)
    return graph.add("Sub", softmax, share)


def count_correct(graph: Graph, logits: str, labels: str, *, correct: str) -> None:
    """Write the scalar int64 `correct`: how many rows have their largest logit at the label."""
    answer = graph.add("ArgMax", logits, axis=1, keepdims=0)
    hits = graph.add("Cast", graph.add("Equal", answer, labels), to=INT64)
    graph.add("ReduceSum", hits, keepdims=0, output=correct)
