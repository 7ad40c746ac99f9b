"""Every gradient rule against PyTorch's autograd in float64, value by value; skipped where torch is absent.

The table says each operator again in PyTorch's own terms. It takes the case's inputs in ONNX's order, None where
one is absent, and the case's attributes.
"""

import functools

import numpy as np
import pytest
from firmware_test_cases import CASES
from firmware_test_derivatives import TOLERANCE, drawn, gradients_of
from firmware_test_random_cases import STRATEGIES
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
F = torch.nn.functional


def pairs(pads):
    """ONNX's paddings, all begins and then all ends, in PyTorch's order: last axis first, begin and end."""
    half = len(pads) // 2
    return [p for axis in reversed(range(half)) for p in (pads[axis], pads[half + axis])]


def geometry(x, kernel, attributes):
    """Strides, dilations and the paddings that `auto_pad` stands for."""
    rank = len(kernel)
    strides, dilations = (attributes.get(name, [1] * rank) for name in ("strides", "dilations"))
    mode = attributes.get("auto_pad", "NOTSET")
    if not mode.startswith("SAME"):
        return strides, dilations, attributes.get("pads", [0] * 2 * rank)
    begins, ends = [], []
    for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return strides, dilations, begins + ends


def conv(x, w, b=None, *, group=1, **attributes):
    strides, dilations, pads = geometry(x, w.shape[2:], attributes)
    apply = (F.conv1d, F.conv2d)[w.ndim - 3]
    return apply(F.pad(x, pairs(pads)), w, b, strides, 0, dilations, group)


def conv_transpose(x, w, b=None, *, output_padding=None, auto_pad="NOTSET", **attributes):
    strides, dilations, pads = geometry(x, w.shape[2:], attributes)
    rank = w.ndim - 2
    if auto_pad != "NOTSET":  # the output is the input times the stride
        total = [d * (k - 1) + 1 - s for d, k, s in zip(dilations, w.shape[2:], strides, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = small + large if auto_pad == "SAME_UPPER" else large + small
    more = output_padding or [0] * rank
    apply = (F.conv_transpose1d, F.conv_transpose2d)[rank - 1]
    whole = apply(x, w, None, strides, 0, 0, 1, dilations)
    out = F.pad(
        whole, pairs([*(-p for p in pads[:rank]), *(m - p for m, p in zip(more, pads[rank:], strict=True))])
    )
    return out if b is None else out + b.reshape(-1, *[1] * rank)


def max_pool(x, *, kernel_shape, ceil_mode=0, **attributes):
    strides, _, pads = geometry(x, kernel_shape, attributes)
    apply = (F.max_pool1d, F.max_pool2d)[len(kernel_shape) - 1]
    padded = F.pad(x, pairs(pads), value=-torch.inf)
    return apply(padded, kernel_shape, strides, ceil_mode=bool(ceil_mode))


def average_pool(x, *, kernel_shape, count_include_pad=0, ceil_mode=0, **attributes):
    strides, _, pads = geometry(x, kernel_shape, attributes)
    apply = (F.avg_pool1d, F.avg_pool2d)[len(kernel_shape) - 1]
    mean = apply(F.pad(x, pairs(pads)), kernel_shape, strides, ceil_mode=bool(ceil_mode))
    inside = F.pad(torch.ones_like(x), pairs(pads), value=float(count_include_pad))
    return mean / apply(inside, kernel_shape, strides, ceil_mode=bool(ceil_mode))


def gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):  # noqa: N803 - ONNX's names
    product = alpha * (a.T if transA else a) @ (b.T if transB else b)
    return product if c is None else product + beta * c


def reduced(function):
    def apply(x, axes=None, *, keepdims=1, noop_with_empty_axes=0):
        if noop_with_empty_axes and (axes is None or not len(axes)):
            return x
        over = tuple(range(x.ndim)) if axes is None else tuple(axes.tolist())
        return function(x, dim=over, keepdim=bool(keepdims))

    return apply


def over_space(apply):
    return lambda x: apply(x, dim=tuple(range(2, x.ndim)), keepdim=True)


def batch_norm(x, scale, bias, mean, var, *, epsilon=1e-5):
    return F.batch_norm(x, mean, var, scale, bias, training=False, eps=epsilon)


def layer_norm(x, scale, bias=None, *, axis=-1, epsilon=1e-5):
    return F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def group_norm(x, scale, bias, *, num_groups, epsilon=1e-5):
    each = x.shape[1] // len(scale)  # before opset 21 scale and bias are per group
    return F.group_norm(x, num_groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon)


def sliced(x, starts, ends, axes=None, steps=None):
    count = len(starts)
    axes = range(count) if axes is None else axes.tolist()
    steps = [1] * count if steps is None else steps.tolist()
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes, steps, strict=True):
        picked = list(range(*slice(start, end, step).indices(x.shape[axis])))
        x = x.index_select(axis, torch.tensor(picked))
    return x


