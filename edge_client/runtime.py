"""ONNX Runtime, silenced: what a device computes, and that it does, is nobody else's business (I8).

Its official Linux wheels from 1.29 on keep an identifier of the device in the user's cache directory and report to
their maker what is run: names of models, processor, memory, durations. The variable is read once, when the library
is loaded, so everything of ours imports it from here. Source: docs/Privacy.md of ONNX Runtime 1.32.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state

__all__ = ["LOAD_ERRORS", "ort"]

# ONNX Runtime's exceptions share no base but Exception.
LOAD_ERRORS = (
    onnxruntime_pybind11_state.Fail,
    onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime_pybind11_state.InvalidProtobuf,
    onnxruntime_pybind11_state.NotImplemented,
)
