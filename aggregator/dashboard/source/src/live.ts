// Server-sent events over fetch, which can send a token where EventSource cannot. A connection that broke goes on
// after the last event that was seen; pauses between attempts double.
import { address, headers, problem } from "./api";
import { forgetVersions } from "./history";
import { signedOut } from "./session";
import { Store } from "./store";
import type { FleetEvent } from "./types";

export type Link = { state: "connecting" | "live" } | { state: "waiting"; until: number };
type Listener = (event: FleetEvent) => void;

const PAUSE_MIN_MS = 500;
const PAUSE_MAX_MS = 15_000;
const SILENCE_MAX_MS = 40_000; // the server sends a comment every 15 s

export const link = new Store<Link>({ state: "connecting" });
const listeners = new Set<Listener>();
let lastId = "";
let stop: AbortController | null = null;

export function listen(listener: Listener): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

// Whoever shows something reads it again then: what happened meanwhile may be more than the events that are kept.
export function onReconnect(again: () => void): () => void {
  let before = link.value.state;
  return link.watch(() => {
    if (link.value.state === "live" && before !== "live") again();
    before = link.value.state;
  });
}

export function connect(): void {
  stop?.abort();
  stop = new AbortController();
  void run(stop.signal);
}

export function disconnect(): void {
  stop?.abort();
  stop = null;
  lastId = "";
}

async function run(signal: AbortSignal): Promise<void> {
  let pause = PAUSE_MIN_MS;
  while (!signal.aborted) {
    link.set({ state: "connecting" });
    try {
      await follow(signal, () => {
        pause = PAUSE_MIN_MS;
        link.set({ state: "live" });
      });
    } catch {
      // the connection broke or was refused: the pause and the next attempt are what there is to do about it
    }
    if (signal.aborted || signedOut.value !== null) return;
    link.set({ state: "waiting", until: Date.now() + pause });
    await rest(pause * (0.75 + Math.random() / 2), signal);
    pause = Math.min(2 * pause, PAUSE_MAX_MS);
  }
}

async function follow(signal: AbortSignal, connected: () => void): Promise<void> {
  const sent: Record<string, string> = { ...headers(), Accept: "text/event-stream" };
  if (lastId) sent["Last-Event-ID"] = lastId;
  const own = new AbortController();
  const end = (): void => own.abort();
  signal.addEventListener("abort", end);
  let silence = setTimeout(end, SILENCE_MAX_MS);
  try {
    const response = await fetch(address("/events"), { headers: sent, signal: own.signal, cache: "no-store" });
    if (!response.ok || !response.body) throw await problem(response);
    connected();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(silence);
      silence = setTimeout(end, SILENCE_MAX_MS);
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop() ?? "";
      for (const block of blocks) deliver(block);
    }
  } finally {
    clearTimeout(silence);
    signal.removeEventListener("abort", end);
    own.abort();
  }
}

function deliver(block: string): void {
  const event: FleetEvent = { id: "", kind: "", data: {} };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(": ");
    const value = line.slice(colon + 2);
    if (line.startsWith("id: ")) event.id = value;
    else if (line.startsWith("event: ")) event.kind = value;
    else if (line.startsWith("data: ")) event.data = JSON.parse(value) as Record<string, unknown>;
  }
  if (!event.kind) return;
  lastId = event.id;
  if (event.kind === "reset") forgetVersions();
  for (const listener of [...listeners]) listener(event);
}

function rest(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
