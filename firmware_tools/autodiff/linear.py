"""Gradient rules of matrix products."""

from firmware_tools.autodiff.elementwise import reduce_to
from firmware_tools.autodiff.registry import Call, Gradients, gradient


@gradient("Gemm")
def gemm(call: Call) -> Gradients:
    """Y = alpha A' B' + beta C, where ' is the transposition the attributes ask for."""
    g, dy, a, b = call.graph, call.dy, call.input(0), call.input(1)
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    ta, tb = call.attribute("transA", 0), call.attribute("transB", 0)
    da = db = dc = None
    if call.wanted[0]:
        if ta:
            da = g.add("Gemm", b, dy, alpha=alpha, transA=tb, transB=1)
        else:
            da = g.add("Gemm", dy, b, alpha=alpha, transB=1 - tb)
    if call.wanted[1]:
        if tb:
            db = g.add("Gemm", dy, a, alpha=alpha, transA=1, transB=ta)
        else:
            db = g.add("Gemm", a, dy, alpha=alpha, transA=1 - ta)
    if call.input(2) and call.wanted[2]:
        dc = reduce_to(g, dy, call.shape(call.y), call.shape(call.input(2)))
        if beta != 1.0:
            dc = g.add("Mul", dc, g.scalar(beta))
    return [da, db, dc]


@gradient("MatMul")
def matmul(call: Call) -> Gradients:
    """Y = A B over leading axes that broadcast; a vector stands for a row on the left, a column on the right."""
    g, dy, a, b = call.graph, call.dy, call.input(0), call.input(1)
    shape_a, shape_b, shape_y = call.shape(a), call.shape(b), call.shape(call.y)
    row, column = len(shape_a) == 1, len(shape_b) == 1
    if column:
        b, shape_b, shape_y = g.add("Unsqueeze", b, g.ints(1)), (*shape_b, 1), (*shape_y, 1)
        dy = g.add("Unsqueeze", dy, g.ints(-1))
    if row:
        a, shape_a, shape_y = g.add("Unsqueeze", a, g.ints(0)), (1, *shape_a), (*shape_y[:-1], 1, shape_y[-1])
        dy = g.add("Unsqueeze", dy, g.ints(-2))
    da = db = None
    if call.wanted[0]:
        product = g.add("MatMul", dy, _transposed(call, b, len(shape_b)))
        da = reduce_to(g, product, (*shape_y[:-1], shape_a[-1]), shape_a)
        da = g.add("Squeeze", da, g.ints(0)) if row else da
    if call.wanted[1] and len(shape_b) == 2:
        # One product over all rows at once instead of a batch of products and their sum.
        rows = [
            t if len(shape_a) == 2 else _rows(call, t, n) for t, n in ((a, shape_a[-1]), (dy, shape_b[1]))
        ]
        db = g.add("Gemm", *rows, transA=1)
    elif call.wanted[1]:
        product = g.add("MatMul", _transposed(call, a, len(shape_a)), dy)
        db = reduce_to(g, product, (*shape_y[:-2], *shape_b[-2:]), shape_b)
    return [da, g.add("Squeeze", db, g.ints(1)) if db and column else db]


def _transposed(call: Call, tensor: str, rank: int) -> str:
    order = [*range(rank - 2), rank - 1, rank - 2]
    return call.graph.add("Transpose", tensor, perm=order)


def _rows(call: Call, tensor: str, width: int) -> str:
    return call.graph.add("Reshape", tensor, call.graph.ints(-1, width))


@gradient("Einsum")
def einsum(call: Call) -> Gradients:
    """Another Einsum, of dy and the other operands; an index of one alone, a repeated one and `...` are refused."""
    equation = call.attribute("equation", "").replace(" ", "")
    left, arrow, result = equation.partition("->")
    parts = left.split(",")
    if not arrow:  # ONNX's implicit form: what occurs once, in the order of the alphabet
        result = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    if "." in equation or any(len(set(part)) < len(part) for part in (*parts, result)):
        raise call.refused("its equation must have each index once an operand, and no ellipsis")
    gradients: list[str | None] = []
    for i, part in enumerate(parts):
        if not call.wanted[i]:
            gradients.append(None)
            continue
        others = [j for j in range(len(parts)) if j != i]
        known = {c for j in others for c in parts[j]} | set(result)
        if not result or not set(part) <= known:
            raise call.refused(
                f"operand {i} has an index that is neither in the result nor in another operand"
            )
        terms = ",".join([result, *(parts[j] for j in others)])
        operands = [call.dy, *(call.input(j) for j in others)]
        gradients.append(call.graph.add("Einsum", *operands, equation=f"{terms}->{part}"))
    return gradients
