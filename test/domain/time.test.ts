import fc from 'fast-check';
import { expect, test } from 'vitest';
import { isoDate, isoTime } from '../../src/domain/time.ts';

const LAST_TIME_MS = Date.parse('9999-12-31T23:59:59.999Z');

test('a time is written as a Date writes it, from 1970 to 9999', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: LAST_TIME_MS }), (timeMs) => {
      expect(isoTime(timeMs)).toBe(new Date(timeMs).toISOString());
      expect(isoDate(timeMs)).toBe(new Date(timeMs).toISOString().slice(0, 10));
    }),
  );
});

test.each([
  '1970-01-01T00:00:00.000Z',
  '1999-12-31T23:59:59.999Z',
  '2000-02-29T00:00:00.001Z',
  '2026-11-23T09:08:07.060Z',
  '9999-12-31T23:59:59.999Z',
])('%s is written so', (text) => {
  expect(isoTime(Date.parse(text))).toBe(text);
});

test('more days than are remembered are all written right', () => {
  for (let day = 0; day < 3_000; day++) {
    const timeMs = day * 86_400_000 + day;
    expect(isoTime(timeMs)).toBe(new Date(timeMs).toISOString());
  }
});
