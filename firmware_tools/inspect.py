"""Looks into a bundle: what it holds, what its graphs are made of, what a training step needs in memory."""

from collections import Counter
from pathlib import Path

import msgspec
import onnx
from google.protobuf.message import DecodeError

from edge_client.bundle import EVAL, INFER, TRAIN, FileSpec, Manifest, open_bundle
from firmware_tools import pruning
from firmware_tools.errors import ToolError


class GraphReport(msgspec.Struct, frozen=True):
    """One graph: bytes, number of nodes, and how often each operator occurs, most frequent first."""

    name: str
    size: int
    nodes: int
    operators: dict[str, int]


class MemoryEstimate(msgspec.Struct, frozen=True):
    """Bytes of one training step. `activations_bytes` counts every float tensor of a batch as alive at once.

    The runtime frees tensors after their last use, so the real need lies below the sum; Python, numpy and the
    runtime add about 70 MB.
    """

    state_bytes: int
    activations_bytes: int


class Report(msgspec.Struct, frozen=True):
    """What `fedfleet bundle inspect` shows; `digests` are SHA-256 in hex.

    `pruning` is None in a bundle whose training graph does not tell.
    """

    manifest: Manifest
    parameters: int
    graphs: tuple[GraphReport, ...]
    digests: dict[str, FileSpec]
    memory: MemoryEstimate
    pruning: pruning.Pruning | None


def inspect(path: Path) -> Report:
    """Read and verify a whole bundle; raises BundleError or ToolError."""
    bundle = open_bundle(path)
    members = {name: bundle.member(name) for name in bundle.manifest.files}
    graphs = {name: _load(members[name], path, name) for name in (TRAIN, EVAL, INFER)}
    reports = tuple(_describe(name, model, len(members[name])) for name, model in graphs.items())
    memory = _memory(graphs[TRAIN], bundle.manifest)
    return Report(
        bundle.manifest,
        bundle.manifest.parameters,
        reports,
        bundle.manifest.files,
        memory,
        pruning.read(graphs[TRAIN]),
    )


def _load(data: bytes, path: Path, name: str) -> onnx.ModelProto:
    try:
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, DecodeError, ValueError) as error:
        raise ToolError(f"{path}: {name} is not a valid model: {error}") from error
    return model


def _describe(name: str, model: onnx.ModelProto, size: int) -> GraphReport:
    counts = Counter(node.op_type for node in model.graph.node)
    return GraphReport(name, size, len(model.graph.node), dict(counts.most_common()))


def _memory(train: onnx.ModelProto, manifest: Manifest) -> MemoryEstimate:
    """State: parameters and slots twice (in and out), bases once. Activations: shapes inferred at the batch size."""
    for info in train.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = manifest.batch_size
    inferred = onnx.shape_inference.infer_shapes(train, data_prop=True)
    total = 0
    for info in inferred.graph.value_info:
        size = 4
        for dim in info.type.tensor_type.shape.dim:
            size *= dim.dim_value
        total += size
    copies = 2 * (1 + len(manifest.optimizer.slots)) + bool(manifest.optimizer.proximal)
    return MemoryEstimate(4 * manifest.parameters * copies, total)
