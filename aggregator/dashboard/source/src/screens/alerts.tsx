// What needs a person, the worst first.
import { Icon } from "../parts/icon";
import { href } from "../route";
import type { Alert } from "../types";

export function Alerts({ of }: { of: Alert[] }) {
  if (of.length === 0) {
    return (
      <p class="all-well">
        <Icon name="check" /> All is well.
      </p>
    );
  }
  return (
    <ul class="alerts">
      {of.map((alert) => (
        <li key={alert.text} class={alert.level}>
          <Icon name={alert.level === "note" ? "note" : "bad"} />
          <span>
            {alert.text} <AlertLink alert={alert} />
          </span>
        </li>
      ))}
    </ul>
  );
}

function AlertLink({ alert }: { alert: Alert }) {
  if (alert.job) return <a href={href(["jobs", alert.job])}>Open the job</a>;
  if (alert.state || alert.doing) return <a href={href(["devices"], { state: alert.state, doing: alert.doing })}>Show them</a>;
  return null;
}
