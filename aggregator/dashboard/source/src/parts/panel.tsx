// A titled part of a screen.
import type { ComponentChildren } from "preact";

interface PanelProps {
  title: string;
  note?: ComponentChildren;
  actions?: ComponentChildren;
  flush?: boolean; // a table reaches the edges
  lined?: boolean; // a line under the title, as tables have it
  urgent?: boolean; // first where there is one column
  children: ComponentChildren;
}

export function Panel({ title, note, actions, flush = false, lined = false, urgent = false, children }: PanelProps) {
  return (
    <section class={`panel${flush ? " flush" : ""}${lined ? " lined" : ""}${urgent ? " urgent" : ""}`} aria-label={title}>
      <header>
        <h2>{title}</h2>
        {note && <p class="quiet">{note}</p>}
        {actions && <div class="actions">{actions}</div>}
      </header>
      {children}
    </section>
  );
}
