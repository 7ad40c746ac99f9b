// A table of very many rows of which only those in sight are elements. Rows come in windows from the server.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

interface VirtualProps {
  label: string;
  total: number;
  rowHeight: number;
  columns: string;
  head: ComponentChildren;
  row: (index: number) => ComponentChildren; // the cells of a row, also of one that is not here yet
  onWindow: (first: number, last: number) => void;
  resetKey: string; // another list: back to its begin
}

const SPARE_ROWS = 8; // above and below, so that a step of the wheel meets rows

export function Virtual({ label, total, rowHeight, columns, head, row, onWindow, resetKey }: VirtualProps) {
  const place = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);

  useEffect(() => {
    const element = place.current;
    if (!element) return;
    const observer = new ResizeObserver(() => setHeight(element.clientHeight));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    place.current?.scrollTo({ top: 0 });
    setTop(0);
  }, [resetKey]);

  const first = Math.max(0, Math.floor(top / rowHeight) - SPARE_ROWS);
  const last = Math.min(total, Math.ceil((top + height) / rowHeight) + SPARE_ROWS);
  useEffect(() => onWindow(first, last), [first, last, resetKey]);

  const rows = [];
  for (let index = first; index < last; index += 1) {
    rows.push(
      <div
        key={index}
        class={`row ${columns}`}
        role="row"
        aria-rowindex={index + 2}
        style={{ top: `${index * rowHeight}px`, height: `${rowHeight}px` }}
      >
        {row(index)}
      </div>,
    );
  }
  return (
    <div
      ref={place}
      class="virtual"
      role="table"
      aria-label={label}
      aria-rowcount={total + 1}
      tabIndex={0}
      onScroll={(event) => setTop(event.currentTarget.scrollTop)}
    >
      <div role="rowgroup" class="virtual-head">
        <div class={`row ${columns}`} role="row" aria-rowindex={1}>
          {head}
        </div>
      </div>
      <div role="rowgroup" class="virtual-body" style={{ height: `${total * rowHeight}px` }}>
        {rows}
      </div>
    </div>
  );
}
