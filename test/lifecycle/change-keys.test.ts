import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { keyIdToUuid } from '../../src/domain/key-id.ts';
import { createTestApp, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';

let app: TestApp;
beforeAll(async () => {
  app = await createTestApp();
});
afterAll(() => app.close());

const FULL = {
  name: 'Before',
  scopes: ['read'],
  expires_at: '2999-01-01T00:00:00.000Z',
  restrictions: {
    allowed_ips: ['10.0.0.1'],
    allowed_referrers: ['https://*.example.com/*'],
    allowed_endpoints: [{ methods: ['GET'], path: '/contacts/:id' }],
  },
  rate_limit: { limit: 10, window_seconds: 60 },
  metadata: { team: 'data', nested: { a: 1, b: [2] } },
};

async function makeKey(
  settings: Record<string, unknown> = FULL,
): Promise<{ id: string; shown: Answer['body'] }> {
  const { id, data } = await app.createKey(settings);
  const { key: _, ...shown } = data;
  return { id, shown };
}

/** Patches, and expects that the answer and the key are as they were but for `changed`. */
async function expectChange(
  { id, shown }: Awaited<ReturnType<typeof makeKey>>,
  patch: unknown,
  changed: Record<string, unknown>,
): Promise<void> {
  const answer = await app.patch(`/v1/api-keys/${id}`, patch);
  expect(answer.status, answer.text).toBe(200);
  expect(answer.body.success).toBe(true);
  expect(answer.body.data).toEqual({ ...shown, ...changed });
  expect((await app.get(`/v1/api-keys/${id}`)).body.data).toEqual({ ...shown, ...changed });
}

async function expectRefused(id: string, patch: unknown, path: string): Promise<void> {
  const before = await app.get(`/v1/api-keys/${id}`);
  const answer = await app.patch(`/v1/api-keys/${id}`, patch);
  expect(answer.status, answer.text).toBe(400);
  expect(answer.body.code).toBe('invalid_request');
  expect(answer.body.errors.map((fault: { path: string }) => fault.path)).toContain(path);
  expect((await app.get(`/v1/api-keys/${id}`)).body).toEqual(before.body);
}

describe('PATCH changes what it names and nothing else', () => {
  test.each<[string, object, object]>([
    ['the name', { name: 'After' }, { name: 'After' }],
    ['scopes', { scopes: ['write', 'read', 'write'] }, { scopes: ['write', 'read'] }],
    ['the expiry', { expires_at: '2998-01-01T01:00:00+01:00' }, { expires_at: '2998-01-01T00:00:00.000Z' }],
    [
      'metadata, member by member',
      { metadata: { nested: { a: null, c: 3 } } },
      { metadata: { team: 'data', nested: { b: [2], c: 3 } } },
    ],
    [
      'one half of the limit',
      { rate_limit: { limit: 11 } },
      { rate_limit: { limit: 11, window_seconds: 60 } },
    ],
    [
      'one list of restrictions',
      { restrictions: { allowed_ips: ['10.0.0.2', '::1'] } },
      { restrictions: { ...FULL.restrictions, allowed_ips: ['10.0.0.2', '::1'] } },
    ],
    [
      'endpoints, as a whole list',
      { restrictions: { allowed_endpoints: [{ path: '/a' }] } },
      { restrictions: { ...FULL.restrictions, allowed_endpoints: [{ path: '/a' }] } },
    ],
  ])('%s', async (_, patch, changed) => {
    await expectChange(await makeKey(), patch, changed as Record<string, unknown>);
  });

  test.each<[string, object, object]>([
    ['the expiry', { expires_at: null }, { expires_at: null }],
    ['all restrictions', { restrictions: null }, { restrictions: null }],
    [
      'one restriction',
      { restrictions: { allowed_referrers: null } },
      { restrictions: { ...FULL.restrictions, allowed_referrers: null } },
    ],
    [
      'each restriction',
      { restrictions: { allowed_ips: null, allowed_referrers: null, allowed_endpoints: null } },
      { restrictions: null },
    ],
    ['the limit', { rate_limit: null }, { rate_limit: null }],
    ['metadata', { metadata: null }, { metadata: null }],
    ['one member of metadata', { metadata: { team: null } }, { metadata: { nested: { a: 1, b: [2] } } }],
    ['scopes', { scopes: null }, { scopes: [] }],
  ])('null clears %s', async (_, patch, changed) => {
    await expectChange(await makeKey(), patch, changed as Record<string, unknown>);
  });

  test('what a bare key has not it can be given', async () => {
    const key = await makeKey({ rate_limit: null });
    await expectChange(key, FULL, FULL);
  });

  test('an empty patch, and one that says what is so already, change nothing', async () => {
    const key = await makeKey();
    const rows = () =>
      app.database.query('SELECT * FROM audit_events WHERE key_id = $1', [keyIdToUuid(key.id)]);
    const before = await rows();
    for (const patch of [
      {},
      FULL,
      { restrictions: {}, rate_limit: {}, metadata: {} },
      { metadata: { nested: { b: [2], a: 1 }, team: 'data', absent: null } },
      { restrictions: { allowed_endpoints: [{ path: '/contacts/:id', methods: ['GET'] }] } },
    ]) {
      await expectChange(key, patch, {});
    }
    expect(await rows()).toEqual(before);
  });

  test('application/merge-patch+json is the same', async () => {
    const { id } = await makeKey();
    const answer = await app.patch(
      `/v1/api-keys/${id}`,
      JSON.stringify({ name: 'Merged', metadata: { team: null } }),
      {
        headers: { 'content-type': 'application/merge-patch+json' },
      },
    );
    expect(answer.status).toBe(200);
    expect(answer.body.data).toMatchObject({ name: 'Merged', metadata: { nested: { a: 1, b: [2] } } });
    const wrong = await app.patch(`/v1/api-keys/${id}`, '{"name":1}', {
      headers: { 'content-type': 'application/merge-patch+json' },
    });
    expect(wrong.status).toBe(400);
    expect(wrong.body.errors).toMatchObject([{ path: 'name' }]);
  });

  test('the next introspection goes by the changed key', async () => {
    const { id, token } = await app.createKey({ scopes: ['read'] });
    expect((await app.introspect(token, { scopes: ['write'] })).body.reason.code).toBe('insufficient_scope');
    await app.patch(`/v1/api-keys/${id}`, { scopes: ['write'] });
    expect((await app.introspect(token, { scopes: ['write'] })).body.active).toBe(true);
    expect((await app.introspect(token, { scopes: ['read'] })).body.reason.code).toBe('insufficient_scope');
    await app.patch(`/v1/api-keys/${id}`, { restrictions: { allowed_ips: ['10.0.0.1'] } });
    expect((await app.introspect(token)).body.reason.code).toBe('ip_not_allowed');
  });
});

describe('PATCH refuses', () => {
  test('an empty list of restrictions, since it could mean all or nothing', async () => {
    const { id } = await makeKey();
    for (const list of ['allowed_ips', 'allowed_referrers', 'allowed_endpoints']) {
      await expectRefused(id, { restrictions: { [list]: [] } }, `restrictions.${list}`);
    }
  });

  test('null for the name, which no key is without, and for half a limit', async () => {
    const { id } = await makeKey();
    await expectRefused(id, { name: null }, 'name');
    await expectRefused(id, { rate_limit: { limit: null } }, 'rate_limit.limit');
    await expectRefused(id, { rate_limit: { window_seconds: null } }, 'rate_limit.window_seconds');
  });

  test('half a limit for a key that has none', async () => {
    const { id } = await makeKey({ rate_limit: null });
    await expectRefused(id, { rate_limit: { limit: 5 } }, 'rate_limit');
    await expectRefused(id, { rate_limit: {} }, 'rate_limit');
  });

  test('what creating a key refuses', async () => {
    const { id } = await makeKey();
    for (const [patch, path] of [
      [{ name: '' }, 'name'],
      [{ name: 'x'.repeat(121) }, 'name'],
      [{ scopes: ['Read'] }, 'scopes.0'],
      [{ scopes: Array.from({ length: 65 }, (_, index) => `s${index}`) }, 'scopes'],
      [{ expires_at: '2020-01-01T00:00:00Z' }, 'expires_at'],
      [{ expires_at: 'soon' }, 'expires_at'],
      [{ rate_limit: { limit: 0 } }, 'rate_limit.limit'],
      [{ rate_limit: { limit: 2_147_483_648 } }, 'rate_limit.limit'],
      [{ rate_limit: { window_seconds: 2_678_401 } }, 'rate_limit.window_seconds'],
      [{ restrictions: { allowed_ips: ['nonsense'] } }, 'restrictions.allowed_ips.0'],
      [{ restrictions: { allowed_workspaces: ['ws_acme'] } }, 'restrictions.allowed_workspaces'],
      [{ metadata: [] }, 'metadata'],
    ] as const) {
      await expectRefused(id, patch, path);
    }
  });

  test.each([
    'id',
    'key',
    'workspace_id',
    'environment',
    'created_by',
    'created_at',
    'status',
    'revoked_at',
    'hash',
  ])('to change %s, which it names', async (member) => {
    const { id } = await makeKey();
    await expectRefused(id, { [member]: 'x' }, member);
  });

  test('metadata of more than 4 KiB, as it is after the merge', async () => {
    const { id } = await makeKey({ metadata: { filled: 'x'.repeat(2_000) } });
    const room = 4096 - JSON.stringify({ filled: 'x'.repeat(2_000), more: '' }).length;
    await expectRefused(id, { metadata: { more: 'y'.repeat(room + 1) } }, 'metadata');
    const answer = await app.patch(`/v1/api-keys/${id}`, { metadata: { more: 'y'.repeat(room) } });
    expect(answer.status).toBe(200);
    // It is full now; what makes room as it takes it passes.
    await expectRefused(id, { metadata: { z: 1 } }, 'metadata');
    expect((await app.patch(`/v1/api-keys/${id}`, { metadata: { filled: null, z: 1 } })).status).toBe(200);
  });

  test('a body that is no object', async () => {
    const { id } = await makeKey();
    for (const body of ['[]', 'null', '"x"', '5', '', undefined]) {
      const answer = await app.patch(`/v1/api-keys/${id}`, body);
      expect(answer.status, String(body)).toBe(400);
      expect(answer.body.code).toBe('invalid_request');
    }
  });

  test('to change a revoked key', async () => {
    const { id } = await makeKey();
    await app.delete(`/v1/api-keys/${id}`);
    for (const patch of [{ name: 'After' }, { expires_at: null }, {}]) {
      const answer = await app.patch(`/v1/api-keys/${id}`, patch);
      expect(answer.status).toBe(409);
      expect(answer.body.code).toBe('key_not_active');
      expect(answer.body.detail).toContain('revoked');
    }
    expect((await app.get(`/v1/api-keys/${id}`)).body.data).toMatchObject({
      name: 'Before',
      status: 'revoked',
    });
  });

  test('to change an expired key, which so never comes back', async () => {
    const { id } = await makeKey();
    await app.database.query(
      "UPDATE api_keys SET expires_at = now() - interval '1 millisecond' WHERE id = $1",
      [keyIdToUuid(id)],
    );
    for (const patch of [{ expires_at: null }, { expires_at: '2999-01-01T00:00:00Z' }, {}]) {
      const answer = await app.patch(`/v1/api-keys/${id}`, patch);
      expect(answer.status).toBe(409);
      expect(answer.body.code).toBe('key_not_active');
      expect(answer.body.detail).toContain('expired');
    }
    expect((await app.get(`/v1/api-keys/${id}`)).body.data.status).toBe('expired');
  });
});

describe('PATCHes at the same time', () => {
  test('that name different members all stay', async () => {
    const { id } = await makeKey();
    const patches = [
      { name: 'After' },
      { scopes: ['write'] },
      { expires_at: '2998-01-01T00:00:00.000Z' },
      { restrictions: { allowed_ips: ['10.0.0.9'] } },
      { restrictions: { allowed_referrers: null } },
      { rate_limit: { limit: 77 } },
      { rate_limit: { window_seconds: 88 } },
      { metadata: { first: 1 } },
      { metadata: { nested: { second: 2 } } },
      { metadata: { team: null } },
    ];
    const answers = await Promise.all(patches.map((patch) => app.patch(`/v1/api-keys/${id}`, patch)));
    expect(answers.map((answer) => answer.status)).toEqual(patches.map(() => 200));
    expect((await app.get(`/v1/api-keys/${id}`)).body.data).toMatchObject({
      name: 'After',
      scopes: ['write'],
      expires_at: '2998-01-01T00:00:00.000Z',
      restrictions: {
        allowed_ips: ['10.0.0.9'],
        allowed_referrers: null,
        allowed_endpoints: FULL.restrictions.allowed_endpoints,
      },
      rate_limit: { limit: 77, window_seconds: 88 },
      metadata: { nested: { a: 1, b: [2], second: 2 }, first: 1 },
    });
  });

  test('and a revocation end with a revoked key, and no change after it', async () => {
    const { id } = await makeKey();
    const changes = Array.from({ length: 6 }, (_, count) =>
      app.patch(`/v1/api-keys/${id}`, { name: `After ${count}` }),
    );
    const [revoked, ...changed] = await Promise.all([app.delete(`/v1/api-keys/${id}`), ...changes]);
    expect(revoked?.status).toBe(200);
    for (const { status } of changed) expect([200, 409]).toContain(status);
    const { data } = (await app.get(`/v1/api-keys/${id}`)).body;
    expect(data.status).toBe('revoked');
    // Whichever came last before the revocation is what the revocation showed.
    expect(data.name).toBe(revoked?.body.data.name);
  });
});
