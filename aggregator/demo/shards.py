"""Writes the demo's recordings as device shards: `python -m aggregator.demo.shards <directory> <devices>`."""

import json
import sys
from pathlib import Path

from aggregator.demo import data, plan


def main(directory: Path, count: int) -> None:
    """Write `<name>.npz` for each of the first devices, and `config.json`: what a device says of the data set."""
    shards, _ = data.load()
    for shard in shards[:count]:
        shard.save(directory / f"{shard.name}.npz")
    facts = {
        "dataset": data.DATASET,
        "shape": [6, data.WINDOW],
        "classes": data.CLASSES,
        "axes": list(data.AXES),
        "holdout": plan.HOLDOUT,
        "gap": plan.GAP,
    }
    (directory / "config.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except data.DataError as error:
        sys.exit(str(error))
