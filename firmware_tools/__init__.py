"""What is done before a device sees a model: compile, bundle, inspect and export (extra `tools`).

The names below import lazily, so that the command line starts without onnx.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firmware_tools.compiler import CompiledBundle, compile_training
    from firmware_tools.errors import CompileError, ExportError, ToolError

__all__ = ["CompileError", "CompiledBundle", "ExportError", "ToolError", "compile_training"]

_HOMES = {"CompiledBundle": "compiler", "compile_training": "compiler"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - keeps the package import-free until used

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
