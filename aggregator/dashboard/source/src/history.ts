// Versions of a job, read once and then only at their end: a version never changes, but figures of the newest still
// come in, from devices that measure them before they train.
import { get, segment } from "./api";
import type { Version } from "./types";

const TAIL = 40; // versions whose figures may still change: a device is at most some twenty behind
const ANEW_MS = 60_000;
const JOBS_KEPT = 4;

interface Known {
  versions: Version[]; // oldest first, without a gap
  limit: number;
  readAt: number;
}

const known = new Map<string, Known>();

export async function newestVersions(job: string, limit: number, signal?: AbortSignal): Promise<Version[]> {
  const before = known.get(job);
  const whole = !before || before.limit < limit || performance.now() - before.readAt > ANEW_MS;
  const found = await read(job, whole ? limit : Math.min(limit, TAIL), signal);
  const first = found[0]?.version ?? 0;
  const last = before?.versions.at(-1)?.version ?? -1;
  if (before && !whole && first > last + 1) {
    known.delete(job);
    return newestVersions(job, limit, signal);
  }
  const versions = whole || !before ? found : [...before.versions.filter((version) => version.version < first), ...found];
  const next = whole || !before ? { limit, readAt: performance.now() } : { limit: before.limit, readAt: before.readAt };
  known.delete(job); // the one that is looked at is the newest of the map
  known.set(job, { ...next, versions: versions.slice(-next.limit) });
  for (const name of [...known.keys()].slice(0, -JOBS_KEPT)) known.delete(name);
  return versions.slice(-limit);
}

// The server was started anew, or events were lost: nothing that was read before need hold.
export function forgetVersions(): void {
  known.clear();
}

async function read(job: string, limit: number, signal?: AbortSignal): Promise<Version[]> {
  const path = `/jobs/${segment(job)}/versions`;
  const { versions } = await get<{ versions: Version[] }>(path, { order: "newest", limit }, signal);
  return versions.reverse();
}
