// Line icons of 16 px; they stand beside words and are hidden from screen readers.
const PATHS = {
  overview: "M2 13V9h3v4M6.5 13V3h3v10M11 13V6h3v7",
  devices: "M3 3h10v7H3zM6 13h4M8 10v3",
  jobs: "M3 4h10M3 8h7M3 12h5M12 10.5l2 1.5-2 1.5z",
  versions: "M5 3v10M5 5.5c0 3 6 1.5 6 5M11 10.5v2.5M5 3.5h0M11 13h0",
  updates: "M8 13V4M4.5 7.5 8 4l3.5 3.5M3 13h10",
  events: "M2 8h3l2-5 2.5 10 2-5H14",
  audit: "M4 2.5h8v11H4zM6 6h4M6 8.5h4M6 11h2",
  search: "M7 11.5a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9zM10.5 10.5 14 14",
  sun: "M8 5a3 3 0 1 0 0 6 3 3 0 0 0 0-6zM8 1.5v1.5M8 13v1.5M1.5 8H3M13 8h1.5M3.4 3.4l1 1M11.6 11.6l1 1M12.6 3.4l-1 1M4.4 11.6l-1 1",
  moon: "M13 9.5A5.5 5.5 0 0 1 6.5 3 5.5 5.5 0 1 0 13 9.5z",
  auto: "M8 2.5a5.5 5.5 0 1 0 0 11zM8 2.5a5.5 5.5 0 0 1 0 11",
  close: "M4 4l8 8M12 4l-8 8",
  check: "M3 8.5 6.5 12 13 4.5",
  bad: "M8 2 14.5 13.5h-13zM8 6.5v3.5M8 11.8v.2",
  note: "M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11zM8 7.5V11M8 5.2v.1",
  down: "M8 3v8M4.5 7.5 8 11l3.5-3.5M3 13.5h10",
  star: "M8 2.2l1.8 3.7 4 .5-2.9 2.8.7 4L8 11.3l-3.6 1.9.7-4L2.2 6.4l4-.5z",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  );
}
