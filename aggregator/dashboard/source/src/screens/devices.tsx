// All devices as a table: searched, filtered by facets, sorted, tagged many at a time.
import { useEffect, useState } from "preact/hooks";
import { count, plural } from "../format";
import { Ago } from "../parts/clock";
import { Empty, Loaded, Skeleton } from "../parts/loaded";
import { Choice, Search } from "../parts/select";
import { DeviceStatus, wordFor } from "../parts/status";
import { Virtual } from "../parts/virtual";
import { amend, href, route } from "../route";
import { may, me } from "../session";
import { useStore } from "../store";
import type { FacetName, Row, RowPage } from "../types";
import { useRows } from "../windows";
import { Bulk } from "./bulk";
import { Head } from "./head";

const FACETS: { name: FacetName; label: string }[] = [
  { name: "state", label: "Connection" },
  { name: "doing", label: "Doing" },
  { name: "reason", label: "Reason" },
  { name: "cohort", label: "Cohort" },
  { name: "tag", label: "Tag" },
  { name: "software", label: "Software" },
];
const COLUMNS: { sort: string; label: string; class?: string }[] = [
  { sort: "device", label: "Device" },
  { sort: "doing", label: "Doing" },
  { sort: "reason", label: "Why not", class: "c-reason" },
  { sort: "", label: "Tags", class: "c-tags" },
  { sort: "cohort", label: "Cohort", class: "c-cohort" },
  { sort: "accepted", label: "Updates", class: "c-updates right" },
  { sort: "seen", label: "Heard", class: "right" },
];
const TYPING_MS = 150;

export function Devices() {
  const { params } = useStore(route);
  const who = useStore(me);
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  const [typed, setTyped] = useState(params["q"] ?? "");
  const filters = Object.fromEntries(
    ["q", "sort", "order", ...FACETS.map((f) => f.name)].map((name) => [name, params[name] || undefined]),
  );
  const rows = useRows(filters);
  const key = JSON.stringify(filters);

  useEffect(() => {
    const timer = window.setTimeout(() => typed !== (params["q"] ?? "") && amend({ q: typed }), TYPING_MS);
    return () => window.clearTimeout(timer);
  }, [typed]);
  useEffect(() => setTyped(params["q"] ?? ""), [params["q"]]);

  const operator = may(who, "operator");
  const filtered = FACETS.some((facet) => params[facet.name]) || Boolean(params["q"]);
  const selection = { selected, setSelected };
  return (
    <>
      <Head title="Devices" note={rows.total === null ? " " : summary(rows.total, filtered, rows.facets)} />
      <div class="filters" role="group" aria-label="Which devices">
        <Search label="Search devices" value={typed} onInput={setTyped} />
        <div class="facets">
          {FACETS.map((facet) => (
            <Facet key={facet.name} {...facet} rows={rows.facets} value={params[facet.name] ?? ""} />
          ))}
        </div>
        {filtered && (
          <button type="button" class="link" onClick={() => amend(Object.fromEntries(["q", ...FACETS.map((f) => f.name)].map((n) => [n, undefined])))}>
            Clear
          </button>
        )}
      </div>
      {operator && selected.size > 0 && (
        <Bulk filters={filters} total={rows.total ?? 0} selected={selected} onSelect={setSelected} onDone={rows.reload} />
      )}
      {rows.total === null ? (
        rows.problem ? (
          <Loaded from={{ value: null, problem: rows.problem, reload: rows.reload }}>{() => null}</Loaded>
        ) : (
          <Skeleton />
        )
      ) : rows.total === 0 ? (
        <Nothing filtered={filtered} />
      ) : (
        <Virtual
          label="Devices"
          total={rows.total}
          rowHeight={useRowHeight()}
          columns={operator ? "device-row selectable" : "device-row"}
          resetKey={key}
          onWindow={rows.show}
          head={<Heads operator={operator} sort={params["sort"] ?? "device"} order={params["order"] ?? "up"} />}
          row={(index) => <Cells row={rows.at(index)} operator={operator} {...selection} />}
        />
      )}
    </>
  );
}

const narrow = matchMedia("(max-width: 720px)");

