// Ages that grow while they are looked at; all of them tick together.
import { moment, span } from "../format";
import { Store, useStore } from "../store";

const now = new Store<number>(Date.now() / 1000);
setInterval(() => now.set(Date.now() / 1000), 1000);

export function useNow(): number {
  return useStore(now);
}

// "just now", "5 min ago": within a sentence.
export function Since({ at }: { at: number }) {
  const seconds = Math.max(0, useNow() - at);
  return <span title={moment(at)}>{seconds < 5 ? "just now" : `${span(seconds)} ago`}</span>;
}

export function Ago({ at }: { at: number | null }) {
  const current = useNow();
  if (!at) return <span class="quiet">never</span>;
  return (
    <time class="num" dateTime={new Date(1000 * at).toISOString()} title={moment(at)}>
      {span(Math.max(0, current - at))}
    </time>
  );
}
