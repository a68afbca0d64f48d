import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { expectProblem } from '../http/problem.ts';
import { createTestApp, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';

const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;
const NO_LIMITS = { max_active_keys: null, allowed_scopes: null, max_key_lifetime_days: null };
const DEFAULTS = {
  name: null,
  limits: NO_LIMITS,
  rate_limit: null,
  disabled: false,
  created_at: null,
  updated_at: null,
};
const PLAN = {
  name: 'Acme Corp.',
  limits: { max_active_keys: 10, allowed_scopes: ['read', 'validate:offers'], max_key_lifetime_days: 90 },
  rate_limit: { limit: 10_000, window_seconds: 3600 },
  disabled: true,
};

let app: TestApp;
beforeAll(async () => {
  app = await createTestApp();
});
afterAll(() => app.close());

const get = (id: string, as?: string) => app.get(`/v1/workspaces/${id}`, as === undefined ? {} : { as });
const put = (id: string, body: unknown, as?: string) =>
  app.put(`/v1/workspaces/${id}`, body, as === undefined ? {} : { as });

async function settingsOf(id: string): Promise<Answer['body']> {
  const answer = await get(id);
  expect(answer.status).toBe(200);
  return answer.body.data;
}

describe('a workspace', () => {
  test('that was never put has the defaults, with keys and without', async () => {
    await app.createKey({ workspace_id: 'ws_with_keys' });
    for (const id of ['ws_with_keys', 'ws_nobody_named_yet']) {
      expect((await get(id)).body).toEqual({ success: true, data: { id, ...DEFAULTS } });
    }
    // Looking makes none.
    expect(await app.database.query("SELECT FROM workspaces WHERE id = 'ws_nobody_named_yet'")).toHaveLength(
      0,
    );
  });

  test('is put before it has any key, and is shown as it was put', async () => {
    const answer = await put('ws_put', PLAN);
    expect(answer.status).toBe(200);
    expect(answer.body).toEqual({
      success: true,
      data: {
        id: 'ws_put',
        ...PLAN,
        created_at: expect.stringMatching(TIME),
        updated_at: answer.body.data.created_at,
      },
      propagation: { instances: 1, confirmed: 1, fenced: 0, waited_ms: expect.any(Number) },
    });
    expect(await settingsOf('ws_put')).toEqual(answer.body.data);
  });

  test('is replaced as a whole: what is absent, or null, has its default from then on', async () => {
    const first = (await put('ws_replaced', PLAN)).body.data;
    const { data } = (await put('ws_replaced', { limits: { max_active_keys: 0 } })).body;
    expect(data).toMatchObject({
      ...DEFAULTS,
      limits: { ...NO_LIMITS, max_active_keys: 0 },
      created_at: first.created_at,
      updated_at: expect.stringMatching(TIME),
    });
    expect(Date.parse(data.updated_at)).toBeGreaterThanOrEqual(Date.parse(first.updated_at));
    for (const nothing of [{}, { name: null, limits: null, rate_limit: null }, { limits: NO_LIMITS }]) {
      await put('ws_replaced', PLAN);
      expect((await put('ws_replaced', nothing)).body.data).toMatchObject({
        ...DEFAULTS,
        created_at: first.created_at,
        updated_at: expect.stringMatching(TIME),
      });
    }
  });

  test('put a second time with the same settings is not changed, and is waited for all the same', async () => {
    const first = await put('ws_again', PLAN);
    const again = await put('ws_again', PLAN);
    expect(again.body).toEqual({ ...first.body, propagation: expect.objectContaining({ instances: 1 }) });
    const events = await app.database.query("SELECT FROM audit_events WHERE workspace_id = 'ws_again'");
    expect(events).toHaveLength(1);
  });

  test('names each allowed scope once, in the order given', async () => {
    const { data } = (await put('ws_scopes', { limits: { allowed_scopes: ['b', 'a', 'b'] } })).body;
    expect(data.limits.allowed_scopes).toEqual(['b', 'a']);
  });

  test.each<[string, unknown, string]>([
    ['an empty name', { name: '' }, 'name'],
    ['a name of 121 characters', { name: 'n'.repeat(121) }, 'name'],
    ['a negative number of keys', { limits: { max_active_keys: -1 } }, 'limits.max_active_keys'],
    ['half a key', { limits: { max_active_keys: 1.5 } }, 'limits.max_active_keys'],
    ['more keys than there can be', { limits: { max_active_keys: 2 ** 31 } }, 'limits.max_active_keys'],
    ['an empty list of scopes', { limits: { allowed_scopes: [] } }, 'limits.allowed_scopes'],
    ['what is no scope', { limits: { allowed_scopes: ['read', '*'] } }, 'limits.allowed_scopes.1'],
    [
      'more scopes than fit',
      { limits: { allowed_scopes: Array.from({ length: 257 }, (_, i) => `s${i}`) } },
      'limits.allowed_scopes',
    ],
    ['a lifetime of no day', { limits: { max_key_lifetime_days: 0 } }, 'limits.max_key_lifetime_days'],
    [
      'a lifetime beyond a century',
      { limits: { max_key_lifetime_days: 36_501 } },
      'limits.max_key_lifetime_days',
    ],
    ['an unknown limit', { limits: { max_keys: 5 } }, 'limits.max_keys'],
    ['half a rate limit', { rate_limit: { limit: 5 } }, 'rate_limit.window_seconds'],
    ['disabled as a word', { disabled: 'true' }, 'disabled'],
    ['disabled as null', { disabled: null }, 'disabled'],
    ['an unknown member', { plan: 'free' }, 'plan'],
  ])('refuses %s', async (_, body, path) => {
    const answer = await put('ws_refused', body);
    expectProblem(answer, 'invalid_request');
    expect(answer.body.errors.map((fault: { path: string }) => fault.path)).toEqual([path]);
    expect(await settingsOf('ws_refused')).toMatchObject(DEFAULTS);
  });

  test('holds no token, not even by mistake', async () => {
    const { token } = await app.createKey();
    for (const answer of [
      await put('ws_tokenless', { name: `was ${token}` }),
      await put(token, {}),
      await get(token),
    ]) {
      expectProblem(answer, 'invalid_request');
      expect(answer.text).not.toContain(token.slice(8, 28));
    }
  });

  test.each([
    { name: '🔑'.repeat(120) },
    { limits: { max_active_keys: 2 ** 31 - 1, max_key_lifetime_days: 36_500 } },
    { limits: { max_active_keys: 0, max_key_lifetime_days: 1 } },
    { limits: { allowed_scopes: Array.from({ length: 256 }, (_, i) => `s${i}`) } },
    { rate_limit: { limit: 2_147_483_647, window_seconds: 2_678_400 } },
  ])('takes the widest of each: %#', async (body) => {
    const answer = await put('ws_widest', body);
    expect(answer.status, answer.text).toBe(200);
    expect(answer.body.data).toMatchObject(body);
  });

  test('has an id of the form that all workspaces have', async () => {
    for (const id of ['w'.repeat(101), '%2e', 'a%20b', 'a%2fb', '%c3%a4']) {
      expectProblem(await get(id), 'invalid_request');
      expectProblem(await put(id, {}), 'invalid_request');
    }
    expect((await put('A-z_0.9:', {})).status).toBe(200);
  });

  test('tells in an audit event what it was and what it became', async () => {
    const { id: actor, token } = await app.createServiceKey(['workspaces:write'], { name: 'billing' });
    await put('ws_audited', { ...PLAN, disabled: false }, token);
    await put('ws_audited', { ...PLAN, limits: { max_active_keys: 5 } }, token);
    const events = await app.database.query(
      "SELECT action, key_id, before, after, address FROM audit_events WHERE workspace_id = 'ws_audited' ORDER BY at, id",
    );
    const common = { action: 'workspace.updated', key_id: null, address: '127.0.0.1' };
    expect(events).toEqual([
      { ...common, before: null, after: { ...PLAN, disabled: false } },
      {
        ...common,
        before: { limits: PLAN.limits, disabled: false },
        after: { limits: { ...NO_LIMITS, max_active_keys: 5 }, disabled: true },
      },
    ]);
    expect(actor).toMatch(/^key_/);
  });
});

describe('a disabled workspace', () => {
  test('has inactive keys from its answer on, and active ones again', async () => {
    const workspace_id = 'ws_disabled';
    const { token } = await app.createKey({ workspace_id });
    const other = await app.createKey({ workspace_id: 'ws_not_disabled' });
    expect((await app.introspect(token)).body.active).toBe(true);
    for (let round = 0; round < 3; round++) {
      await put(workspace_id, { disabled: true });
      expect((await app.introspect(token)).body).toEqual({
        active: false,
        reason: {
          code: 'workspace_disabled',
          status: 403,
          detail: 'The workspace of this key is disabled.',
        },
      });
      expect((await app.introspect(other.token)).body.active).toBe(true);
      await put(workspace_id, { disabled: false });
      expect((await app.introspect(token)).body.active).toBe(true);
    }
  });

  test('is told after the end of a key, before everything else, and to nobody who may not see it', async () => {
    const workspace_id = 'ws_disabled_order';
    const { id, token } = await app.createKey({ workspace_id, restrictions: { allowed_ips: ['10.0.0.1'] } });
    await put(workspace_id, { disabled: true });
    const question = { workspace_id: 'ws_other', scopes: ['read'] };
    expect((await app.introspect(token, question)).body.reason.code).toBe('workspace_disabled');
    const { token: as } = await app.createServiceKey(['introspect'], {
      restrictions: { allowed_workspaces: ['ws_other'] },
    });
    expect((await app.introspect(token, {}, { as })).body.reason.code).toBe('invalid');
    await app.delete(`/v1/api-keys/${id}`);
    expect((await app.introspect(token)).body.reason.code).toBe('revoked');
  });

  test('is an inactive token to RFC 7662, and no reason to refuse its administration', async () => {
    const workspace_id = 'ws_disabled_managed';
    await put(workspace_id, { disabled: true });
    const { id, token } = await app.createKey({ workspace_id });
    const headers = { 'content-type': 'application/x-www-form-urlencoded' };
    const answer = await app.send('POST', '/v1/introspect', { headers, body: `token=${token}` });
    expect(answer.body).toEqual({ active: false });
    expect((await app.get(`/v1/api-keys/${id}`)).body.data.status).toBe('active');
    expect((await app.patch(`/v1/api-keys/${id}`, { name: 'New' })).status).toBe(200);
    expect((await app.delete(`/v1/api-keys/${id}`)).status).toBe(200);
  });
});

describe('the workspace system', () => {
  test('cannot be put, by an admin neither', async () => {
    for (const body of [{}, { disabled: true }, { limits: { max_active_keys: 0 } }]) {
      expectProblem(await put('system', body), 'forbidden');
    }
    expect((await app.get('/v1/me')).status).toBe(200);
  });

  test('is shown to admins, with the defaults, and to nobody else', async () => {
    expect(await settingsOf('system')).toEqual({ id: 'system', ...DEFAULTS });
    const { token } = await app.createServiceKey(['keys:read', 'workspaces:write']);
    expectProblem(await get('system', token), 'not_found');
  });

  test('is kept from being disabled by the database itself', async () => {
    for (const change of ['disabled = true', 'updated_at = now()']) {
      await expect(
        app.database.query(`UPDATE workspaces SET ${change} WHERE id = 'system'`),
      ).rejects.toMatchObject({ constraint: 'workspaces_system_has_defaults' });
    }
  });
});

describe('a caller that is bound to workspaces', () => {
  test('sees and puts its own, and nothing of any other', async () => {
    const { token } = await app.createServiceKey(['keys:read', 'workspaces:write'], {
      restrictions: { allowed_workspaces: ['ws_bound'] },
    });
    expect((await put('ws_bound', PLAN, token)).status).toBe(200);
    expect((await get('ws_bound', token)).body.data.name).toBe('Acme Corp.');
    await put('ws_not_bound', PLAN);
    for (const id of ['ws_not_bound', 'ws_never_put']) {
      expectProblem(await get(id, token), 'not_found');
      expectProblem(await put(id, { disabled: true }, token), 'not_found');
    }
    expect((await settingsOf('ws_not_bound')).name).toBe('Acme Corp.');
  });
});