def gather(x, indices, *, axis=0):
    axis %= x.ndim
    picked = x.index_select(axis, indices.reshape(-1) % x.shape[axis])
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def pad(x, pads, value=None, axes=None, *, mode="constant"):
    axes = range(x.ndim) if axes is None else [a % x.ndim for a in axes.tolist()]
    around = dict(zip(axes, zip(*pads.reshape(2, -1).tolist(), strict=True), strict=True))
    for axis, (begin, end) in around.items():
        if mode == "constant":
            whole = [(begin, end) if a == axis else (0, 0) for a in reversed(range(x.ndim))]
            x = F.pad(x, [p for both in whole for p in both], value=0.0 if value is None else float(value))
        else:
            x = x.index_select(axis, torch.tensor(np.pad(np.arange(x.shape[axis]), (begin, end), mode)))
    return x


def split(x, sizes=None, *, axis=0, num_outputs=0):
    parts = x.shape[axis] // num_outputs if sizes is None else sizes.tolist()
    return torch.split(x, parts, axis)


def clip(x, low=None, high=None):
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def prelu(x, slope):
    return torch.where(x > 0, x, slope * x)


def depth_to_space(x, *, blocksize, mode="DCR"):
    if mode == "DCR":  # PyTorch has the blocks innermost in the channels
        x = x.unflatten(1, (blocksize**2, -1)).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(x, blocksize)


def space_to_depth(x, *, blocksize):
    return F.pixel_unshuffle(x, blocksize).unflatten(1, (-1, blocksize**2)).transpose(1, 2).flatten(1, 2)


def resize(x, _roi, scales=None, sizes=None, *, mode, coordinate_transformation_mode, **_coefficients):
    names = {"nearest": "nearest", "linear": {3: "linear", 4: "bilinear"}[x.ndim], "cubic": "bicubic"}
    corners = (
        {"align_corners": coordinate_transformation_mode == "align_corners"} if mode != "nearest" else {}
    )
    how = {"size": sizes.tolist()[2:]} if scales is None else {"scale_factor": scales.tolist()[2:]}
    return F.interpolate(x, **how, mode=names[mode], **corners)


def recurrent(kind, order):
    """A layer of PyTorch's on packed sequences; its gates stand in another `order`, its biases are two vectors."""

    def rows(tensor):
        gates = tensor.chunk(len(order))
        return torch.cat([gates[i] for i in order])

    def apply(x, w, r, b=None, lengths=None, *states, hidden_size, direction="forward", **attributes):
        steps, batch, width = x.shape
        ways = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[direction]
        relu = {"nonlinearity": "relu"} if attributes.get("activations") == ["Relu"] else {}
        # Its own layers go forwards or both ways; of both, the one that is asked for is read.
        module = getattr(torch.nn, kind)(width, hidden_size, bias=b is not None, bidirectional=True, **relu)
        parameters = {}
        for i, way in enumerate(ways):
            named = {"weight_ih": w[i], "weight_hh": r[i]}
            if b is not None:
                named |= dict(zip(("bias_ih", "bias_hh"), b[i].chunk(2), strict=True))
            parameters |= {f"{n}_l0{'_reverse' * way}": rows(v) for n, v in named.items()}
        first = [x.new_zeros(2, batch, hidden_size) for _ in range(2 if kind == "LSTM" else 1)]
        for state, start in zip(first, states, strict=False):
            state[ways] = start
        ends = torch.full((batch,), steps) if lengths is None else lengths.long()
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, ends, enforce_sorted=False)
        call = packed, (tuple(first) if kind == "LSTM" else first[0])
        out, last = torch.func.functional_call(module.double(), parameters, call)
        out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, total_length=steps)
        last = last if kind == "LSTM" else (last,)
        whole = out.reshape(steps, batch, 2, hidden_size).transpose(1, 2)[:, ways]
        return whole, *(state[ways] for state in last)

    return apply


def gru(*inputs, linear_before_reset=0, **attributes):
    assert linear_before_reset, "PyTorch resets behind the product only"
    return recurrent("GRU", (1, 0, 2))(*inputs, **attributes)


