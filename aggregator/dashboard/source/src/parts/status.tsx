// What something does, as a word with a mark: the form of the mark says as much as its colour.
import type { Doing, DeviceState, Job } from "../types";

export type Tone = "good" | "busy" | "warn" | "bad" | "quiet";

const TONES: Record<string, Tone> = {
  training: "busy",
  late: "warn",
  waiting: "good",
  idle: "quiet",
  failed: "bad",
  declined: "quiet",
  away: "quiet",
  ready: "good",
  disconnected: "quiet",
  lost: "bad",
  unknown: "quiet",
  running: "busy",
  paused: "warn", // a job, or a device
  ended: "quiet",
  accepted: "good",
  rejected: "bad",
};
const WORDS: Record<string, string> = { ready: "online", disconnected: "offline" };

export function wordFor(state: string): string {
  return WORDS[state] ?? state;
}

export function Status({ of }: { of: Doing | DeviceState | Job["state"] | "accepted" | "rejected" }) {
  return (
    <span class={`status ${TONES[of] ?? "quiet"}`}>
      <i aria-hidden="true" />
      {wordFor(of)}
    </span>
  );
}

// One word for a table: what a connected device does, else how it is connected.
export function DeviceStatus({ state, doing }: { state: DeviceState; doing: Doing }) {
  return <Status of={state === "ready" ? doing : state} />;
}
