// What is known of one device: what it is, the data it lends, its part in each job, the receipts it got.
import { bytes, count, percent, plural } from "../format";
import { Ago } from "../parts/clock";
import { Empty } from "../parts/loaded";
import { Status } from "../parts/status";
import { href } from "../route";
import type { Device, TaskStatus, Verdict } from "../types";

export function Identity({ device }: { device: Device }) {
  const { info } = device;
  if (!info) return <p class="quiet">It has not introduced itself yet.</p>;
  return (
    <dl class="facts">
      <dt>Cohort</dt>
      <dd>{device.cohort}</dd>
      <dt>Software</dt>
      <dd>{info.software}</dd>
      <dt>Machine</dt>
      <dd>{info.arch}</dd>
      <dt>Runtime</dt>
      <dd>{info.runtime}</dd>
      <dt>Protocol</dt>
      <dd class="num">{info.protocol}</dd>
      <dt>Codecs</dt>
      <dd>{info.codecs.join(", ")}</dd>
    </dl>
  );
}

export function Datasets({ device }: { device: Device }) {
  const sets = device.info?.datasets ?? [];
  if (sets.length === 0) return <Empty title="No data declared" />;
  return (
    <table class="compact">
      <thead>
        <tr>
          <th>Data set</th>
          <th>A sample</th>
          <th class="right">Samples</th>
        </tr>
      </thead>
      <tbody>
        {sets.map((set) => (
          <tr key={set.name}>
            <td class="clip">{set.name}</td>
            <td class="num">{set.data.shape.join(" × ")}</td>
            <td class="right num">{count(set.n_samples)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

export function Tasks({ device }: { device: Device }) {
  const tasks = Object.entries(device.tasks);
  if (tasks.length === 0) return <Empty title="No part in any job yet" />;
  return (
    <table class="compact">
      <thead>
        <tr>
          <th>Job</th>
          <th class="right">Updates</th>
          <th class="right">Since</th>
        </tr>
      </thead>
      <tbody>
        {tasks.map(([job, task]) => (
          <tr key={job}>
            <td class="two-lines">
              <a href={href(["jobs", job])}>{job}</a>
              {task.status && <small class="quiet">{saying(task.status)}</small>}
            </td>
            <td class="right num">{count(task.accepted)}</td>
            <td class="right">
              <Ago at={task.at} />
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function saying({ state, progress, reason }: TaskStatus): string {
  const share = state === "training" && progress != null ? ` ${percent(progress, 0)}` : "";
  return `${state}${share}${reason ? `: ${reason}` : ""}`;
}

export function Receipts({ of }: { of: Verdict[] }) {
  if (of.length === 0) return <Empty title="No update lately" />;
  return (
    <table class="compact">
      <caption class="hidden">{plural(of.length, "newest receipt")}</caption>
      <thead>
        <tr>
          <th>Verdict</th>
          <th class="right">Bytes</th>
          <th class="right">Age</th>
        </tr>
      </thead>
      <tbody>
        {of.map((verdict) => (
          <tr key={verdict.number}>
            <td class="wrap">
              <Status of={verdict.verdict} /> {verdict.reason && <span class="quiet">{verdict.reason}</span>}
            </td>
            <td class="right num">{bytes(verdict.bytes)}</td>
            <td class="right">
              <Ago at={verdict.at} />
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
