// A line chart that follows the size of its place and the colours of the theme, with the figures under the pointer.
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { useStore } from "../store";
import { dark } from "../theme";

export interface Line {
  label: string;
  values: (number | null)[];
  color: "accent" | "second" | "quiet";
  kind?: "line" | "dots";
  spread?: (number | null)[]; // half the height of a band around it
}

interface ChartProps {
  x: number[];
  lines: Line[];
  format: (value: number) => string;
  formatY?: (value: number) => string; // of the axis, which needs fewer digits
  formatX: (value: number) => string;
  summary: string; // what it shows, in a sentence, for who does not see it
  height?: number;
  share?: boolean; // values from 0 to 1
}

type Value = number | null;

export function Chart(props: ChartProps) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [at, setAt] = useState<number | null>(null);
  const isDark = useStore(dark);
  const { x, lines, height = 240 } = props;
  const shape = lines.map((line) => `${line.label}${line.kind}${line.spread ? 1 : 0}`).join();

  useEffect(() => {
    const element = place.current;
    if (!element) return;
    const made = new uPlot(options(props, element, setAt), data(props), element);
    plot.current = made;
    const observer = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [isDark, shape, height]);

  useEffect(() => {
    plot.current?.setData(data(props));
  }, [x, lines]);

  const index = at ?? x.length - 1;
  const position = x[index];
  return (
    <figure class="chart">
      <figcaption class="readout num">
        {position !== undefined && <span class="quiet">{props.formatX(position)}</span>}
        {lines.map((line) => {
          const value = line.values[index];
          const spread = line.spread?.[index];
          return (
            <span key={line.label}>
              <i class={`key ${line.color} ${line.kind ?? "line"}`} aria-hidden="true" />
              {line.label} <b>{value == null ? "–" : props.format(value)}</b>
              {spread != null && <> ± {props.format(spread)}</>}
            </span>
          );
        })}
      </figcaption>
      <div ref={place} role="img" aria-label={props.summary} style={{ height: `${height}px` }} />
    </figure>
  );
}

function data({ x, lines }: ChartProps): uPlot.AlignedData {
  const columns: Value[][] = [];
  for (const { values, spread } of lines) {
    columns.push(values);
    if (spread) {
      columns.push(shifted(values, spread, 1), shifted(values, spread, -1));
    }
  }
  return [x, ...columns];
}

function shifted(values: Value[], spread: Value[], sign: 1 | -1): Value[] {
  return values.map((value, index) => {
    const width = spread[index];
    return value == null || width == null ? null : value + sign * width;
  });
}

function options(props: ChartProps, element: HTMLElement, setAt: (index: number | null) => void): uPlot.Options {
  const css = getComputedStyle(document.documentElement);
  const color = (name: string): string => css.getPropertyValue(name).trim();
  const font = `12px ${css.getPropertyValue("--font").trim()}`;
  const strokes = { accent: color("--accent"), second: color("--second"), quiet: color("--line-strong") };
  const series: uPlot.Series[] = [{}];
  const bands: uPlot.Band[] = [];
  for (const line of props.lines) {
    const stroke = strokes[line.color];
    series.push(
      line.kind === "dots"
        ? { stroke, width: 0, paths: () => null, points: { show: true, size: 4, fill: stroke, width: 0 } }
        : { stroke, width: 2, spanGaps: true, points: { show: props.x.length < 3, size: 6, fill: stroke } },
    );
    if (line.spread) {
      const hidden = { width: 0, spanGaps: true, points: { show: false } };
      series.push({ ...hidden }, { ...hidden });
      bands.push({ series: [series.length - 2, series.length - 1], fill: color("--band") });
    }
  }
  const axis = { stroke: color("--ink-3"), font, ticks: { show: false }, gap: 6 };
  return {
    width: Math.max(80, element.clientWidth),
    height: props.height ?? 240,
    padding: [8, 20, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
    scales: { x: { time: false }, y: { range: range(props) } },
    series,
    bands,
    axes: [
      { ...axis, grid: { show: false }, values: (_plot, ticks) => ticks.map(props.formatX), size: 26, space: 72 },
      {
        ...axis,
        grid: { stroke: color("--line"), width: 1 },
        values: (_plot, ticks) => ticks.map(props.formatY ?? props.format),
        size: 48,
        space: 40,
      },
    ],
    hooks: { setCursor: [(self) => setAt(self.cursor.idx ?? null)] },
  };
}

function range({ share }: ChartProps): uPlot.Scale.Range {
  return (_plot, low, high) => {
    if (low == null || high == null) return [0, 1];
    const room = Math.max((high - low) * 0.1, share ? 0.02 : Math.abs(high) * 0.05, 1e-9);
    return share ? [Math.max(0, low - room), Math.min(1, high + room)] : [Math.max(0, low - room), high + room];
  };
}
