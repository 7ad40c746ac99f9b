// What the API answers (docs/api.md), as far as the dashboard shows it.

export type Role = "viewer" | "operator" | "admin";
export interface Me {
  name: string;
  role: Role;
}

export type DeviceState = "ready" | "disconnected" | "lost" | "unknown";
export type Doing = "training" | "late" | "waiting" | "failed" | "paused" | "declined" | "idle" | "away";

export interface Alert {
  level: "bad" | "warn" | "note";
  text: string;
  job: string;
  state: string;
  doing: string;
}

export interface FleetSummary {
  at: number;
  devices: {
    total: number;
    states: Partial<Record<DeviceState, number>>;
    doings: Partial<Record<Doing, number>>;
    declined: { reason: string; devices: number }[];
    software: { software: string; devices: number }[];
  };
  updates: { accepted: number; rejected: number; codes: Record<string, number>; minutes: number[] };
  cost: { updates: number; bytes_up: number; bytes_dense: number };
  alerts: Alert[];
}

export interface Row {
  device: string;
  state: DeviceState;
  doing: Doing;
  job: string;
  reason: string;
  seen: number;
  cohort: string;
  tags: string[];
  software: string;
  accepted: number;
  rejected: number;
}

export type FacetName = "state" | "doing" | "reason" | "cohort" | "tag" | "software";
export interface RowPage {
  total: number;
  devices: Row[];
  facets: Record<FacetName, Record<string, number>>;
}

export interface Dataset {
  name: string;
  n_samples: number;
  data: { shape: number[]; n_classes?: number; target?: string };
}

export interface TaskStatus {
  state: string;
  reason: string;
  progress: number | null;
}

export interface Task {
  status: TaskStatus | null;
  at: number;
  accepted: number;
  rejected: Record<string, number>;
}

export interface Moment {
  at: number;
  kind: string;
  job: string;
  what: string;
  detail: string;
}

export interface Device {
  device: string;
  state: DeviceState;
  conn_seq: number;
  cohort: string;
  seen: number;
  info: { software: string; protocol: number; arch: string; runtime: string; codecs: string[]; datasets: Dataset[] } | null;
  tasks: Record<string, Task>;
  tags: string[];
  paused: { by: string; at: number } | null;
  timeline: Moment[];
}

export interface Because {
  job: string;
  training: boolean;
  text: string;
}

export interface Spec {
  name: string;
  bundle: string;
  dataset: string;
  cohort: string;
  strategy: string;
  buffer_size: number;
  concurrency: number;
  staleness_max: number;
  training: { density: number; steps: number; codec: string };
  end: Record<string, number | null>;
  [field: string]: unknown;
}

export interface Job {
  name: string;
  state: "running" | "paused" | "ended";
  reason: string;
  damage: string;
  created_at: number;
  ended_at: number | null;
  version: number;
  best_version: number | null;
  promoted_version: number | null;
  loss: number | null;
  accuracy: number | null;
  error: number | null;
  threshold: number | null;
  updates: number;
  buffered: number;
  staleness_mean: number;
  training: number;
  waiting: number;
  participants: number;
  rejected: Record<string, number>;
  parameters: number;
  participation_gini: number;
  bytes_up: number;
  bits_per_parameter: number | null;
  bytes_to_bound: number | null;
  density: number | null;
  downlink_mode: string;
  bytes_per_version: number | null;
  spec: Spec;
}

export interface Version {
  version: number;
  at: number;
  manifest: string;
  parent: string | null;
  updates: number;
  devices: string[];
  staleness: Record<string, number>;
  bytes_up: number;
  bytes_delta: number;
  bytes_keyframe: number;
  lossless: boolean;
  holdout_n: number;
  holdout_devices: number;
  holdout_spread: number | null;
  loss: number | null;
  accuracy: number | null;
  error: number | null;
  bits_per_parameter: number | null;
  bytes_to_bound: number | null;
  stored: boolean;
  promoted: boolean;
}

export interface Participation {
  gini: number;
  updates: number;
  devices: { device: string; updates: number; share: number; rejected: Record<string, number> }[];
}

export interface Verdict {
  number: number;
  at: number;
  uid: string;
  device: string;
  job: string;
  verdict: "accepted" | "rejected";
  code: string;
  reason: string;
  bytes: number | null;
}

export interface AuditEntry {
  number: number;
  at: number;
  actor: string;
  role: string;
  action: string;
  method: string;
  path: string;
  status: number;
}

export interface FleetEvent {
  id: string;
  kind: string;
  data: Record<string, unknown>;
}

export interface Bundle {
  digest: string;
  size: number;
  name: string;
  loss: string;
  parameters: number;
  jobs: string[];
}
