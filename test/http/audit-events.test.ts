import { v7 as uuidv7 } from 'uuid';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { keyIdToUuid } from '../../src/domain/key-id.ts';
import { createTestApp, type TestApp } from '../support/app.ts';
import type { Answer, SendOptions } from '../support/client.ts';
import { expectProblem } from './problem.ts';
import { pathTo, ROUTES } from './routes.ts';

let app: TestApp;
let dashboard: { id: string; token: string };

beforeAll(async () => {
  app = await createTestApp({ TRUSTED_PROXY_CIDRS: '127.0.0.1', CALLER_RATE_LIMIT: 'off' });
  dashboard = await app.createServiceKey(['keys:write', 'introspect'], { name: 'the dashboard' });
});
afterAll(() => app.close());

/** As the dashboard, from its own address, in a request of this name. */
const from = (requestId: string): SendOptions => ({
  as: dashboard.token,
  headers: { 'x-request-id': requestId, 'x-forwarded-for': '198.51.100.7' },
});

async function eventsOf(query: string, as?: string): Promise<Answer['body'][]> {
  const { status, body, text } = await app.get(`/v1/audit-events?${query}`, as === undefined ? {} : { as });
  expect(status, text).toBe(200);
  return body.data;
}

/** Every page of a list, and that each is as long as it was asked for. */
async function walk(query: string, limit: number): Promise<Answer['body'][]> {
  const found: Answer['body'][] = [];
  let cursor = '';
  for (;;) {
    const { body } = await app.get(`/v1/audit-events?${query}&limit=${limit}${cursor}`);
    found.push(...body.data);
    if (!body.pagination.has_more) return found;
    expect(body.data).toHaveLength(limit);
    cursor = `&cursor=${body.pagination.next_cursor}`;
  }
}

describe('an audit event', () => {
  test('tells who did what to which key, from where, in which request, what it was and became', async () => {
    const workspace_id = 'ws_watched';
    const { id } = await app.createKey({ workspace_id, name: 'Before' }, from('req-create'));
    await app.patch(`/v1/api-keys/${id}`, { name: 'After' }, from('req-patch'));
    await app.delete(`/v1/api-keys/${id}`, { reason: 'leaked' }, from('req-revoke'));
    const common = {
      actor: dashboard.id,
      target: { type: 'key', id },
      workspace_id,
      key_id: id,
      address: '198.51.100.7',
    };
    const events = await eventsOf(`workspace_id=${workspace_id}`);
    expect(events).toMatchObject([
      { ...common, action: 'key.revoked', request_id: 'req-revoke', after: { revoked_reason: 'leaked' } },
      {
        ...common,
        action: 'key.updated',
        request_id: 'req-patch',
        before: { name: 'Before' },
        after: { name: 'After' },
      },
      { ...common, action: 'key.created', request_id: 'req-create', before: null },
    ]);
    for (const { id: eventId, at } of events) {
      expect(eventId).toMatch(/^evt_[0-9a-z]{26}$/);
      expect(Math.abs(Date.parse(at) - Date.now())).toBeLessThan(60_000);
    }
  });

  test('of a bulk revocation is about the workspace', async () => {
    const workspace_id = 'ws_watched_bulk';
    await app.createKey({ workspace_id });
    await app.post(`/v1/workspaces/${workspace_id}/revoke-keys`, { reason: 'left' }, from('req-bulk'));
    const [event] = await eventsOf(`workspace_id=${workspace_id}&action=workspace.keys_revoked`);
    expect(event).toMatchObject({
      target: { type: 'workspace', id: workspace_id },
      key_id: null,
      after: { revoked: 1, reason: 'left' },
      request_id: 'req-bulk',
      address: '198.51.100.7',
    });
  });

  test('of an operator names "operator", and neither address nor request', async () => {
    const [event] = await eventsOf('workspace_id=system&actor=operator');
    expect(event).toMatchObject({
      action: 'key.created',
      actor: 'operator',
      address: null,
      request_id: null,
      workspace_id: 'system',
    });
  });

  test('holds no hash, no token and no piece of one', async () => {
    const workspace_id = 'ws_watched_secret';
    const { id, token } = await app.createKey({ workspace_id });
    await app.introspect(token);
    await app.patch(`/v1/api-keys/${id}`, { name: 'After' });
    await app.delete(`/v1/api-keys/${id}`);
    const { text } = await app.get(`/v1/audit-events?workspace_id=${workspace_id}`);
    expect(text).toContain('After');
    expect(text).not.toContain('argon2');
    // Its first 8 characters are its prefix, which is no secret.
    for (let at = 8; at + 10 <= token.length; at++) expect(text).not.toContain(token.slice(at, at + 10));
  });
});

