// Where the page is: `#/devices/watch-7?state=lost`. All that can be shared or gone back to is in it.
import { Store } from "./store";

export interface Route {
  path: string[];
  params: Record<string, string>;
}

function parse(): Route {
  const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  return {
    path: path.split("/").filter(Boolean).map(decode),
    params: Object.fromEntries(new URLSearchParams(query)),
  };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export const route = new Store<Route>(parse());
window.addEventListener("hashchange", () => route.set(parse()));

export function href(path: string[], params: Record<string, string | undefined> = {}): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) if (value) query.set(name, value);
  const text = query.toString();
  return `#/${path.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
}

export function go(path: string[], params: Record<string, string | undefined> = {}): void {
  location.hash = href(path, params);
}

// Change parameters in place: typing a search does not fill the history.
export function amend(changes: Record<string, string | undefined>): void {
  const { path, params } = route.value;
  history.replaceState(null, "", href(path, { ...params, ...changes }));
  route.set(parse());
}
