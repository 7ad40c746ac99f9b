// The curve that a job is about.
import { useMemo } from "preact/hooks";
import { curveOf, type Measure } from "../curve";
import { percent, significant } from "../format";
import type { Version } from "../types";
import { Chart } from "./chart";
import { Empty } from "./loaded";

const WORDS: Record<Measure, string> = { accuracy: "Accuracy", loss: "Loss", error: "Mean absolute error" };

export function JobCurve({ versions, height }: { versions: Version[]; height?: number }) {
  const curve = useMemo(() => curveOf(versions), [versions]);
  const lines = useMemo(
    () => [
      { label: "each version", values: curve.measured, color: "quiet" as const, kind: "dots" as const },
      { label: `${WORDS[curve.measure]}, smoothed`, values: curve.smoothed, color: "accent" as const, spread: curve.spread },
    ],
    [curve],
  );
  const known = curve.measured.filter((value) => value !== null);
  if (known.length === 0) {
    return (
      <Empty title="No figure yet">
        <p>Devices measure a version on their own hold-out before they train from it. The first figure comes with them.</p>
      </Empty>
    );
  }
  const format = (value: number): string => (curve.measure === "accuracy" ? percent(value) : significant(value));
  const best = curve.measure === "accuracy" ? Math.max(...known) : Math.min(...known);
  const last = known[known.length - 1] ?? 0;
  return (
    <Chart
      x={curve.x}
      lines={lines}
      format={format}
      formatY={(value) => (curve.measure === "accuracy" ? percent(value, 0) : significant(value))}
      formatX={(value) => `v${Math.round(value)}`}
      share={curve.measure === "accuracy"}
      summary={`${WORDS[curve.measure]} over ${curve.x.length} versions: now ${format(last)}, best ${format(best)}.`}
      {...(height ? { height } : {})}
    />
  );
}
