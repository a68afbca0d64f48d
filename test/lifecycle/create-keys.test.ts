import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { appOfTest, createTestApp, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';

const DAY_MS = 86_400_000;
const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

let app: TestApp;
beforeAll(async () => {
  app = await createTestApp();
});
afterAll(() => app.close());

const MINIMAL = { workspace_id: 'ws_acme', name: 'A key' };

function create(settings: Record<string, unknown>): Promise<Answer> {
  return app.post('/v1/api-keys', { ...MINIMAL, ...settings });
}

async function expectRefused(settings: Record<string, unknown>, path: string): Promise<void> {
  const answer = await create(settings);
  expect(answer.status, answer.text).toBe(400);
  expect(answer.body.code).toBe('invalid_request');
  expect(answer.body.errors.map((fault: { path: string }) => fault.path)).toContain(path);
}

async function expectMade(settings: Record<string, unknown>): Promise<Answer['body']> {
  const answer = await create(settings);
  expect(answer.status, answer.text).toBe(201);
  return answer.body.data;
}

describe('creating a key', () => {
  test('takes a workspace and a name, and answers with every member of a key', async () => {
    const before = Date.now();
    const answer = await app.post('/v1/api-keys', MINIMAL);
    expect(answer.status).toBe(201);
    expect(answer.headers['content-type']).toMatch(/^application\/json/);
    const { data } = answer.body;
    expect(answer.body).toEqual({
      success: true,
      data: {
        id: expect.stringMatching(/^key_[0-7][0-9a-hjkmnp-tv-z]{25}$/),
        key: expect.stringMatching(/^ck_live_[0-9A-Za-z]{66}$/),
        prefix: 'ck_live_',
        hint: `ck_live_…${data.key.slice(-4)}`,
        workspace_id: 'ws_acme',
        name: 'A key',
        environment: 'live',
        scopes: [],
        status: 'active',
        restrictions: null,
        rate_limit: { limit: 1000, window_seconds: 3600 },
        metadata: null,
        created_by: null,
        created_at: expect.stringMatching(TIME),
        expires_at: null,
        revoked_at: null,
        revoked_reason: null,
        rotated_from: null,
        rotated_to: null,
        rotation_due_at: new Date(Date.parse(data.created_at) + 90 * DAY_MS).toISOString(),
        last_used: null,
        last_used_ip: null,
      },
    });
    expect(data.key).toHaveLength(74);
    // The database's clock and ours are those of one machine here.
    expect(Date.parse(data.created_at)).toBeGreaterThanOrEqual(before - 1_000);
    expect(Date.parse(data.created_at)).toBeLessThanOrEqual(Date.now() + 1_000);
  });

  test('keeps every member that it is given', async () => {
    const settings = {
      workspace_id: 'ws_acme',
      name: 'Production data warehouse',
      environment: 'test',
      scopes: ['read', 'validate:offers'],
      expires_at: '2999-12-31T23:59:59.999Z',
      restrictions: {
        allowed_ips: ['203.0.113.0/24', '2001:db8::1'],
        allowed_referrers: ['https://*.example.com/*'],
        allowed_endpoints: [{ methods: ['GET'], path: '/contacts/:id' }, { path: '/reports/*' }],
      },
      rate_limit: { limit: 5, window_seconds: 60 },
      metadata: { team: 'data', nested: { list: [1, 'two', null, { deep: true }] } },
      created_by: 'usr_42',
    };
    const data = await expectMade(settings);
    expect(data).toMatchObject({ ...settings, prefix: 'ck_test_' });
    expect(data.key).toMatch(/^ck_test_/);
    const { key: _, ...shown } = data;
    expect((await app.get(`/v1/api-keys/${data.id}`)).body).toEqual({ success: true, data: shown });
  });

  test('takes null for what may be absent', async () => {
    const data = await expectMade({
      expires_at: null,
      restrictions: null,
      rate_limit: null,
      metadata: null,
      created_by: null,
    });
    expect(data).toMatchObject({
      expires_at: null,
      restrictions: null,
      rate_limit: null,
      metadata: null,
      created_by: null,
    });
  });

  test('shows no restrictions where each list is null or absent', async () => {
    expect((await expectMade({ restrictions: {} })).restrictions).toBeNull();
    const none = { allowed_ips: null, allowed_referrers: null, allowed_endpoints: null };
    expect((await expectMade({ restrictions: none })).restrictions).toBeNull();
    const some = { allowed_ips: ['10.0.0.1'] };
    expect((await expectMade({ restrictions: some })).restrictions).toEqual({ ...none, ...some });
  });

  test('shows the token in this one answer, and nothing of it anywhere else', async () => {
    const { id, token } = await app.createKey({ workspace_id: 'ws_shown_once' });
    const secret = token.slice(-66, -4);
    const answers = [
      await app.get(`/v1/api-keys/${id}`),
      await app.get('/v1/api-keys?workspace_id=ws_shown_once'),
      await app.patch(`/v1/api-keys/${id}`, { name: 'Changed' }),
      await app.introspect(token),
      await app.delete(`/v1/api-keys/${id}`),
      await app.delete(`/v1/api-keys/${id}`),
      await app.patch(`/v1/api-keys/${id}`, { name: 'Changed again' }),
      await app.introspect(token),
    ];
    expect(answers.map((answer) => answer.status)).toEqual([200, 200, 200, 200, 200, 200, 409, 200]);
    for (const { text } of answers) {
      expect(text).not.toContain(token);
      expect(text).not.toContain('"key":');
      for (let at = 0; at + 20 <= secret.length; at++) expect(text).not.toContain(secret.slice(at, at + 20));
    }
  });

  test('makes each key another id and another token', async () => {
    const made = await Promise.all([1, 2, 3, 4].map(() => expectMade({})));
    expect(new Set(made.map(({ id }) => id)).size).toBe(4);
    expect(new Set(made.map(({ key }) => key)).size).toBe(4);
  });

  test('stores an argon2id hash of the token with the configured cost', async () => {
    const { token } = await app.createKey({ workspace_id: 'ws_hash' });
    const rows = await app.database.query<{ hash: string }>(
      "SELECT hash FROM api_keys WHERE workspace_id = 'ws_hash'",
    );
    expect(rows).toHaveLength(1);
    expect(rows[0]?.hash).toMatch(/^\$argon2id\$v=19\$m=1024,t=1,p=1\$/);
    expect(rows[0]?.hash).not.toContain(token);
  });

  test('names each scope once, in the order given', async () => {
    expect((await expectMade({ scopes: ['write', 'read', 'write'] })).scopes).toEqual(['write', 'read']);
  });
});

describe('the members of a new key have bounds', () => {
  test('the name: 1 to 120 characters, counted as people count', async () => {
    await expectRefused({ name: '' }, 'name');
    await expectMade({ name: 'x' });
    await expectMade({ name: 'x'.repeat(120) });
    await expectRefused({ name: 'x'.repeat(121) }, 'name');
    await expectMade({ name: '🔑'.repeat(120) });
    await expectRefused({ name: '🔑'.repeat(121) }, 'name');
    for (const name of [null, 1, ['x'], {}]) await expectRefused({ name }, 'name');
    await expectRefused({ name: undefined }, 'name');
  });

  test('the workspace: 1 to 100 of its characters, neither "." nor ".."', async () => {
    await expectMade({ workspace_id: 'A-z_0.9:' });
    await expectMade({ workspace_id: 'w'.repeat(100) });
    await expectMade({ workspace_id: '...' });
    for (const id of ['w'.repeat(101), '', '.', '..', 'a b', 'a/b', 'ä', 'a\n', null, 5, undefined]) {
      await expectRefused({ workspace_id: id }, 'workspace_id');
    }
  });

  test('no text holds a token, not even one that was put there by mistake', async () => {
    const { token } = await app.createKey();
    await expectRefused({ name: `was ${token}` }, 'name');
    await expectRefused({ workspace_id: token }, 'workspace_id');
    await expectRefused({ created_by: token }, 'created_by');
    await expectRefused({ metadata: { nested: [token] } }, 'metadata');
    await expectRefused({ metadata: { [token]: 1 } }, 'metadata');
    const other = await app.createKey();
    const revocation = await app.delete(`/v1/api-keys/${other.id}`, { reason: token });
    expect(revocation.body).toMatchObject({ status: 400, errors: [{ path: 'reason' }] });
    expect(revocation.text).not.toContain(token.slice(8, 28));
  });

  test('scopes: at most 64 of at most 64 characters', async () => {
    const scopes = Array.from({ length: 65 }, (_, index) => `scope${index}`);
    await expectMade({ scopes: scopes.slice(0, 64) });
    await expectRefused({ scopes }, 'scopes');
    await expectMade({ scopes: ['s'.repeat(64)] });
    await expectRefused({ scopes: ['s'.repeat(65)] }, 'scopes.0');
    await expectMade({ scopes: [] });
    for (const scope of ['', 'Read', '*', 'a:', ':a', 'a b', '-a', 7, null]) {
      await expectRefused({ scopes: ['read', scope] }, 'scopes.1');
    }
    for (const wrong of ['read', null, {}]) await expectRefused({ scopes: wrong }, 'scopes');
  });

  test('the expiry: an RFC 3339 time in the future', async () => {
    for (const past of ['1970-01-01T00:00:00Z', new Date(Date.now() - 2_000).toISOString()]) {
      await expectRefused({ expires_at: past }, 'expires_at');
    }
    const soon = new Date(Date.now() + 60_000).toISOString();
    expect((await expectMade({ expires_at: soon })).expires_at).toBe(soon);
    await expectMade({ expires_at: '9999-12-31T23:59:59.999Z' });
    for (const wrong of [
      '',
      'tomorrow',
      '2999-01-01',
      '2999-01-01T00:00:00',
      '2999-02-30T00:00:00Z',
      '2999-01-01T24:00:00Z',
      '2999-01-01 00:00:00Z',
      '+010000-01-01T00:00:00Z',
      '9999-12-31T23:59:59-01:00',
      4_102_444_800,
      {},
    ]) {
      await expectRefused({ expires_at: wrong }, 'expires_at');
    }
  });

  test('the expiry is shown in UTC with milliseconds, whatever offset and precision it was given in', async () => {
    expect((await expectMade({ expires_at: '2999-01-01T02:00:00+02:00' })).expires_at).toBe(
      '2999-01-01T00:00:00.000Z',
    );
    expect((await expectMade({ expires_at: '2998-12-31T18:30:00.1239-05:30' })).expires_at).toBe(
      '2999-01-01T00:00:00.123Z',
    );
  });

  test('a rate limit: both halves whole numbers in their ranges', async () => {
    await expectMade({ rate_limit: { limit: 1, window_seconds: 1 } });
    await expectMade({ rate_limit: { limit: 2_147_483_647, window_seconds: 2_678_400 } });
    for (const limit of [0, -1, 1.5, 2_147_483_648, '5', null, undefined]) {
      await expectRefused({ rate_limit: { limit, window_seconds: 60 } }, 'rate_limit.limit');
    }
    for (const seconds of [0, -1, 1.5, 2_678_401, '60', null, undefined]) {
      await expectRefused({ rate_limit: { limit: 5, window_seconds: seconds } }, 'rate_limit.window_seconds');
    }
    for (const wrong of [5, '5/60', []]) await expectRefused({ rate_limit: wrong }, 'rate_limit');
  });

  test('metadata: a JSON object of at most 4 KiB', async () => {
    const empty = JSON.stringify({ a: '' }).length;
    await expectMade({ metadata: { a: 'x'.repeat(4096 - empty) } });
    await expectRefused({ metadata: { a: 'x'.repeat(4097 - empty) } }, 'metadata');
    await expectMade({ metadata: {} });
    for (const wrong of [[], 'x', 5, true]) await expectRefused({ metadata: wrong }, 'metadata');
  });

  test('created_by: 1 to 200 characters', async () => {
    await expectMade({ created_by: 'x'.repeat(200) });
    await expectRefused({ created_by: 'x'.repeat(201) }, 'created_by');
    await expectRefused({ created_by: '' }, 'created_by');
    await expectRefused({ created_by: 5 }, 'created_by');
  });

  test('restrictions: 1 to 100 entries a list, since an empty one could mean all or nothing', async () => {
    const ips = Array.from({ length: 101 }, (_, index) => `10.0.0.${index}`);
    await expectMade({ restrictions: { allowed_ips: ips.slice(0, 100) } });
    await expectRefused({ restrictions: { allowed_ips: ips } }, 'restrictions.allowed_ips');
    for (const list of ['allowed_ips', 'allowed_referrers', 'allowed_endpoints']) {
      await expectRefused({ restrictions: { [list]: [] } }, `restrictions.${list}`);
      await expectRefused({ restrictions: { [list]: 'x' } }, `restrictions.${list}`);
    }
    await expectRefused({ restrictions: [] }, 'restrictions');
  });

  test('restrictions: each entry that is none is named', async () => {
    await expectRefused(
      { restrictions: { allowed_ips: ['10.0.0.1', '10.0.0.0/33'] } },
      'restrictions.allowed_ips.1',
    );
    await expectRefused(
      { restrictions: { allowed_referrers: ['example.com'] } },
      'restrictions.allowed_referrers.0',
    );
    await expectRefused(
      { restrictions: { allowed_endpoints: [{ path: '/a' }, { methods: ['get'], path: '/a' }] } },
      'restrictions.allowed_endpoints.1.methods.0',
    );
    await expectRefused(
      { restrictions: { allowed_endpoints: [{ path: 'a' }] } },
      'restrictions.allowed_endpoints.0.path',
    );
    await expectRefused(
      { restrictions: { allowed_endpoints: [{ path: '/a', methods: [] }] } },
      'restrictions.allowed_endpoints.0.methods',
    );
  });

  test('every fault is told at once', async () => {
    const answer = await create({ name: '', scopes: ['A'], rate_limit: { limit: 0, window_seconds: 0 } });
    expect(answer.body.errors.map((fault: { path: string }) => fault.path).sort()).toEqual([
      'name',
      'rate_limit.limit',
      'rate_limit.window_seconds',
      'scopes.0',
    ]);
  });

  test('a member that no key has is named, also deep inside', async () => {
    await expectRefused({ enviroment: 'live' }, 'enviroment');
    await expectRefused({ id: 'key_1', revoked_at: null }, 'revoked_at');
    await expectRefused({ restrictions: { ips: ['10.0.0.1'] } }, 'restrictions.ips');
    await expectRefused({ rate_limit: { limit: 1, window_seconds: 1, burst: 2 } }, 'rate_limit.burst');
    await expectRefused(
      { restrictions: { allowed_endpoints: [{ path: '/a', verbs: ['GET'] }] } },
      'restrictions.allowed_endpoints.0.verbs',
    );
  });

  test('a refused key is not made', async () => {
    await expectRefused({ workspace_id: 'ws_refused', name: '' }, 'name');
    await expectRefused({ workspace_id: 'ws_refused', environment: 'stage' }, 'environment');
    const rows = await app.database.query("SELECT FROM api_keys WHERE workspace_id = 'ws_refused'");
    expect(rows).toHaveLength(0);
  });
});

describe('the environment of a key', () => {
  test('is one of the configured ones, live unless it is said', async () => {
    expect((await expectMade({})).environment).toBe('live');
    expect((await expectMade({ environment: 'test' })).environment).toBe('test');
    for (const environment of ['stage', 'svc', 'LIVE', '', null]) {
      await expectRefused({ environment }, 'environment');
    }
  });

  test('is svc for service keys, and for them alone', async () => {
    const service = { workspace_id: 'system', scopes: ['introspect'] };
    expect(await expectMade(service)).toMatchObject({ environment: 'svc', prefix: 'ck_svc_' });
    expect(await expectMade({ ...service, environment: 'svc' })).toMatchObject({ environment: 'svc' });
    await expectRefused({ ...service, environment: 'live' }, 'environment');
  });

  test('and the prefix of tokens are configuration', async () => {
    const other = await appOfTest({ KEY_PREFIX: 'acme9', KEY_ENVIRONMENTS: 'prod,stage' });
    const { data, token } = await other.createKey({ environment: 'prod' });
    expect(data).toMatchObject({ environment: 'prod', prefix: 'acme9_prod_' });
    expect(data.hint).toBe(`acme9_prod_…${token.slice(-4)}`);
    expect(token).toMatch(/^acme9_prod_[0-9A-Za-z]{66}$/);
    expect(other.adminToken).toMatch(/^acme9_svc_/);
    // The default is live, which this deployment has not.
    const answer = await other.post('/v1/api-keys', MINIMAL);
    expect(answer.status).toBe(400);
    expect(answer.body.errors).toEqual([{ path: 'environment', message: 'must be one of: prod, stage' }]);
  });
});

describe('the rate limit of a key that is given none', () => {
  test('is the default of its environment', async () => {
    const other = await appOfTest({ DEFAULT_RATE_LIMIT: '50/60', TEST_DEFAULT_RATE_LIMIT: '7/10' });
    const limitOf = async (settings: object) => (await other.createKey({ ...settings })).data.rate_limit;
    expect(await limitOf({})).toEqual({ limit: 50, window_seconds: 60 });
    expect(await limitOf({ environment: 'test' })).toEqual({ limit: 7, window_seconds: 10 });
    expect(await limitOf({ environment: 'test', rate_limit: null })).toBeNull();
    const own = { limit: 1, window_seconds: 2 };
    expect(await limitOf({ environment: 'test', rate_limit: own })).toEqual(own);
  });

  test('is the common default in test, where test has none of its own', async () => {
    expect((await expectMade({ environment: 'test' })).rate_limit).toEqual({
      limit: 1000,
      window_seconds: 3600,
    });
  });

  test('is that of an environment of any name', async () => {
    const other = await appOfTest({
      KEY_ENVIRONMENTS: 'live,staging,prod2',
      STAGING_DEFAULT_RATE_LIMIT: '3/60',
      PROD2_DEFAULT_RATE_LIMIT: 'off',
    });
    const limitOf = async (environment: string) => (await other.createKey({ environment })).data.rate_limit;
    expect(await limitOf('live')).toEqual({ limit: 1000, window_seconds: 3600 });
    expect(await limitOf('staging')).toEqual({ limit: 3, window_seconds: 60 });
    expect(await limitOf('prod2')).toBeNull();
  });

  test('is none where the default is off', async () => {
    const other = await appOfTest({ DEFAULT_RATE_LIMIT: 'off', TEST_DEFAULT_RATE_LIMIT: '7/10' });
    expect((await other.createKey()).data.rate_limit).toBeNull();
    expect((await other.createKey({ environment: 'test' })).data.rate_limit).toEqual({
      limit: 7,
      window_seconds: 10,
    });
  });

  test('is none for a service key, which may be given one', async () => {
    const service = { workspace_id: 'system', scopes: ['introspect'] };
    expect((await expectMade(service)).rate_limit).toBeNull();
    const limit = { limit: 5, window_seconds: 60 };
    expect((await expectMade({ ...service, rate_limit: limit })).rate_limit).toEqual(limit);
  });
});

describe('a service key', () => {
  const service = { workspace_id: 'system' };

  test('takes permissions for scopes, and nothing else', async () => {
    const permissions = [
      'keys:read',
      'keys:write',
      'introspect',
      'workspaces:write',
      'scopes:write',
      'audit:read',
      'admin',
    ];
    expect((await expectMade({ ...service, scopes: permissions })).scopes).toEqual(permissions);
    await expectRefused({ ...service, scopes: ['keys:read', 'read'] }, 'scopes.1');
    await expectRefused({ ...service, scopes: ['keys:*'] }, 'scopes.0');
    await expectRefused({ ...service, scopes: ['keys'] }, 'scopes.0');
  });

  test('has restrictions of its own kind', async () => {
    const restrictions = { allowed_ips: ['127.0.0.1'], allowed_workspaces: ['ws_acme'] };
    expect((await expectMade({ ...service, restrictions })).restrictions).toEqual(restrictions);
    const allowed_workspaces = ['ws_acme'];
    await expectRefused({ restrictions: { allowed_workspaces } }, 'restrictions.allowed_workspaces');
    await expectRefused(
      { ...service, restrictions: { allowed_referrers: ['https://a.example/*'] } },
      'restrictions.allowed_referrers',
    );
    await expectRefused(
      { ...service, restrictions: { allowed_endpoints: [{ path: '/a' }] } },
      'restrictions.allowed_endpoints',
    );
    await expectRefused(
      { ...service, restrictions: { allowed_workspaces: ['system'] } },
      'restrictions.allowed_workspaces',
    );
  });

  test('may hold scopes that are permissions elsewhere without their power', async () => {
    const { token } = await app.createKey({ scopes: ['admin', 'keys:read'] });
    expect((await app.get('/v1/api-keys', { as: token })).status).toBe(401);
  });
});

describe('rotation', () => {
  test('is due after the configured days', async () => {
    const other = await appOfTest({ ROTATION_DUE_DAYS: '1' });
    const { data } = await other.createKey();
    expect(Date.parse(data.rotation_due_at) - Date.parse(data.created_at)).toBe(DAY_MS);
  });
});
