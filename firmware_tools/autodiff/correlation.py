"""The gradients of a convolution as products of large matrices.

Input and output gradient are laid out as [channels, batch * grid] over a common grid of positions with zeros
between rows and between samples, so that what lies under another kernel position lies a constant distance away:
a column is one contiguous copy instead of one per image row. The positions along all axes but one shift the
input, those along the last one shift the output gradient, and one product pairs them all: a 3x3 kernel needs
three and three copies instead of nine. With strides, the input is first taken apart into its phases.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from firmware_tools.autodiff.graph import Graph, Shape
from firmware_tools.autodiff.scan import summed
from firmware_tools.autodiff.window import Window

_TO_THE_END = 2**31 - 1
# A product with fewer rows than this takes up to twice the time of its transpose (16 x 32768 x 144: 3.7 and 2.0 ms).
_LEFT_ROWS_MIN = 48
# From as many values a sample on, the copies are made for one sample at a time: those of a batch would not fit the
# processor's cache. A 3x3 kernel over [32, 16, 32, 32] takes 2.4 ms then and 4.4 otherwise, of which the product alone
# is 2.1; over [32, 16, 14, 14], which copies 22,000 values, it takes 0.61 and 0.55.
_SCANNED_VALUES_MIN = 25_000


@dataclass(frozen=True)
class _Tap:
    """A kernel position: the phase of the input it reads, and how far from where it stands."""

    phase: tuple[int, ...]
    shift: int


@dataclass(frozen=True)
class Layout:
    """How the gradients of one convolution are laid out; its kernel is [O, C / groups, *kernel].

    The positions of axis `moving` shift the output gradient (-1 for none), those of the others the input.
    """

    window: Window
    shape: Shape
    groups: int
    moving: int
    close: bool = False  # no zeros between: the grid is the output, and each column is cut out of the input
    alone: bool = False  # one sample after another: no zeros after it, as none follows

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return self.shape[0]

    @property
    def inputs(self) -> int:
        """Channels of the input."""
        return self.shape[1] * self.groups

    @property
    def others(self) -> list[int]:
        """The axes whose positions shift the input."""
        return [i for i in range(len(self.window.kernel)) if i != self.moving]

    @cached_property
    def extents(self) -> tuple[int, ...]:
        """Values along each axis of the smallest grid on which a shift never meets another row or sample."""
        w = self.window
        if self.close:
            return w.result
        axes = zip(w.source, w.result, w.strides, w.dilations, w.kernel, w.begin, w.end, strict=True)
        found = [
            # Without a stride, one padding serves both its neighbours.
            max(n + max(b, e), m) if s == 1 else max(m + d * (k - 1) // s, -(-(n + b) // s))
            for n, m, s, d, k, b, e in axes
        ]
        if self.alone and w.strides[0] == 1:
            found[0] = max(w.source[0], w.result[0])
        return tuple(found)

    @cached_property
    def pitches(self) -> tuple[int, ...]:
        """Distance of neighbours along each axis, in values."""
        return tuple(math.prod(self.extents[i + 1 :]) for i in range(len(self.extents)))

    @cached_property
    def taps(self) -> list[_Tap]:
        """Each kernel position over the axes that shift the input, in row-major order."""
        w, found = self.window, []
        for position in itertools.product(*(range(w.kernel[i]) for i in self.others)):
            phase, shift = [0] * len(w.kernel), 0
            for i, p in zip(self.others, position, strict=True):
                steps, phase[i] = divmod(p * w.dilations[i], w.strides[i])
                shift += steps * self.pitches[i]
            found.append(_Tap(tuple(phase), shift))
        return found

    @property
    def even_step(self) -> int:
        """The distance from each tap to the next where it is always the same, otherwise 0."""
        steps = {b.shift - a.shift for a, b in itertools.pairwise(self.taps)}
        return steps.pop() if len(steps) == 1 and len({tap.phase for tap in self.taps}) == 1 else 0

    @property
    def reach(self) -> int:
        """The distance from the first tap to the last."""
        return max(tap.shift for tap in self.taps)

    @property
    def moves(self) -> int:
        """How often the output gradient is shifted, and once it stands where it is."""
        return 1 if self.moving < 0 else self.window.kernel[self.moving]

    @property
    def step(self) -> int:
        """The distance from each move to the next."""
        return 0 if self.moving < 0 else self.window.dilations[self.moving] * self.pitches[self.moving]

    @property
    def copied(self) -> int:
        """Rows of the products' operands: each is as long as the grid."""
        return self.inputs * len(self.taps) + self.outputs * self.moves

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of a group's product."""
        return self.moves * self.outputs // self.groups, len(self.taps) * self.shape[1]

    @property
    def turned(self) -> bool:
        """Whether the product is taken the other way round."""
        height, width = self.sides
        return self.groups == 1 and height < _LEFT_ROWS_MIN <= width

    @property
    def padding(self) -> int:
        """The distance between an output position and the first input it reads."""
        w = self.window
        return sum(b * p for b, s, p in zip(w.begin, w.strides, self.pitches, strict=True) if s == 1)

    @property
    def front(self) -> int:
        """Zeros before the output gradient: for all its moves, and for what the first input's gradient reads."""
        if self.close:
            return 0
        if self.alone:
            return (self.moves - 1) * self.step
        return self.moves * self.step + max(self.reach - self.padding, 0)

    @property
    def lead(self) -> int:
        """Zeros before the input, so that it meets the output gradient."""
        return self.padding + self.front - (self.moves - 1) * self.step

    @property
    def extra(self) -> int:
        """By how much a row is longer than the grid: enough that what wraps around meets zeros."""
        if self.close:
            return 0
        if self.alone:
            # Two copies of the input lie `extra - even_step` apart: as far as the second's taps read before it,
            # and the first's behind it.
            return max(self.front, self.even_step, self.padding, self.reach + self.front - self.padding)
        return max(
            self.front + self.reach + self.even_step, self.lead + self.even_step, self.front + self.step
        )


