// Verdicts on the newest updates.
import { get } from "../api";
import { bytes, clock, count, moment } from "../format";
import { Empty, Loaded } from "../parts/loaded";
import { Choice } from "../parts/select";
import { Status } from "../parts/status";
import { about, useResource } from "../resource";
import { amend, href, route } from "../route";
import { useStore } from "../store";
import type { Verdict } from "../types";
import { Head } from "./head";

const SHOWN = 300;

export function Updates() {
  const { params } = useStore(route);
  const { verdict, job, device } = params;
  const seen = useResource(
    `updates ${verdict} ${job} ${device}`,
    (signal) => get<{ updates: Verdict[]; total: number }>("/updates", { verdict, job, device, limit: SHOWN }, signal),
    about("update", "rejection"),
  );
  const known = seen.value?.updates ?? [];
  const narrowed = Boolean(verdict || job || device);
  return (
    <>
      <Head title="Updates" note="Verdicts on the newest thousand, the newest first. A rejected one left the model untouched." />
      <div class="filters" role="group" aria-label="Which updates">
        <Choice
          label="Verdict"
          value={verdict ?? ""}
          options={[
            { value: "", text: "any" },
            { value: "accepted", text: "accepted" },
            { value: "rejected", text: "rejected" },
          ]}
          onChange={(value) => amend({ verdict: value })}
        />
        <Choice label="Job" value={job ?? ""} options={options(known.map((v) => v.job), job)} onChange={(value) => amend({ job: value })} />
        {device && (
          <span class="chip">
            Device {device}
            <button type="button" class="link" onClick={() => amend({ device: undefined })}>
              Clear
            </button>
          </span>
        )}
      </div>
      <Loaded from={seen}>
        {({ updates, total }) =>
          updates.length === 0 ? (
            <Empty title={narrowed ? "No update matches" : "No update yet"}>
              <p>{narrowed ? "Take a filter away." : "Updates show up here as devices send them."}</p>
            </Empty>
          ) : (
            <>
              <Table updates={updates} />
              {total > updates.length && (
                <p class="quiet footnote">
                  The newest {count(updates.length)} of {count(total)}.
                </p>
              )}
            </>
          )
        }
      </Loaded>
    </>
  );
}

function options(values: string[], chosen: string | undefined): { value: string; text: string }[] {
  const names = [...new Set([...values, ...(chosen ? [chosen] : [])])].sort();
  return [{ value: "", text: "any" }, ...names.map((value) => ({ value, text: value }))];
}

function Table({ updates }: { updates: Verdict[] }) {
  return (
    <div class="scroller" tabIndex={0} role="region" aria-label="Updates">
      <table class="roomy">
        <thead>
          <tr>
            <th>Time</th>
            <th>Device</th>
            <th class="wide-only">Job</th>
            <th>Verdict</th>
            <th>Reason</th>
            <th class="right">Bytes</th>
          </tr>
        </thead>
        <tbody>
          {updates.map((update) => (
            <tr key={update.number}>
              <td class="num quiet" title={moment(update.at)}>
                {clock(update.at)}
              </td>
              <td class="clip">
                <a href={href(["devices", update.device])}>{update.device}</a>
              </td>
              <td class="clip wide-only">
                <a href={href(["jobs", update.job])}>{update.job}</a>
              </td>
              <td>
                <Status of={update.verdict} />
              </td>
              <td class="wrap">
                {update.code && <code>{update.code}</code>} {update.reason}
              </td>
              <td class="right num">{bytes(update.bytes)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
