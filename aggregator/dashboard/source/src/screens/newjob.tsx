// A new job. The server checks what is typed as starting it would, and says why not.
import { useEffect, useMemo, useState } from "preact/hooks";
import { ask, get, post, Problem } from "../api";
import { bytes, count, short } from "../format";
import { attempt, tell } from "../notice";
import { Icon } from "../parts/icon";
import { Loaded } from "../parts/loaded";
import { Panel } from "../parts/panel";
import { about, useResource } from "../resource";
import { go } from "../route";
import { may, me } from "../session";
import { useStore } from "../store";
import type { Bundle, Device } from "../types";
import { type Draft, EMPTY, specOf, STRATEGIES } from "../draft";
import { Field } from "../parts/field";
import { Head } from "./head";

const TYPING_MS = 300;

type Check = { state: "none" } | { state: "good"; parameters: number } | { state: "bad"; problem: Problem };

export function NewJob() {
  const who = useStore(me);
  const known = useResource("new job", read, about("audit"));
  if (!may(who, "operator")) {
    return (
      <>
        <Head title="New job" back={{ href: "#/jobs", word: "Jobs" }} />
        <div class="empty">
          <h2>Not for your role</h2>
          <p>Starting a job needs the role operator; yours is {who?.role}.</p>
        </div>
      </>
    );
  }
  return (
    <>
      <Head title="New job" back={{ href: "#/jobs", word: "Jobs" }} note="The server checks every field as you type; nothing starts before you say so." />
      <Loaded from={known}>{(found) => <Form {...found} reload={known.reload} />}</Loaded>
    </>
  );
}

const DEVICES_LOOKED_AT = 100; // for the names of data sets to choose from

async function read(signal: AbortSignal): Promise<{ bundles: Bundle[]; datasets: string[] }> {
  const [{ bundles }, { devices }] = await Promise.all([
    get<{ bundles: Bundle[] }>("/bundles", { limit: 1000 }, signal),
    get<{ devices: Device[] }>("/devices", { limit: DEVICES_LOOKED_AT }, signal),
  ]);
  const names = devices.flatMap((device) => device.info?.datasets.map((set) => set.name) ?? []);
  return { bundles, datasets: [...new Set(names)].sort() };
}

function useCheck(draft: Draft): Check {
  const [check, setCheck] = useState<Check>({ state: "none" });
  const spec = useMemo(() => specOf(draft), [draft]);
  useEffect(() => {
    if (!draft.name || !draft.bundle || !draft.dataset) {
      setCheck({ state: "none" });
      return;
    }
    if (spec instanceof Error) {
      setCheck({ state: "bad", problem: new Problem(0, "bad_json", `more fields: ${spec.message}`) });
      return;
    }
    let current = true;
    const timer = window.setTimeout(async () => {
      try {
        const { parameters } = await post<{ parameters: number }>("/jobs/validate", spec);
        if (current) setCheck({ state: "good", parameters });
      } catch (error) {
        if (current && error instanceof Problem) setCheck({ state: "bad", problem: error });
      }
    }, TYPING_MS);
    return () => {
      current = false;
      window.clearTimeout(timer);
    };
  }, [spec]);
  return check;
}

interface FormProps {
  bundles: Bundle[];
  datasets: string[];
  reload: () => void;
}

