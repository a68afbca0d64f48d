const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;

/** `2026-01-31T` by day since the epoch. Keys are made on few days, and a Date costs as much as all the rest of an answer. */
const days = new Map<number, string>();
const MOST_DAYS = 1_000;
const TWO_DIGITS = Array.from({ length: 60 }, (_, number) => String(number).padStart(2, '0'));
const THREE_DIGITS = Array.from({ length: 1_000 }, (_, number) => String(number).padStart(3, '0'));

/** RFC 3339, UTC, with milliseconds, of milliseconds since the epoch. */
export function isoTime(timeMs: number): string {
  const day = Math.floor(timeMs / DAY_MS);
  const ms = Math.floor(timeMs) - day * DAY_MS;
  const hour = TWO_DIGITS[Math.floor(ms / HOUR_MS)];
  const minute = TWO_DIGITS[Math.floor(ms / MINUTE_MS) % 60];
  const second = TWO_DIGITS[Math.floor(ms / SECOND_MS) % 60];
  return `${dayText(day)}${hour}:${minute}:${second}.${THREE_DIGITS[ms % SECOND_MS]}Z`;
}

/** The date alone. */
export function isoDate(timeMs: number): string {
  return dayText(Math.floor(timeMs / DAY_MS)).slice(0, -1);
}

function dayText(day: number): string {
  let text = days.get(day);
  if (text === undefined) {
    text = new Date(day * DAY_MS).toISOString().slice(0, -'00:00:00.000Z'.length);
    if (days.size >= MOST_DAYS) days.clear();
    days.set(day, text);
  }
  return text;
}
