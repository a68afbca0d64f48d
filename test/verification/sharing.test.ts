import { expect, test } from 'vitest';
import type { Key } from '../../src/domain/key.ts';
import { newKeyId } from '../../src/domain/key-id.ts';
import { createSharing } from '../../src/verification/sharing.ts';

const key = (changes: Partial<Key> = {}): Key => ({
  id: newKeyId(1_750_000_000_000),
  workspaceId: 'ws_acme',
  environment: 'live',
  name: 'Warehouse',
  prefix: 'ck_live_',
  lastCharacters: 'x7Qa',
  scopes: ['contacts:read', 'contacts:write'],
  restrictions: null,
  rateLimit: { limit: 1000, window_seconds: 3600 },
  metadata: { team: 'data' },
  createdBy: 'usr_42',
  createdAt: 1_750_000_000_000,
  expiresAt: null,
  revokedAt: null,
  revokedReason: null,
  rotatedFrom: null,
  rotatedTo: null,
  ...changes,
});

test('a compact key is the key, member by member', () => {
  const { compact } = createSharing();
  for (const one of [key(), key({ scopes: [], rateLimit: null, environment: 'svc', prefix: 'ck_svc_' })]) {
    expect(compact(one, one.workspaceId)).toEqual(one);
  }
});

test('keys with the same scopes and the same limit hold them together', () => {
  const { compact } = createSharing();
  const [first, second] = [compact(key(), 'ws_acme'), compact(key(), 'ws_acme')];
  expect(second.scopes).toBe(first.scopes);
  expect(second.rateLimit).toBe(first.rateLimit);
});

test('what differs is never shared', () => {
  const { compact } = createSharing();
  const lists = [
    [],
    ['contacts:read'],
    ['contacts:read', 'contacts:write'],
    ['contacts:write', 'contacts:read'],
  ];
  const limits = [null, { limit: 1, window_seconds: 11 }, { limit: 11, window_seconds: 1 }];
  for (const scopes of lists) {
    for (const rateLimit of limits) {
      expect(compact(key({ scopes, rateLimit }), 'ws_acme')).toMatchObject({ scopes, rateLimit });
    }
  }
  const odd = key({ environment: 'contacts', prefix: 'live', scopes: ['live', 'contacts'] });
  expect(compact(odd, 'ws_acme')).toEqual(odd);
});

test('it starts over when too many values are shared, and those handed out stay as they were', () => {
  const { compact } = createSharing();
  const first = compact(key(), 'ws_acme');
  for (let index = 0; index < 10_001; index++) {
    const scopes = [`scope-${index}`];
    expect(compact(key({ scopes }), 'ws_acme').scopes).toEqual(scopes);
  }
  const again = compact(key(), 'ws_acme');
  expect(again).toEqual({ ...first, id: again.id });
  expect(again.scopes).not.toBe(first.scopes);
});
