// All fields of a job's specification, as the server understood them.
import type { Spec } from "../types";

export function SpecTable({ spec }: { spec: Spec }) {
  return (
    <details class="spec">
      <summary>All fields</summary>
      <dl class="facts columns-3">
        {flat("", spec).map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd class="num">{value}</dd>
          </div>
        ))}
      </dl>
    </details>
  );
}

function flat(prefix: string, part: object): [string, string][] {
  return Object.entries(part).flatMap(([name, value]): [string, string][] => {
    if (value !== null && typeof value === "object") return flat(`${prefix}${name}.`, value as object);
    return [[prefix + name, value === null ? "none" : String(value)]];
  });
}
