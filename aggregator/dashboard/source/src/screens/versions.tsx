// Versions of a job: lineage, figures, the models to take home.
import { get, getMarked, segment } from "../api";
import { count } from "../format";
import { Empty, Loaded } from "../parts/loaded";
import { Choice } from "../parts/select";
import { about, useResource } from "../resource";
import { go } from "../route";
import type { Job, Version } from "../types";
import { Head } from "./head";
import { VersionTable } from "./versiontable";

const SHOWN = 200;

export function Versions({ name }: { name?: string }) {
  const jobs = useResource("jobs", (signal) => get<{ jobs: Job[] }>("/jobs", { limit: 1000 }, signal), about("job"));
  return (
    <Loaded from={jobs}>
      {({ jobs: found }) => {
        const order = [...found].sort((a, b) => b.created_at - a.created_at);
        const chosen = name ?? order[0]?.name;
        return chosen === undefined ? (
          <>
            <Head title="Versions" />
            <Empty title="No version yet">
              <p>A job makes a version of each buffer of updates. There is no job so far.</p>
            </Empty>
          </>
        ) : (
          <OfJob key={chosen} name={chosen} names={order.map((job) => job.name)} />
        );
      }}
    </Loaded>
  );
}

interface Seen {
  job: Job;
  etag: string | undefined;
  versions: Version[];
  total: number;
}

function OfJob({ name, names }: { name: string; names: string[] }) {
  const seen = useResource<Seen>(`versions ${name}`, () => read(name), (event) => [event.data["job"], event.data["name"]].includes(name));
  return (
    <>
      <Head title="Versions" note="Each is made of the one before and a buffer of updates, and never changes.">
        <Choice
          label="Job"
          plain
          value={name}
          options={names.map((option) => ({ value: option, text: option }))}
          onChange={(chosen) => go(["jobs", chosen, "versions"])}
        />
      </Head>
      <Loaded from={seen}>
        {({ job, etag, versions, total }) => (
          <>
            <VersionTable job={job} etag={etag} versions={versions} reload={seen.reload} />
            {total > versions.length && (
              <p class="quiet footnote">
                The newest {count(versions.length)} of {count(total)}. All of them: <code>fedfleet version list {name}</code>
              </p>
            )}
          </>
        )}
      </Loaded>
    </>
  );
}

async function read(name: string): Promise<Seen> {
  const path = `/jobs/${segment(name)}`;
  const [{ value, etag }, { versions, total }] = await Promise.all([
    getMarked<Job>(path),
    get<{ versions: Version[]; total: number }>(`${path}/versions`, { order: "newest", limit: SHOWN }),
  ]);
  return { job: value, etag, versions, total };
}
