// The short lists beside the curve.
import { count, percent } from "../format";
import { Ago } from "../parts/clock";
import { Empty } from "../parts/loaded";
import { Status } from "../parts/status";
import { href } from "../route";
import type { FleetSummary, Job, Version } from "../types";

export function JobList({ jobs }: { jobs: Job[] }) {
  return (
    <table class="compact">
      <thead>
        <tr>
          <th>Job</th>
          <th>State</th>
          <th class="right lesser">Version</th>
          <th class="right">Accuracy</th>
        </tr>
      </thead>
      <tbody>
        {jobs.slice(0, 6).map((job) => (
          <tr key={job.name}>
            <td class="clip">
              <a href={href(["jobs", job.name])}>{job.name}</a>
            </td>
            <td>
              <Status of={job.state} />
            </td>
            <td class="right num lesser">{count(job.version)}</td>
            <td class="right num">{percent(job.accuracy)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

export function VersionList({ versions }: { versions: Version[] }) {
  return (
    <table class="compact">
      <thead>
        <tr>
          <th>Version</th>
          <th class="right lesser">Updates</th>
          <th class="right">Accuracy</th>
          <th class="right">Age</th>
        </tr>
      </thead>
      <tbody>
        {versions.map((version) => (
          <tr key={version.version}>
            <td class="num">v{version.version}</td>
            <td class="right num lesser">{count(version.updates)}</td>
            <td class="right num">{percent(version.accuracy)}</td>
            <td class="right">
              <Ago at={version.at} />
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

export function SoftwareList({ fleet }: { fleet: FleetSummary }) {
  const { software } = fleet.devices;
  if (software.length === 0) {
    return (
      <Empty title="No device yet">
        <p>
          A device shows up here when it first speaks: <code>fedfleet device run --config device.toml</code>
        </p>
      </Empty>
    );
  }
  return (
    <table class="compact">
      <thead>
        <tr>
          <th>Version on devices</th>
          <th class="right">Devices</th>
        </tr>
      </thead>
      <tbody>
        {software.map((entry) => (
          <tr key={entry.software}>
            <td class="clip">
              <a href={href(["devices"], { software: entry.software === "unknown" ? "" : entry.software })}>{entry.software}</a>
            </td>
            <td class="right num">{count(entry.devices)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
