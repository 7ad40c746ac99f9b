"""What the stock kernels of ONNX Runtime could reach at best, and where a step's time goes. One thread.

python bench/step/kernels.py peak
python bench/step/kernels.py bound NET
python bench/step/kernels.py profile NET FOLDER
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime as ort
from nets import NETS

from edge_client.bundle import TRAIN, open_bundle
from firmware_tools.autodiff.graph import FLOAT, Graph, shapes_of, value_info

BATCH = 32
RUNS = 15
SQUARE = 1024  # side of the matrices whose product gives the machine's peak
SEED = 1


def session(model: bytes, *, profile: str = "") -> ort.InferenceSession:
    """As the device opens it, with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def kernel_ms(op_type: str, shapes: Mapping[str, tuple[int, ...]], **attributes: object) -> float:
    """Median time of one operator on random operands, without any copy to or from the caller."""
    graph = Graph(18)
    graph.add(op_type, *shapes, output="y", **attributes)
    inputs = [value_info(name, FLOAT, shape) for name, shape in shapes.items()]
    model = graph.model("kernel", inputs, [onnx.helper.make_tensor_value_info("y", FLOAT, None)])
    runtime = session(model.SerializeToString())
    binding, rng = runtime.io_binding(), np.random.default_rng(SEED)
    for name, shape in shapes.items():
        binding.bind_cpu_input(name, rng.standard_normal(shape).astype(np.float32))
    binding.bind_output("y")
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        runtime.run_with_iobinding(binding)
        times.append(time.perf_counter() - start)
    return median(times) * 1e3


def peak() -> float:
    """GFLOP/s of one large matrix product."""
    side = (SQUARE, SQUARE)
    return 2 * SQUARE**3 / kernel_ms("Gemm", {"a": side, "b": side}) / 1e6


def convolutions(name: str) -> list[tuple[onnx.NodeProto, dict[str, tuple[int, ...]]]]:
    """The convolutions of a network, and the shapes of its tensors."""
    model, net = NETS[name].build(), NETS[name]
    graph = Graph(model.opset_import[0].version)
    graph.nodes = list(model.graph.node)
    graph.constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    shapes = shapes_of(graph, {"x": (BATCH, *net.sample)}, ["logits"])
    return [(node, shapes) for node in graph.nodes if node.op_type == "Conv"]


def bound_ms(name: str) -> dict[str, float]:
    """The bare kernels of a step: forward Conv, its input gradient as Conv or ConvTranspose, its weight gradient as Gemm.

    Nothing between them is counted: no copy, no activation, no normalisation, no optimiser.
    """
    total: Counter[str] = Counter()
    for node, shapes in convolutions(name):
        x, w, y = (shapes[n] for n in (node.input[0], node.input[1], node.output[0]))
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        total["forward"] += kernel_ms("Conv", {"x": x, "w": w}, **given)
        groups = given.get("group", 1)
        rows = y[0] * y[2] * y[3]
        total["weight gradient"] += groups * kernel_ms(
            "Gemm", {"a": (w[1] * w[2] * w[3], rows), "b": (w[0] // groups, rows)}, transB=1
        )
        if node.input[0] == "x":
            continue
        if groups == 1 and given.get("strides", [1, 1]) == [1, 1]:
            turned = {"x": y, "w": (w[1], w[0], *w[2:])}
            total["input gradient"] += kernel_ms("Conv", turned, pads=given.get("pads", [0] * 4))
        else:
            total["input gradient"] += kernel_ms("ConvTranspose", {"x": y, "w": w}, **given)
    return dict(total)


def shares(name: str, folder: Path) -> dict[str, float]:
    """Milliseconds of a step by operator, as the runtime's profiler sees them; it costs about 3 us a node."""
    opened = open_bundle(folder / f"{name}.bundle")
    with tempfile.TemporaryDirectory() as place:
        runtime = session(opened.member(TRAIN), profile=f"{place}/profile")
        rng, net = np.random.default_rng(SEED), NETS[name]
        feeds = {
            "x": rng.standard_normal((BATCH, *net.sample)).astype(np.float32),
            "y": rng.integers(0, net.classes, BATCH),
        }
        states = [i for i in runtime.get_inputs() if i.name not in feeds]
        feeds |= {i.name: np.full(i.shape, 0.01, np.float32) for i in states}
        for _ in range(RUNS):
            runtime.run(None, feeds)
        events = json.loads(Path(runtime.end_profiling()).read_text())
    nodes: dict[str, list[float]] = {}
    kinds = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes.setdefault(event["name"], []).append(event["dur"])
            kinds[event["name"]] = event["args"]["op_name"]
    total: Counter[str] = Counter()
    for node, durations in nodes.items():
        if kinds[node] != "Scan":  # the nodes of its body are there themselves, once for each sample
            total[kinds[node]] += median(durations) * len(durations) / RUNS / 1e3
    return dict(total.most_common())


def main() -> None:
    """Print one line of JSON."""
    what, rest = sys.argv[1], sys.argv[2:]
    if what == "peak":
        print(json.dumps(peak()))
    elif what == "bound":
        print(json.dumps(bound_ms(rest[0])))
    else:
        print(json.dumps(shares(rest[0], Path(rest[1]))))


if __name__ == "__main__":
    main()
