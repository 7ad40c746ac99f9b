// One job: how good its model is by now, who takes part, what it costs.
import { useMemo } from "preact/hooks";
import { get, getMarked, segment } from "../api";
import { curveOf, stalenessOf } from "../curve";
import { bytes, count, percent, plural, significant } from "../format";
import { newestVersions } from "../history";
import { Bars, Share } from "../parts/bars";
import { Chart } from "../parts/chart";
import { Since } from "../parts/clock";
import { JobCurve } from "../parts/curve";
import { type Figure, Figures } from "../parts/figures";
import { Empty, Loaded } from "../parts/loaded";
import { Panel } from "../parts/panel";
import { Status } from "../parts/status";
import { useResource } from "../resource";
import { href } from "../route";
import type { Job, Participation, Version } from "../types";
import { Head } from "./head";
import { JobActions } from "./jobactions";
import { SpecTable } from "./spectable";
import { VersionTable } from "./versiontable";

const BACK = { href: "#/jobs", word: "Jobs" };

interface Seen {
  job: Job;
  etag: string | undefined;
  versions: Version[];
}

const VERSIONS = 1000;
const SHOWN = 8;
const PARTICIPATION_GAP_MS = 5000; // it has a row for each device

export function JobScreen({ name }: { name: string }) {
  const seen = useResource<Seen>(
    `job ${name}`,
    () => read(name),
    (event) => [event.data["job"], event.data["name"]].includes(name),
  );
  const participation = useResource<Participation>(
    `participation ${name}`,
    (signal) => get<Participation>(`/jobs/${segment(name)}/participation`, {}, signal),
    (event) => event.data["job"] === name,
    PARTICIPATION_GAP_MS,
  );
  return (
    <Loaded from={seen} back={BACK}>
      {({ job, etag, versions }) => (
        <>
          <Head title={job.name} back={BACK} note={<Line job={job} />}>
            <JobActions job={job} etag={etag} reload={seen.reload} />
          </Head>
          {job.damage && <p class="stale">Storage lost something of this job: {job.damage}</p>}
          <Figures of={figures(job, versions)} />
          <Panel title="How good it is" note="On the devices' own hold-outs; the band is one standard deviation over devices.">
            <JobCurve versions={versions} height={280} />
          </Panel>
          <div class="columns">
            <Panel title="Staleness" note="How many versions an update was behind when it was folded.">
              <Staleness versions={versions} job={job} />
            </Panel>
            <Panel title="Price of an update" note="Bits a parameter; a dense fp32 update takes 32.">
              <Price job={job} versions={versions} />
            </Panel>
          </div>
          <div class="columns">
            <Panel title="Participation" flush note={participation.value ? evenness(participation.value) : " "}>
              <Loaded from={participation}>{(found) => <Participants of={found} />}</Loaded>
            </Panel>
            <Panel title="Newest versions" flush actions={<a href={href(["jobs", name, "versions"])}>All versions</a>}>
              <VersionTable job={job} versions={versions.slice(-SHOWN).reverse()} brief />
            </Panel>
          </div>
          <Panel title="Specification" flush>
            <SpecTable spec={job.spec} />
          </Panel>
        </>
      )}
    </Loaded>
  );
}

async function read(name: string): Promise<Seen> {
  const path = `/jobs/${segment(name)}`;
  const [{ value, etag }, versions] = await Promise.all([
    getMarked<Job>(path),
    newestVersions(name, VERSIONS),
  ]);
  return { job: value, etag, versions };
}

function Line({ job }: { job: Job }) {
  return (
    <>
      <Status of={job.state} />
      {job.reason && ` ${job.reason};`} {job.spec.strategy} on <b>{job.spec.dataset}</b>, started <Since at={job.created_at} />
    </>
  );
}