function Form({ bundles, datasets, reload }: FormProps) {
  const [draft, setDraft] = useState<Draft>({ ...EMPTY, bundle: bundles[0]?.digest ?? "" });
  const check = useCheck(draft);
  const [busy, setBusy] = useState(false);
  const set = (name: keyof Draft) => (value: string) => setDraft({ ...draft, [name]: value });
  const wrong = (field: string): string => (check.state === "bad" && concerns(check.problem, field) ? check.problem.message : "");

  async function start(): Promise<void> {
    setBusy(true);
    const done = await attempt(() => post("/jobs", specOf(draft)), `${draft.name} has started.`);
    setBusy(false);
    if (done) go(["jobs", draft.name]);
  }

  const text = (name: keyof Draft, label: string, hint: string) => (
    <Field label={label} hint={hint} problem={wrong(name)} value={draft[name]} onInput={set(name)} />
  );
  const number = (name: keyof Draft, label: string, hint: string, field: string) => (
    <Field label={label} hint={hint} problem={wrong(field)} value={draft[name]} onInput={set(name)} numeric />
  );
  return (
    <form
      class="form"
      onSubmit={(event) => {
        event.preventDefault();
        if (check.state === "good" && !busy) void start();
      }}
    >
      <Panel title="What is trained">
        <BundleField bundles={bundles} value={draft.bundle} onChange={set("bundle")} reload={reload} problem={wrong("bundle")} />
        {text("name", "Name", "1 to 64 of a-z, 0-9 and -; used once for ever.")}
        <Field
          label="Data set"
          hint="Devices that have declared one of this name take part."
          problem={wrong("dataset")}
          value={draft.dataset}
          options={datasets}
          onInput={set("dataset")}
        />
        {text("cohort", "Cohort", "Devices that get the offer.")}
      </Panel>
      <Panel title="How updates become versions">
        <label class="field">
          <span>Strategy</span>
          <select class="input" value={draft.strategy} onChange={(event) => set("strategy")(event.currentTarget.value)}>
            {STRATEGIES.map((strategy) => (
              <option key={strategy.name} value={strategy.name}>
                {strategy.name} – {strategy.text}
              </option>
            ))}
          </select>
        </label>
        {number("buffer_size", "Updates a version is made of", "Empty: the strategy's.", "buffer_size")}
        {number("concurrency", "Devices that train at the same time", "Empty: the strategy's.", "concurrency")}
      </Panel>
      <Panel title="When it ends" note="The first that holds; empty means never.">
        {number("versions_max", "Versions", "", "end.versions_max")}
        {number("target_accuracy", "Accuracy", "From 0 to 1, on the devices' hold-outs.", "end.target_accuracy")}
        {number("deadline_s", "Seconds", "", "end.deadline_s")}
      </Panel>
      <Panel title="More fields" note={<>As JSON, such as <code>{'{"training": {"steps": 50}}'}</code>; they win over those above.</>}>
        <label class="field whole">
          <span class="hidden">More fields, as JSON</span>
          <textarea class="input mono" rows={3} spellcheck={false} value={draft.more} onInput={(event) => set("more")(event.currentTarget.value)} />
        </label>
      </Panel>
      <div class="form-end">
        <Verdict check={check} />
        <button type="submit" class="button primary" disabled={check.state !== "good" || busy}>
          Start the job
        </button>
      </div>
    </form>
  );
}

// The server's sentence names the field it is about.
function concerns(problem: Problem, field: string): boolean {
  const words = new RegExp(`(^|[^\\w.])(job )?${field.replace(".", "\\.")}([^\\w.]|$)`);
  return words.test(problem.message) || (field === "name" && problem.code === "exists");
}

function Verdict({ check }: { check: Check }) {
  if (check.state === "none") return <p class="quiet">Name, bundle and data set are needed.</p>;
  if (check.state === "good") {
    return (
      <p class="good-text" role="status">
        <Icon name="check" /> The server would start it: {count(check.parameters)} parameters.
      </p>
    );
  }
  return (
    <p class="field-problem" role="alert">
      {check.problem.message}
    </p>
  );
}

interface BundleFieldProps {
  bundles: Bundle[];
  value: string;
  problem: string;
  onChange: (digest: string) => void;
  reload: () => void;
}

function BundleField({ bundles, value, problem, onChange, reload }: BundleFieldProps) {
  const [busy, setBusy] = useState(false);
  async function upload(file: File): Promise<void> {
    setBusy(true);
    try {
      const response = await ask("/bundles", { method: "POST", bytes: file });
      const { digest } = (await response.json()) as { digest: string };
      onChange(digest);
      tell(`${file.name} is stored.`);
    } catch (error) {
      tell(error instanceof Problem ? error.message : String(error), true);
    }
    setBusy(false);
    reload();
  }
  return (
    <div class="field whole">
      <div class="with-upload">
      <label>
        <span>Bundle</span>
        <select class="input" aria-label="Bundle" value={value} onChange={(event) => onChange(event.currentTarget.value)}>
          {bundles.length === 0 && <option value="">none stored yet</option>}
          {value && !bundles.some((bundle) => bundle.digest === value) && <option value={value}>{short(value)}</option>}
          {bundles.map((bundle) => (
            <option key={bundle.digest} value={bundle.digest}>
              {bundle.name} – {count(bundle.parameters)} parameters, {bundle.loss}, {bytes(bundle.size)} ({short(bundle.digest)})
            </option>
          ))}
        </select>
      </label>
      <label class="upload">
        <input
          type="file"
          accept=".bundle"
          disabled={busy}
          onChange={(event) => {
            const file = event.currentTarget.files?.[0];
            if (file) void upload(file);
          }}
        />
        <span class="button">{busy ? "Uploading…" : "Upload a bundle"}</span>
      </label>
      </div>
      {problem && <small class="field-problem">{problem}</small>}
    </div>
  );
}
