// The page: who is there, where they are, and the frame around every screen.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { get, Problem } from "./api";
import { connect, disconnect } from "./live";
import { Loaded } from "./parts/loaded";
import { NoticeLine } from "./parts/notice";
import { Shell } from "./parts/shell";
import { type Route, route } from "./route";
import { Audit } from "./screens/audit";
import { DeviceScreen } from "./screens/device";
import { Devices } from "./screens/devices";
import { Events } from "./screens/events";
import { JobScreen } from "./screens/job";
import { Jobs } from "./screens/jobs";
import { NewJob } from "./screens/newjob";
import { Overview } from "./screens/overview";
import { SignIn } from "./screens/signin";
import { Updates } from "./screens/updates";
import { Versions } from "./screens/versions";
import { me, signedOut, token } from "./session";
import { useStore } from "./store";
import type { Me } from "./types";

export function App() {
  const why = useStore(signedOut);
  const who = useStore(me);
  const key = useStore(token);
  const [problem, setProblem] = useState<Problem | null>(null);

  async function enter(): Promise<void> {
    setProblem(null);
    try {
      me.set(await get<Me>("/me"));
      connect();
    } catch (error) {
      setProblem(error instanceof Problem ? error : new Problem(0, "bug", String(error)));
    }
  }
  useEffect(() => {
    if (why === null) void enter();
    else disconnect();
  }, [why, key]);

  if (why !== null) return <SignIn why={why} />;
  if (who === null) {
    return (
      <main class="alone">
        <Loaded from={{ value: null, problem, reload: () => void enter() }} back={{ href: "#/", word: "Overview" }}>
          {() => null}
        </Loaded>
      </main>
    );
  }
  return (
    <Shell who={who}>
      <Screen />
      <NoticeLine />
    </Shell>
  );
}

function Screen() {
  const current = useStore(route);
  const main = useRef<HTMLElement>(null);
  const { title, screen } = found(current);
  const place = current.path.join("/");
  const before = useRef(place);
  useEffect(() => {
    document.title = `${title} · fedfleet`;
    if (before.current === place) return;
    before.current = place;
    window.scrollTo(0, 0);
    main.current?.focus(); // who hears the page hears that it changed
  }, [place, title]);
  return (
    <main id="main" ref={main} tabIndex={-1} aria-label={title}>
      {screen}
    </main>
  );
}

function found({ path }: Route): { title: string; screen: ComponentChildren } {
  const [section = "overview", name, part] = path;
  switch (section) {
    case "overview":
      return { title: "Overview", screen: <Overview /> };
    case "devices":
      return name
        ? { title: name, screen: <DeviceScreen key={name} name={name} /> }
        : { title: "Devices", screen: <Devices /> };
    case "jobs":
      if (name && part === "versions") return { title: `Versions of ${name}`, screen: <Versions key={name} name={name} /> };
      return name
        ? { title: name, screen: <JobScreen key={name} name={name} /> }
        : { title: "Jobs", screen: <Jobs /> };
    case "new-job":
      return { title: "New job", screen: <NewJob /> };
    case "versions":
      return { title: "Versions", screen: <Versions /> };
    case "updates":
      return { title: "Updates", screen: <Updates /> };
    case "events":
      return { title: "Events", screen: <Events /> };
    case "audit":
      return { title: "Audit", screen: <Audit /> };
  }
  return {
    title: "Not found",
    screen: (
      <div class="empty">
        <h1>There is no such page</h1>
        <p>
          <a href="#/">Go to the overview</a>
        </p>
      </div>
    ),
  };
}
