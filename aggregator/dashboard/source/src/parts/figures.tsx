// A strip of figures: what people look at first.
import type { ComponentChildren } from "preact";

export interface Figure {
  label: string;
  value: ComponentChildren;
  unit?: string;
  note?: ComponentChildren;
  href?: string;
  tone?: "warn" | "bad" | undefined;
}

export function Figures({ of }: { of: Figure[] }) {
  return (
    <dl class="figures">
      {of.map((figure) => (
        <div key={figure.label} class={figure.tone ?? ""}>
          <dt>{figure.href ? <a href={figure.href}>{figure.label}</a> : figure.label}</dt>
          <dd>
            <b class="num">{figure.value}</b>
            {figure.unit && <span class="unit">{figure.unit}</span>}
            {figure.note && <small>{figure.note}</small>}
          </dd>
        </div>
      ))}
    </dl>
  );
}
