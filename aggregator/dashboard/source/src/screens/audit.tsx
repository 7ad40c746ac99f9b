// Who changed what.
import { get } from "../api";
import { moment } from "../format";
import { Empty, Loaded } from "../parts/loaded";
import { about, useResource } from "../resource";
import type { AuditEntry } from "../types";
import { Head } from "./head";

const SHOWN = 500;

export function Audit() {
  const seen = useResource(
    "audit",
    (signal) => get<{ audit: AuditEntry[] }>("/audit", { limit: SHOWN }, signal),
    about("audit"),
  );
  return (
    <>
      <Head title="Audit" note="The changes that people made, the newest first." />
      <Loaded from={seen}>
        {({ audit }) =>
          audit.length === 0 ? (
            <Empty title="Nobody changed anything yet" />
          ) : (
            <div class="scroller" tabIndex={0} role="region" aria-label="Changes">
              <table class="roomy">
                <thead>
                  <tr>
                    <th>When</th>
                    <th>Who</th>
                    <th>Role</th>
                    <th>Did</th>
                    <th>To</th>
                  </tr>
                </thead>
                <tbody>
                  {audit.map((entry) => (
                    <tr key={entry.number}>
                      <td class="num quiet">{moment(entry.at)}</td>
                      <td class="clip">{entry.actor}</td>
                      <td>{entry.role}</td>
                      <td>{entry.action.replaceAll("_", " ")}</td>
                      <td class="wrap">
                        <code>{entry.path.replace("/api/v1", "")}</code>
                      </td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          )
        }
      </Loaded>
    </>
  );
}
