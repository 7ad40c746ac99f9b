// The head of a screen: what it is, one line about it, what can be done.
import type { ComponentChildren } from "preact";

interface HeadProps {
  title: ComponentChildren;
  note?: ComponentChildren;
  back?: { href: string; word: string };
  children?: ComponentChildren;
}

export function Head({ title, note, back, children }: HeadProps) {
  return (
    <header class="head">
      <div>
        {back && (
          <a class="back" href={back.href}>
            {back.word}
          </a>
        )}
        <h1>{title}</h1>
        {note && <p class="quiet">{note}</p>}
      </div>
      {children && <div class="actions">{children}</div>}
    </header>
  );
}