describe('each route that changes something', () => {
  const changing = ROUTES.filter(({ method, permission }) => method !== 'GET' && permission !== 'introspect');

  test.each(changing.map((route) => [`${route.method} ${route.path}`, route] as const))(
    'writes an event that names the caller, its address and its request: %s',
    async (name, route) => {
      const workspaceId = 'ws_each';
      const { id } = await app.createKey({ workspace_id: workspaceId });
      const admin = await app.createServiceKey(['admin']);
      if (route.path === '/v1/scopes/{name}' && route.method === 'DELETE') {
        await app.send('PUT', '/v1/scopes/read', { body: {} });
      }
      const requestId = `req-${name.replace(/[^A-Za-z]+/g, '-')}`;
      const answer = await app.send(route.method, pathTo(route, { keyId: id, workspaceId }), {
        as: admin.token,
        headers: { 'x-request-id': requestId, 'x-forwarded-for': '198.51.100.9' },
        body: route.body,
      });
      expect(answer.status, answer.text).toBeLessThan(300);
      const events = (await eventsOf(`actor=${admin.id}`)).filter(
        ({ request_id }) => request_id === requestId,
      );
      expect(events.length).toBeGreaterThan(0);
      for (const event of events) {
        expect(event).toMatchObject({ actor: admin.id, address: '198.51.100.9' });
        expect(event.target.id).toEqual(expect.any(String));
        expect(event.before ?? event.after).not.toBeNull();
      }
      expect(JSON.stringify(events)).not.toMatch(/argon2|_[0-9A-Za-z]{66}/);
    },
  );
});

describe('the list of audit events', () => {
  const workspace_id = 'ws_list';
  let first: { id: string };
  let second: { id: string };
  beforeAll(async () => {
    first = await app.createKey({ workspace_id });
    second = await app.createKey({ workspace_id }, from('req-second'));
    for (let n = 0; n < 3; n++) await app.patch(`/v1/api-keys/${first.id}`, { name: `Name ${n}` });
    await app.patch(`/v1/api-keys/${second.id}`, { name: 'Mine' }, from('req-mine'));
  });

  test('is narrowed by each filter, and by all of them', async () => {
    const count = async (query: string) => (await eventsOf(`workspace_id=${workspace_id}&${query}`)).length;
    expect(await count('')).toBe(6);
    expect(await count(`key_id=${first.id}`)).toBe(4);
    expect(await count(`key_id=${second.id}`)).toBe(2);
    expect(await count('action=key.updated')).toBe(4);
    expect(await count('action=key.rotated')).toBe(0);
    expect(await count(`actor=${dashboard.id}`)).toBe(2);
    expect(await count('actor=operator')).toBe(0);
    expect(await count(`actor=${dashboard.id}&action=key.updated&key_id=${second.id}`)).toBe(1);
    expect(await eventsOf(`key_id=${first.id}&workspace_id=ws_watched`)).toEqual([]);
    expect((await eventsOf(`actor=${dashboard.id}`)).length).toBeGreaterThanOrEqual(2);
  });

  test('is narrowed to a time: from a time on, before another', async () => {
    const events = await eventsOf(`workspace_id=${workspace_id}`);
    const [newest, oldest] = [events[0], events.at(-1)];
    const between = (from: string, to: string) =>
      eventsOf(`workspace_id=${workspace_id}&from=${encodeURIComponent(from)}&to=${encodeURIComponent(to)}`);
    const justAfter = (at: string) => new Date(Date.parse(at) + 1).toISOString();
    expect(await between(oldest.at, justAfter(newest.at))).toEqual(events);
    expect(await between(oldest.at, newest.at)).toEqual(events.filter(({ at }) => at < newest.at));
    expect(await between(justAfter(oldest.at), '2999-01-01T00:00:00+01:00')).toEqual(
      events.filter(({ at }) => at > oldest.at),
    );
    expect(await between('1970-01-01T00:00:00Z', oldest.at)).toEqual([]);
  });

  test('comes in pages, newest first, and none is left out or shown twice', async () => {
    // A few of one millisecond, and some of years before and after: in other partitions, and in none.
    const at = Date.now();
    for (const time of [at, at, at, at - 40e9, at - 80e9, at + 40e9, at + 80e9]) {
      await app.database.query(
        "INSERT INTO audit_events (id, at, action, workspace_id) VALUES ($1, $2, 'key.tested', 'ws_pages')",
        [uuidv7({ msecs: time }), new Date(time)],
      );
    }
    for (const query of ['', 'workspace_id=ws_pages', 'action=key.tested']) {
      const all = await walk(query, 100);
      expect(all.length).toBeGreaterThanOrEqual(7);
      const ids = all.map(({ id }) => id);
      expect(ids).toEqual([...ids].sort().reverse());
      expect(new Set(ids).size).toBe(ids.length);
      for (const limit of [1, 3]) expect(await walk(query, limit)).toEqual(all);
    }
    const narrowed = 'action=key.tested&to=2999-01-01T00:00:00Z&from=1971-01-01T00:00:00Z';
    expect(await walk(narrowed, 2)).toHaveLength(7);
  });

  test('takes a cursor of its own and of the same filters alone', async () => {
    const { body } = await app.get(`/v1/audit-events?workspace_id=${workspace_id}&limit=1`);
    const cursor = body.pagination.next_cursor;
    const keys = await app.get(`/v1/api-keys?workspace_id=${workspace_id}&limit=1`);
    for (const path of [
      `/v1/audit-events?cursor=${cursor}`,
      `/v1/audit-events?workspace_id=ws_other&cursor=${cursor}`,
      `/v1/audit-events?workspace_id=${workspace_id}&cursor=${keys.body.pagination.next_cursor}`,
      `/v1/api-keys?workspace_id=${workspace_id}&cursor=${cursor}`,
    ]) {
      expectProblem(await app.get(path), 'invalid_request');
    }
  });

  test.each([
    'key_id=nothing',
    'actor=nobody',
    'action=',
    'action=DROP%20TABLE',
    'from=yesterday',
    'to=2026-13-01T00:00:00Z',
    'limit=0',
    'limit=101',
    'colour=blue',
    'workspace_id=a%00b',
  ])('refuses %s', async (query) => {
    expectProblem(await app.get(`/v1/audit-events?${query}`), 'invalid_request');
  });
});

