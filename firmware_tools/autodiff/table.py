"""Renders the table of differentiable operators, docs/operators.md, from the registry itself."""

import inspect
from collections import defaultdict
from collections.abc import Callable

from firmware_tools.autodiff.registry import EXPANSIONS, RULES, SETTINGS, supported

_HEAD = """# Operators with gradients

Generated from the rules in `firmware_tools/autodiff/`, one module a family; a test keeps page and code equal:
`python -c 'from firmware_tools.autodiff import table; print(table.render(), end="")' > docs/operators.md`

These operators may stand between a trainable tensor and the loss, opset 18 to 22 (older models are converted).
Any other standard operator may stand below the trainable tensors, where it is only run. On a path to a
trainable tensor it is refused with the node's name and this list; so is a node with one of the attributes that
its row excludes. Comparisons, shapes and casts to integers carry no gradient and are no obstacle. Settings are inputs
that are never trained. Dropout is the identity.
"""


def render() -> str:
    """The page as Markdown."""
    rules: dict[str, Callable[..., object]] = {**EXPANSIONS, **RULES}
    families: dict[str, list[str]] = defaultdict(list)
    for op_type in supported():
        families[rules[op_type].__module__.rpartition(".")[2]].append(op_type)
    parts = [_HEAD]
    for family, rows in sorted(families.items()):
        lines = [f"\n## {family}\n", "| operator | gradient | settings |", "|---|---|---|"]
        for op_type in rows:
            sentence = " ".join((inspect.getdoc(rules[op_type]) or "").split("\n\n")[0].split()).replace(
                "|", "\\|"
            )
            settings = ", ".join(str(i) for i in sorted(SETTINGS.get(op_type, ()))) or "-"
            lines.append(f"| {op_type} | {sentence} | {settings} |")
        parts.append("\n".join(lines) + "\n")
    return "".join(parts)
