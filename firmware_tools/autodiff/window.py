"""The geometry of a sliding window: what convolutions and pools have in common."""

from dataclasses import dataclass

from firmware_tools.autodiff.registry import Call


@dataclass(frozen=True)
class Window:
    """Resolved geometry per spatial axis; all extents in values. `begin` and `end` are the zero paddings."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    source: tuple[int, ...]
    result: tuple[int, ...]

    @property
    def pads(self) -> list[int]:
        """Paddings in ONNX order: all beginnings, then all ends."""
        return [*self.begin, *self.end]

    @property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return any(self.pads)

    @property
    def tiles(self) -> bool:
        """Whether windows neither overlap nor leave gaps, start at the first value and end inside the input."""
        inside = all(m * s <= n for m, s, n in zip(self.result, self.strides, self.source, strict=True))
        return self.kernel == self.strides and not self.padded and set(self.dilations) == {1} and inside


def window_of(call: Call, kernel: tuple[int, ...]) -> Window:
    """Geometry of a Conv or pooling node; `auto_pad` is turned into explicit paddings."""
    rank = len(kernel)
    strides = tuple(call.attribute("strides", [1] * rank))
    dilations = tuple(call.attribute("dilations", [1] * rank))
    source, result = call.spatial(call.x), call.spatial(call.y)
    auto = call.attribute("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = call.attribute("pads", [0] * (2 * rank))
        begin, end = tuple(pads[:rank]), tuple(pads[rank:])
    elif auto == "VALID":
        begin = end = (0,) * rank
    else:
        total = [
            max((r - 1) * s + d * (k - 1) + 1 - n, 0)
            for r, s, d, k, n in zip(result, strides, dilations, kernel, source, strict=True)
        ]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
    return Window(kernel, strides, dilations, begin, end, source, result)
