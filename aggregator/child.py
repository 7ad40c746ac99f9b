"""Entry point of a supervised process: ties its life to the supervisor's, then becomes the module it is told.

Run as `python -m aggregator.child <supervisor pid> <module> [argument …]`.
"""

import runpy
import sys

from broker_bridge.broker_child import die_with_parent


def main(arguments: list[str]) -> None:
    """Become the module that `arguments` name."""
    parent, module, *rest = arguments
    die_with_parent(int(parent))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
