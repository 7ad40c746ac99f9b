// Light, dark, or as the system says; the choice is kept in this browser.
import { Store } from "./store";

export type Theme = "auto" | "light" | "dark";
const KEY = "fedfleet.theme";
const system = matchMedia("(prefers-color-scheme: dark)");

export const theme = new Store<Theme>(read());
export const dark = new Store<boolean>(isDark());

function read(): Theme {
  const kept = localStorage.getItem(KEY);
  return kept === "light" || kept === "dark" ? kept : "auto";
}

function isDark(): boolean {
  return theme.value === "dark" || (theme.value === "auto" && system.matches);
}

export function choose(value: Theme): void {
  if (value === "auto") localStorage.removeItem(KEY);
  else localStorage.setItem(KEY, value);
  theme.set(value);
  apply();
}

export function apply(): void {
  document.documentElement.dataset["theme"] = isDark() ? "dark" : "light";
  dark.set(isDark());
}

system.addEventListener("change", apply);
