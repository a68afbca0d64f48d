import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { keyIdToUuid, newKeyId } from '../../src/domain/key-id.ts';
import { appOfTest, createTestApp, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';
import { expectProblem } from './problem.ts';

/* What each rule finds is held by test/storage/signals.test.ts, on both sides of its threshold. */

const DAY_MS = 86_400_000;
const SETTINGS = {
  CALLER_RATE_LIMIT: 'off',
  FAILED_AUTH_RATE_LIMIT: 'off',
  ROTATION_DUE_DAYS: '40',
  SIGNAL_UNUSED_DAYS: '20',
  SIGNAL_EXPIRING_DAYS: '3',
  SIGNAL_BURST_FAILURES: '5',
  SIGNAL_BURST_MINUTES: '1440',
  SIGNAL_RECENT_DAYS: '2',
};

let app: TestApp;

beforeAll(async () => {
  app = await createTestApp(SETTINGS);
});
afterAll(() => app.close());

async function signalsOf(query: string, as?: string, on = app): Promise<Answer['body'][]> {
  const { status, body, text } = await on.get(`/v1/signals?${query}`, as === undefined ? {} : { as });
  expect(status, text).toBe(200);
  return body.data;
}

/** The signals of a list, once there is any. */
async function eventually(query: string, on = app): Promise<Answer['body'][]> {
  for (let wait = 0; wait < 100; wait++) {
    const found = await signalsOf(query, undefined, on);
    if (found.length > 0) return found;
    await sleep(100);
  }
  throw new Error(`there is no signal of ${query}`);
}

/** A key that was made days ago, and has not been used since. */
async function oldKey(workspaceId: string, daysAgo: number, expiresInDays?: number): Promise<string> {
  const createdAt = Date.now() - daysAgo * DAY_MS;
  const id = newKeyId(createdAt);
  await app.database.query('INSERT INTO workspaces (id) VALUES ($1) ON CONFLICT DO NOTHING', [workspaceId]);
  await app.database.query(
    `INSERT INTO api_keys (id, workspace_id, environment, name, prefix, last_characters, hash, secret_id, scopes, created_at, expires_at)
     SELECT $1, $2, $3, 'Old', $4, 'x7Qa', '$argon2id$v=19$m=1024,t=1,p=1$' || repeat('a', 22) || '$' || repeat('a', 43),
       min(id), $5, $6, $7 FROM key_secrets`,
    [
      keyIdToUuid(id),
      workspaceId,
      workspaceId === 'system' ? 'svc' : 'live',
      workspaceId === 'system' ? 'ck_svc_' : 'ck_live_',
      workspaceId === 'system' ? ['introspect'] : [],
      new Date(createdAt),
      expiresInDays === undefined ? null : new Date(Date.now() + expiresInDays * DAY_MS),
    ],
  );
  return id;
}

/** A window of a day ends at midnight: what is to be in one must not be split by it. */
async function awayFromMidnight(): Promise<void> {
  const leftMs = DAY_MS - (Date.now() % DAY_MS);
  if (leftMs < 20_000) await sleep(leftMs + 100);
}

describe('a signal names its rule, the threshold and the evidence:', () => {
  test('rules of state, of active keys, newest first', async () => {
    const workspace_id = 'ws_state';
    const id = await oldKey(workspace_id, 50, 2);
    const created_at = (await app.get(`/v1/api-keys/${id}`)).body.data.created_at;
    const expires_at = (await app.get(`/v1/api-keys/${id}`)).body.data.expires_at;
    const common = { workspace_id, key_id: id, ip: null };
    const found = await signalsOf(`workspace_id=${workspace_id}`);
    const unusedSince = Math.floor(Date.parse(created_at) / DAY_MS + 21) * DAY_MS;
    expect(found).toEqual([
      {
        ...common,
        rule: 'expiring',
        threshold: { expiring_days: 3 },
        since: new Date(Date.parse(expires_at) - 3 * DAY_MS).toISOString(),
        evidence: { expires_at, last_used: null },
      },
      {
        ...common,
        rule: 'rotation_due',
        threshold: { rotation_due_days: 40 },
        since: new Date(Date.parse(created_at) + 40 * DAY_MS).toISOString(),
        evidence: { created_at, last_used: null },
      },
      {
        ...common,
        rule: 'unused',
        threshold: { unused_days: 20 },
        since: new Date(unusedSince).toISOString(),
        evidence: { created_at, last_used: null },
      },
    ]);
    for (const signal of found) {
      expect(await signalsOf(`workspace_id=${workspace_id}&rule=${signal.rule}`)).toEqual([signal]);
    }
    await app.delete(`/v1/api-keys/${id}`);
    expect(await signalsOf(`workspace_id=${workspace_id}`)).toEqual([]);
  });

  test('a new address of a key that is in use', async () => {
    const workspace_id = 'ws_moved';
    const { id, token } = await app.createKey({ workspace_id });
    for (const ip of ['203.0.113.1', '203.0.113.2']) {
      await app.introspect(token, { request: { ip } });
      // Once it is written: of addresses in one batch none is the further one.
      for (let wait = 0; wait < 100; wait++) {
        const { body } = await app.get(`/v1/request-logs?workspace_id=${workspace_id}&ip=${ip}`);
        if (body.data.length > 0) break;
        await sleep(100);
      }
    }
    const [entry] = (await app.get(`/v1/request-logs?workspace_id=${workspace_id}&ip=203.0.113.2`)).body.data;
    expect(await signalsOf(`workspace_id=${workspace_id}`)).toEqual([
      {
        rule: 'new_address',
        threshold: { recent_days: 2 },
        workspace_id,
        key_id: id,
        ip: '203.0.113.2',
        since: entry.at,
        evidence: { log_id: entry.id, code: 'active' },
      },
    ]);
  });

  test('a sudden growth of requests, told of while the hour goes on', async () => {
    const on = await appOfTest({ ...SETTINGS, SIGNAL_GROWTH_MINIMUM: '30', SIGNAL_GROWTH_FACTOR: '3' });
    const { id, token } = await on.createKey({ workspace_id: 'ws_grown' });
    // As if it had been made a month ago: what a key's creation may not be changed by is a trigger.
    await on.database.query('ALTER TABLE api_keys DISABLE TRIGGER USER');
    await on.database.query('ALTER TABLE api_keys DROP CONSTRAINT api_keys_created_at_of_id');
    await on.database.query("UPDATE api_keys SET created_at = now() - interval '30 days' WHERE id = $1", [
      keyIdToUuid(id),
    ]);
    for (let n = 0; n < 40; n++) await on.introspect(token);
    const [signal] = await eventually('workspace_id=ws_grown&rule=growth', on);
    expect(signal).toMatchObject({
      rule: 'growth',
      threshold: { factor: 3, minimum_requests: 30 },
      key_id: id,
      ip: null,
      evidence: { busiest_hour_before: 0 },
    });
    expect(signal.evidence.requests).toBeGreaterThanOrEqual(30);
  });

  test('a burst of failures by address, of introspected strings and of callers', async () => {
    await awayFromMidnight();
    for (let n = 0; n < 3; n++) {
      await app.introspect('no key at all', { request: { ip: '::ffff:198.51.100.9' } });
      await app.introspect('no key at all', { request: { ip: '198.51.100.10' } });
      await app.introspect('no key at all', { request: { ip: `2001:db8::${n}` } });
      await app.introspect('no key at all', { request: { ip: `2001:db8::9:${n}` } });
    }
    const trusting = await createTestApp({ ...SETTINGS, TRUSTED_PROXY_CIDRS: '127.0.0.1' }, app.database);
    for (let n = 0; n < 4; n++) {
      const headers = { 'x-forwarded-for': '198.51.100.9' };
      expectProblem(await trusting.get('/v1/me', { headers, as: n < 2 ? 'nothing' : null }), 'unauthorized');
    }
    // Closing writes what it counted.
    await trusting.close();
    await eventually('rule=failed_authentication');
    for (let wait = 0; wait < 100 && (await signalsOf('rule=failed_authentication')).length < 2; wait++) {
      await sleep(100);
    }
    const found = await signalsOf('rule=failed_authentication');
    const common = { threshold: { failures: 5, window_minutes: 1440 }, workspace_id: null, key_id: null };
    expect(found).toMatchObject([
      { ...common, ip: '2001:db8::/64', evidence: { introspections: 6, calls: 0 } },
      { ...common, ip: '198.51.100.9', evidence: { introspections: 3, calls: 4 } },
    ]);
    expect(Date.parse(found[0].evidence.until) - Date.parse(found[0].since)).toBe(DAY_MS);
  });

  test('without recording there is nothing to tell of uses', async () => {
    const silent = await appOfTest({ ...SETTINGS, RECORDING: 'off', SIGNAL_BURST_FAILURES: '1' });
    await silent.introspect('no key at all', { request: { ip: '198.51.100.9' } });
    await silent.database.query("UPDATE watched_keys SET idle_day = '2020-01-01T00:00:00Z'");
    await silent.database.query("UPDATE key_uses SET idle_since = '2020-01-01T00:00:00Z'");
    expect(await signalsOf('', undefined, silent)).toEqual([]);
  });
});

describe('the list', () => {
  test('comes in pages, and takes a cursor of its own and of the same filters alone', async () => {
    for (let n = 0; n < 5; n++) await oldKey('ws_pages', 50 + n, 2);
    const whole = await signalsOf('workspace_id=ws_pages&limit=100');
    expect(whole).toHaveLength(15);
    const walked: Answer['body'][] = [];
    let cursor = '';
    for (;;) {
      const { body } = await app.get(`/v1/signals?workspace_id=ws_pages&limit=4${cursor}`);
      walked.push(...body.data);
      if (!body.pagination.has_more) break;
      cursor = `&cursor=${body.pagination.next_cursor}`;
    }
    expect(walked).toEqual(whole);
    const { body: keys } = await app.get('/v1/api-keys?workspace_id=ws_pages&limit=1');
    for (const query of [
      `workspace_id=ws_pages&rule=unused${cursor}`,
      cursor.slice(1),
      `workspace_id=ws_pages&cursor=${keys.pagination.next_cursor}`,
    ]) {
      expectProblem(await app.get(`/v1/signals?${query}`), 'invalid_request');
    }
    expectProblem(await app.get(`/v1/api-keys?workspace_id=ws_pages${cursor}`), 'invalid_request');
  });

  test.each(['rule=odd', 'workspace_id=..', 'limit=101', 'cursor=AAAA', 'key_id=x'])(
    'refuses %s',
    async (query) => {
      expectProblem(await app.get(`/v1/signals?${query}`), 'invalid_request');
    },
  );
});

describe('a caller sees', () => {
  test('with keys:read alone the signals of all workspaces, but not those of system', async () => {
    const id = await oldKey('system', 50);
    await oldKey('ws_seen', 50);
    const { token } = await app.createServiceKey(['keys:read']);
    const workspacesOf = (found: Answer['body'][]) => new Set(found.map(({ workspace_id }) => workspace_id));
    const seen = await signalsOf('rule=rotation_due&limit=100', token);
    expect(workspacesOf(seen)).toContain('ws_seen');
    expect(workspacesOf(seen)).not.toContain('system');
    expectProblem(await app.get('/v1/signals?workspace_id=system', { as: token }), 'forbidden');
    expect(workspacesOf(await signalsOf('rule=rotation_due&limit=100'))).toContain('system');
    expect(await signalsOf('workspace_id=system&rule=rotation_due')).toMatchObject([{ key_id: id }]);
  });

  test('bound to workspaces, the signals of those alone, and no bursts', async () => {
    const mine = [await oldKey('ws_mine_1', 50), await oldKey('ws_mine_2', 51)];
    await oldKey('ws_not_mine', 50);
    await app.database.query(
      "INSERT INTO failed_authentications VALUES (date_trunc('day', now(), 'UTC'), '198.51.100.99', 50, 0, true)",
    );
    const { token } = await app.createServiceKey(['keys:read'], {
      restrictions: { allowed_workspaces: ['ws_mine_1', 'ws_mine_2'] },
    });
    const keysOf = (found: Answer['body'][]) => found.map(({ key_id }) => key_id);
    expect(keysOf(await signalsOf('rule=rotation_due', token))).toEqual(mine);
    expect(new Set(keysOf(await signalsOf('limit=100', token)))).toEqual(new Set(mine));
    expect(await signalsOf('rule=failed_authentication', token)).toEqual([]);
    expect(keysOf(await signalsOf('workspace_id=ws_mine_2&rule=unused', token))).toEqual([mine[1]]);
    for (const workspace of ['ws_not_mine', 'system']) {
      expectProblem(await app.get(`/v1/signals?workspace_id=${workspace}`, { as: token }), 'forbidden');
    }
    const ips = (await signalsOf('rule=failed_authentication&limit=100')).map(({ ip }) => ip);
    expect(ips).toContain('198.51.100.99');
  });

  test('that lacks keys:read nothing', async () => {
    const { token } = await app.createServiceKey(['keys:write', 'introspect', 'audit:read']);
    expectProblem(await app.get('/v1/signals', { as: token }), 'forbidden');
  });
});
