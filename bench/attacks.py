"""What malicious devices cost, and what the defences of a buffer do about it.

    python bench/attacks.py [--seeds 3] [--uploads 500] [--out FILE]

Fashion-MNIST on 50 devices, Dirichlet 0.3, an MLP 784-32-10 with ternary updates, simulated with the real aggregator.
One and two in ten devices send the opposite of what they learned, a hundred times it, learn turned labels, or send NaN.
Defences off, on as a job has them (norm clipping at three times the median, half a buffer a device), and clipping at
the median. A table at the end: accuracy on the test data, mean over seeds, and its loss against the same fleet without
attackers and the same defences. Finished runs are kept beside the output and not run again.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from aggregator.simulate import config
from aggregator.simulate.simulation import Simulation, state_directory

ATTACKS = {"sign-flip": 1.0, "scale": 100.0, "label-flip": 1.0, "nan": 1.0}
SHARES = (0.1, 0.2)
DEFENCES = {
    "off": "robust = { clip_factor = 1000.0, device_share_max = 1.0 }",
    "default": "",
    "tight": "robust = { clip_factor = 1.0 }",
}
LAST = 5  # evaluations at the end whose mean counts: one version wavers
TEMPLATE = """
seeds = {seeds}
[data]
source = "fashion-mnist"
partition = {{ kind = "dirichlet", alpha = 0.3 }}
samples_per_device = 300
holdout = 0.0
[model]
builtin = "mlp"
hidden = [32]
optimizer = "sgd"
quantize = "none"
mean = [0.286]
deviation = [0.353]
[fleet]
devices = 50
step_s = 0.05
{malicious}
[job]
concurrency = 20
buffer_size = 10
max_wait_s = 3600.0
lease_s = 3600.0
training = {{ steps = 15, batch_size = 20, learning_rate = 0.05, density = 0.05 }}
{strategies}
[stop]
uploads = {uploads}
[evaluate]
every = 20
samples = 5000
"""


def attack(kind: str | None, share: float, seeds: int, uploads: int, out: Path) -> list[dict]:
    """Run one kind of attack against all defences."""
    malicious = (
        ""
        if kind is None
        else f'malicious = {{ share = {share}, kind = "{kind}", factor = {ATTACKS[kind]} }}'
    )
    strategies = "\n".join(f'[[strategy]]\nname = "{name}"\n{fields}' for name, fields in DEFENCES.items())
    text = TEMPLATE.format(
        seeds=list(range(seeds)), malicious=malicious, strategies=strategies, uploads=uploads
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "attack.toml"
        file.write_text(text)
        settings = config.load(file)
    with state_directory(None) as scratch:
        results = Simulation(settings, scratch).run(out, 2, lambda *_: None)
    rows = []
    for name in DEFENCES:
        mine = [r for r in results if r.label == name]
        ends = [statistics.fmean(p["accuracy"] for p in r.points[-LAST:]) for r in mine]
        refused: dict[str, int] = {}
        for result in mine:
            for code, count in result.summary["rejected"].items():
                refused[code] = refused.get(code, 0) + count
        rows.append(
            {
                "attack": kind or "none",
                "share": share,
                "defence": name,
                "accuracy": 100 * statistics.fmean(ends),
                "of_seeds": [round(100 * end, 2) for end in ends],
                "rejected": refused,
                "failed": sum(sum(r.summary["failed"].values()) for r in mine),
            }
        )
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--uploads", type=int, default=500)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    kept = Path(".bench") / "attacks"
    cases = [(None, 0.0), *((kind, share) for kind in ATTACKS for share in SHARES)]
    rows = [row for case in cases for row in attack(*case, arguments.seeds, arguments.uploads, kept)]
    lines = [json.dumps(row) for row in rows]
    print("\n".join(lines))
    sound = {row["defence"]: row["accuracy"] for row in rows if row["attack"] == "none"}
    print(f"\n| attack, share of devices | {' | '.join(DEFENCES)} |\n|---|{'---|' * len(DEFENCES)}")
    for kind, share in cases:
        mine = {
            r["defence"]: r["accuracy"] for r in rows if (r["attack"], r["share"]) == (kind or "none", share)
        }
        cells = " | ".join(f"{mine[name]:.1f} ({mine[name] - sound[name]:+.1f})" for name in DEFENCES)
        print(f"| {kind or 'none'}, {100 * share:g} % | {cells} |")
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
