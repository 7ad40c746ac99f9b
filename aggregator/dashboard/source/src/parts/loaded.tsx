// What is shown while something is read, when it cannot be, and when there is none of it.
import type { ComponentChildren } from "preact";
import type { Resource } from "../resource";
import { Icon } from "./icon";

const TITLES: Record<string, string> = {
  forbidden: "Not for your role",
  not_found: "Not here",
  unreachable: "No answer",
};

interface LoadedProps<T> {
  from: Resource<T>;
  back?: { href: string; word: string }; // of a screen that has no head before it is read
  children: (value: T) => ComponentChildren;
}

export function Loaded<T>({ from, back, children }: LoadedProps<T>) {
  const { value, problem, reload } = from;
  const Heading = back ? "h1" : "h2";
  if (value === null) {
    if (problem === null) return <Skeleton />;
    return (
      <div class="empty" role="alert">
        <Icon name="bad" />
        <Heading>{TITLES[problem.code] ?? "This could not be read"}</Heading>
        <p>{problem.message}</p>
        {back && problem.code === "not_found" ? (
          <a class="button" href={back.href}>
            Show all {back.word.toLowerCase()}
          </a>
        ) : (
          <button type="button" class="button" onClick={reload}>
            Try again
          </button>
        )}
      </div>
    );
  }
  return (
    <>
      {problem && (
        <p class="stale" role="status">
          <Icon name="bad" /> Shown as last read. {problem.message}
        </p>
      )}
      {children(value)}
    </>
  );
}

export function Skeleton() {
  return (
    <div class="skeleton" role="status" aria-label="Loading">
      <i />
      <i />
      <i />
    </div>
  );
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <h2>{title}</h2>
      {children}
    </div>
  );
}
