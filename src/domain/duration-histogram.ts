/*
 * A histogram whose buckets are fixed, so that two of them are merged by adding up counts, in SQL too: each upper
 * bound is the one below times GAMMA. A duration is then known by its bucket to within RELATIVE_ERROR of itself,
 * whatever its size (as in DDSketch: Masson, Rim, Lee, VLDB 2019, §2).
 */

/** How far a percentile may be from the duration that has this rank, as a share of it. */
export const RELATIVE_ERROR = 0.01;
/** Durations up to this are one bucket: nobody asks how many nanoseconds it took. */
export const SMALLEST_MS = 0.01;
/** A day. */
export const MAX_DURATION_MS = 86_400_000;

const GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR);
const LOG_GAMMA = Math.log(GAMMA);

/** So many of a bucket, and what they took together. */
export interface DurationBucket {
  readonly bucket: number;
  readonly count: number;
  readonly sumUs: number;
}

/** What is told of response times, in milliseconds. */
export interface DurationSummary {
  readonly count: number;
  readonly meanMs: number;
  readonly p50Ms: number;
  readonly p95Ms: number;
  readonly p99Ms: number;
}

/** The bucket of a duration from 0 to `MAX_DURATION_MS`: a whole number from 0 to about 1,150. */
export function bucketOf(durationMs: number): number {
  if (durationMs <= SMALLEST_MS) return 0;
  return Math.max(1, Math.ceil(Math.log(durationMs / SMALLEST_MS) / LOG_GAMMA));
}

/** The duration that stands for all of a bucket: no farther than `RELATIVE_ERROR` from either bound. */
export function durationOf(bucket: number): number {
  return bucket === 0 ? SMALLEST_MS : (SMALLEST_MS * 2 * GAMMA ** bucket) / (GAMMA + 1);
}

/** The mean, which is exact to a microsecond, and percentiles by the nearest rank; `null` where there is nothing. */
export function summarise(buckets: readonly DurationBucket[]): DurationSummary | null {
  const counts = new Map<number, number>();
  let count = 0;
  let sumUs = 0;
  for (const entry of buckets) {
    counts.set(entry.bucket, (counts.get(entry.bucket) ?? 0) + entry.count);
    count += entry.count;
    sumUs += entry.sumUs;
  }
  if (count === 0) return null;
  const ascending = [...counts].sort(([left], [right]) => left - right);
  const percentile = (share: number) => toMicroseconds(durationOf(bucketAtRank(ascending, share * count)));
  return {
    count,
    meanMs: toMicroseconds(sumUs / count / 1000),
    p50Ms: percentile(0.5),
    p95Ms: percentile(0.95),
    p99Ms: percentile(0.99),
  };
}

/** The first bucket by whose end at least `rank` durations have been passed. */
function bucketAtRank(
  ascending: readonly (readonly [bucket: number, count: number])[],
  rank: number,
): number {
  let passed = 0;
  for (const [bucket, count] of ascending) {
    passed += count;
    if (passed >= rank) return bucket;
  }
  return ascending.at(-1)?.[0] ?? 0;
}

/** Milliseconds, rounded to what is stored. */
function toMicroseconds(durationMs: number): number {
  return Math.round(durationMs * 1000) / 1000;
}
