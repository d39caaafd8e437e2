// Figures as people read them.

const SIZES = ["B", "kB", "MB", "GB", "TB", "PB"];

/** Return a number in at most three figures or so. */
export function count(value) {
  if (value >= 10_000) return `${Math.round(value / 1000).toLocaleString("en")}k`;
  return Math.round(value).toLocaleString("en");
}

/** Return bytes in powers of a thousand. */
export function size(bytes) {
  let power = 0;
  for (; bytes >= 1000 && power < SIZES.length - 1; power++) bytes /= 1000;
  return `${power && bytes < 10 ? bytes.toFixed(1) : Math.round(bytes)} ${SIZES[power]}`;
}

/** Return a time of any length, in one unit. */
export function duration(seconds) {
  if (seconds < 0.001) return `${Math.max(0, Math.round(seconds * 1e6))} µs`;
  if (seconds < 0.01) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1e3)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

/** Return how long something has been, or was ago: in seconds at least. */
export function age(seconds) {
  return seconds < 10 ? `${Math.max(0, Math.floor(seconds))} s` : duration(seconds);
}

/** Return a share as a percentage. */
export function share(value) {
  return `${Math.round(100 * value)} %`;
}

/** Return a number of things. */
export function many(n, one, more = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : more}`;
}

/** Return what is told, without what is not, as one line. */
export function line(...told) {
  return told.filter(Boolean).join(" · ");
}
