// The frame: where one can go, whether the page is live, who one is, light or dark.
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { link } from "../live";
import { route } from "../route";
import { may, signOut, token } from "../session";
import { useStore } from "../store";
import { choose, type Theme, theme } from "../theme";
import type { Me } from "../types";
import { Icon, type IconName } from "./icon";

const PLACES: { path: string; word: string; icon: IconName; admin?: true }[] = [
  { path: "overview", word: "Overview", icon: "overview" },
  { path: "devices", word: "Devices", icon: "devices" },
  { path: "jobs", word: "Jobs", icon: "jobs" },
  { path: "versions", word: "Versions", icon: "versions" },
  { path: "updates", word: "Updates", icon: "updates" },
  { path: "events", word: "Events", icon: "events" },
  { path: "audit", word: "Audit", icon: "audit", admin: true },
];

export function Shell({ who, children }: { who: Me; children: ComponentChildren }) {
  return (
    <div class="shell">
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          document.getElementById("main")?.focus();
        }}
      >
        Skip to the content
      </a>
      <header class="frame">
        <a class="brand" href="#/">
          <Mark />
          fedfleet
        </a>
        <Navigation who={who} />
        <div class="frame-end">
          <Live />
          <ThemeSwitch />
          <Caller who={who} />
        </div>
      </header>
      {children}
    </div>
  );
}

function Navigation({ who }: { who: Me }) {
  const { path } = useStore(route);
  const nav = useRef<HTMLElement>(null);
  const here = path[2] === "versions" ? "versions" : path[0] === "new-job" ? "jobs" : (path[0] ?? "overview");
  useEffect(() => {
    nav.current?.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [here]);
  return (
    <nav ref={nav} aria-label="Screens">
      {PLACES.filter((place) => !place.admin || may(who, "admin")).map((place) => (
        <a key={place.path} href={`#/${place.path}`} aria-current={place.path === here ? "page" : undefined}>
          <Icon name={place.icon} />
          {place.word}
        </a>
      ))}
    </nav>
  );
}

function Live() {
  const state = useStore(link);
  const word = { live: "Live", connecting: "Connecting", waiting: "Reconnecting" }[state.state];
  return (
    <span class={`live ${state.state}`} role="status" title={`Events of the server: ${word.toLowerCase()}`}>
      <i aria-hidden="true" />
      {word}
    </span>
  );
}

const THEMES: Record<Theme, { next: Theme; icon: IconName; word: string }> = {
  auto: { next: "light", icon: "auto", word: "Colours as the system has them" },
  light: { next: "dark", icon: "sun", word: "Light colours" },
  dark: { next: "auto", icon: "moon", word: "Dark colours" },
};

function ThemeSwitch() {
  const current = useStore(theme);
  const { next, icon, word } = THEMES[current];
  return (
    <button type="button" class="icon-button" aria-label={`${word}; change`} title={word} onClick={() => choose(next)}>
      <Icon name={icon} />
    </button>
  );
}

function Caller({ who }: { who: Me }) {
  const key = useStore(token);
  if (!key) return <span class="caller quiet">no token needed</span>;
  return (
    <span class="caller">
      <span class="name" title={`${who.name}, ${who.role}`}>
        {who.name} <span class="quiet">{who.role}</span>
      </span>
      <button type="button" class="link" onClick={() => signOut("")}>
        Sign out
      </button>
    </span>
  );
}

export function Mark() {
  return (
    <svg class="mark" viewBox="0 0 24 24" width="24" height="24" aria-hidden="true">
      <path d="M12 12 6.5 7M12 12l5.5-5M12 12v6.5" />
      <circle cx="12" cy="12" r="2.6" />
      <circle cx="6.5" cy="7" r="1.7" />
      <circle cx="17.5" cy="7" r="1.7" />
      <circle cx="12" cy="18.5" r="1.7" />
    </svg>
  );
}