def layout_of(window: Window, shape: Shape, groups: int, *, both: bool = False) -> Layout:
    """The layout that copies the fewest values for the weight's gradient, or for `both` it and the input's."""
    if not both and groups == 1 and math.prod(shape[1:]) <= shape[0]:
        return Layout(window, shape, groups, -1, close=True)  # the columns are less than the zeros would be
    free = [i for i, k in enumerate(window.kernel) if k > 1 and window.strides[i] == 1]
    layouts = [Layout(window, shape, groups, axis) for axis in (-1, *free)]

    def copied(layout: Layout) -> int:
        sums = layout.inputs * len(layout.taps) if both and len(layout.taps) > 1 else 0
        return layout.copied + sums

    found = min(layouts, key=copied)
    if both or found.copied * math.prod(found.extents) < _SCANNED_VALUES_MIN:
        return found
    # For one sample the number of nodes matters more than that of copies: two even shifts are two copies.
    alone = [replace(each, alone=True) for each in layouts if each.moving >= 0 or not free]
    return min(alone, key=lambda each: (each.copied, each.extra))


def swapped(graph: Graph, tensor: str, rank: int) -> str:
    """[N, C, *extents] of `rank` extents as [C, N, *extents], or back."""
    return graph.add("Transpose", tensor, perm=[1, 0, *range(2, rank + 2)])


def spread(graph: Graph, layout: Layout, gradient: str) -> str:
    """[O, N, *result] as [O, N * grid] with zeros between."""
    counts = [e - m for e, m in zip(layout.extents, layout.window.result, strict=True)]
    return _flat(graph, _extended(graph, gradient, counts))


def moved(graph: Graph, layout: Layout, flat: str) -> str:
    """What `spread` gives as [O * moves, N * grid + extra]: each row shifted further, in the order of the kernel."""
    first = layout.front - (layout.moves - 1) * layout.step
    return _tiled(graph, flat, layout.outputs, (layout.moves, -layout.step), (first, layout.extra))


def weight_gradient(graph: Graph, layout: Layout, source: str, gradient: str) -> str:
    """Gradient of the kernel; `source` is the input [N, C, *source], `gradient` that of the output [N, O, *result]."""
    if not layout.alone:
        rank = len(layout.extents)
        rows = moved(graph, layout, spread(graph, layout, swapped(graph, gradient, rank)))
        return in_kernel_order(graph, layout, product(graph, layout, swapped(graph, source, rank), rows))
    w = layout.window
    samples = {source: (layout.inputs, 1, *w.source), gradient: (layout.outputs, 1, *w.result)}
    height, width = layout.sides[::-1] if layout.turned else layout.sides
    shape = (height, width) if layout.groups == 1 else (layout.groups, height, width)

    def part(body: Graph, total: str, x: str, dy: str) -> str:
        return product(body, layout, x, moved(body, layout, spread(body, layout, dy)), total=total)

    return in_kernel_order(graph, layout, summed(graph, samples, shape, part))


