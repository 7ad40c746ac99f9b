// What can be done with a job, each after a question. The ETag sees to it that nobody overrules what they did not see.
import { ask, post, segment } from "../api";
import { attempt } from "../notice";
import { type ActionText, Actions } from "../parts/actions";
import { go } from "../route";
import { may, me } from "../session";
import { useStore } from "../store";
import type { Job } from "../types";

type Action = "pause" | "resume" | "stop" | "delete";

const TEXTS: Record<Action, ActionText> = {
  pause: {
    word: "Pause",
    title: "Pause this job?",
    text: "No more devices get a place. Those that train finish, and their updates count. A deadline runs on.",
    done: "is paused.",
    danger: false,
  },
  resume: {
    word: "Resume",
    title: "Resume this job?",
    text: "Devices that are willing get places again.",
    done: "goes on.",
    danger: false,
  },
  stop: {
    word: "Stop",
    title: "Stop this job for good?",
    text: "It ends now and cannot be started again. What is buffered becomes a last version; devices remove what they hold for it. Its versions and models stay.",
    done: "has ended.",
    danger: true,
  },
  delete: {
    word: "Delete",
    title: "Delete this job with all its versions and models?",
    text: "Nothing of it can be brought back. Its name stays taken.",
    done: "is deleted.",
    danger: true,
  },
};

export function JobActions({ job, etag, reload }: { job: Job; etag: string | undefined; reload: () => void }) {
  const who = useStore(me);
  const actions: Action[] = job.state === "ended" ? ["delete"] : [job.state === "paused" ? "resume" : "pause", "stop"];
  const allowed = actions.filter((action) => may(who, action === "delete" ? "admin" : "operator"));

  async function act(action: Action): Promise<void> {
    const path = `/jobs/${segment(job.name)}`;
    const send = (): Promise<unknown> =>
      action === "delete" ? ask(path, { method: "DELETE", etag }) : post(`${path}/${action}`, undefined, etag);
    if ((await attempt(send, `${job.name} ${TEXTS[action].done}`)) && action === "delete") go(["jobs"]);
    else reload();
  }

  if (allowed.length === 0) {
    return <span class="quiet">{job.state === "ended" ? "" : `Pausing and stopping need the role operator; yours is ${who?.role ?? ""}.`}</span>;
  }
  return <Actions actions={allowed} texts={TEXTS} name={job.name} act={act} />;
}
