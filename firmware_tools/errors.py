"""Errors of the firmware tools, each worded for the person who built the model.

ToolError
├── CompileError            the model cannot become a training bundle
│   ├── ModelError          it is not a sound model, or not of the form a bundle needs
│   ├── OptionError         a compile option is out of range or contradicts the model
│   └── NotDifferentiable   an operator on the path to a trainable tensor has no gradient here
└── ExportError             a trained model cannot be written as an inference model
"""

from collections.abc import Iterable


class ToolError(Exception):
    """Root of all errors of the firmware tools."""


class CompileError(ToolError):
    """The model cannot be compiled to a training bundle."""


class ModelError(CompileError):
    """The model is broken or not of the form a bundle needs; the message names the tensor or node."""


class OptionError(CompileError):
    """A compile option is out of range or does not fit the model."""


class NotDifferentiable(CompileError):  # noqa: N818 - reads as what it says where it is raised
    """A node between the loss and a trainable tensor has no gradient.

    `node` and `op_type` name it; `supported` lists the operators that have one.
    """

    def __init__(self, node: str, op_type: str, supported: Iterable[str], reason: str = "") -> None:
        self.node = node
        self.op_type = op_type
        self.supported = tuple(sorted(supported))
        why = f" ({reason})" if reason else ""
        super().__init__(
            f"node {node!r} of type {op_type} lies between the loss and a trainable tensor and has no "
            f"gradient{why}; supported: {', '.join(self.supported)}"
        )


class ExportError(ToolError):
    """A trained model cannot be written as an inference model."""