TABLE = {
    "Abs": torch.abs,
    "Add": torch.add,
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Cast": lambda x, to: x,  # noqa: ARG005 - float32 to float32
    "CastLike": lambda x, _like: x,
    "Celu": F.celu,
    "Clip": clip,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DepthToSpace": depth_to_space,
    "Div": torch.div,
    "Einsum": lambda *operands, equation: torch.einsum(equation, *operands),
    "Elu": F.elu,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Expand": lambda x, shape: x.expand(np.broadcast_shapes(x.shape, tuple(shape.tolist()))),
    "Flatten": lambda x: x.flatten(1),
    "GRU": gru,
    "Gather": gather,
    "GatherElements": lambda x, indices, axis: torch.gather(x, axis, indices % x.shape[axis]),
    "Gelu": lambda x, approximate="none": F.gelu(x, approximate=approximate),
    "Gemm": gemm,
    "GlobalAveragePool": over_space(torch.mean),
    "GlobalMaxPool": over_space(torch.amax),
    "GroupNormalization": group_norm,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "HardSwish": F.hardswish,
    "Identity": torch.clone,
    "InstanceNormalization": lambda x, scale, bias, epsilon=1e-5: F.instance_norm(
        x, weight=scale, bias=bias, eps=epsilon
    ),
    "LSTM": recurrent("LSTM", (0, 2, 3, 1)),
    "LayerNormalization": layer_norm,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Log": torch.log,
    "LogSoftmax": lambda x, axis=-1: F.log_softmax(x, axis),
    "MatMul": torch.matmul,
    "Max": lambda *operands: functools.reduce(torch.maximum, operands),
    "MaxPool": max_pool,
    "Mean": lambda *operands: sum(operands) / len(operands),
    "Mish": F.mish,
    "Min": lambda *operands: functools.reduce(torch.minimum, operands),
    "Mul": torch.mul,
    "Neg": torch.neg,
    "PRelu": prelu,
    "Pad": pad,
    "Pow": torch.pow,
    "RNN": recurrent("RNN", (0,)),
    "Reciprocal": torch.reciprocal,
    "ReduceL2": reduced(torch.linalg.vector_norm),
    "ReduceMax": reduced(torch.amax),
    "ReduceMean": reduced(torch.mean),
    "ReduceMin": reduced(torch.amin),
    "ReduceSum": reduced(torch.sum),
    "Relu": F.relu,
    "Reshape": lambda x, shape: x.reshape(
        [x.shape[i] if n == 0 else n for i, n in enumerate(shape.tolist())]
    ),
    "Resize": resize,
    "Selu": lambda x, alpha=None, gamma=None: F.selu(x) if alpha is None else gamma * F.elu(x, alpha),
    "Sigmoid": torch.sigmoid,
    "Slice": sliced,
    "Softmax": lambda x, axis=-1: F.softmax(x, axis),
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Sqrt": torch.sqrt,
    "Squeeze": lambda x, axes: x.squeeze(tuple(axes.tolist())),
    "Sub": torch.sub,
    "Sum": lambda *operands: sum(operands),
    "Tanh": torch.tanh,
    "ThresholdedRelu": lambda x, alpha: F.threshold(x, alpha, 0.0),
    "Tile": lambda x, repeats: x.tile(tuple(repeats.tolist())),
    "Transpose": lambda x, perm=None: x.permute(perm or tuple(reversed(range(x.ndim)))),
    "Unsqueeze": lambda x, axes: functools.reduce(torch.unsqueeze, axes.tolist(), x),
    "Where": torch.where,
}


def tensor(value):
    """A constant of the case as a tensor; floats in float64."""
    if value is None:
        return None
    found = torch.tensor(np.asarray(value))
    return found.double() if found.is_floating_point() else found


def autograd(spec, feeds, rng):
    """The output in one piece as forward_of joins it, the drawn weight of each value, and each input's gradient."""
    leaves = [torch.tensor(value, requires_grad=True) for value in feeds.values()]
    inputs = [*map(tensor, spec.first), *leaves, *map(tensor, spec.constants)]
    out = TABLE[spec.op](*inputs, **spec.attributes)
    if spec.outputs > 1:
        parts = [p for p in out if not isinstance(p, tuple)]
        read = [(i + 1) * p.reshape(-1) for i, p in enumerate(parts[: spec.outputs]) if i not in spec.unread]
        out = torch.cat(read)
    elif isinstance(out, tuple):
        out = out[0]
    weight = rng.standard_normal(tuple(out.shape))
    (out * torch.tensor(weight)).sum().backward()
    return out.detach().numpy(), weight, [leaf.grad.numpy() for leaf in leaves]


def compare(spec, seed):
    rng = np.random.default_rng(seed)
    feeds = drawn(spec, rng)
    want, weight, gradients = autograd(spec, feeds, rng)
    out, got = gradients_of(spec, feeds, weight)

    np.testing.assert_allclose(out, want, atol=1e-5, rtol=1e-5)
    for value, expected in zip(got.values(), gradients, strict=True):
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(value, expected, atol=TOLERANCE * scale, rtol=0)


def resets_first(spec):
    """Whether it is the form of GRU that PyTorch has not."""
    return spec.op == "GRU" and not spec.attributes.get("linear_before_reset")


@pytest.mark.parametrize("spec", CASES, ids=lambda spec: spec.name)
def test_gradient_equals_autograd(spec):
    """Each value of each input's gradient is PyTorch's."""
    if resets_first(spec):
        pytest.skip("PyTorch's GRU resets behind the product only; finite differences cover the other form")
    if "Softsign" in spec.attributes.get("activations", ()):
        pytest.skip("activations of PyTorch's LSTM are fixed; finite differences cover others")
    if {"clip", "input_forget"} & spec.attributes.keys():
        pytest.skip("PyTorch's layers have neither; finite differences cover both")
    compare(spec, 11)


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=25)
@given(st.data())
def test_random_gradients_equal_autograd(name, data):
    """Over random shapes, attributes and broadcasts, too, each value is PyTorch's."""
    spec = data.draw(STRATEGIES[name].filter(lambda spec: not resets_first(spec)))
    compare(spec, data.draw(st.integers(0, 999)))
