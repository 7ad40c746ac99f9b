// One line that says what an action did, or why it was refused.
import { Problem } from "./api";
import { Store } from "./store";

export interface Notice {
  text: string;
  bad: boolean;
}

const SHOWN_MS = 6000;
let timer = 0;

export const notice = new Store<Notice | null>(null);

export function tell(text: string, bad = false): void {
  notice.set({ text, bad });
  window.clearTimeout(timer);
  if (!bad) timer = window.setTimeout(() => notice.set(null), SHOWN_MS);
}

// Do something that may be refused; true when it was done.
export async function attempt(action: () => Promise<unknown>, done: string): Promise<boolean> {
  try {
    await action();
    tell(done);
    return true;
  } catch (error) {
    tell(error instanceof Problem ? error.message : String(error), true);
    return false;
  }
}
