// What can be done with a device: give it no more work, let it work again, forget it.
import { post, segment } from "../api";
import { attempt } from "../notice";
import { type ActionText, Actions } from "../parts/actions";
import { go } from "../route";
import { may, me } from "../session";
import { useStore } from "../store";
import type { Device } from "../types";

type Action = "pause" | "resume" | "forget";

const TEXTS: Record<Action, ActionText> = {
  pause: {
    word: "Pause",
    title: "Pause this device?",
    text: "It gets no more places. What it trains now it may finish, and that update counts.",
    done: "is paused.",
    danger: false,
  },
  resume: {
    word: "Resume",
    title: "Resume this device?",
    text: "It gets places again, from its next ask on.",
    done: "works again.",
    danger: false,
  },
  forget: {
    word: "Forget",
    title: "Forget this device?",
    text: "It is taken off the list with its tags and its timeline. The updates it gave stay in the versions. Should it come back, it is a new device.",
    done: "is forgotten.",
    danger: true,
  },
};

export function DeviceActions({ device, etag, reload }: { device: Device; etag: string | undefined; reload: () => void }) {
  const who = useStore(me);
  if (!may(who, "operator")) return null;
  const actions: Action[] = [device.paused ? "resume" : "pause"];
  if (device.state !== "ready") actions.push("forget"); // a connected one would be back at once

  async function act(action: Action): Promise<void> {
    const path = `/devices/${segment(device.device)}/${action}`;
    const done = await attempt(() => post(path, undefined, etag), `${device.device} ${TEXTS[action].done}`);
    if (done && action === "forget") go(["devices"]);
    else reload();
  }

  return <Actions actions={actions} texts={TEXTS} name={device.device} act={act} />;
}
