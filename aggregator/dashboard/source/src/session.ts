// Who is at the page: a token, kept until the tab is closed, and what the server says it may do.
import { Store } from "./store";
import type { Me, Role } from "./types";

const KEY = "fedfleet.token";
const ROLES: Role[] = ["viewer", "operator", "admin"];

export const token = new Store<string>(sessionStorage.getItem(KEY) ?? "");
export const me = new Store<Me | null>(null);
export const signedOut = new Store<string | null>(null); // why the server wants a token, null while it is content

export function signIn(value: string): void {
  sessionStorage.setItem(KEY, value);
  token.set(value);
  signedOut.set(null);
}

export function signOut(why: string): void {
  sessionStorage.removeItem(KEY);
  token.set("");
  me.set(null);
  signedOut.set(why);
}

export function may(who: Me | null, role: Role): boolean {
  return who !== null && ROLES.indexOf(who.role) >= ROLES.indexOf(role);
}
