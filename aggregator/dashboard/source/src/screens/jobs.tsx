// All jobs.
import { get } from "../api";
import { bytes, count, loss, percent } from "../format";
import { Ago } from "../parts/clock";
import { Empty, Loaded } from "../parts/loaded";
import { Status } from "../parts/status";
import { useResource } from "../resource";
import { href } from "../route";
import { may, me } from "../session";
import { useStore } from "../store";
import type { Job } from "../types";
import { Head } from "./head";

export function Jobs() {
  const who = useStore(me);
  const seen = useResource("jobs", (signal) => get<{ jobs: Job[] }>("/jobs", { limit: 1000 }, signal));
  const operator = may(who, "operator");
  return (
    <>
      <Head title="Jobs" note="A job trains one model on the devices that have its data.">
        {operator && (
          <a class="button primary" href="#/new-job">
            New job
          </a>
        )}
      </Head>
      <Loaded from={seen}>
        {({ jobs }) =>
          jobs.length === 0 ? (
            <Empty title="No job yet">
              <p>
                {operator ? <a href="#/new-job">Start one here</a> : "Somebody with the role operator starts one here"}, from a notebook with{" "}
                <code>fleet.federate(model, …)</code>, or with <code>fedfleet job start</code>.
              </p>
            </Empty>
          ) : (
            <Table jobs={[...jobs].sort((a, b) => b.created_at - a.created_at)} />
          )
        }
      </Loaded>
    </>
  );
}

function Table({ jobs }: { jobs: Job[] }) {
  return (
    <div class="scroller" tabIndex={0} role="region" aria-label="Jobs">
      <table class="roomy">
        <thead>
          <tr>
            <th>Job</th>
            <th>State</th>
            <th class="right">Version</th>
            <th class="right">Accuracy</th>
            <th class="right">Loss</th>
            <th class="right">Training</th>
            <th class="right">Updates</th>
            <th class="right">Rejected</th>
            <th class="right">Uplink</th>
            <th>Strategy</th>
            <th class="right">Started</th>
          </tr>
        </thead>
        <tbody>
          {jobs.map((job) => (
            <tr key={job.name}>
              <th scope="row">
                <a href={href(["jobs", job.name])}>{job.name}</a>
              </th>
              <td>
                <Status of={job.state} />
              </td>
              <td class="right num">{count(job.version)}</td>
              <td class="right num">{percent(job.accuracy)}</td>
              <td class="right num">{loss(job.loss)}</td>
              <td class="right num">
                {job.state === "ended" ? "–" : `${count(job.training)} of ${count(job.spec.concurrency)}`}
              </td>
              <td class="right num">{count(job.updates)}</td>
              <td class="right num">{count(Object.values(job.rejected).reduce((a, b) => a + b, 0))}</td>
              <td class="right num">{bytes(job.bytes_up)}</td>
              <td>{job.spec.strategy}</td>
              <td class="right">
                <Ago at={job.created_at} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