def product(graph: Graph, layout: Layout, source: str, rows: str, *, total: str = "") -> str:
    """Every channel of the output under each move with every channel of the input under each tap; `total` is added.

    `source` is the input [C, N, *source], `rows` what `moved` gives.
    """
    columns = _cut_out(graph, layout, source) if layout.close else _shifted(graph, layout, source)
    groups, (height, width) = layout.groups, layout.sides
    if groups > 1:
        right = graph.add("Reshape", columns, graph.ints(groups, width, -1))
        right = graph.add("Transpose", right, perm=[0, 2, 1])
        left = graph.add("Reshape", rows, graph.ints(groups, height, -1))
        parts = [left]
        if layout.outputs == groups and height > 1:
            # A product with one row is a fast case of the runtime's own, one with three is not.
            parts = list(graph.add_many("Split", left, outputs=[""] * height, axis=1, num_outputs=height))
        products = [graph.add("MatMul", part, right) for part in parts]
        whole = products[0] if len(products) == 1 else graph.add("Concat", *products, axis=1)
        return graph.add("Add", total, whole) if total else whole
    pair = (columns, rows) if layout.turned else (rows, columns)
    return graph.add("Gemm", *pair, *[total] * bool(total), transB=1)


def input_gradient(graph: Graph, layout: Layout, weight: str, rows: str) -> str:
    """Gradient of the input [N, C, *source] of a convolution without strides or groups.

    One product of the kernel with the moved rows gives a sum for each tap, and these are added where they stand.
    """
    w, channels, rank = layout.window, layout.inputs, len(layout.extents)
    order = [*(i + 2 for i in layout.others), 1, 0]
    if layout.moving >= 0:
        order.append(layout.moving + 2)
    turned = graph.add("Transpose", weight, perm=order)
    turned = graph.add("Reshape", turned, graph.ints(len(layout.taps) * channels, -1))
    sums = graph.add("Gemm", turned, rows)
    parts = []
    for i, tap in enumerate(layout.taps):
        start = layout.lead - tap.shift
        starts, ends = (i * channels, start), ((i + 1) * channels, start - layout.extra or _TO_THE_END)
        parts.append(graph.add("Slice", sums, graph.ints(*starts), graph.ints(*ends), graph.ints(0, 1)))
    total = graph.add("Sum", *parts) if len(parts) > 1 else parts[0]
    wide = graph.add("Reshape", total, graph.ints(channels, -1, *layout.extents))
    if layout.extents != w.source:
        zeros, axes = graph.ints(*[0] * rank), graph.ints(*range(2, rank + 2))
        wide = graph.add("Slice", wide, zeros, graph.ints(*w.source), axes)
    return swapped(graph, wide, rank)


def in_kernel_order(graph: Graph, layout: Layout, product: str) -> str:
    """[O, moves, C / groups, taps], of `product`, as [O, C / groups, *kernel]."""
    if layout.turned:
        product = graph.add("Transpose", product, perm=[1, 0])
    if layout.moving >= 0:
        have = [-1, layout.moving, -2, *layout.others]
        sizes = {-1: layout.shape[0], -2: layout.shape[1], **dict(enumerate(layout.window.kernel))}
        product = graph.add("Reshape", product, graph.ints(*(sizes[i] for i in have)))
        want = [-1, -2, *range(len(layout.window.kernel))]
        product = graph.add("Transpose", product, perm=[have.index(i) for i in want])
    return graph.add("Reshape", product, graph.ints(*layout.shape))


def _phases(graph: Graph, layout: Layout, source: str) -> dict[tuple[int, ...], str]:
    """Every phase that a tap needs, as [C, N * grid]."""
    w, rank = layout.window, len(layout.extents)
    before = [b if s > 1 else 0 for b, s in zip(w.begin, w.strides, strict=True)]
    after = [s * e - n - b for s, e, n, b in zip(w.strides, layout.extents, w.source, before, strict=True)]
    wide = source
    if any(before):
        wide = graph.add("Pad", wide, graph.ints(0, 0, *before, 0, 0, *after))
    else:
        wide = _extended(graph, wide, after)
    found = {}
    for phase in dict.fromkeys(tap.phase for tap in layout.taps):
        part = wide
        if set(w.strides) != {1}:
            ends, axes = graph.ints(*[_TO_THE_END] * rank), graph.ints(*range(2, rank + 2))
            part = graph.add("Slice", wide, graph.ints(*phase), ends, axes, graph.ints(*w.strides))
        found[phase] = _flat(graph, part)
    return found


