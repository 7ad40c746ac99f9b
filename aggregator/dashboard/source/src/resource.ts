// Something read from the server that stays current: read again when an event says that it may have changed.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { Problem } from "./api";
import { listen, onReconnect } from "./live";
import type { FleetEvent } from "./types";

const GAP_MS = 1000; // between two readings, however fast events come
const ANYWAY_MS = 30_000; // times pass and leases end without an event

const FINAL = [403, 404]; // no event changes these; a person may ask again

export interface Resource<T> {
  value: T | null;
  problem: Problem | null;
  reload: () => void;
}

export type Concerns = (event: FleetEvent) => boolean;

export function useResource<T>(
  key: string,
  read: (signal: AbortSignal) => Promise<T>,
  concerns: Concerns = () => true,
  gap = GAP_MS,
): Resource<T> {
  const [found, setFound] = useState<{ key: string; value: T | null; problem: Problem | null }>(fresh(key));
  const latest = useRef({ read, concerns });
  latest.current = { read, concerns };
  const trigger = useRef<() => void>(() => {});

  useEffect(() => {
    const stop = new AbortController();
    let timer = 0;
    let busy = false;
    let due = false;
    let readAt = -Infinity;
    let final = false;

    async function now(): Promise<void> {
      busy = true;
      due = false;
      readAt = performance.now();
      try {
        const value = await latest.current.read(stop.signal);
        if (!stop.signal.aborted) setFound({ key, value, problem: null });
      } catch (error) {
        if (stop.signal.aborted) return;
        const problem = error instanceof Problem ? error : new Problem(0, "bug", String(error));
        final = FINAL.includes(problem.status);
        setFound((before) => ({ key, value: before.key === key ? before.value : null, problem }));
      }
      busy = false;
      if (!final) plan(due ? gap : ANYWAY_MS);
    }
    function plan(wait: number): void {
      window.clearTimeout(timer);
      const left = Math.max(0, Math.min(wait, readAt + ANYWAY_MS - performance.now()));
      timer = window.setTimeout(() => void now(), left);
    }
    function soon(): void {
      if (final) return;
      if (busy) due = true;
      else if (!due) {
        due = true;
        plan(Math.max(0, readAt + gap - performance.now()));
      }
    }
    trigger.current = () => {
      final = false;
      if (busy) due = true;
      else plan(0);
    };
    const unlisten = listen((event) => {
      if (event.kind === "reset" || latest.current.concerns(event)) soon();
    });
    const unwatch = onReconnect(soon);
    void now();
    return () => {
      stop.abort();
      window.clearTimeout(timer);
      unlisten();
      unwatch();
    };
  }, [key]);

  const reload = useCallback(() => trigger.current(), []);
  const current = found.key === key ? found : fresh<T>(key);
  return { value: current.value, problem: current.problem, reload };
}

function fresh<T>(key: string): { key: string; value: T | null; problem: Problem | null } {
  return { key, value: null, problem: null };
}

export const about =
  (...kinds: string[]): Concerns =>
  (event) =>
    kinds.includes(event.kind);
