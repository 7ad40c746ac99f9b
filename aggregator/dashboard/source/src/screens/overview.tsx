// The fleet at one look.
import { get } from "../api";
import { bytes, count, percent, plural, significant } from "../format";
import { newestVersions } from "../history";
import { Bars } from "../parts/bars";
import { JobCurve } from "../parts/curve";
import { type Figure, Figures } from "../parts/figures";
import { Empty, Loaded } from "../parts/loaded";
import { Panel } from "../parts/panel";
import { Status } from "../parts/status";
import { useResource } from "../resource";
import { href } from "../route";
import type { FleetSummary, Job, Version } from "../types";
import { Alerts } from "./alerts";
import { Head } from "./head";
import { JobList, SoftwareList, VersionList } from "./overviewlists";

interface Seen {
  fleet: FleetSummary;
  jobs: Job[];
  shown: Job | null;
  versions: Version[];
}

const CURVE_VERSIONS = 400;
const SPANS = [15, 30]; // minutes
const NEWEST_VERSIONS = 5;

export function Overview() {
  const seen = useResource<Seen>("overview", read);
  return (
    <>
      <Head title="Overview" />
      <Loaded from={seen}>
        {({ fleet, jobs, shown, versions }) => (
          <>
            <Figures of={figures(fleet)} />
            <div class="columns wide-left">
              <div>
                {shown ? (
                  <Panel
                    title={shown.name}
                    note={<JobLine job={shown} />}
                    actions={<a href={href(["jobs", shown.name])}>Open the job</a>}
                  >
                    <JobCurve versions={versions} height={224} />
                  </Panel>
                ) : (
                  <Panel title="Jobs">
                    <Empty title="No job yet">
                      <p>
                        A job trains a model on the devices. <a href="#/new-job">Start the first</a>, or from a notebook with{" "}
                        <code>fleet.federate(model, …)</code>.
                      </p>
                    </Empty>
                  </Panel>
                )}
                <Panel title="Updates folded, by minute" note={`${count(last(fleet.updates.minutes, 60))} in the last hour`}>
                  <Rate minutes={fleet.updates.minutes} />
                </Panel>
              </div>
              <div>
                <Panel title="Needs attention" flush urgent>
                  <Alerts of={fleet.alerts} />
                </Panel>
                {jobs.length > 0 && (
                  <Panel title="Jobs" flush actions={<a href="#/jobs">All jobs</a>}>
                    <JobList jobs={jobs} />
                  </Panel>
                )}
                {shown && versions.length > 0 && (
                  <Panel title="Newest versions" flush actions={<a href={href(["jobs", shown.name, "versions"])}>All versions</a>}>
                    <VersionList versions={versions.slice(-NEWEST_VERSIONS).reverse()} />
                  </Panel>
                )}
                <Panel title="Software" flush>
                  <SoftwareList fleet={fleet} />
                </Panel>
              </div>
            </div>
          </>
        )}
      </Loaded>
    </>
  );
}

async function read(signal: AbortSignal): Promise<Seen> {
  const [fleet, { jobs }] = await Promise.all([
    get<FleetSummary>("/fleet", {}, signal),
    get<{ jobs: Job[] }>("/jobs", { limit: 1000 }, signal),
  ]);
  const order = [...jobs].sort((a, b) => rank(a) - rank(b) || b.created_at - a.created_at);
  const shown = order[0] ?? null;
  if (!shown) return { fleet, jobs: order, shown, versions: [] };
  return { fleet, jobs: order, shown, versions: await newestVersions(shown.name, CURVE_VERSIONS, signal) };
}

function rank(job: Job): number {
  return job.state === "ended" ? 1 : 0;
}

function last(minutes: number[], number: number): number {
  return minutes.slice(-number).reduce((sum, value) => sum + value, 0);
}

function figures({ devices, updates, cost }: FleetSummary): Figure[] {
  const { states, doings } = devices;
  const late = doings.late ?? 0;
  const lost = states.lost ?? 0;
  const rate = last(updates.minutes, 5) / 5;
  return [
    {
      label: "Online",
      value: count(states.ready ?? 0),
      unit: `of ${count(devices.total)}`,
      href: href(["devices"], { state: "ready" }),
      note: states.disconnected ? `${count(states.disconnected)} signed off` : undefined,
    },
    {
      label: "Training",
      value: count(doings.training ?? 0),
      href: href(["devices"], { doing: "training" }),
      note: doings.waiting ? `${count(doings.waiting)} ask for a place` : undefined,
    },
    { label: "Late", value: count(late), href: href(["devices"], { doing: "late" }), tone: late ? "warn" : undefined },
    { label: "Lost", value: count(lost), href: href(["devices"], { state: "lost" }), tone: lost ? "bad" : undefined },
    {
      label: "Updates",
      value: significant(rate, rate < 10 ? 2 : 3),
      unit: "a minute",
      href: "#/updates",
      note: updates.rejected ? `${percent(updates.rejected / (updates.accepted + updates.rejected))} rejected lately` : undefined,
    },
    {
      label: "Uplink",
      value: bytes(cost.bytes_up),
      note: cost.bytes_up ? `${count(Math.round(cost.bytes_dense / cost.bytes_up))} times less than dense` : undefined,
    },
  ];
}

// The last quarter or half of an hour is enough where nothing happened before.
function shownOf(minutes: number[]): number[] {
  const oldest = minutes.length - minutes.findIndex((value) => value > 0);
  return minutes.slice(-(SPANS.find((span) => oldest <= span) ?? minutes.length));
}

function Rate({ minutes: known }: { minutes: number[] }) {
  const minutes = shownOf(known);
  const step = minutes.length / 3;
  return (
    <Bars
      dense
      of={minutes.map((value, index) => {
        const ago = minutes.length - 1 - index;
        const when = ago === 0 ? "now" : `${ago} min ago`;
        return { label: ago === 0 ? "now" : ago % step === 0 ? `−${ago}` : "", value, hint: `${when}: ${plural(value, "update")}` };
      })}
      axis={`minutes ago · the most was ${count(Math.max(0, ...minutes))} in one`}
      summary={`Updates that went into versions, by minute: ${count(last(known, 60))} in the last hour, ${count(last(known, 1))} in this minute.`}
    />
  );
}

function JobLine({ job }: { job: Job }) {
  return (
    <>
      <Status of={job.state} /> {job.spec.strategy} on <b>{job.spec.dataset}</b>, version {count(job.version)}
    </>
  );
}
