"""Activity from windows of sensor readings: a small transformer encoder."""

import math

import onnx

from firmware_tools.layers import Net

CHANNELS, LENGTH, PATCH = 6, 100, 5
TOKENS = LENGTH // PATCH
WIDTH, HEADS, HIDDEN, BLOCKS = 32, 4, 64, 2


def transformer(classes: int = 7, seed: int = 0) -> onnx.ModelProto:
    """Two encoder blocks over patches of five readings, float32 [N, 6, 100] to [N, classes].

    Vaswani et al. 2017 (arXiv:1706.03762 §3.2), normalised before each part (Xiong et al. 2020, arXiv:2002.04745
    §3.1), with GELU (arXiv:1606.08415 §2) and learnt positions: 19,015 values.
    """
    net = Net("transformer", (CHANNELS, LENGTH), seed=seed)
    patches = net.conv("x", "embedding", (WIDTH, CHANNELS, PATCH), strides=[PATCH])
    x = net.add("Transpose", patches, perm=[0, 2, 1])
    positions = net.tensor("positions", net.rng.normal(0, 0.02, (1, TOKENS, WIDTH)))
    x = net.add("Add", x, positions)
    for i in range(1, BLOCKS + 1):
        x = net.add("Add", x, attention(net, net.layer_norm(x, f"block{i}.norm1", WIDTH), f"block{i}"))
        y = net.linear(net.layer_norm(x, f"block{i}.norm2", WIDTH), f"block{i}.wide", (WIDTH, HIDDEN))
        x = net.add("Add", x, net.linear(gelu(net, y), f"block{i}.narrow", (HIDDEN, WIDTH)))
    pooled = net.add("ReduceMean", net.layer_norm(x, "norm", WIDTH), net.graph.ints(1), keepdims=0)
    net.dense(pooled, "dense", (classes, WIDTH), output="logits")
    return net.model((classes,))


def attention(net: Net, x: str, block: str) -> str:
    """Multi-head self-attention on [N, tokens, width]."""
    size = WIDTH // HEADS

    def heads(name: str, order: list[int]) -> str:
        projected = net.linear(x, f"{block}.{name}", (WIDTH, WIDTH))
        split = net.add("Reshape", projected, net.graph.ints(0, TOKENS, HEADS, size))
        return net.add("Transpose", split, perm=order)

    query, value = heads("query", [0, 2, 1, 3]), heads("value", [0, 2, 1, 3])
    scores = net.add("MatMul", query, heads("key", [0, 2, 3, 1]))
    scaled = net.add("Mul", scores, net.graph.scalar(1 / math.sqrt(size)))
    mixed = net.add("MatMul", net.add("Softmax", scaled, axis=-1), value)
    joined = net.add(
        "Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), net.graph.ints(0, TOKENS, WIDTH)
    )
    return net.linear(joined, f"{block}.mix", (WIDTH, WIDTH))


def gelu(net: Net, x: str) -> str:
    """The product of x and the normal distribution function of x; the operator Gelu came with opset 20."""
    erf = net.add("Erf", net.add("Mul", x, net.graph.scalar(1 / math.sqrt(2))))
    share = net.add("Mul", net.add("Add", erf, net.graph.scalar(1.0)), net.graph.scalar(0.5))
    return net.add("Mul", x, share)
