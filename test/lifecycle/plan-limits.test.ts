import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { keyIdToUuid } from '../../src/domain/key-id.ts';
import { expectProblem } from '../http/problem.ts';
import { createTestApp, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';

const DAY_MS = 86_400_000;

let app: TestApp;
beforeAll(async () => {
  app = await createTestApp();
});
afterAll(() => app.close());

let serial = 0;
/** A workspace of its own with a plan of these limits. */
async function workspaceWith(limits: Record<string, unknown>): Promise<string> {
  const id = `ws_plan_${++serial}`;
  await putLimits(id, limits);
  return id;
}

async function putLimits(id: string, limits: Record<string, unknown>): Promise<void> {
  const { status, text } = await app.put(`/v1/workspaces/${id}`, { limits });
  expect(status, text).toBe(200);
}

function create(workspace_id: string, settings: Record<string, unknown> = {}): Promise<Answer> {
  return app.post('/v1/api-keys', { workspace_id, name: 'A key', ...settings });
}

async function expectMade(workspace: string, settings?: Record<string, unknown>): Promise<Answer['body']> {
  const answer = await create(workspace, settings);
  expect(answer.status, answer.text).toBe(201);
  return answer.body.data;
}

function expectBeyond(answer: Answer, detail: RegExp): void {
  expectProblem(answer, 'limit_reached');
  expect(answer.body.detail).toMatch(detail);
}

/** Lets a key expire, as time would. */
async function expire(id: string): Promise<void> {
  await app.database.query("UPDATE api_keys SET expires_at = now() - interval '1 ms' WHERE id = $1", [
    keyIdToUuid(id),
  ]);
}

describe('max_active_keys', () => {
  test('is how many active keys there are at most', async () => {
    const workspace = await workspaceWith({ max_active_keys: 2 });
    await expectMade(workspace);
    await expectMade(workspace, { environment: 'test' });
    expectBeyond(await create(workspace), /allows 2 active keys/);
    // Nothing was made of it, and others have their own.
    const rows = await app.database.query('SELECT FROM api_keys WHERE workspace_id = $1', [workspace]);
    expect(rows).toHaveLength(2);
    await expectMade('ws_plan_other');
  });

  test('counts neither revoked nor expired keys', async () => {
    const workspace = await workspaceWith({ max_active_keys: 1 });
    const revoked = await expectMade(workspace);
    expectBeyond(await create(workspace), /1 active key,/);
    await app.delete(`/v1/api-keys/${revoked.id}`);
    const expired = await expectMade(workspace);
    expectBeyond(await create(workspace), /1 active key,/);
    await expire(expired.id);
    await expectMade(workspace, { expires_at: new Date(Date.now() + DAY_MS).toISOString() });
    expectBeyond(await create(workspace), /1 active key,/);
  });

  test('of 0 is a plan without API keys', async () => {
    const workspace = await workspaceWith({ max_active_keys: 0 });
    expectBeyond(await create(workspace), /without API keys/);
    await putLimits(workspace, { max_active_keys: 1 });
    await expectMade(workspace);
  });

  test('lowered below what there is leaves the keys alone, and lets no more come', async () => {
    const workspace = await workspaceWith({ max_active_keys: 3 });
    const keys = [await expectMade(workspace), await expectMade(workspace), await expectMade(workspace)];
    await putLimits(workspace, { max_active_keys: 1 });
    for (const { key } of keys) expect((await app.introspect(key)).body.active).toBe(true);
    await app.delete(`/v1/api-keys/${keys[0].id}`);
    await app.delete(`/v1/api-keys/${keys[1].id}`);
    expectBeyond(await create(workspace), /1 active key,/);
    await app.delete(`/v1/api-keys/${keys[2].id}`);
    await expectMade(workspace);
  });

  test('holds under fifty creations at once', async () => {
    const workspace = await workspaceWith({ max_active_keys: 7 });
    const answers = await Promise.all(Array.from({ length: 50 }, () => create(workspace)));
    expect(answers.filter(({ status }) => status === 201)).toHaveLength(7);
    for (const answer of answers) if (answer.status !== 201) expectBeyond(answer, /7 active keys/);
    const { body } = await app.get(`/v1/api-keys?workspace_id=${workspace}&limit=100`);
    expect(body.data).toHaveLength(7);
  });

  test('is not got around by an expired key that a patch brings back', async () => {
    const workspace = await workspaceWith({ max_active_keys: 1 });
    const { id } = await expectMade(workspace);
    await expire(id);
    await expectMade(workspace);
    expectProblem(await app.patch(`/v1/api-keys/${id}`, { expires_at: null }), 'key_not_active');
  });

  test('is not got around by a key that expires while a patch waits to prolong it', async () => {
    const workspace = await workspaceWith({ max_active_keys: 1 });
    const { id } = await expectMade(workspace);
    await app.database.query("UPDATE api_keys SET expires_at = now() + interval '1 s' WHERE id = $1", [
      keyIdToUuid(id),
    ]);
    // As a creation does that counts the key as expired, but for longer.
    const held = app.database.query(
      `BEGIN; SELECT FROM workspaces WHERE id = '${workspace}' FOR NO KEY UPDATE; SELECT pg_sleep(1.5); COMMIT`,
    );
    await expect
      .poll(() =>
        app.database.query(
          "SELECT FROM pg_locks WHERE relation = 'workspaces'::regclass AND mode = 'RowShareLock'",
        ),
      )
      .not.toHaveLength(0);
    expectProblem(await app.patch(`/v1/api-keys/${id}`, { expires_at: null }), 'key_not_active');
    await held;
  });
});

describe('allowed_scopes', () => {
  test('are all that a new key may be given, by name', async () => {
    const workspace = await workspaceWith({ allowed_scopes: ['read', 'validate:offers'] });
    expect((await expectMade(workspace, { scopes: ['validate:offers', 'read'] })).scopes).toHaveLength(2);
    await expectMade(workspace, { scopes: [] });
    expectBeyond(await create(workspace, { scopes: ['read', 'write'] }), /the scope "write"/);
    expectBeyond(await create(workspace, { scopes: ['validate'] }), /the scope "validate"/);
  });

  test('are all that a key may be given later', async () => {
    const workspace = await workspaceWith({ allowed_scopes: ['read'] });
    const { id } = await expectMade(workspace);
    expect((await app.patch(`/v1/api-keys/${id}`, { scopes: ['read'] })).status).toBe(200);
    expectBeyond(await app.patch(`/v1/api-keys/${id}`, { scopes: ['read', 'write'] }), /the scope "write"/);
    expect((await app.get(`/v1/api-keys/${id}`)).body.data.scopes).toEqual(['read']);
  });

  test('narrowed leave a key what it has, to keep and to lose', async () => {
    const workspace = await workspaceWith({});
    const { id, key } = await expectMade(workspace, { scopes: ['read', 'write', 'delete'] });
    await putLimits(workspace, { allowed_scopes: ['read', 'list'] });
    expect((await app.introspect(key, { scopes: ['write'] })).body.active).toBe(true);
    const patch = (scopes: string[]) => app.patch(`/v1/api-keys/${id}`, { scopes });
    expect((await patch(['read', 'write', 'list'])).body.data.scopes).toEqual(['read', 'write', 'list']);
    // Once lost, it is gone.
    expectBeyond(await patch(['read', 'write', 'delete']), /the scope "delete"/);
    expect((await app.patch(`/v1/api-keys/${id}`, { name: 'Renamed' })).status).toBe(200);
  });
});

describe('max_key_lifetime_days', () => {
  const lifetimeOf = ({ created_at, expires_at }: Answer['body']) =>
    (Date.parse(expires_at) - Date.parse(created_at)) / DAY_MS;
  const inDays = (days: number) => new Date(Date.now() + days * DAY_MS).toISOString();

  test('is what a key gets that is given no expiry', async () => {
    const workspace = await workspaceWith({ max_key_lifetime_days: 90 });
    expect(lifetimeOf(await expectMade(workspace))).toBe(90);
    expect(lifetimeOf(await expectMade(workspace, { expires_at: null }))).toBe(90);
    const shorter = inDays(30);
    expect((await expectMade(workspace, { expires_at: shorter })).expires_at).toBe(shorter);
  });

  test('is what a key is refused beyond', async () => {
    const workspace = await workspaceWith({ max_key_lifetime_days: 90 });
    expect(lifetimeOf(await expectMade(workspace, { expires_at: inDays(90) }))).toBeLessThanOrEqual(90);
    for (const days of [90.001, 91, 9_000]) {
      expectBeyond(await create(workspace, { expires_at: inDays(days) }), /live 90 days/);
    }
    await putLimits(workspace, { max_key_lifetime_days: 1 });
    expectBeyond(await create(workspace, { expires_at: inDays(2) }), /live 1 day from/);
  });

  test('is what a key cannot be prolonged beyond, counted from its creation', async () => {
    const workspace = await workspaceWith({ max_key_lifetime_days: 90 });
    const { id, expires_at } = await expectMade(workspace);
    const patch = (expiry: string | null) => app.patch(`/v1/api-keys/${id}`, { expires_at: expiry });
    expect((await patch(inDays(30))).status).toBe(200);
    for (const beyond of [null, inDays(91)]) expectBeyond(await patch(beyond), /live 90 days/);
    expect((await patch(expires_at)).body.data.expires_at).toBe(expires_at);
  });

  test('shortened leaves a key its life, until that is changed', async () => {
    const workspace = await workspaceWith({});
    const { id, key } = await expectMade(workspace);
    await putLimits(workspace, { max_key_lifetime_days: 7 });
    expect((await app.introspect(key)).body.active).toBe(true);
    expect((await app.patch(`/v1/api-keys/${id}`, { name: 'Renamed', expires_at: null })).status).toBe(200);
    expectBeyond(await app.patch(`/v1/api-keys/${id}`, { expires_at: inDays(8) }), /live 7 days/);
    expect((await app.patch(`/v1/api-keys/${id}`, { expires_at: inDays(6) })).status).toBe(200);
  });
});

describe('the workspace system', () => {
  test('has no limits, and no plan that could give it some', async () => {
    expectProblem(await app.put('/v1/workspaces/system', { limits: { max_active_keys: 0 } }), 'forbidden');
    await app.createServiceKey(['introspect']);
  });
});
