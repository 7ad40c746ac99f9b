// Figures of versions as series over their numbers: as measured, and smoothed as the server's own rules do it.
import type { Version } from "./types";

const SMOOTHING_VERSIONS = 8; // aggregator/history.py
const SMOOTHING_SAMPLES_MIN = 50;

export type Measure = "accuracy" | "loss" | "error";

export interface Curve {
  x: number[];
  measured: (number | null)[];
  smoothed: (number | null)[];
  spread: (number | null)[];
  measure: Measure;
}

export function curveOf(versions: Version[]): Curve {
  const ordered = [...versions].sort((a, b) => a.version - b.version);
  const measure: Measure = ordered.some((v) => v.accuracy !== null)
    ? "accuracy"
    : ordered.some((v) => v.error !== null)
      ? "error"
      : "loss";
  const measured = ordered.map((v) => v[measure]);
  return {
    measure,
    x: ordered.map((v) => v.version),
    measured,
    smoothed: ordered.map((_, index) => smooth(ordered, measured, index, (v) => v.holdout_n, SMOOTHING_SAMPLES_MIN)),
    spread:
      measure === "error"
        ? ordered.map(() => null) // the server's spread is of the accuracy, or of the loss
        : ordered.map((_, index) => smooth(ordered, ordered.map((v) => v.holdout_spread), index, (v) => v.holdout_devices, 2)),
  };
}

// The mean over a version and those before it, weighted, where together they weigh enough to say something.
function smooth(
  versions: Version[],
  values: (number | null)[],
  at: number,
  weight: (version: Version) => number,
  least: number,
): number | null {
  let sum = 0;
  let weights = 0;
  for (let index = Math.max(0, at + 1 - SMOOTHING_VERSIONS); index <= at; index += 1) {
    const version = versions[index];
    const value = values[index];
    if (!version || value == null) continue;
    sum += value * weight(version);
    weights += weight(version);
  }
  return weights >= least ? sum / weights : null;
}

export function stalenessOf(versions: Version[]): Map<number, number> {
  const counts = new Map<number, number>();
  for (const version of versions) {
    for (const [tau, n] of Object.entries(version.staleness)) {
      counts.set(Number(tau), (counts.get(Number(tau)) ?? 0) + n);
    }
  }
  return counts;
}