function figures(job: Job, versions: Version[]): Figure[] {
  const dense = job.updates * job.parameters * 4;
  const rejected = Object.values(job.rejected).reduce((a, b) => a + b, 0);
  const spread = curveOf(versions).spread.findLast((value) => value !== null);
  const figure: Figure =
    job.accuracy !== null
      ? { label: "Accuracy", value: percent(job.accuracy), note: spread != null ? `± ${percent(spread)} over devices` : undefined }
      : { label: job.error !== null ? "Mean absolute error" : "Loss", value: significant(job.error ?? job.loss) };
  return [
    figure,
    {
      label: "Version",
      value: count(job.version),
      note: job.best_version === null ? undefined : `v${job.best_version} is the best so far`,
    },
    {
      label: "Training",
      value: count(job.training),
      unit: `of ${count(job.spec.concurrency)} places`,
      note: `${count(job.waiting)} wait, ${count(job.participants)} took part`,
    },
    {
      label: "Updates",
      value: count(job.updates),
      note: `${count(job.buffered)} of ${count(job.spec.buffer_size)} for the next version`,
    },
    {
      label: "Rejected",
      value: count(rejected),
      tone: rejected > 0.1 * Math.max(1, job.updates) ? "warn" : undefined,
      href: href(["updates"], { job: job.name, verdict: "rejected" }),
    },
    {
      label: "Uplink",
      value: bytes(job.bytes_up),
      note: job.bytes_up ? `${count(Math.round(dense / job.bytes_up))} times less than dense` : undefined,
    },
  ];
}

function Staleness({ versions, job }: { versions: Version[]; job: Job }) {
  const counts = stalenessOf(versions);
  const updates = [...counts.values()].reduce((a, b) => a + b, 0);
  if (updates === 0) return <Empty title="No update yet" />;
  const most = Math.max(4, ...counts.keys());
  const bars = Array.from({ length: most + 1 }, (_, tau) => ({ label: String(tau), value: counts.get(tau) ?? 0 }));
  return (
    <Bars
      of={bars}
      dense={most > 14}
      axis={`versions behind · mean ${job.staleness_mean.toFixed(1)}, at most ${job.spec.staleness_max} are taken`}
      summary={`Staleness of ${plural(updates, "update")}: ${job.staleness_mean.toFixed(1)} versions on average, at most ${Math.max(...counts.keys())}.`}
    />
  );
}

function Price({ job, versions }: { job: Job; versions: Version[] }) {
  const chart = useMemo(() => {
    const known = versions.filter((version) => version.bits_per_parameter !== null);
    const bound = known.map((v) => (v.bytes_to_bound ? (v.bits_per_parameter ?? 0) / v.bytes_to_bound : null));
    return {
      x: known.map((version) => version.version),
      lines: [
        { label: "bound for random places", values: bound, color: "second" as const },
        { label: "sent", values: known.map((version) => version.bits_per_parameter), color: "accent" as const },
      ],
    };
  }, [versions]);
  if (chart.x.length === 0) return <Empty title="No update yet" />;
  return (
    <>
      <Chart
        {...chart}
        height={168}
        format={(value) => significant(value)}
        formatX={(value) => `v${Math.round(value)}`}
        summary={`An update takes ${significant(job.bits_per_parameter)} bits a parameter, ${significant(job.bytes_to_bound)} times the entropy bound for weights at random places.`}
      />
      <p class="quiet">
        {significant(job.bits_per_parameter)} bits a parameter on average, {significant(job.bytes_to_bound)} times the entropy bound for weights at random places.
      </p>
    </>
  );
}

function evenness({ gini, updates, devices }: Participation): string {
  if (updates === 0) return "Nobody has contributed yet.";
  const word = gini < 0.2 ? "Evenly shared" : gini < 0.4 ? "Fairly evenly shared" : "Unevenly shared";
  return `${word} among ${plural(devices.length, "device")} (Gini coefficient ${gini.toFixed(2)}).`;
}

function Participants({ of }: { of: Participation }) {
  if (of.devices.length === 0) return <Empty title="No device took part yet" />;
  const most = Math.max(...of.devices.map((device) => device.share), 1e-9);
  return (
    <div class="capped" tabIndex={0} role="region" aria-label="Devices by updates">
      <table class="compact">
        <thead>
          <tr>
            <th>Device</th>
            <th class="right">Updates</th>
            <th class="share-cell">Share</th>
            <th class="right">Rejected</th>
          </tr>
        </thead>
        <tbody>
          {of.devices.slice(0, 200).map((device) => (
            <tr key={device.device}>
              <td class="clip">
                <a href={href(["devices", device.device])}>{device.device}</a>
              </td>
              <td class="right num">{count(device.updates)}</td>
              <td class="share-cell">
                <Share of={device.share / most} />
                <span class="num">{percent(device.share)}</span>
              </td>
              <td class="right num">{count(Object.values(device.rejected).reduce((a, b) => a + b, 0))}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
