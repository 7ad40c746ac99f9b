// An event as a sentence.
import { bytes, percent, plural } from "./format";
import type { FleetEvent } from "./types";

export interface Told {
  text: string;
  tone: string;
  at: number | null;
  device: string;
  job: string;
}

export function tellEvent({ kind, data }: FleetEvent): Told {
  const text = (name: string): string => (typeof data[name] === "string" ? (data[name] as string) : "");
  const number = (name: string): number | null => (typeof data[name] === "number" ? (data[name] as number) : null);
  const told: Told = { text: "", tone: "quiet", at: number("at"), device: text("device"), job: text("job") };
  switch (kind) {
    case "job": {
      const reason = text("reason");
      return { ...told, job: text("name"), tone: "busy", text: `is ${text("state")}${reason ? `: ${reason}` : ""}` };
    }
    case "version": {
      const accuracy = number("accuracy");
      const figure = accuracy === null ? "" : `, accuracy ${percent(accuracy)} as last measured`;
      return { ...told, tone: "good", text: `v${number("version")} of ${plural(number("updates") ?? 0, "update")}${figure}` };
    }
    case "device":
      return { ...told, text: deviceText(text, data) };
    case "update":
      return { ...told, text: `accepted, ${bytes(number("bytes"))}` };
    case "rejection":
      return { ...told, tone: "bad", text: `${text("code")}: ${text("reason")}` };
    case "audit":
      return { ...told, tone: "busy", text: `${text("actor")} (${text("role")}): ${text("action").replaceAll("_", " ")}, ${text("path")}` };
  }
  return told;
}

function deviceText(text: (name: string) => string, data: Record<string, unknown>): string {
  const [kind, what, detail] = [text("kind"), text("what"), text("detail")];
  if (kind === "tags") return `tagged ${(data["tags"] as string[]).join(", ") || "with nothing"}`;
  if (kind === "birth") return "connected";
  if (kind === "gone") return what === "lost" ? "lost" : "disconnected";
  if (kind === "ask") return `asks for a place, holding ${what}`;
  return [what, detail].filter(Boolean).join(": ");
}
