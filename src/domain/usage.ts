import { type DurationBucket, type DurationSummary, summarise } from './duration-histogram.ts';

export const GRANULARITIES = ['hour', 'day'] as const;
export type Granularity = (typeof GRANULARITIES)[number];

export const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
/** A chart of more points shows no more. */
export const MAX_DAYS: Readonly<Record<Granularity, number>> = { hour: 31, day: 400 };

/** Whole hours, from the beginning of one to that of another, in milliseconds since the epoch. */
export interface Span {
  readonly fromMs: number;
  readonly toMs: number;
}

/** The fault of a span, as `path` and `message`. */
export interface SpanFault {
  readonly path: 'from' | 'to';
  readonly message: string;
}

/**
 * The whole hours that a question about usage is about. Usage is known by the hour, so that the hours which `from`
 * and `to` lie in count as a whole. By default, 24 hours, the one of `to` or `now` as the last.
 */
export function spanOf(
  { fromMs, toMs }: { fromMs: number | undefined; toMs: number | undefined },
  { granularity, nowMs }: { granularity: Granularity; nowMs: number },
): Span | SpanFault {
  const to = toMs === undefined ? startOf('hour', nowMs) + HOUR_MS : Math.ceil(toMs / HOUR_MS) * HOUR_MS;
  const from = fromMs === undefined ? to - DAY_MS : startOf('hour', fromMs);
  if (fromMs !== undefined && toMs !== undefined && fromMs >= toMs) {
    return { path: 'to', message: 'must be later than from' };
  }
  if (from >= to) return { path: 'from', message: 'must not be in the future' };
  if (to - from > MAX_DAYS[granularity] * DAY_MS + HOUR_MS) {
    return {
      path: 'from',
      message: `must be at most ${MAX_DAYS[granularity]} days before to, with granularity ${granularity}`,
    };
  }
  return { fromMs: from, toMs: to };
}

/** What the introspections of a time came to, and how long the requests behind them took. */
export interface UsageFigures {
  /** By outcome; outcomes that did not occur are absent. */
  readonly totals: Readonly<Record<string, number>>;
  /** The share that was active; `null` where there was none at all. */
  readonly successRate: number | null;
  readonly responseTimes: DurationSummary | null;
}

export interface UsageSummary extends UsageFigures {
  /** One for each hour, or UTC day, that the span touches; those with nothing in them too. */
  readonly buckets: readonly (UsageFigures & { readonly startMs: number })[];
}

export interface UsageEntry {
  readonly startMs: number;
  readonly code: string;
  readonly count: number;
}

export type DurationEntry = DurationBucket & { readonly startMs: number };

/** Puts counts and durations, which name the beginning of their bucket, into the buckets of a span. */
export function summariseUsage(
  { fromMs, toMs }: Span,
  granularity: Granularity,
  { counts, durations }: { counts: readonly UsageEntry[]; durations: readonly DurationEntry[] },
): UsageSummary {
  const countsByStart = groupByStart(counts);
  const durationsByStart = groupByStart(durations);
  const step = granularity === 'hour' ? HOUR_MS : DAY_MS;
  const buckets: UsageSummary['buckets'][number][] = [];
  for (let startMs = startOf(granularity, fromMs); startMs < toMs; startMs += step) {
    const figures = figuresOf(countsByStart.get(startMs) ?? [], durationsByStart.get(startMs) ?? []);
    buckets.push({ startMs, ...figures });
  }
  return { ...figuresOf(counts, durations), buckets };
}

function figuresOf(counts: readonly UsageEntry[], durations: readonly DurationEntry[]): UsageFigures {
  const totals: Record<string, number> = {};
  let all = 0;
  for (const { code, count } of counts) {
    totals[code] = (totals[code] ?? 0) + count;
    all += count;
  }
  return {
    totals,
    successRate: all === 0 ? null : (totals.active ?? 0) / all,
    responseTimes: summarise(durations),
  };
}

function groupByStart<T extends { readonly startMs: number }>(entries: readonly T[]): Map<number, T[]> {
  const groups = new Map<number, T[]>();
  for (const entry of entries) {
    const group = groups.get(entry.startMs);
    if (group === undefined) groups.set(entry.startMs, [entry]);
    else group.push(entry);
  }
  return groups;
}

/** The beginning of the hour or UTC day of a time, in milliseconds since the epoch. UTC has days of 24 hours in POSIX time. */
export function startOf(granularity: Granularity, timeMs: number): number {
  const step = granularity === 'hour' ? HOUR_MS : DAY_MS;
  return Math.floor(timeMs / step) * step;
}