function useRowHeight(): number {
  const [matches, setMatches] = useState(narrow.matches);
  useEffect(() => {
    const look = (): void => setMatches(narrow.matches);
    narrow.addEventListener("change", look);
    return () => narrow.removeEventListener("change", look);
  }, []);
  return matches ? 64 : 40;
}

function summary(total: number, filtered: boolean, facets: RowPage["facets"] | null): string {
  if (filtered) return `${plural(total, "device")} found`;
  const online = facets?.state["ready"] ?? 0;
  return `${plural(total, "device")}, ${count(online)} online`;
}

interface FacetProps {
  name: FacetName;
  label: string;
  rows: RowPage["facets"] | null;
  value: string;
}

function Facet({ name, label, rows, value }: FacetProps) {
  const found = Object.entries(rows?.[name] ?? {});
  const options = found.map(([option, number]) => ({ value: option, text: `${wordFor(option)} (${count(number)})` }));
  if (value && !found.some(([option]) => option === value)) options.unshift({ value, text: `${wordFor(value)} (0)` });
  if (options.length < 2 && !value) return null; // nothing to choose from
  return (
    <Choice
      label={label}
      value={value}
      options={[{ value: "", text: "any" }, ...options]}
      onChange={(chosen) => amend({ [name]: chosen || undefined })}
    />
  );
}

function Heads({ operator, sort, order }: { operator: boolean; sort: string; order: string }) {
  return (
    <>
      {operator && (
        <span role="columnheader" class="c-select">
          <span class="hidden">Select</span>
        </span>
      )}
      {COLUMNS.map((column) => {
        const here = column.sort === sort;
        const next = here && order === "up" ? "down" : undefined;
        return (
          <span
            key={column.label}
            role="columnheader"
            class={column.class ?? ""}
            aria-sort={here ? (order === "up" ? "ascending" : "descending") : undefined}
          >
            {column.sort ? (
              <button type="button" class="sort" onClick={() => amend({ sort: column.sort, order: next })}>
                {column.label}
                <i aria-hidden="true">{here ? (order === "up" ? "↑" : "↓") : ""}</i>
              </button>
            ) : (
              column.label
            )}
          </span>
        );
      })}
    </>
  );
}

interface CellsProps {
  row: Row | undefined;
  operator: boolean;
  selected: ReadonlySet<string>;
  setSelected: (selected: ReadonlySet<string>) => void;
}

function Cells({ row, operator, selected, setSelected }: CellsProps) {
  if (!row) {
    return (
      <span role="cell" class="waiting-row">
        <i aria-hidden="true" />
      </span>
    );
  }
  const toggle = (): void => {
    const next = new Set(selected);
    if (!next.delete(row.device)) next.add(row.device);
    setSelected(next);
  };
  return (
    <>
      {operator && (
        <span role="cell" class="c-select">
          <input type="checkbox" aria-label={`Select ${row.device}`} checked={selected.has(row.device)} onChange={toggle} />
        </span>
      )}
      <span role="cell" class="clip c-device">
        <a href={href(["devices", row.device])}>{row.device}</a>
      </span>
      <span role="cell">
        <DeviceStatus state={row.state} doing={row.doing} />
      </span>
      <span role="cell" class="clip quiet c-reason" title={row.reason}>
        {row.reason}
      </span>
      <span role="cell" class="clip c-tags">
        {row.tags.map((tag) => (
          <span key={tag} class="tag">
            {tag}
          </span>
        ))}
      </span>
      <span role="cell" class="clip quiet c-cohort">
        {row.cohort}
      </span>
      <span role="cell" class="right num c-updates">
        {count(row.accepted)}
        {row.rejected > 0 && <span class="rejected-count"> {count(row.rejected)} rejected</span>}
      </span>
      <span role="cell" class="right">
        <Ago at={row.seen} />
      </span>
    </>
  );
}

function Nothing({ filtered }: { filtered: boolean }) {
  if (filtered) return <Empty title="No device matches">Take a filter away, or search for less.</Empty>;
  return (
    <Empty title="No device yet">
      <p>
        A device shows up here when it first speaks. On the device: <code>fedfleet device run --config device.toml</code>
      </p>
    </Empty>
  );
}
