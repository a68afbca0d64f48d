import { describe, expect, test } from 'vitest';
import { Failure } from '../../src/domain/errors.ts';
import {
  expiryWithin,
  latestExpiry,
  noMoreKeys,
  refuseScopesBeyond,
  refuseWithoutKeys,
} from '../../src/domain/plan.ts';
import { NO_LIMITS } from '../../src/domain/workspace.ts';

const DAY_MS = 86_400_000;
const MADE = Date.UTC(2026, 0, 1);

function refusalOf(check: () => unknown): { code: string; detail: string } {
  try {
    check();
  } catch (error) {
    if (error instanceof Failure) return { code: error.code, detail: error.message };
    throw error;
  }
  throw new Error('it was allowed');
}

describe('the longest life of a key', () => {
  const limits = { ...NO_LIMITS, maxKeyLifetimeDays: 90 };
  const latest = MADE + 90 * DAY_MS;
  const expiry = (expiresAt: number | null) => expiryWithin(limits, { createdAt: MADE, expiresAt });

  test('is counted from its creation', () => {
    expect(latestExpiry(limits, MADE)).toBe(latest);
    expect(latestExpiry(NO_LIMITS, MADE)).toBeNull();
  });

  test('is allowed to its last millisecond, and any shorter one', () => {
    expect(expiry(latest)).toBe(latest);
    expect(expiry(latest - 1)).toBe(latest - 1);
    expect(expiry(MADE + 1)).toBe(MADE + 1);
  });

  test('is what a caller gets whose clock is ahead by seconds', () => {
    expect(expiry(latest + 1)).toBe(latest);
    expect(expiry(latest + 5_000)).toBe(latest);
  });

  test('is not exceeded: by a later day, nor by none at all', () => {
    for (const beyond of [latest + 5_001, latest + DAY_MS, Number.MAX_SAFE_INTEGER, null]) {
      expect(refusalOf(() => expiry(beyond))).toEqual({
        code: 'limit_reached',
        detail:
          'The plan of this workspace lets a key live 90 days from its creation: this one until 2026-04-01T00:00:00.000Z.',
      });
    }
  });

  test('is any, where the plan does not limit it', () => {
    for (const expiresAt of [null, MADE + 1, Number.MAX_SAFE_INTEGER]) {
      expect(expiryWithin(NO_LIMITS, { createdAt: MADE, expiresAt })).toBe(expiresAt);
    }
  });
});

describe('the scopes that a plan allows', () => {
  test('are those of its list, each for itself', () => {
    const limits = { ...NO_LIMITS, allowedScopes: ['read', 'validate:offers'] };
    expect(() => refuseScopesBeyond(limits, [])).not.toThrow();
    expect(() => refuseScopesBeyond(limits, ['validate:offers', 'read'])).not.toThrow();
    for (const scope of ['write', 'validate', 'validate:offers:all', 'rea']) {
      expect(refusalOf(() => refuseScopesBeyond(limits, ['read', scope]))).toEqual({
        code: 'limit_reached',
        detail: `The plan of this workspace does not allow the scope "${scope}".`,
      });
    }
  });

  test('are all, where it has no list', () => {
    expect(() => refuseScopesBeyond(NO_LIMITS, ['anything'])).not.toThrow();
  });
});

describe('the number of keys', () => {
  test('of 0 is a plan without API keys, and no number is one of any', () => {
    expect(refusalOf(() => refuseWithoutKeys({ ...NO_LIMITS, maxActiveKeys: 0 }))).toEqual({
      code: 'limit_reached',
      detail: 'The plan of this workspace is without API keys.',
    });
    for (const maxActiveKeys of [1, null]) {
      expect(() => refuseWithoutKeys({ ...NO_LIMITS, maxActiveKeys })).not.toThrow();
    }
  });

  test('is told to whoever has reached it', () => {
    expect(noMoreKeys(1).message).toBe(
      'The plan of this workspace allows 1 active key, and it has that many.',
    );
    expect(noMoreKeys(10).message).toContain('10 active keys');
  });
});
