import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { dueChange, LEAD_MS, MAX_ACCESS_TOKEN_SECONDS, signerAt } from '../../src/domain/signing-schedule.ts';

const DAY_MS = 86_400_000;
const periodMs = 30 * DAY_MS;
const START = Date.UTC(2026, 0, 1);
const key = (signsFrom: number) => ({ signsFrom });
const due = (signsFrom: readonly number[], nowMs: number, period = periodMs) =>
  dueChange(signsFrom.map(key), { nowMs, periodMs: period });

describe('the first key', () => {
  test('signs at once', () => {
    expect(due([], START)).toEqual({ next: START, gone: [] });
  });

  test('is the only one until a day before the turn of its successor, which is made then', () => {
    expect(due([START], START + periodMs - LEAD_MS - 1).next).toBeUndefined();
    expect(due([START], START + periodMs - LEAD_MS).next).toBe(START + periodMs);
  });
});

describe('the next key', () => {
  test('is made once', () => {
    const turn = START + periodMs;
    expect(due([START, turn], turn - LEAD_MS + 1).next).toBeUndefined();
    expect(due([START, turn], turn + periodMs - LEAD_MS).next).toBe(turn + periodMs);
  });

  test('is published for a day before it signs, however late it is made', () => {
    const late = START + 400 * DAY_MS;
    expect(due([START], late).next).toBe(late + LEAD_MS);
  });

  test('has its turn in time for a period as short as the day that it is published', () => {
    expect(due([START], START, DAY_MS).next).toBe(START + DAY_MS);
  });
});

test('a key signs from its turn on until its successor does', () => {
  const keys = [key(START), key(START + periodMs)];
  expect(signerAt(keys, START)).toBe(keys[0]);
  expect(signerAt(keys, START + periodMs - 1)).toBe(keys[0]);
  expect(signerAt(keys, START + periodMs)).toBe(keys[1]);
  // By a clock that is a little late.
  expect(signerAt(keys, START - 5)).toBe(keys[0]);
  expect(signerAt([], START)).toBeUndefined();
});

test('a key is gone an hour after the last token that it can have signed expired, and not sooner', () => {
  const turn = START + periodMs;
  const over = turn + MAX_ACCESS_TOKEN_SECONDS * 1000 + 3_600_000;
  expect(due([START, turn], over - 1).gone).toEqual([]);
  expect(due([START, turn], over).gone).toEqual([key(START)]);
});

test('whenever it is looked after, no key signs that was not published for a day, and none goes that signed what is valid', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 90 }),
      fc.array(fc.integer({ min: 1, max: 40 * 24 }), { minLength: 1, maxLength: 60 }),
      (periodDays, hours) => {
        let nowMs = START;
        let keys: { signsFrom: number; madeAt: number }[] = [];
        /** When what a key signed last is over. */
        const validUntil = new Map<object, number>();
        for (const pause of [0, ...hours]) {
          nowMs += pause * 3_600_000;
          const { next, gone } = dueChange(keys, { nowMs, periodMs: periodDays * DAY_MS });
          for (const one of gone) expect(validUntil.get(one) ?? 0).toBeLessThanOrEqual(nowMs);
          keys = keys.filter((one) => !gone.includes(one));
          if (next !== undefined) keys.push({ signsFrom: next, madeAt: nowMs });
          const signer = signerAt(keys, nowMs);
          if (signer === undefined) throw new Error('there is no signer');
          expect(keys.indexOf(signer) === 0 || nowMs - signer.madeAt >= LEAD_MS).toBe(true);
          validUntil.set(signer, nowMs + MAX_ACCESS_TOKEN_SECONDS * 1000);
          expect(keys.length).toBeLessThanOrEqual(4);
        }
      },
    ),
  );
});
