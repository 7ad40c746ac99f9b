// What is typed for a new job, and the specification that it makes.

export interface Draft {
  name: string;
  bundle: string;
  dataset: string;
  cohort: string;
  strategy: string;
  buffer_size: string;
  concurrency: string;
  versions_max: string;
  target_accuracy: string;
  deadline_s: string;
  more: string;
}

export const EMPTY: Draft = {
  name: "",
  bundle: "",
  dataset: "",
  cohort: "all",
  strategy: "fedbuff",
  buffer_size: "",
  concurrency: "",
  versions_max: "",
  target_accuracy: "",
  deadline_s: "",
  more: "",
};

export const STRATEGIES = [
  { name: "fedbuff", text: "asynchronous, buffered; the default" },
  { name: "calibrated", text: "for devices whose data differ a lot" },
  { name: "fadas", text: "adaptive, careful with long delays" },
  { name: "fedasync", text: "each update at once" },
  { name: "fedavg", text: "in rounds" },
];

// Numbers as numbers; what is not one goes to the server as it is, which says what is wrong with it.
function value(text: string): number | string | undefined {
  const trimmed = text.trim();
  if (!trimmed) return undefined;
  const number = Number(trimmed);
  return Number.isNaN(number) ? trimmed : number;
}

function kept(fields: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(fields).filter(([, field]) => field !== undefined && field !== ""));
}

export function specOf(draft: Draft): Record<string, unknown> | Error {
  let more: Record<string, unknown> = {};
  if (draft.more.trim()) {
    try {
      const parsed: unknown = JSON.parse(draft.more);
      if (parsed === null || typeof parsed !== "object" || Array.isArray(parsed)) return new Error("not a JSON object");
      more = parsed as Record<string, unknown>;
    } catch (error) {
      return error instanceof Error ? error : new Error(String(error));
    }
  }
  const end = kept({
    versions_max: value(draft.versions_max),
    target_accuracy: value(draft.target_accuracy),
    deadline_s: value(draft.deadline_s),
  });
  return {
    ...kept({
      name: draft.name.trim(),
      bundle: draft.bundle,
      dataset: draft.dataset.trim(),
      cohort: draft.cohort.trim(),
      strategy: draft.strategy,
      buffer_size: value(draft.buffer_size),
      concurrency: value(draft.concurrency),
    }),
    ...(Object.keys(end).length ? { end } : {}),
    ...more,
  };
}
