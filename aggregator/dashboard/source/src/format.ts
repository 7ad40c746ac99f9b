// Numbers and times as people read them: few digits, units, the same width in a column.

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });
export const NONE = "–";

export function count(value: number | null | undefined): string {
  return value == null ? NONE : WHOLE.format(value);
}

export function significant(value: number | null | undefined, digits = 3): string {
  if (value == null) return NONE;
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
}

export function loss(value: number | null | undefined): string {
  return value == null ? NONE : value.toFixed(3);
}

export function percent(share: number | null | undefined, digits = 1): string {
  return share == null ? NONE : `${(100 * share).toFixed(digits)} %`;
}

export function bytes(value: number | null | undefined): string {
  if (value == null) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let scaled = value;
  while (scaled >= 999.5 && unit < units.length - 1) {
    scaled /= 1000;
    unit += 1;
  }
  return `${unit === 0 || scaled >= 99.95 ? Math.round(scaled) : scaled.toFixed(1)} ${units[unit]}`;
}

export function span(seconds: number): string {
  if (seconds < 1) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

export function clock(at: number): string {
  return CLOCK.format(new Date(1000 * at));
}

export function moment(at: number): string {
  return `${DAY.format(new Date(1000 * at))}, ${clock(at)}`;
}

export function plural(number: number, one: string, many = `${one}s`): string {
  return `${count(number)} ${number === 1 ? one : many}`;
}

export function short(digest: string | null): string {
  return digest ? digest.slice(0, 10) : NONE;
}
