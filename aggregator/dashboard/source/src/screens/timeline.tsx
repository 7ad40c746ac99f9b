// What a device did and was told, newest first.
import { clock, moment } from "../format";
import { Empty } from "../parts/loaded";
import { href } from "../route";
import type { Moment } from "../types";

const TASKS: Record<string, string> = {
  pulling: "fetches the model",
  training: "trains",
  uploading: "sends its update",
  declined: "declined",
  failed: "failed",
  ended: "ended its part",
};
const TONES: Record<string, string> = { birth: "good", update: "good", rejection: "bad" };

export function Timeline({ of }: { of: Moment[] }) {
  const shown = of.filter((entry) => entry.kind !== "task" || entry.what !== "asking"); // its ask says the same
  if (shown.length === 0) {
    return (
      <Empty title="Nothing lately">
        <p>The server's log has nothing of this device any more.</p>
      </Empty>
    );
  }
  return (
    <ol class="timeline">
      {shown.map((entry, index) => (
        <li key={`${entry.at} ${index}`} class={`tone-${toneOf(entry)}`}>
          <time class="num quiet" dateTime={new Date(1000 * entry.at).toISOString()} title={moment(entry.at)}>
            {clock(entry.at)}
          </time>
          <p>{textOf(entry)}</p>
          {entry.job ? (
            <a class="subtle" href={href(["jobs", entry.job])}>
              {entry.job}
            </a>
          ) : (
            <span />
          )}
        </li>
      ))}
    </ol>
  );
}

function toneOf(entry: Moment): string {
  if (entry.kind === "gone" && entry.what === "lost") return "bad";
  if (entry.kind === "task") return entry.what === "failed" ? "bad" : entry.what === "training" ? "good" : "quiet";
  return TONES[entry.kind] ?? "quiet";
}

function textOf({ kind, what, detail }: Moment): string {
  switch (kind) {
    case "birth":
      return "connected";
    case "gone":
      return what === "lost" ? "lost: its connection broke without a farewell" : "disconnected";
    case "info":
      return `introduced itself as ${what}`;
    case "ask":
      return `asked for a place, holding ${what}`;
    case "task":
      return `${TASKS[what] ?? what}${detail ? `: ${detail}` : ""}`;
    case "update":
      return `update accepted, ${detail}`;
    case "rejection":
      return `update rejected, ${what}: ${detail}`;
    case "evaluation":
      return `measured ${what} on its hold-out`;
    case "paused":
    case "resumed":
      return `${kind} ${what}`;
  }
  return [kind, what, detail].filter(Boolean).join(" ");
}
