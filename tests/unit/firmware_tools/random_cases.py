"""Random gradient cases: hypothesis strategies over shapes, attributes and broadcasts, by name."""

import numpy as np
from firmware_test_derivatives import case
from hypothesis import strategies as st

EXTENTS = st.integers(1, 4)
SMALL = st.integers(1, 3)
F = np.float32


@st.composite
def binary(draw):
    """An operator of two operands under any broadcast."""
    whole = draw(st.lists(EXTENTS, min_size=1, max_size=4))

    def cut():
        start = draw(st.integers(0, len(whole) - 1))
        return tuple(draw(st.sampled_from([1, extent])) for extent in whole[start:])

    op = draw(st.sampled_from(["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"]))
    return case(op, op, cut(), cut(), positive=True)


@st.composite
def reductions(draw):
    """Over any set of axes, counted from either end, kept or dropped."""
    shape = tuple(draw(st.lists(EXTENTS, min_size=1, max_size=4)))
    axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    signed = tuple(a - len(shape) if draw(st.booleans()) else a for a in sorted(axes))
    op = draw(st.sampled_from(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"]))
    return case(op, op, shape, constants=(signed,), keepdims=int(draw(st.booleans())))


@st.composite
def slices(draw):
    """Bounds before, inside and beyond the tensor, and steps of both signs."""
    extent = draw(st.integers(1, 7))
    step = draw(st.sampled_from([-3, -2, -1, 1, 2, 3]))
    start, end = (draw(st.integers(-extent - 2, extent + 2)) for _ in range(2))
    if len(range(*slice(start, end, step).indices(extent))) == 0:
        start, end = (0, 2**31 - 1) if step > 0 else (-1, -(2**31))
    return case("slice", "Slice", (2, extent), constants=((start,), (end,), (1,), (step,)))


@st.composite
def gathers(draw):
    """Scalars, vectors and matrices of indices, repeated and negative, along any axis."""
    shape = tuple(draw(st.lists(EXTENTS, min_size=1, max_size=3)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    form = tuple(draw(st.lists(SMALL, max_size=2)))
    count = int(np.prod(form, dtype=int))
    picks = st.lists(st.integers(-shape[axis], shape[axis] - 1), min_size=count, max_size=count)
    indices = np.array(draw(picks), dtype=np.int64).reshape(form)
    return case("gather", "Gather", shape, constants=(indices,), axis=axis)


@st.composite
def windows(draw, *, rank, padding_max):
    """Attributes of a window over `rank` axes, and extents of an input that it fits."""
    kernel, strides, dilations = (draw(st.lists(SMALL, min_size=rank, max_size=rank)) for _ in range(3))
    pads = [draw(st.integers(0, min(padding_max, kernel[i % rank] - 1))) for i in range(2 * rank)]
    extents = [draw(st.integers((k - 1) * d + 1, 8)) for k, d in zip(kernel, dilations, strict=True)]
    return kernel, {"strides": strides, "dilations": dilations, "pads": pads}, tuple(extents)


@st.composite
def convolutions(draw):
    """In one and two dimensions over strides, dilations, paddings, groups, with bias or without."""
    kernel, geometry, extents = draw(windows(rank=draw(st.integers(1, 2)), padding_max=2))
    groups, inner, outer = (draw(SMALL) for _ in range(3))
    shapes = (2, groups * inner, *extents), (groups * outer, inner, *kernel), (groups * outer,)
    if draw(st.booleans()):
        del geometry["pads"]
        geometry["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        if "SAME" in geometry["auto_pad"]:  # onnx's reference has no dilation with these
            geometry["dilations"] = [1] * len(kernel)
    return case("conv", "Conv", *shapes[: draw(st.integers(2, 3))], group=groups, **geometry)


@st.composite
def transposed_convolutions(draw):
    """In one and two dimensions over strides, dilations, paddings and output paddings."""
    kernel, geometry, extents = draw(windows(rank=draw(st.integers(1, 2)), padding_max=1))
    inner, outer = draw(SMALL), draw(SMALL)
    geometry["output_padding"] = [draw(st.integers(0, s - 1)) for s in geometry["strides"]]
    shapes = (2, inner, *extents), (inner, outer, *kernel), (outer,)
    sizes = zip(extents, kernel, *geometry.values(), geometry["pads"][len(kernel) :], strict=False)
    if any((n - 1) * s + d * (k - 1) + 1 + o - b - e < 1 for n, k, s, d, b, o, e in sizes):
        geometry["pads"] = [0] * 2 * len(kernel)
    return case("conv-transpose", "ConvTranspose", *shapes[: draw(st.integers(2, 3))], **geometry)


@st.composite
def pools(draw):
    """Maximum and mean over windows that tile, overlap or leave gaps, with paddings and without."""
    kernel, geometry, extents = draw(windows(rank=draw(st.integers(1, 2)), padding_max=1))
    del geometry["dilations"]
    extents = [max(n, k) for n, k in zip(extents, kernel, strict=True)]
    op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    counting = {"count_include_pad": draw(st.integers(0, 1))} if op == "AveragePool" else {}
    if draw(st.booleans()):  # a last window that lies wholly in the padding is refused
        geometry["pads"][len(kernel) :] = [0] * len(kernel)
        geometry["strides"] = [min(s, k) for s, k in zip(geometry["strides"], kernel, strict=True)]
        counting["ceil_mode"] = 1
    return case(op, op, (2, draw(SMALL), *extents), kernel_shape=kernel, opset=19, **geometry, **counting)


@st.composite
def normalizations(draw):
    """Over batch statistics that are frozen, layers from any axis on, instances and groups."""
    op = draw(st.sampled_from(["Batch", "Layer", "Instance", "Group"]))
    name = f"{op}Normalization"
    epsilon = draw(
        st.sampled_from([0.01, 0.1])
    )  # with less, two values close together cost float32 its digits
    spatial = tuple(draw(st.lists(st.integers(2, 4), min_size=1, max_size=2)))
    channels = draw(SMALL)
    shape = (2, channels, *spatial)
    if op == "Layer":
        axis = draw(st.integers(1, len(shape) - 1))
        inner = shape[axis:]
        signed = axis - len(shape) if draw(st.booleans()) else axis
        parts = (inner, inner)[: draw(st.integers(1, 2))]
        return case(name, name, shape, *parts, axis=signed, epsilon=epsilon)
    if op == "Group":
        groups = draw(SMALL)
        shape = (2, groups * channels, *spatial)
        wide = (groups * channels,)
        return case(name, name, shape, wide, wide, num_groups=groups, epsilon=epsilon, opset=21)
    each = (channels,)
    if op == "Instance":
        return case(name, name, shape, each, each, epsilon=epsilon)
    statistics = np.linspace(-0.5, 0.5, channels).astype(F), np.linspace(0.5, 2, channels).astype(F)
    return case(name, name, shape, each, each, constants=statistics, epsilon=epsilon)


@st.composite
def products(draw):
    """Matrix products whose leading axes broadcast, and vectors on either side."""
    rows, inner, columns = (draw(EXTENTS) for _ in range(3))
    lead = draw(st.lists(EXTENTS, max_size=2))

    def side(matrix, vector):
        if draw(st.integers(0, 4)) == 0:
            return vector
        axes = lead[draw(st.integers(0, len(lead))) :]
        return (*(draw(st.sampled_from([1, extent])) for extent in axes), *matrix)

    left, right = side((rows, inner), (inner,)), side((inner, columns), (inner,))
    return case("matmul", "MatMul", left, right)


@st.composite
def affine(draw):
    """Gemm with every attribute and a bias of any shape that broadcasts, or none."""
    rows, inner, columns = (draw(EXTENTS) for _ in range(3))
    flipped_a, flipped_b = draw(st.booleans()), draw(st.booleans())
    a = (inner, rows) if flipped_a else (rows, inner)
    b = (columns, inner) if flipped_b else (inner, columns)
    c = draw(st.sampled_from([None, (columns,), (1,), (1, columns), (rows, 1), (rows, columns)]))
    scales = {"alpha": draw(st.sampled_from([1.0, 0.5])), "beta": draw(st.sampled_from([1.0, 2.0]))}
    shapes = (a, b) if c is None else (a, b, c)
    return case("gemm", "Gemm", *shapes, transA=int(flipped_a), transB=int(flipped_b), **scales)


@st.composite
def recurrences(draw):
    """RNN, GRU and LSTM in every direction, of any length, also of each sequence, and width, with biases or without."""
    op, gates = draw(st.sampled_from([("RNN", 1), ("GRU", 3), ("LSTM", 4)]))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    steps, batch, width, hidden = (draw(SMALL) for _ in range(4))
    count = 2 if direction == "bidirectional" else 1
    shapes = [(steps, batch, width), (count, gates * hidden, width), (count, gates * hidden, hidden)]
    lengths = ()
    if draw(st.booleans()):
        shapes.append((count, 2 * gates * hidden))
        if draw(st.booleans()):
            each = draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
            lengths = (np.array(each, np.int32),)
    more = {"linear_before_reset": draw(st.integers(0, 1))} if op == "GRU" else {}
    outputs = 3 if op == "LSTM" else 2
    return case(
        op, op, *shapes, constants=lengths, hidden_size=hidden, direction=direction, outputs=outputs, **more
    )


@st.composite
def softmaxes(draw):
    """Over any axis."""
    shape = tuple(draw(st.lists(EXTENTS, min_size=1, max_size=4)))
    op = draw(st.sampled_from(["Softmax", "LogSoftmax"]))
    return case(op, op, shape, axis=draw(st.integers(-len(shape), len(shape) - 1)))


@st.composite
def arrangements(draw):
    """Permutations, repetitions, paddings, joins and splits."""
    shape = tuple(draw(st.lists(EXTENTS, min_size=1, max_size=4)))
    rank = len(shape)
    axis = draw(st.integers(-rank, rank - 1))
    op = draw(st.sampled_from(["Transpose", "Tile", "Pad", "Concat", "Split"]))
    if op == "Transpose":
        return case(op, op, shape, perm=draw(st.permutations(range(rank))))
    if op == "Tile":
        return case(op, op, shape, constants=(tuple(draw(SMALL) for _ in shape),))
    if op == "Pad":
        return case(op, op, shape, constants=(tuple(draw(st.integers(0, 2)) for _ in range(2 * rank)),))
    extents = draw(st.lists(SMALL, min_size=1, max_size=3))
    parts = [tuple(n if i == axis % rank else e for i, e in enumerate(shape)) for n in extents]
    if op == "Concat":
        return case(op, op, *parts, axis=axis)
    whole = tuple(sum(extents) if i == axis % rank else e for i, e in enumerate(shape))
    return case(op, op, whole, constants=(tuple(extents),), outputs=len(extents), axis=axis)


STRATEGIES = {
    "binary": binary(),
    "reductions": reductions(),
    "slices": slices(),
    "gathers": gathers(),
    "convolutions": convolutions(),
    "transposed convolutions": transposed_convolutions(),
    "pools": pools(),
    "normalizations": normalizations(),
    "products": products(),
    "affine": affine(),
    "recurrences": recurrences(),
    "softmaxes": softmaxes(),
    "arrangements": arrangements(),
}
