import { setTimeout as sleep } from 'node:timers/promises';
import { v7 as uuidv7 } from 'uuid';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { keyIdToUuid } from '../../src/domain/key-id.ts';
import { appOfTest, createTestApp, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';
import { expectProblem } from './problem.ts';

let app: TestApp;
let asker: { id: string; token: string };

beforeAll(async () => {
  app = await createTestApp({ CALLER_RATE_LIMIT: 'off' });
  asker = await app.createServiceKey(['introspect']);
});
afterAll(() => app.close());

async function entriesOf(query: string, as?: string, on = app): Promise<Answer['body'][]> {
  const { status, body, text } = await on.get(`/v1/request-logs?${query}`, as === undefined ? {} : { as });
  expect(status, text).toBe(200);
  return body.data;
}

/** The entries of a list, once there are so many. */
async function eventually(query: string, count: number, on = app): Promise<Answer['body'][]> {
  for (let wait = 0; wait < 100; wait++) {
    const found = await entriesOf(query, undefined, on);
    if (found.length >= count) {
      expect(found).toHaveLength(count);
      return found;
    }
    await sleep(100);
  }
  throw new Error(`there are fewer than ${count} entries`);
}

const REQUEST = { ip: '203.0.113.9', method: 'GET', path: '/contacts/17?secret=1' };

describe('an entry of the request log', () => {
  test('tells what an introspection came to, of which key, for which request, and who asked', async () => {
    const workspace_id = 'ws_entry';
    const { id, token } = await app.createKey({ workspace_id, scopes: ['read'] });
    const as = { as: asker.token, headers: { 'x-request-id': 'req-allowed' } };
    await app.introspect(token, { scopes: ['read'], request: REQUEST }, as);
    await app.introspect(
      token,
      { scopes: ['write'], request: { ...REQUEST, ip: '::ffff:203.0.113.9', method: 'PUT' } },
      { ...as, headers: { 'x-request-id': 'req-refused' } },
    );
    const [refused, allowed] = await eventually(`workspace_id=${workspace_id}`, 2);
    const common = { type: 'introspection', key_id: id, workspace_id, duration_ms: null, caller: asker.id };
    expect(allowed).toMatchObject({
      ...common,
      code: 'active',
      status: null,
      ip: '203.0.113.9',
      ip_first_seen: true,
      method: 'GET',
      path: '/contacts/17',
      request_id: 'req-allowed',
    });
    expect(refused).toMatchObject({
      ...common,
      code: 'insufficient_scope',
      status: 403,
      ip: '203.0.113.9',
      ip_first_seen: false,
      method: 'PUT',
      request_id: 'req-refused',
    });
    expect(allowed.id).toMatch(/^log_[0-9a-z]{26}$/);
    expect(Math.abs(Date.parse(allowed.at) - Date.now())).toBeLessThan(60_000);
  });

  test('has no member of a request that was not told, or that is none', async () => {
    const workspace_id = 'ws_entry_bare';
    const { token } = await app.createKey({ workspace_id });
    await app.introspect(token);
    await app.introspect(token, { request: { ip: 'the office', method: 'get it', path: null } });
    const form = { headers: { 'content-type': 'application/x-www-form-urlencoded' }, body: `token=${token}` };
    await app.send('POST', '/v1/introspect', form);
    const nothing = { ip: null, ip_first_seen: false, method: null, path: null };
    expect(await eventually(`workspace_id=${workspace_id}`, 3)).toMatchObject([nothing, nothing, nothing]);
  });

  test('of a string that is no key has neither key nor workspace, and nothing of the string', async () => {
    const bad = `ck_live_${'0Ab'.repeat(22)}`;
    await app.introspect(bad, { request: { ip: '198.51.100.77' } }, { as: asker.token });
    const [entry] = await eventually('ip=198.51.100.77', 1);
    expect(entry).toMatchObject({
      code: 'invalid',
      status: 401,
      key_id: null,
      workspace_id: null,
      ip_first_seen: false,
      caller: asker.id,
    });
    expect(JSON.stringify(entry)).not.toContain('0Ab0Ab');
  });

  test('holds no token, wherever the request had one', async () => {
    const workspace_id = 'ws_entry_token';
    const { token } = await app.createKey({ workspace_id });
    const escaped = token.replaceAll('_', '%5F').replace('c', '%63');
    for (const path of [
      `/a/${token}/b`,
      `/${token}`,
      `/x?key=${token}`,
      `/${escaped}/y`,
      `/${'p'.repeat(470)}/${token}`,
    ]) {
      await app.introspect(token, { request: { ip: '192.0.2.1', method: 'GET', path } });
    }
    const entries = await eventually(`workspace_id=${workspace_id}`, 5);
    expect(entries.map(({ path }) => path).reverse()).toEqual([
      '/a/…/b',
      '/…',
      '/x',
      '/…/y',
      `/${'p'.repeat(470)}/…`,
    ]);
    const rows = await app.database.query<{ line: string }>(
      "SELECT r::text AS line FROM request_logs r WHERE workspace_id = 'ws_entry_token'",
    );
    const written = rows.map(({ line }) => line).join('\n');
    for (let at = 8; at + 10 <= token.length; at++) expect(written).not.toContain(token.slice(at, at + 10));
  });

  test('keeps the first 512 characters of a path', async () => {
    const workspace_id = 'ws_entry_long';
    const { token } = await app.createKey({ workspace_id });
    for (const length of [512, 513]) {
      await app.introspect(token, { request: { path: `/${'x'.repeat(length - 1)}` } });
    }
    const [cut, whole] = await eventually(`workspace_id=${workspace_id}`, 2);
    expect(whole.path).toBe(`/${'x'.repeat(511)}`);
    expect(cut.path).toBe(`/${'x'.repeat(510)}…`);
  });
});

describe('ip_first_seen', () => {
  const flagsOf = (entries: Answer['body'][]) =>
    entries.map(({ ip, ip_first_seen }) => [ip, ip_first_seen]).reverse();

  test('marks the first use of a key from an address, in whatever spelling, allowed or refused', async () => {
    const workspace_id = 'ws_first';
    const { token } = await app.createKey({ workspace_id });
    const other = await app.createKey({ workspace_id: 'ws_first_other' });
    for (const ip of ['203.0.113.1', '203.0.113.2', '203.0.113.1', '2001:db8::1', '2001:DB8:0::1']) {
      await app.introspect(token, { request: { ip } });
      await app.introspect(other.token, { scopes: ['nothing'], request: { ip } });
    }
    const expected = [
      ['203.0.113.1', true],
      ['203.0.113.2', true],
      ['203.0.113.1', false],
      ['2001:db8::1', true],
      ['2001:db8::1', false],
    ];
    expect(flagsOf(await eventually(`workspace_id=${workspace_id}`, 5))).toEqual(expected);
    expect(flagsOf(await eventually('workspace_id=ws_first_other', 5))).toEqual(expected);
  });

  test('is logged though the sample left it out, once over all instances, and known after a restart', async () => {
    const first = await appOfTest({ REQUEST_LOG_SAMPLE: '0' });
    const open = () => createTestApp({ REQUEST_LOG_SAMPLE: '0' }, first.database);
    const others = await Promise.all([open(), open()]);
    const { token } = await first.createKey({ workspace_id: 'ws_sample' });
    for (const instance of [first, ...others]) {
      for (const ip of ['192.0.2.1', '192.0.2.2', '192.0.2.1']) {
        await instance.introspect(token, { request: { ip } });
      }
    }
    for (const instance of others) await instance.close();
    const entries = await eventually('workspace_id=ws_sample', 2, first);
    expect(flagsOf(entries)).toEqual(
      expect.arrayContaining([
        ['192.0.2.1', true],
        ['192.0.2.2', true],
      ]),
    );

    const later = await open();
    await later.introspect(token, { request: { ip: '192.0.2.1' } });
    await later.introspect(token, { request: { ip: '192.0.2.3' } });
    await later.close();
    expect(flagsOf(await entriesOf('workspace_id=ws_sample', undefined, first)).sort()).toEqual([
      ['192.0.2.1', true],
      ['192.0.2.2', true],
      ['192.0.2.3', true],
    ]);
  });
});

describe('REQUEST_LOG_SAMPLE', () => {
  test('leaves out allowed introspections, and never a refusal', async () => {
    const sampled = await appOfTest({ REQUEST_LOG_SAMPLE: '0' });
    const { token } = await sampled.createKey({ workspace_id: 'ws_sampled' });
    for (let n = 0; n < 40; n++) {
      await sampled.introspect(token);
      await sampled.introspect(token, { scopes: ['nothing'] });
      await sampled.introspect('no key at all');
    }
    expect(await eventually('workspace_id=ws_sampled&limit=100', 40, sampled)).toEqual(
      Array(40).fill(expect.objectContaining({ code: 'insufficient_scope' })),
    );
    expect(await entriesOf('code=invalid&limit=100', undefined, sampled)).toHaveLength(40);
    expect(await entriesOf('code=active', undefined, sampled)).toEqual([]);
  });

  test('RECORDING=off logs nothing', async () => {
    const silent = await appOfTest({ RECORDING: 'off' });
    const { token } = await silent.createKey();
    await silent.introspect(token, { scopes: ['nothing'], request: { ip: '192.0.2.1' } });
    const { body } = await silent.get('/metrics');
    expect(body).toContain('claviger_request_logs_waiting 0');
    expect(await entriesOf('', undefined, silent)).toEqual([]);
  });
});

describe('the list', () => {
  const workspace_id = 'ws_list';
  let first: { id: string; token: string };
  let second: { id: string; token: string };
  let all: Answer['body'][];
  beforeAll(async () => {
    first = await app.createKey({ workspace_id });
    second = await app.createKey({ workspace_id });
    for (const { token } of [first, second, first]) {
      await app.introspect(token, { request: { ip: '192.0.2.1' } });
      await app.introspect(token, { scopes: ['nothing'], request: { ip: '192.0.2.2' } });
      await app.introspect(token, { environment: 'test', request: { ip: '192.0.2.1' } });
    }
    all = await eventually(`workspace_id=${workspace_id}`, 9);
  });

  test('is narrowed by each filter, and by every combination of them', async () => {
    const filters: Record<string, readonly (string | undefined)[]> = {
      workspace_id: [undefined, workspace_id, 'ws_nobody'],
      key_id: [undefined, first.id, second.id],
      code: [undefined, 'active', 'insufficient_scope', 'wrong_environment', 'revoked', 'reported'],
      ip: [undefined, '192.0.2.1', '192.0.2.2', '192.0.2.99'],
    };
    for (const workspace of filters.workspace_id ?? []) {
      for (const key of filters.key_id ?? []) {
        if (workspace === undefined && key === undefined) continue;
        for (const code of filters.code ?? []) {
          for (const ip of filters.ip ?? []) {
            const asked = { workspace_id: workspace, key_id: key, code, ip };
            const given = Object.entries(asked).filter(([, value]) => value !== undefined) as [
              string,
              string,
            ][];
            const expected = all.filter((entry) => given.every(([name, value]) => entry[name] === value));
            const query = new URLSearchParams([...given, ['limit', '100']]).toString();
            expect(await entriesOf(query), query).toEqual(expected);
          }
        }
      }
    }
  });

  test('is narrowed to a time: from a time on, before another', async () => {
    const times = all.map(({ at }) => at as string);
    const [newest = '', oldest = ''] = [times[0], times.at(-1)];
    const between = (from: string, to: string, more = '') =>
      entriesOf(`workspace_id=${workspace_id}&from=${from}&to=${to}${more}`);
    const justAfter = (at: string) => new Date(Date.parse(at) + 1).toISOString();
    expect(await between(oldest, justAfter(newest))).toEqual(all);
    expect(await between(oldest, newest)).toEqual(all.filter(({ at }) => at < newest));
    expect(await between(justAfter(oldest), '2999-01-01T00:00:00Z')).toEqual(
      all.filter(({ at }) => at > oldest),
    );
    expect(await between('1970-01-01T00:00:00Z', '9999-12-31T23:59:59Z', '&ip=192.0.2.1')).toHaveLength(6);
  });

  test('comes in pages, newest first, across days and years, and none is left out or shown twice', async () => {
    const { id } = await app.createKey({ workspace_id: 'ws_pages' });
    const now = Date.now();
    const day = 86_400_000;
    const times = [0, 0, 0, 1, 2, 30, 400, -3, -30].map((days) => Math.floor(now - days * day));
    for (const time of times) {
      await app.database.query(
        "INSERT INTO request_logs (id, at, key_id, workspace_id, code, ip) VALUES ($1, $2, $3, 'ws_pages', 'expired', '192.0.2.200')",
        [uuidv7({ msecs: time }), new Date(time), keyIdToUuid(id)],
      );
    }
    const walk = async (query: string, limit: number) => {
      const found: Answer['body'][] = [];
      for (let cursor = ''; ; ) {
        const { body } = await app.get(`/v1/request-logs?${query}&limit=${limit}${cursor}`);
        found.push(...body.data);
        if (!body.pagination.has_more) return found;
        expect(body.data).toHaveLength(limit);
        cursor = `&cursor=${body.pagination.next_cursor}`;
      }
    };
    for (const query of [
      '',
      'workspace_id=ws_pages',
      `key_id=${id}`,
      'code=expired',
      'ip=192.0.2.200',
      `key_id=${id}&ip=192.0.2.200`,
      'workspace_id=ws_pages&ip=192.0.2.200&code=expired&from=1990-01-01T00:00:00Z&to=2990-01-01T00:00:00Z',
    ]) {
      const whole = await walk(query, 100);
      expect(whole.length, query).toBeGreaterThanOrEqual(times.length);
      if (query !== '') expect(whole, query).toHaveLength(times.length);
      expect(whole.map((entry) => entry.id)).toEqual(
        whole
          .map((entry) => entry.id)
          .sort()
          .reverse(),
      );
      for (const limit of [2, 7]) expect(await walk(query, limit), query).toEqual(whole);
    }
  });

  test.each(['key_id=x', 'code=broken', 'ip=nowhere', 'from=today', 'limit=0', 'colour=blue', 'cursor=AAAA'])(
    'refuses %s',
    async (query) => {
      expectProblem(await app.get(`/v1/request-logs?${query}`), 'invalid_request');
    },
  );

  test('takes an address in any spelling', async () => {
    expect(await entriesOf(`workspace_id=${workspace_id}&ip=::ffff:192.0.2.2`)).toHaveLength(3);
  });
});

describe('a caller that is bound to workspaces sees', () => {
  test('their entries alone, and none of strings that are no keys', async () => {
    const mine = [];
    for (const workspace_id of ['ws_bound_1', 'ws_bound_2']) {
      const key = await app.createKey({ workspace_id });
      mine.push(key);
      await app.introspect(key.token, { request: { ip: '192.0.2.50' } });
    }
    const other = await app.createKey({ workspace_id: 'ws_bound_not' });
    await app.introspect(other.token, { request: { ip: '192.0.2.50' } });
    const bound = await app.createServiceKey(['keys:read', 'introspect'], {
      restrictions: { allowed_workspaces: ['ws_bound_1', 'ws_bound_2'] },
    });
    // Of a workspace that the asker may not see: nobody's.
    await app.introspect(other.token, { request: { ip: '192.0.2.51' } }, { as: bound.token });
    await eventually('ip=192.0.2.50', 3);
    await eventually('ip=192.0.2.51', 1);

    const seen = async (query: string) =>
      (await entriesOf(query, bound.token)).map(({ workspace_id }) => workspace_id);
    const both = ['ws_bound_2', 'ws_bound_1'];
    expect(await seen('')).toEqual(both);
    expect(await seen('ip=192.0.2.50')).toEqual(both);
    expect(await seen('code=active')).toEqual(both);
    expect(await seen('code=active&ip=192.0.2.50&limit=1')).toEqual(['ws_bound_2']);
    expect(await seen('code=invalid')).toEqual([]);
    expect(await seen('ip=192.0.2.51')).toEqual([]);
    expect(await seen(`key_id=${mine[0]?.id}`)).toEqual(['ws_bound_1']);
    expect(await seen(`key_id=${other.id}`)).toEqual([]);
    expectProblem(
      await app.get('/v1/request-logs?workspace_id=ws_bound_not', { as: bound.token }),
      'forbidden',
    );
  });

  test('nothing without keys:read', async () => {
    expectProblem(await app.get('/v1/request-logs', { as: asker.token }), 'forbidden');
  });
});

test('what service keys do is in no request log', async () => {
  const { id, token } = await app.createServiceKey(['keys:read', 'introspect']);
  await app.get('/v1/me', { as: token });
  await app.introspect(token, { request: { ip: '192.0.2.60' } });
  // Asked about, it is no key; and that is all that is told of it.
  expect(await eventually('ip=192.0.2.60', 1)).toMatchObject([{ code: 'invalid', key_id: null }]);
  expect(await entriesOf(`key_id=${id}`)).toEqual([]);
});

describe('a reported request', () => {
  test('is in the log as the API told it: its answer, how long it took, its path without a query or a token', async () => {
    const { id, token } = await app.createKey({ workspace_id: 'ws_reported' });
    const at = new Date(Date.now() - 3 * 86_400_000).toISOString();
    const reports = [
      { key_id: id, at, status: 201, duration_ms: 12.5, method: 'POST', path: '/contacts?x=1' },
      {
        key_id: id,
        at: new Date().toISOString(),
        status: 500,
        duration_ms: 0,
        path: `/a/${token.replace('_', '%5F')}`,
      },
    ];
    const sent = await app.post(
      '/v1/usage-reports',
      { reports },
      { as: asker.token, headers: { 'x-request-id': 'req-report' } },
    );
    expect(sent.status, sent.text).toBeLessThan(300);
    const common = {
      type: 'report',
      code: 'reported',
      key_id: id,
      workspace_id: 'ws_reported',
      ip: null,
      ip_first_seen: false,
      caller: asker.id,
      request_id: 'req-report',
    };
    // At once: it was written in the transaction of the report itself.
    expect(await entriesOf('workspace_id=ws_reported&code=reported')).toMatchObject([
      { ...common, status: 500, duration_ms: 0, method: null, path: '/a/…' },
      { ...common, at, status: 201, duration_ms: 12.5, method: 'POST', path: '/contacts' },
    ]);
    expect(await entriesOf(`key_id=${id}&to=${at}`)).toEqual([]);
    expect(await entriesOf(`key_id=${id}&from=${at}`)).toHaveLength(2);
  });

  test('of which one is at fault leaves no trace of any', async () => {
    const { id } = await app.createKey({ workspace_id: 'ws_reported_not' });
    const report = { key_id: id, at: new Date().toISOString(), status: 200, duration_ms: 1 };
    const foreign = { ...report, key_id: 'key_01jzzzzzzzzzzzzzzzzzzzzzzz' };
    const answer = await app.post('/v1/usage-reports', { reports: [report, foreign] });
    expect(answer.status).toBeGreaterThanOrEqual(400);
    expect(await entriesOf('workspace_id=ws_reported_not')).toEqual([]);
  });
});
