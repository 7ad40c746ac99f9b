// Versions of a job with their figures; the rail at the left is their lineage.
import { useState } from "preact/hooks";
import { ask, post, segment } from "../api";
import { bytes, count, loss, percent, short } from "../format";
import { attempt } from "../notice";
import { Ago } from "../parts/clock";
import { Confirm } from "../parts/dialog";
import { Icon } from "../parts/icon";
import { Empty } from "../parts/loaded";
import { may, me } from "../session";
import { useStore } from "../store";
import type { Job, Version } from "../types";

interface TableProps {
  job: Job;
  versions: Version[]; // newest first
  brief?: boolean;
  etag?: string | undefined;
  reload?: () => void;
}

export function VersionTable({ job, versions, brief = false, etag, reload }: TableProps) {
  if (versions.length === 0) return <Empty title="No version yet" />;
  const scored = job.accuracy !== null || versions.some((version) => version.accuracy !== null);
  const table = (
    <table class={brief ? "compact lineage" : "roomy lineage"}>
      <thead>
        <tr>
          <th>Version</th>
          <th class="right">{scored ? "Accuracy" : "Loss"}</th>
          {!brief && scored && <th class="right wide-only">Loss</th>}
          <th class={brief ? "right wide-only lesser" : "right wide-only"}>Updates</th>
          <th class={brief ? "right" : "right wide-only"}>Stale by</th>
          {!brief && <th class="right wide-only">Devices</th>}
          {!brief && <th class="right wide-only">Delta</th>}
          {!brief && <th class="wide-only">Parent</th>}
          <th class="right">Age</th>
          {!brief && <th>Model</th>}
        </tr>
      </thead>
      <tbody>
        {versions.map((version) => (
          <tr key={version.version}>
            <th scope="row">
              <span class="rail" aria-hidden="true" />
              <span class="num">v{version.version}</span> <Badges job={job} version={version} />
            </th>
            <td class="right num">
              {scored ? percent(version.accuracy) : loss(version.loss)}
              {!brief && version.holdout_spread !== null && (
                <span class="quiet wide-only"> ± {scored ? percent(version.holdout_spread) : loss(version.holdout_spread)}</span>
              )}
            </td>
            {!brief && scored && <td class="right num wide-only">{loss(version.loss)}</td>}
            <td class={brief ? "right num wide-only lesser" : "right num wide-only"}>{count(version.updates)}</td>
            <td class={brief ? "right num" : "right num wide-only"}>{meanStaleness(version)}</td>
            {!brief && <td class="right num wide-only">{count(version.devices.length)}</td>}
            {!brief && <td class="right num wide-only">{bytes(version.bytes_delta || null)}</td>}
            {!brief && <td class="digest wide-only">{short(version.parent)}</td>}
            <td class="right">
              <Ago at={version.at} />
            </td>
            {!brief && (
              <td class="row-actions">
                <Model job={job} version={version} etag={etag} reload={reload} />
              </td>
            )}
          </tr>
        ))}
      </tbody>
    </table>
  );
  if (brief) return table;
  return (
    <div class="scroller" tabIndex={0} role="region" aria-label="Versions">
      {table}
    </div>
  );
}

function Badges({ job, version }: { job: Job; version: Version }) {
  return (
    <>
      {version.promoted && (
        <span class="badge accent">
          <Icon name="star" />
          promoted
        </span>
      )}
      {job.best_version === version.version && <span class="badge">best</span>}
    </>
  );
}

function meanStaleness(version: Version): string {
  const pairs = Object.entries(version.staleness);
  const updates = pairs.reduce((sum, [, n]) => sum + n, 0);
  return updates ? (pairs.reduce((sum, [tau, n]) => sum + Number(tau) * n, 0) / updates).toFixed(1) : "–";
}

interface ModelProps {
  job: Job;
  version: Version;
  etag: string | undefined;
  reload: (() => void) | undefined;
}

function Model({ job, version, etag, reload }: ModelProps) {
  const who = useStore(me);
  const [asked, setAsked] = useState(false);
  if (!version.stored) return <span class="quiet">not kept</span>;
  const path = `/jobs/${segment(job.name)}`;

  async function download(format: "fp32" | "int8"): Promise<void> {
    await attempt(async () => {
      const response = await ask(`${path}/model`, { params: { version: version.version, format } });
      save(await response.blob(), `${job.name}-v${version.version}-${format}.onnx`);
    }, `Version ${version.version} is downloaded as ${format}.`);
  }

  async function promote(): Promise<void> {
    const send = (): Promise<unknown> => post(`${path}/versions/${version.version}/promote`, undefined, etag);
    await attempt(send, `Version ${version.version} of ${job.name} is promoted.`);
    reload?.();
  }

  async function takeBack(): Promise<void> {
    await attempt(() => post(`${path}/unpromote`, undefined, etag), `No version of ${job.name} is promoted any more.`);
    reload?.();
  }

  return (
    <>
      <button type="button" class="link" onClick={() => void download("fp32")} aria-label={`Download version ${version.version} as fp32`}>
        fp32
      </button>
      <button type="button" class="link" onClick={() => void download("int8")} aria-label={`Download version ${version.version} as INT8`}>
        INT8
      </button>
      {may(who, "operator") && !version.promoted && (
        <button type="button" class="link" onClick={() => setAsked(true)} aria-label={`Promote version ${version.version}`}>
          Promote
        </button>
      )}
      {may(who, "operator") && version.promoted && (
        <button type="button" class="link" onClick={() => void takeBack()} aria-label={`Take the promotion of version ${version.version} back`}>
          Take back
        </button>
      )}
      {asked && (
        <Confirm
          title={`Promote version ${version.version}?`}
          action="Promote"
          onConfirm={() => void promote()}
          onClose={() => setAsked(false)}
        >
          <p>
            Export and API give this version unless another is asked for, and it is kept for good. Devices go on with the newest.
          </p>
        </Confirm>
      )}
    </>
  );
}

function save(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