def _cut_out(graph: Graph, layout: Layout, source: str) -> str:
    """The input under each tap, [C * taps, N * result], row by row."""
    w, rank = layout.window, len(layout.extents)
    wide = source
    if w.padded:
        wide = graph.add("Pad", wide, graph.ints(0, 0, *w.begin, 0, 0, *w.end))
    axes, strides, rows = graph.ints(*range(2, rank + 2)), graph.ints(*w.strides), []
    for position in itertools.product(*(range(k) for k in w.kernel)):
        starts = [p * d for p, d in zip(position, w.dilations, strict=True)]
        ends = [a + (m - 1) * s + 1 for a, m, s in zip(starts, w.result, w.strides, strict=True)]
        cut = graph.add("Slice", wide, graph.ints(*starts), graph.ints(*ends), axes, strides)
        rows.append(graph.add("Unsqueeze", cut, graph.ints(1)) if len(layout.taps) > 1 else cut)
    whole = graph.add("Concat", *rows, axis=1) if len(rows) > 1 else rows[0]
    return graph.add("Reshape", whole, graph.ints(layout.inputs * len(rows), -1))


def _shifted(graph: Graph, layout: Layout, source: str) -> str:
    """The input under each tap, [C * taps, N * grid + extra], by contiguous copies."""
    taps, channels, phases = layout.taps, layout.inputs, _phases(graph, layout, source)
    if layout.even_step or len(taps) == 1:
        (flat,) = phases.values()
        return _tiled(graph, flat, channels, (len(taps), layout.even_step), (layout.lead, layout.extra))
    ends = layout.lead, layout.extra + layout.reach - layout.lead
    guarded = {phase: _guarded(graph, flat, channels, ends) for phase, flat in phases.items()}
    cuts = [_cut(graph, guarded[tap.phase], tap.shift, layout.reach - tap.shift) for tap in taps]
    rows = [graph.add("Unsqueeze", cut, graph.ints(1)) for cut in cuts]
    return graph.add("Reshape", graph.add("Concat", *rows, axis=1), graph.ints(channels * len(taps), -1))


def _tiled(graph: Graph, flat: str, channels: int, shifts: tuple[int, int], ends: tuple[int, int]) -> str:
    """[C, length] as [C * count, length + extra]: `front` zeros before the first row, each next one `step` further.

    One copy: repeated with a period that is shorter than a row by `step`, which may be negative, and cut into rows.
    """
    (count, step), (front, extra) = shifts, ends
    pieces = [_zeros(graph, channels, front), flat]
    for _ in range(count - 1):
        pieces += [_zeros(graph, channels, extra - step), flat]
    pieces.append(_zeros(graph, channels, extra + (count - 1) * step - front))
    pieces = [piece for piece in pieces if piece]
    whole = graph.add("Concat", *pieces, axis=1) if len(pieces) > 1 else flat
    return graph.add("Reshape", whole, graph.ints(channels * count, -1)) if count > 1 else whole


def _zeros(graph: Graph, channels: int, count: int) -> str:
    """Empty for none. Not a constant of the file: the runtime makes them when it loads the graph."""
    return graph.add("ConstantOfShape", graph.ints(channels, count)) if count else ""


def _guarded(graph: Graph, flat: str, channels: int, ends: tuple[int, int]) -> str:
    """[C, length] with zeros before and after each row."""
    front, back = (_zeros(graph, channels, count) for count in ends)
    parts = [part for part in (front, flat, back) if part]
    return graph.add("Concat", *parts, axis=1) if len(parts) > 1 else flat


def _cut(graph: Graph, flat: str, front: int, back: int) -> str:
    """[C, length] without the first and last values of each row."""
    if not front and not back:
        return flat
    end = -back if back else _TO_THE_END
    return graph.add("Slice", flat, graph.ints(front), graph.ints(end), graph.ints(1))


def _extended(graph: Graph, tensor: str, counts: Sequence[int]) -> str:
    """[C, N, *extents] with zeros appended along the spatial axes; a negative count cuts values off."""
    counts = list(counts)
    if counts[-1] > 0:
        # Joining zeros to each row takes a third of the time of Pad, which goes row by row through its axes.
        lead = graph.add("Shape", tensor, end=-1)
        zeros = graph.add("ConstantOfShape", graph.add("Concat", lead, graph.ints(counts[-1]), axis=0))
        tensor = graph.add("Concat", tensor, zeros, axis=-1)
        counts[-1] = 0
    if any(counts):
        tensor = graph.add("Pad", tensor, graph.ints(*[0] * (len(counts) + 4), *counts))
    return tensor


def _flat(graph: Graph, tensor: str) -> str:
    """[C, N, *extents] as [C, values]."""
    return graph.add("Reshape", tensor, graph.constant(np.array([0, -1])))
