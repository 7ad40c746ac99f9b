// Rows of a long table, read in windows as they come into sight, and read again when the fleet changes.
import { useEffect, useRef, useState } from "preact/hooks";
import { get, type Params, Problem } from "./api";
import { listen, onReconnect } from "./live";
import type { Row, RowPage } from "./types";

export const WINDOW = 100;
const GAP_MS = 2000; // between two readings of the same window while devices speak
const WINDOWS_KEPT = 40;

export interface Rows {
  total: number | null;
  facets: RowPage["facets"] | null;
  problem: Problem | null;
  at: (index: number) => Row | undefined;
  show: (first: number, last: number) => void;
  reload: () => void;
}

export function useRows(filters: Params): Rows {
  const key = JSON.stringify(filters);
  const [, redraw] = useState(0);
  const state = useRef(new Windows(() => redraw((n) => n + 1)));
  useEffect(() => {
    state.current.begin(filters);
    return () => state.current.end();
  }, [key]);
  useEffect(() => {
    const unlisten = listen((event) => event.kind !== "audit" && state.current.changed());
    const unwatch = onReconnect(() => state.current.changed());
    return () => {
      unlisten();
      unwatch();
    };
  }, []);
  const { total, facets, problem } = state.current;
  return {
    total,
    facets,
    problem,
    at: (index) => state.current.at(index),
    show: (first, last) => state.current.show(first, last),
    reload: () => state.current.reload(),
  };
}

class Windows {
  total: number | null = null;
  facets: RowPage["facets"] | null = null;
  problem: Problem | null = null;
  private pages = new Map<number, Row[]>();
  private asked = new Set<number>();
  private filters: Params = {};
  private sight: [number, number] = [0, 0];
  private stop = new AbortController();
  private timer = 0;

  constructor(private drawn: () => void) {}

  begin(filters: Params): void {
    this.end();
    this.stop = new AbortController();
    this.filters = filters;
    this.asked.clear();
    this.sight = [0, 0];
    void this.read(0, true);
  }

  end(): void {
    this.stop.abort();
    window.clearTimeout(this.timer);
    this.timer = 0;
  }

  at(index: number): Row | undefined {
    return this.pages.get(Math.floor(index / WINDOW))?.[index % WINDOW];
  }

  show(first: number, last: number): void {
    this.sight = [Math.floor(first / WINDOW), Math.floor(Math.max(0, last - 1) / WINDOW)];
    for (let page = this.sight[0]; page <= this.sight[1]; page += 1) {
      if (!this.pages.has(page) && !this.asked.has(page)) void this.read(page, false);
    }
  }

  changed(): void {
    if (this.timer) return;
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      this.reload();
    }, GAP_MS);
  }

  reload(): void {
    for (const page of this.pages.keys()) if (page < this.sight[0] || page > this.sight[1]) this.pages.delete(page);
    for (let page = this.sight[0]; page <= this.sight[1]; page += 1) void this.read(page, false);
  }

  private async read(page: number, anew: boolean): Promise<void> {
    const { signal } = this.stop;
    this.asked.add(page);
    try {
      const found = await get<RowPage>("/fleet/devices", { ...this.filters, offset: page * WINDOW, limit: WINDOW }, signal);
      if (signal.aborted) return;
      if (anew || this.pages.size > WINDOWS_KEPT) this.pages.clear();
      this.pages.set(page, found.devices);
      this.total = found.total;
      this.facets = found.facets;
      this.problem = null;
    } catch (error) {
      if (signal.aborted) return;
      this.problem = error instanceof Problem ? error : new Problem(0, "bug", String(error));
    } finally {
      this.asked.delete(page);
    }
    this.drawn();
  }
}
