// What is done to many devices at once, in steps that show how far it is.
import { useState } from "preact/hooks";
import { get, type Params, post, Problem } from "../api";
import { count, plural } from "../format";
import { tell } from "../notice";
import type { RowPage } from "../types";

const STEP = 250; // devices of a request
const PAGE = 1000;

interface BulkProps {
  filters: Params;
  total: number;
  selected: ReadonlySet<string>;
  onSelect: (selected: ReadonlySet<string>) => void;
  onDone: () => void;
}

interface Answer {
  changed: number;
  refused: { device: string; reason: string }[];
}

export function Bulk({ filters, total, selected, onSelect, onDone }: BulkProps) {
  const [tag, setTag] = useState("");
  const [progress, setProgress] = useState<{ done: number; of: number } | null>(null);

  async function all(): Promise<void> {
    const names: string[] = [];
    for (let offset = 0; offset < total; offset += PAGE) {
      const page = await get<RowPage>("/fleet/devices", { ...filters, offset, limit: PAGE });
      names.push(...page.devices.map((row) => row.device));
    }
    onSelect(new Set(names));
  }

  async function change(path: string, body: object, done: string): Promise<void> {
    const devices = [...selected];
    let changed = 0;
    const refused: Answer["refused"] = [];
    try {
      for (let first = 0; first < devices.length; first += STEP) {
        setProgress({ done: first, of: devices.length });
        const answer = await post<Answer>(path, { devices: devices.slice(first, first + STEP), ...body });
        changed += answer.changed;
        refused.push(...answer.refused);
      }
      const first = refused[0];
      if (first) {
        tell(`${plural(changed, "device")} ${done}; ${plural(refused.length, "was", "were")} refused: ${first.reason}`, true);
      } else {
        tell(`${plural(changed, "device")} ${done}.`);
        onSelect(new Set());
      }
    } catch (error) {
      tell(error instanceof Problem ? error.message : String(error), true);
    }
    setProgress(null);
    onDone();
  }

  const name = tag.trim();
  const ready = name !== "" && progress === null;
  const add = (): Promise<void> => change("/fleet/tags", { add: [name] }, `tagged ${name}`);
  const remove = (): Promise<void> => change("/fleet/tags", { remove: [name] }, `no longer tagged ${name}`);
  return (
    <form
      class="bulk"
      aria-label="Selected devices"
      onSubmit={(event) => {
        event.preventDefault();
        if (ready) void add();
      }}
    >
      <b>{plural(selected.size, "device")} selected</b>
      {selected.size < total && (
        <button type="button" class="link" onClick={() => void all()}>
          Select all {count(total)}
        </button>
      )}
      <button type="button" class="link" onClick={() => onSelect(new Set())}>
        Select none
      </button>
      <span class="grow" />
      {progress ? (
        <label class="progress">
          <span>
            {count(progress.done)} of {count(progress.of)}
          </span>
          <progress value={progress.done} max={progress.of} />
        </label>
      ) : (
        <div class="bulk-actions">
          <button type="button" class="button" onClick={() => void change("/fleet/pause", {}, "paused")}>
            Pause
          </button>
          <button type="button" class="button" onClick={() => void change("/fleet/resume", {}, "resumed")}>
            Resume
          </button>
          <input
            class="input"
            aria-label="Tag"
            placeholder="Tag"
            maxLength={64}
            value={tag}
            onInput={(event) => setTag(event.currentTarget.value)}
          />
          <button type="submit" class="button" disabled={!ready}>
            Add tag
          </button>
          <button type="button" class="button" disabled={!ready} onClick={() => void remove()}>
            Remove tag
          </button>
        </div>
      )}
    </form>
  );
}
