"""One sample after another: for work whose copies of a whole batch would not fit the processor's cache.

Also in memory at any time are then the copies of one sample.
"""

from collections.abc import Callable, Mapping

from firmware_tools.autodiff.graph import FLOAT, Graph, Shape, value_info


def summed(graph: Graph, tensors: Mapping[str, Shape], shape: Shape, part: Callable[..., str]) -> str:
    """A sum over all samples, float32 of `shape`.

    `tensors` are float32 and begin with the batch; each is given to `part` sample by sample in the shape it comes
    with. `part` has a graph to append nodes to and the names of the sum so far and of the sample of each tensor; it
    returns the name of the sum with the sample's part.
    """
    body = graph.body()
    before = body.fresh("sum")
    samples = [body.fresh("sample") for _ in tensors]
    after = part(body, before, *samples)
    inputs = [value_info(name, FLOAT, s) for name, s in zip(samples, tensors.values(), strict=True)]
    proto = body.proto(
        "sample", [value_info(before, FLOAT, shape), *inputs], [value_info(after, FLOAT, shape)]
    )
    nothing = graph.add("ConstantOfShape", graph.ints(*shape))
    batches = [graph.add("Reshape", name, graph.ints(-1, *s)) for name, s in tensors.items()]
    return graph.add("Scan", nothing, *batches, body=proto, num_scan_inputs=len(batches))
