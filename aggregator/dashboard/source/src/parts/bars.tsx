// A small histogram of plain elements: a bar a value, its number above it where there is room.
import { count } from "../format";

interface Bar {
  label: string;
  value: number;
  hint?: string;
  quiet?: boolean;
}

interface BarsProps {
  of: Bar[];
  summary: string; // what it shows, in a sentence, for who does not see it
  axis: string;
  dense?: boolean;
}

export function Bars({ of, summary, axis, dense = false }: BarsProps) {
  const most = Math.max(1, ...of.map((bar) => bar.value));
  return (
    <figure class={dense ? "bars dense" : "bars"}>
      <div class="plot" role="img" aria-label={summary}>
        {of.map((bar, index) => (
          <div key={index} class={bar.quiet ? "bar quiet-bar" : "bar"} title={bar.hint ?? `${bar.label}: ${count(bar.value)}`}>
            {!dense && <span class="num">{bar.value ? count(bar.value) : ""}</span>}
            {bar.value > 0 && <i style={{ height: `${(100 * bar.value) / most}%` }} />}
            <small class="num">{bar.label}</small>
          </div>
        ))}
      </div>
      <figcaption class="quiet">{axis}</figcaption>
    </figure>
  );
}

// A share of a whole, as a bar that lies.
export function Share({ of }: { of: number }) {
  return (
    <span class="share" aria-hidden="true">
      <i style={{ width: `${Math.min(100, 100 * of)}%` }} />
    </span>
  );
}
