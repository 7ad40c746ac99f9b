// What is shown while something is read, when it cannot be, and when there is none of it.
import type { ComponentChildren } from "preact";
import type { Resource } from "../resource";
import { Icon } from "./icon";

export function Loaded<T>({ from, children }: { from: Resource<T>; children: (value: T) => ComponentChildren }) {
  const { value, problem, reload } = from;
  if (value === null) {
    if (problem === null) return <Skeleton />;
    return (
      <div class="empty" role="alert">
        <Icon name="bad" />
        <h2>{problem.code === "forbidden" ? "Not for your role" : "This could not be read"}</h2>
        <p>{problem.message}</p>
        <button type="button" class="button" onClick={reload}>
          Try again
        </button>
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
