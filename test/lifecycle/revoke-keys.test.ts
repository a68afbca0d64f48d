import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { keyIdToUuid } from '../../src/domain/key-id.ts';
import { createTestApp, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';

const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

let app: TestApp;
beforeAll(async () => {
  app = await createTestApp();
});
afterAll(() => app.close());

/** The answer to a change but for what it says of how it spread, which has tests of its own. */
function withoutPropagation(answer: Answer): unknown {
  const { propagation: _, ...rest } = answer.body;
  return rest;
}

function revokeAll(workspace: string, body?: unknown): Promise<Answer> {
  return app.post(`/v1/workspaces/${workspace}/revoke-keys`, body);
}

async function statusOf(id: string): Promise<string> {
  return (await app.get(`/v1/api-keys/${id}`)).body.data.status;
}

describe.each([
  ['DELETE', (id: string, body?: unknown) => app.delete(`/v1/api-keys/${id}`, body)],
  ['POST …/revoke', (id: string, body?: unknown) => app.post(`/v1/api-keys/${id}/revoke`, body)],
])('%s', (_, revoke) => {
  test('answers with the message of the contract and the key, revoked', async () => {
    const { id, data } = await app.createKey({ scopes: ['read'] });
    const { key: _, ...shown } = data;
    const answer = await revoke(id, { reason: 'leaked' });
    expect(answer.status).toBe(200);
    expect(withoutPropagation(answer)).toEqual({
      success: true,
      message: 'API key revoked successfully',
      data: {
        ...shown,
        status: 'revoked',
        revoked_at: expect.stringMatching(TIME),
        revoked_reason: 'leaked',
      },
    });
    const revokedAt = Date.parse(answer.body.data.revoked_at);
    expect(revokedAt).toBeGreaterThanOrEqual(Date.parse(data.created_at));
    expect(revokedAt).toBeLessThanOrEqual(Date.now() + 1_000);
    expect((await app.get(`/v1/api-keys/${id}`)).body.data).toEqual(answer.body.data);
  });

  test.each<[string, unknown]>([
    ['no body', undefined],
    ['an empty body', ''],
    ['null', 'null'],
    ['an empty object', {}],
    ['a reason of null', { reason: null }],
  ])('takes %s for no reason', async (_, body) => {
    const { id } = await app.createKey();
    const answer = await revoke(id, body);
    expect(answer.status, answer.text).toBe(200);
    expect(answer.body.data).toMatchObject({ status: 'revoked', revoked_reason: null });
  });

  test('takes a reason of 1 to 200 characters, and no other member', async () => {
    const { id } = await app.createKey();
    for (const [body, path] of [
      [{ reason: '' }, 'reason'],
      [{ reason: 'x'.repeat(201) }, 'reason'],
      [{ reason: 5 }, 'reason'],
      [{ why: 'leaked' }, 'why'],
      [{ reason: 'leaked', force: true }, 'force'],
    ] as const) {
      const answer = await revoke(id, body);
      expect(answer.status).toBe(400);
      expect(answer.body.errors).toMatchObject([{ path }]);
    }
    expect(await statusOf(id)).toBe('active');
    expect((await revoke(id, { reason: 'x'.repeat(200) })).status).toBe(200);
  });

  test('answers a second call with the first time and reason', async () => {
    const { id } = await app.createKey();
    const first = await revoke(id, { reason: 'first' });
    const again = [
      await revoke(id, { reason: 'second' }),
      await revoke(id),
      await app.delete(`/v1/api-keys/${id}`),
    ];
    for (const answer of again) {
      expect(answer.status).toBe(200);
      expect(withoutPropagation(answer)).toEqual(withoutPropagation(first));
    }
    const reasonless = await app.createKey();
    await revoke(reasonless.id);
    expect((await revoke(reasonless.id, { reason: 'late' })).body.data.revoked_reason).toBeNull();
  });

  test('called many times at once revokes once', async () => {
    const { id } = await app.createKey();
    const answers = await Promise.all(
      [1, 2, 3, 4, 5, 6].map((count) => revoke(id, { reason: `reason ${count}` })),
    );
    expect(answers.map((answer) => answer.status)).toEqual([200, 200, 200, 200, 200, 200]);
    expect(new Set(answers.map((answer) => JSON.stringify(withoutPropagation(answer)))).size).toBe(1);
    const events = await app.database.query(
      "SELECT FROM audit_events WHERE key_id = $1 AND action = 'key.revoked'",
      [keyIdToUuid(id)],
    );
    expect(events).toHaveLength(1);
  });

  test('revokes an expired key, too', async () => {
    const { id } = await app.createKey();
    await app.database.query("UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE id = $1", [
      keyIdToUuid(id),
    ]);
    expect(await statusOf(id)).toBe('expired');
    expect((await revoke(id)).body.data.status).toBe('revoked');
  });

  test('holds for the very next introspection', async () => {
    const { id, token } = await app.createKey();
    expect((await app.introspect(token)).body.active).toBe(true);
    await revoke(id);
    expect((await app.introspect(token)).body).toMatchObject({ active: false, reason: { code: 'revoked' } });
  });

  test('touches no other key', async () => {
    const [one, other] = [await app.createKey(), await app.createKey()];
    await revoke(one.id);
    expect(await statusOf(other.id)).toBe('active');
    expect((await app.introspect(other.token)).body.active).toBe(true);
  });
});

describe('the revocation of a whole workspace', () => {
  test('revokes all keys that are not revoked yet, expired ones too, and says how many', async () => {
    const workspace_id = 'ws_bulk_all';
    const keys = [];
    for (let count = 0; count < 4; count++) keys.push(await app.createKey({ workspace_id }));
    const other = await app.createKey({ workspace_id: 'ws_bulk_all2' });
    const [early, expired] = keys;
    const before = await app.delete(`/v1/api-keys/${early?.id}`, { reason: 'early' });
    await app.database.query("UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE id = $1", [
      keyIdToUuid(expired?.id ?? ''),
    ]);

    const answer = await revokeAll(workspace_id, { reason: 'the contract ended' });
    expect(answer.status).toBe(200);
    expect(withoutPropagation(answer)).toEqual({ success: true, data: { revoked: 3 } });
    for (const { id, token } of keys.slice(1)) {
      expect((await app.get(`/v1/api-keys/${id}`)).body.data).toMatchObject({
        status: 'revoked',
        revoked_reason: 'the contract ended',
      });
      expect((await app.introspect(token)).body.reason.code).toBe('revoked');
    }
    expect((await app.get(`/v1/api-keys/${early?.id}`)).body.data).toEqual(before.body.data);
    expect(await statusOf(other.id)).toBe('active');

    expect(withoutPropagation(await revokeAll(workspace_id))).toEqual({
      success: true,
      data: { revoked: 0 },
    });
    expect((await app.get(`/v1/api-keys/${keys[2]?.id}`)).body.data.revoked_reason).toBe(
      'the contract ended',
    );
  });

  test('keeps to an environment, to a creator, and to both', async () => {
    const workspace_id = 'ws_bulk_some';
    const make = async (environment: string, created_by?: string) =>
      (await app.createKey({ workspace_id, environment, created_by })).id;
    const ids = {
      live1: await make('live', 'usr_1'),
      live2: await make('live', 'usr_2'),
      test1: await make('test', 'usr_1'),
      test2: await make('test', 'usr_2'),
      live: await make('live'),
    };
    const active = async () => {
      const all = Object.entries(ids).map(async ([name, id]) =>
        (await statusOf(id)) === 'active' ? [name] : [],
      );
      return (await Promise.all(all)).flat();
    };
    const revoked = async (filters: object) => (await revokeAll(workspace_id, filters)).body.data.revoked;
    expect(await revoked({ environment: 'stage' })).toBe(0);
    expect(await revoked({ created_by: 'usr_3' })).toBe(0);
    expect(await revoked({ environment: 'test', created_by: 'usr_1' })).toBe(1);
    expect(await active()).toEqual(['live1', 'live2', 'test2', 'live']);
    expect(await revoked({ created_by: 'usr_1' })).toBe(1);
    expect(await active()).toEqual(['live2', 'test2', 'live']);
    expect(await revoked({ environment: 'test' })).toBe(1);
    expect(await active()).toEqual(['live2', 'live']);
    expect(await revoked({})).toBe(2);
  });

  test('refuses a filter that it does not know rather than revoke more than was meant', async () => {
    const workspace_id = 'ws_bulk_typo';
    const { id } = await app.createKey({ workspace_id });
    for (const [body, path] of [
      [{ enviroment: 'test' }, 'enviroment'],
      [{ environment: 'TEST' }, 'environment'],
      [{ environment: null }, 'environment'],
      [{ created_by: null }, 'created_by'],
      [{ created_by: '' }, 'created_by'],
      [{ reason: 'x'.repeat(201) }, 'reason'],
    ] as const) {
      const answer = await revokeAll(workspace_id, body);
      expect(answer.status).toBe(400);
      expect(answer.body.errors).toMatchObject([{ path }]);
    }
    expect(await statusOf(id)).toBe('active');
  });

  test('takes no body, an empty one and null for no filter', async () => {
    for (const body of [undefined, '', 'null', {}]) {
      await app.createKey({ workspace_id: 'ws_bulk_bare' });
      const answer = await revokeAll('ws_bulk_bare', body);
      expect(answer.status).toBe(200);
      expect(answer.body.data).toEqual({ revoked: 1 });
    }
  });

  test('is refused for system, for an admin too', async () => {
    const answer = await revokeAll('system', {});
    expect(answer.status).toBe(403);
    expect(answer.body.code).toBe('forbidden');
    expect((await app.get('/v1/me')).status).toBe(200);
  });

  test('finds nothing to revoke in a workspace that never had a key', async () => {
    expect(withoutPropagation(await revokeAll('ws_of_nobody'))).toEqual({
      success: true,
      data: { revoked: 0 },
    });
    expect((await revokeAll('..')).status).toBe(404);
    expect((await revokeAll('a%20b')).status).toBe(400);
  });

  test('and the making of keys at the same time leave each key active or counted', async () => {
    const workspace_id = 'ws_bulk_race';
    const early = await app.createKey({ workspace_id });
    const creations = Array.from({ length: 8 }, () => app.createKey({ workspace_id }));
    const bulk = [revokeAll(workspace_id), revokeAll(workspace_id), revokeAll(workspace_id)];
    const [made, answers] = [await Promise.all(creations), await Promise.all(bulk)];
    expect(answers.map(({ status }) => status)).toEqual([200, 200, 200]);
    expect(await statusOf(early.id)).toBe('revoked');

    const counted = answers.reduce((sum, answer) => sum + answer.body.data.revoked, 0);
    const statuses = await Promise.all([early, ...made].map(({ id }) => statusOf(id)));
    expect(statuses.filter((status) => status === 'revoked')).toHaveLength(counted);
    for (const [index, { token }] of [early, ...made].entries()) {
      expect((await app.introspect(token)).body.active).toBe(statuses[index] === 'active');
    }
    // What was made after the last of them is all that is left.
    expect((await revokeAll(workspace_id)).body.data.revoked).toBe(made.length + 1 - counted);
  });
});

test('a revocation that waited for the lock of its key is dated after that wait', async () => {
  const { id } = await app.createKey();
  const holder = new pg.Client({ connectionString: app.database.url });
  await holder.connect();
  await holder.query('BEGIN');
  await holder.query('SELECT FROM api_keys WHERE id = $1 FOR UPDATE', [keyIdToUuid(id)]);
  const revocation = app.delete(`/v1/api-keys/${id}`);
  await waitsForLock(holder);
  const { rows } = await holder.query<{ now: number }>(
    'SELECT (extract(epoch FROM clock_timestamp()) * 1000)::float8 AS now',
  );
  await holder.query('COMMIT');
  await holder.end();
  const { body } = await revocation;
  expect(Date.parse(body.data.revoked_at)).toBeGreaterThanOrEqual(Math.floor(rows[0]?.now ?? Number.NaN));
});

test('a revocation whose audit event cannot be written is none, and the connection serves on', async () => {
  const { id, token } = await app.createKey();
  await app.database.query(`
    CREATE FUNCTION refuse_event() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
    CREATE TRIGGER refuse_event BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION refuse_event()`);
  const refused = await Promise.all(Array.from({ length: 6 }, () => app.delete(`/v1/api-keys/${id}`)));
  await app.database.query('DROP TRIGGER refuse_event ON audit_events; DROP FUNCTION refuse_event()');
  expect(refused.map(({ status }) => status)).toEqual(Array(6).fill(503));
  expect(await statusOf(id)).toBe('active');
  expect((await app.post('/v1/introspect', { key: token })).body.active).toBe(true);
  expect((await app.delete(`/v1/api-keys/${id}`)).status).toBe(200);
});

/** Until some connection to the database waits for a lock of another. */
async function waitsForLock(client: pg.Client): Promise<void> {
  for (;;) {
    const { rowCount } = await client.query(
      "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    );
    if (rowCount !== 0) return;
  }
}
