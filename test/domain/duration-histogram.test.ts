import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  bucketOf,
  type DurationBucket,
  durationOf,
  MAX_DURATION_MS,
  RELATIVE_ERROR,
  SMALLEST_MS,
  summarise,
} from '../../src/domain/duration-histogram.ts';

const duration = fc.oneof(
  fc.double({ min: 0, max: MAX_DURATION_MS, noNaN: true }),
  // As services answer: between a tenth of a millisecond and ten seconds.
  fc.double({ min: -1, max: 4, noNaN: true }).map((exponent) => 10 ** exponent),
);

function histogramOf(durations: readonly number[]): DurationBucket[] {
  return durations.map((ms) => ({ bucket: bucketOf(ms), count: 1, sumUs: Math.round(ms * 1000) }));
}

/** The duration of the nearest rank. */
function exactly(durations: readonly number[], share: number): number {
  const sorted = [...durations].sort((left, right) => left - right);
  return sorted[Math.max(1, Math.ceil(share * sorted.length)) - 1] ?? Number.NaN;
}

/** Rounding to microseconds comes on top of the stated error. */
function isWithinBound(told: number | undefined, exact: number): boolean {
  return told !== undefined && Math.abs(told - exact) <= exact * RELATIVE_ERROR * 1.000001 + SMALLEST_MS;
}

test('a duration is known by its bucket to within the stated error', () => {
  fc.assert(
    fc.property(duration, (ms) => isWithinBound(durationOf(bucketOf(ms)), ms)),
    { numRuns: 1_000 },
  );
});

test('a longer duration is never in a lower bucket, and each bucket fits a smallint', () => {
  fc.assert(
    fc.property(duration, duration, (left, right) =>
      left <= right ? bucketOf(left) <= bucketOf(right) : bucketOf(left) >= bucketOf(right),
    ),
  );
  expect([0, SMALLEST_MS, SMALLEST_MS * 1.0001].map(bucketOf)).toEqual([0, 0, 1]);
  expect(bucketOf(MAX_DURATION_MS)).toBeLessThan(1_200);
});

describe('the summary', () => {
  test('has every percentile within the stated error of the duration of that rank, and the exact mean', () => {
    fc.assert(
      fc.property(fc.array(duration, { minLength: 1, maxLength: 300 }), (durations) => {
        const summary = summarise(histogramOf(durations));
        const mean = durations.reduce((sum, ms) => sum + ms, 0) / durations.length;
        expect(summary?.count).toBe(durations.length);
        expect(Math.abs((summary?.meanMs ?? 0) - mean)).toBeLessThanOrEqual(0.002);
        expect(summary?.p50Ms).toSatisfy((told: number) => isWithinBound(told, exactly(durations, 0.5)));
        expect(summary?.p95Ms).toSatisfy((told: number) => isWithinBound(told, exactly(durations, 0.95)));
        expect(summary?.p99Ms).toSatisfy((told: number) => isWithinBound(told, exactly(durations, 0.99)));
      }),
    );
  });

  test('of two histograms merged is that of all durations together', () => {
    fc.assert(
      fc.property(fc.array(duration), fc.array(duration), (left, right) => {
        expect(summarise([...histogramOf(left), ...histogramOf(right)])).toEqual(
          summarise(histogramOf([...right, ...left])),
        );
      }),
    );
  });

  test('of nothing is null', () => {
    expect(summarise([])).toBeNull();
  });
});
