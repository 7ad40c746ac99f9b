// One device: what it is, whether it trains and why not, what it did lately.
import { useState } from "preact/hooks";
import { get, getMarked, put, segment } from "../api";
import { bytes, count } from "../format";
import { attempt } from "../notice";
import { newestVersions } from "../history";
import { Since } from "../parts/clock";
import { type Figure, Figures } from "../parts/figures";
import { Icon } from "../parts/icon";
import { Loaded } from "../parts/loaded";
import { Panel } from "../parts/panel";
import { Status } from "../parts/status";
import { TagEditor } from "../parts/tageditor";
import { useResource } from "../resource";
import { href } from "../route";
import { may, me } from "../session";
import { useStore } from "../store";
import type { Because, Device, Verdict } from "../types";
import { DeviceActions } from "./deviceactions";
import { Datasets, Identity, Receipts, Tasks } from "./devicefacts";
import { Head } from "./head";
import { Timeline } from "./timeline";

const STALENESS_VERSIONS = 200; // its timeline reaches back less far
const BACK = { href: "#/devices", word: "Devices" };

interface Seen {
  device: Device;
  etag: string | undefined;
  because: Because[];
  verdicts: Verdict[];
  total: number;
  staleness: number | null;
}

export function DeviceScreen({ name }: { name: string }) {
  const seen = useResource<Seen>(`device ${name}`, () => read(name), (event) => event.data["device"] === name);
  return (
    <Loaded from={seen} back={BACK}>
      {({ device, etag, because, verdicts, staleness }) => (
        <>
          <Head
            title={device.device}
            back={BACK}
            note={
              <>
                <Status of={device.state} />, last heard <Since at={device.seen} />
              </>
            }
          >
            <DeviceActions device={device} etag={etag} reload={seen.reload} />
          </Head>
          <Why of={because} />
          <Figures of={figures(device, verdicts, staleness)} />
          <div class="columns wide-left">
            <div>
              <Panel title="Timeline" flush note="The newest first; what the server's log still has.">
                <div class="capped tall" tabIndex={0} role="region" aria-label="What it did">
                  <Timeline of={device.timeline} />
                </div>
              </Panel>
            </div>
            <div>
              <Panel title="Tags" lined>
                <Tags device={device} etag={etag} reload={seen.reload} />
              </Panel>
              <Panel title="Identity" lined>
                <Identity device={device} />
              </Panel>
              <Panel title="Data it lends" flush>
                <Datasets device={device} />
              </Panel>
              <Panel title="By job" flush>
                <Tasks device={device} />
              </Panel>
              <Panel title="Receipts" flush actions={<a href={href(["updates"], { device: device.device })}>All</a>}>
                <Receipts of={verdicts.slice(0, 8)} />
              </Panel>
            </div>
          </div>
        </>
      )}
    </Loaded>
  );
}

async function read(name: string): Promise<Seen> {
  const [{ value, etag }, { because }, { updates, total }] = await Promise.all([
    getMarked<Device>(`/devices/${segment(name)}`),
    get<{ because: Because[] }>(`/fleet/why/${segment(name)}`),
    get<{ updates: Verdict[]; total: number }>("/updates", { device: name, limit: 100 }),
  ]);
  return { device: value, etag, because, verdicts: updates, total, staleness: await stalenessOf(value) };
}

// How far behind the newest version its updates were: it says which version it trained from, and versions have a time.
async function stalenessOf(device: Device): Promise<number | null> {
  const job = device.timeline.find((entry) => entry.kind === "update")?.job;
  if (!job) return null;
  const its = device.timeline.filter((entry) => entry.job === job);
  const versions = (await newestVersions(job, STALENESS_VERSIONS)).toReversed();
  const delays = its.flatMap((entry, index) => {
    if (entry.kind !== "update") return [];
    const near = [its[index + 1], its[index - 1], its[index + 2]].find((other) => other?.kind === "evaluation");
    const base = Number(near?.what.replace("version ", ""));
    const newest = versions.find((version) => version.at <= entry.at)?.version;
    return newest === undefined || Number.isNaN(base) ? [] : [Math.max(0, newest - base)];
  });
  return delays.length ? delays.reduce((a, b) => a + b, 0) / delays.length : null;
}

function figures(device: Device, verdicts: Verdict[], staleness: number | null): Figure[] {
  const tasks = Object.values(device.tasks);
  const accepted = tasks.reduce((sum, task) => sum + task.accepted, 0);
  const rejected = tasks.reduce((sum, task) => sum + Object.values(task.rejected).reduce((a, b) => a + b, 0), 0);
  const sizes = verdicts.filter((verdict) => verdict.bytes !== null);
  const newest = verdicts.find((verdict) => verdict.verdict === "accepted");
  const sent = sizes.reduce((sum, verdict) => sum + (verdict.bytes ?? 0), 0);
  return [
    { label: "Updates accepted", value: count(accepted) },
    { label: "Rejected", value: count(rejected), tone: rejected ? "warn" : undefined },
    {
      label: "Bytes an update",
      value: sizes.length ? bytes(sent / sizes.length) : "–",
      note: sizes.length ? `${bytes(sent)} in the last ${count(sizes.length)}` : undefined,
    },
    {
      label: "Staleness",
      value: staleness === null ? "–" : staleness.toFixed(1),
      unit: staleness === null ? "" : "versions",
      note: staleness === null ? "" : "behind, on average lately",
    },
    {
      label: "Last accepted",
      value: newest ? <Since at={newest.at} /> : "–",
      note: newest?.job,
    },
  ];
}

function Why({ of }: { of: Because[] }) {
  return (
    <ul class="why" aria-label="Why it trains or does not">
      {of.map((because) => (
        <li key={because.job} class={because.training ? "training" : ""}>
          <Icon name={because.training ? "check" : "note"} />
          <p>
            {because.job && (
              <>
                <a href={href(["jobs", because.job])}>{because.job}</a>:{" "}
              </>
            )}
            {because.text}
          </p>
        </li>
      ))}
    </ul>
  );
}

function Tags({ device, etag, reload }: { device: Device; etag: string | undefined; reload: () => void }) {
  const who = useStore(me);
  const [busy, setBusy] = useState(false);
  async function change(tags: string[]): Promise<void> {
    setBusy(true);
    await attempt(() => put(`/devices/${segment(device.device)}/tags`, { tags }, etag), "Tags saved.");
    setBusy(false);
    reload();
  }
  return <TagEditor tags={device.tags} editable={may(who, "operator")} busy={busy} onChange={(tags) => void change(tags)} />;
}