describe('a caller sees', () => {
  test('with audit:read alone the events of all workspaces, but not those of system', async () => {
    const { token } = await app.createServiceKey(['audit:read']);
    const events = await eventsOf('limit=100', token);
    expect(events.length).toBeGreaterThan(0);
    expect(events.filter(({ workspace_id }) => workspace_id === 'system')).toEqual([]);
    expect(await eventsOf(`key_id=${dashboard.id}`, token)).toEqual([]);
    expectProblem(await app.get('/v1/audit-events?workspace_id=system', { as: token }), 'forbidden');
    expect((await eventsOf(`key_id=${dashboard.id}`))[0]).toMatchObject({ workspace_id: 'system' });
  });

  test('bound to workspaces, those events alone, whatever it asks for', async () => {
    await app.createKey({ workspace_id: 'ws_mine_1' });
    const mine = await app.createKey({ workspace_id: 'ws_mine_2' });
    const other = await app.createKey({ workspace_id: 'ws_not_mine' });
    await app.database.query(
      "INSERT INTO audit_events (id, at, action, target) VALUES ($1, now(), 'scope.put', 'read')",
      [uuidv7()],
    );
    const { token } = await app.createServiceKey(['audit:read'], {
      restrictions: { allowed_workspaces: ['ws_mine_1', 'ws_mine_2'] },
    });
    const seen = async (query: string) =>
      (await eventsOf(query, token)).map(({ workspace_id }) => workspace_id);
    expect(await seen('')).toEqual(['ws_mine_2', 'ws_mine_1']);
    expect(await seen('action=key.created')).toEqual(['ws_mine_2', 'ws_mine_1']);
    expect(await seen(`key_id=${mine.id}`)).toEqual(['ws_mine_2']);
    expect(await seen(`key_id=${other.id}`)).toEqual([]);
    expect(await seen('action=scope.put')).toEqual([]);
    expect(await seen('workspace_id=ws_mine_1')).toEqual(['ws_mine_1']);
    for (const workspace of ['ws_not_mine', 'system']) {
      expectProblem(await app.get(`/v1/audit-events?workspace_id=${workspace}`, { as: token }), 'forbidden');
    }
    expect(await eventsOf('action=scope.put')).toMatchObject([
      { target: { type: 'scope', id: 'read' }, workspace_id: null, key_id: null },
    ]);
  });

  test('that lacks audit:read nothing', async () => {
    const { token } = await app.createServiceKey(['keys:read', 'keys:write', 'introspect']);
    expectProblem(await app.get('/v1/audit-events', { as: token }), 'forbidden');
  });
});

test('the id that the database has of an actor is the one that is shown', async () => {
  const [row] = await app.database.query<{ actor_key_id: string }>(
    "SELECT actor_key_id FROM audit_events WHERE request_id = 'req-second'",
  );
  expect(row?.actor_key_id).toBe(keyIdToUuid(dashboard.id));
});
