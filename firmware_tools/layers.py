"""Layers to build an inference model from code, with nothing but onnx: zoo.py and examples/models/ are made of them.

A layer's tensors are called `<layer>.weight`, `<layer>.bias` and so on; shapes are in ONNX's order, samples in
[N, channels, …].
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from firmware_tools.autodiff.graph import DYNAMIC, Graph, Shape, value_info

OPSET = 18
EPSILON_BATCH = 1e-3  # Keras's default, with which the reference networks were trained
EPSILON_LAYER = 1e-5

Floats = npt.NDArray[np.float32]


class Net:
    """A network under construction from float32 `x` [N, *sample]; each method appends a layer, returns its output.

    Kernels and matrices are drawn after He et al. 2015 (arXiv:1502.01852 eq. 10) unless said otherwise, in the
    order of the calls; biases are zero.
    """

    def __init__(self, name: str, sample: Shape, *, seed: int) -> None:
        self.name = name
        self.sample = sample
        self.graph = Graph(OPSET)
        self.rng = np.random.default_rng(seed)

    def add(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """An operator without parameters of its own."""
        return self.graph.add(op_type, *inputs, output=output, **attributes)

    def tensor(self, name: str, value: npt.ArrayLike) -> str:
        """A parameter of the network, as float32."""
        self.graph.constants[name] = np.asarray(value, dtype=np.float32)
        return name

    def conv(self, x: str, layer: str, weight: Shape, **attributes: Any) -> str:
        """Convolution with bias; `weight` is [outputs, inputs / group, *kernel], the attributes are Conv's."""
        kernel = self.tensor(f"{layer}.weight", self.he(weight, prod(weight[1:])))
        return self.add("Conv", x, kernel, self._zeros(f"{layer}.bias", weight[0]), **attributes)

    def dense(self, x: str, layer: str, weight: Shape, output: str = "") -> str:
        """Dense layer on [N, inputs]; `weight` is [outputs, inputs]."""
        matrix = self.tensor(f"{layer}.weight", self.he(weight, weight[1]))
        return self.add("Gemm", x, matrix, self._zeros(f"{layer}.bias", weight[0]), output=output, transB=1)

    def linear(self, x: str, layer: str, weight: Shape) -> str:
        """Dense layer on the last axis of [N, …, inputs]; `weight` is [inputs, outputs], drawn after Glorot.

        Glorot & Bengio 2010 eq. 16: no rectifier follows where attention uses it.
        """
        limit = np.sqrt(6.0 / sum(weight))
        matrix = self.tensor(f"{layer}.weight", self.rng.uniform(-limit, limit, weight))
        return self.add("Add", self.add("MatMul", x, matrix), self._zeros(f"{layer}.bias", weight[1]))

    def batch_norm(self, x: str, layer: str, channels: int) -> str:
        """Batch normalisation over axis 1: scale 1, shift 0, mean 0, variance 1."""
        scale = self.tensor(f"{layer}.scale", np.ones(channels))
        variance = self.tensor(f"{layer}.variance", np.ones(channels))
        shift, mean = (self._zeros(f"{layer}.{name}", channels) for name in ("shift", "mean"))
        return self.add("BatchNormalization", x, scale, shift, mean, variance, epsilon=EPSILON_BATCH)

    def layer_norm(self, x: str, layer: str, width: int) -> str:
        """Layer normalisation over the last axis: scale 1, shift 0."""
        scale = self.tensor(f"{layer}.scale", np.ones(width))
        return self.add(
            "LayerNormalization", x, scale, self._zeros(f"{layer}.shift", width), epsilon=EPSILON_LAYER
        )

    def model(self, output: Sequence[int]) -> onnx.ModelProto:
        """The checked model from `x` to the tensor `logits`, float32 [N, *output]."""
        model = self.graph.model(
            self.name,
            [value_info("x", TensorProto.FLOAT, (DYNAMIC, *self.sample))],
            [value_info("logits", TensorProto.FLOAT, (DYNAMIC, *output))],
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def he(self, shape: Shape, inputs: int) -> Floats:
        """Normal values of deviation sqrt(2 / inputs)."""
        return np.asarray(self.rng.standard_normal(shape) * np.sqrt(2.0 / inputs), dtype=np.float32)

    def _zeros(self, name: str, count: int) -> str:
        return self.tensor(name, np.zeros(count))
