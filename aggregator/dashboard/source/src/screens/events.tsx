// What happens, live.
import { get } from "../api";
import { clock, moment } from "../format";
import { Empty, Loaded } from "../parts/loaded";
import { useResource } from "../resource";
import { amend, href, route } from "../route";
import { useStore } from "../store";
import type { FleetEvent } from "../types";
import { type Told, tellEvent } from "../tell";
import { Head } from "./head";

const KINDS = ["job", "version", "device", "update", "rejection", "audit"];
const SHOWN = 200;

export function Events() {
  const { params } = useStore(route);
  const chosen = params["kinds"] ? params["kinds"].split(",") : KINDS;
  const seen = useResource(
    `events ${chosen.join()}`,
    (signal) => get<{ events: FleetEvent[] }>("/events/recent", { kinds: chosen.join(), limit: SHOWN }, signal),
    (event) => chosen.includes(event.kind),
  );
  const toggle = (kind: string): void => {
    const next = KINDS.filter((other) => (other === kind) !== chosen.includes(other));
    amend({ kinds: next.length === KINDS.length || next.length === 0 ? undefined : next.join() });
  };
  return (
    <>
      <Head title="Events" note="What happens in the fleet, as it happens; the newest first." />
      <div class="filters" role="group" aria-label="Which kinds">
        {KINDS.map((kind) => (
          <label key={kind} class="check">
            <input type="checkbox" checked={chosen.includes(kind)} onChange={() => toggle(kind)} />
            {kind}
          </label>
        ))}
      </div>
      <Loaded from={seen}>
        {({ events }) =>
          events.length === 0 ? (
            <Empty title="Nothing happened yet">
              <p>Since the server was started, or of the kinds you chose.</p>
            </Empty>
          ) : (
            <ol class="timeline event-list">
              {events.map((event) => (
                <Line key={event.id} event={event} />
              ))}
            </ol>
          )
        }
      </Loaded>
    </>
  );
}

function Line({ event }: { event: FleetEvent }) {
  const told: Told = tellEvent(event);
  return (
    <li class={`tone-${told.tone}`}>
      {told.at ? (
        <time class="num quiet" dateTime={new Date(1000 * told.at).toISOString()} title={moment(told.at)}>
          {clock(told.at)}
        </time>
      ) : (
        <span class="num quiet">–</span>
      )}
      <p>
        <b>{event.kind}</b> {told.text}
      </p>
      <span class="links">
        {told.device && <a href={href(["devices", told.device])}>{told.device}</a>}
        {told.job && <a href={href(["jobs", told.job])}>{told.job}</a>}
      </span>
    </li>
  );
}
