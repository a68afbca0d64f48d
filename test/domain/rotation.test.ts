import { describe, expect, test } from 'vitest';
import type { Key } from '../../src/domain/key.ts';
import { keyIdFromUuid } from '../../src/domain/key-id.ts';
import { rotatedAway, successorOf, whyNotRotatable } from '../../src/domain/rotation.ts';
import { NO_LIMITS, type PlanLimits } from '../../src/domain/workspace.ts';

const NOW = Date.UTC(2026, 0, 2, 12, 0, 0);
const DAY_MS = 86_400_000;
const SUCCESSOR_ID = keyIdFromUuid('01890a5d-ac96-774b-bcce-b302099a8058');

const KEY: Key = {
  id: keyIdFromUuid('01890a5d-ac96-774b-bcce-b302099a8057'),
  workspaceId: 'ws_acme',
  environment: 'live',
  name: 'A key',
  prefix: 'ck_live_',
  lastCharacters: 'x7Qa',
  scopes: ['read', 'write'],
  restrictions: null,
  rateLimit: { limit: 5, window_seconds: 60 },
  metadata: { team: 'data' },
  createdBy: 'usr_42',
  createdAt: NOW - 40 * DAY_MS,
  expiresAt: null,
  revokedAt: null,
  revokedReason: null,
  rotatedFrom: null,
  rotatedTo: null,
};
/** As it is minted: with the settings that the key had when it was looked at first. */
const MADE: Key = {
  ...KEY,
  id: SUCCESSOR_ID,
  name: 'As it was called before',
  scopes: [],
  lastCharacters: 'B8Rb',
  createdAt: NOW,
};

describe('the successor of a key', () => {
  test('has the settings that the key has, and an identity of its own', () => {
    expect(successorOf(KEY, MADE, NO_LIMITS)).toEqual({
      ...KEY,
      id: SUCCESSOR_ID,
      lastCharacters: 'B8Rb',
      createdAt: NOW,
      rotatedFrom: KEY.id,
    });
  });

  test('ends when the key would have, or when the plan says, whichever comes first', () => {
    const limits: PlanLimits = { ...NO_LIMITS, maxKeyLifetimeDays: 90 };
    const latest = NOW + 90 * DAY_MS;
    const expiryOf = (expiresAt: number | null, plan = limits) =>
      successorOf({ ...KEY, expiresAt }, MADE, plan).expiresAt;
    expect(expiryOf(null)).toBe(latest);
    expect(expiryOf(latest + 1)).toBe(latest);
    expect(expiryOf(latest)).toBe(latest);
    expect(expiryOf(latest - 1)).toBe(latest - 1);
    expect(expiryOf(NOW + 1)).toBe(NOW + 1);
    expect(expiryOf(NOW + 1, NO_LIMITS)).toBe(NOW + 1);
    expect(expiryOf(null, NO_LIMITS)).toBeNull();
  });

  test('is a link of a chain', () => {
    const middle = { ...KEY, rotatedFrom: 'key_first' };
    expect(successorOf(middle, MADE, NO_LIMITS)).toMatchObject({ rotatedFrom: KEY.id, rotatedTo: null });
  });
});

describe('a rotated key', () => {
  const rotated = (key: Partial<Key>, graceSeconds: number) =>
    rotatedAway({ ...KEY, ...key }, { to: SUCCESSOR_ID, graceSeconds, nowMs: NOW });

  test('lives on for the grace period, and keeps everything else', () => {
    expect(rotated({}, 60)).toEqual({ ...KEY, rotatedTo: SUCCESSOR_ID, expiresAt: NOW + 60_000 });
  });

  test('never lives longer than it would have', () => {
    expect(rotated({ expiresAt: NOW + 59_999 }, 60).expiresAt).toBe(NOW + 59_999);
    expect(rotated({ expiresAt: NOW + 60_000 }, 60).expiresAt).toBe(NOW + 60_000);
    expect(rotated({ expiresAt: NOW + 60_001 }, 60).expiresAt).toBe(NOW + 60_000);
  });

  test('is revoked at once where there is no grace, and its expiry says no more than before', () => {
    expect(rotated({ expiresAt: NOW + 5 }, 0)).toEqual({
      ...KEY,
      rotatedTo: SUCCESSOR_ID,
      expiresAt: NOW + 5,
      revokedAt: NOW,
      revokedReason: 'rotated',
    });
  });
});

describe('a key can be rotated', () => {
  test('while it is active, to its last millisecond', () => {
    expect(whyNotRotatable(KEY, NOW)).toBeUndefined();
    expect(whyNotRotatable({ ...KEY, expiresAt: NOW + 1 }, NOW)).toBeUndefined();
    expect(whyNotRotatable({ ...KEY, expiresAt: NOW }, NOW)).toMatch(/expired/);
    expect(whyNotRotatable({ ...KEY, revokedAt: NOW - 1 }, NOW)).toMatch(/revoked/);
  });

  test('once', () => {
    const rotated = { ...KEY, rotatedTo: SUCCESSOR_ID, expiresAt: NOW + 1 };
    for (const nowMs of [NOW, NOW + 1]) expect(whyNotRotatable(rotated, nowMs)).toContain(SUCCESSOR_ID);
    expect(whyNotRotatable({ ...KEY, rotatedFrom: SUCCESSOR_ID }, NOW)).toBeUndefined();
  });
});
