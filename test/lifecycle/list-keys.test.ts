import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { keyIdToUuid, newKeyId } from '../../src/domain/key-id.ts';
import { createDatabase, type Database } from '../../src/storage/database.ts';
import { type KeyFilters, listKeys } from '../../src/storage/keys.ts';
import { createTestApp, type TestApp } from '../support/app.ts';
import type { Answer, SendOptions } from '../support/client.ts';

const DAY_MS = 86_400_000;

let app: TestApp;
beforeAll(async () => {
  app = await createTestApp({ CALLER_RATE_LIMIT: 'off' });
});
afterAll(() => app.close());

function list(filters: Record<string, string | number> = {}, options?: SendOptions): Promise<Answer> {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(filters)) query.set(name, String(value));
  return app.get(`/v1/api-keys?${query}`, options);
}

async function namesIn(filters: Record<string, string | number>, options?: SendOptions): Promise<string[]> {
  const answer = await list(filters, options);
  expect(answer.status, answer.text).toBe(200);
  return answer.body.data.map((key: { name: string }) => key.name);
}

/** Every key of a list, page by page. */
async function walk(
  filters: Record<string, string | number>,
  options?: SendOptions & { betweenPages?: () => Promise<unknown> },
): Promise<Answer['body'][]> {
  const keys = [];
  let cursor: string | null = null;
  do {
    const answer: Answer = await list(cursor === null ? filters : { ...filters, cursor }, options);
    expect(answer.status, answer.text).toBe(200);
    const { data, pagination } = answer.body;
    expect(pagination.has_more).toBe(pagination.next_cursor !== null);
    keys.push(...data);
    cursor = pagination.next_cursor;
    await options?.betweenPages?.();
  } while (cursor !== null);
  return keys;
}

/** Makes another key like this one but for what is given: columns as the database names them. */
async function copyKey(
  id: string,
  createdAt: number,
  columns: Record<string, unknown> = {},
): Promise<string> {
  const copy = newKeyId(createdAt);
  const changed = { id: keyIdToUuid(copy), created_at: new Date(createdAt), ...columns };
  const rows = await app.database.query(
    `INSERT INTO api_keys SELECT (jsonb_populate_record(original, $2)).* FROM api_keys AS original WHERE id = $1 RETURNING id`,
    [keyIdToUuid(id), JSON.stringify(changed)],
  );
  expect(rows).toHaveLength(1);
  return copy;
}

async function expireAt(id: string, timeMs: number): Promise<void> {
  await app.database.query('UPDATE api_keys SET expires_at = $2 WHERE id = $1', [
    keyIdToUuid(id),
    new Date(timeMs),
  ]);
}

async function expectRefused(filters: Record<string, string | number>, path: string): Promise<void> {
  const answer = await list(filters);
  expect(answer.status, answer.text).toBe(400);
  expect(answer.body.errors.map((fault: { path: string }) => fault.path)).toEqual([path]);
}

describe('getting a key', () => {
  test('answers with the key and without its token', async () => {
    const { id, data } = await app.createKey({ scopes: ['read'], created_by: 'usr_1' });
    const { key: _, ...shown } = data;
    const answer = await app.get(`/v1/api-keys/${id}`);
    expect(answer.status).toBe(200);
    expect(answer.body).toEqual({ success: true, data: shown });
  });

  test.each([
    ['another id', 'key_01h455vb4pex5vsknk084sn02q'],
    ['an id that is no UUIDv7', 'key_00000000000000000000000001'],
    ['the largest id', 'key_7zzzzzzzzzzzzzzzzzzzzzzzzz'],
    ['an id beyond 128 bits', 'key_80000000000000000000000000'],
    ['a UUID', '01890a5d-ac96-774b-bcce-b302099a8057'],
    ['a word', 'nonsense'],
    ['an id in capitals', 'KEY_01H455VB4PEX5VSKNK084SN02Q'],
  ])('is 404 for %s, whatever is asked of it', async (_, id) => {
    for (const answer of [
      await app.get(`/v1/api-keys/${id}`),
      await app.patch(`/v1/api-keys/${id}`, { name: 'x' }),
      await app.delete(`/v1/api-keys/${id}`),
      await app.post(`/v1/api-keys/${id}/revoke`, {}),
    ]) {
      expect(answer.status, answer.text).toBe(404);
      expect(answer.body.code).toBe('not_found');
    }
  });

  test('is 404 for a token in place of an id, which the answer does not repeat', async () => {
    const { token } = await app.createKey();
    const answer = await app.get(`/v1/api-keys/${token}`);
    expect(answer.status).toBe(404);
    expect(answer.text).not.toContain(token);
  });
});

describe('a list of keys', () => {
  test('shows keys as they are shown alone, newest first, of every status', async () => {
    const workspace_id = 'ws_list_all';
    const made = [];
    for (const name of ['first', 'second', 'third', 'fourth']) {
      made.push(await app.createKey({ workspace_id, name }));
    }
    const [, second, third] = made.map(({ id }) => id);
    await app.delete(`/v1/api-keys/${second}`);
    await expireAt(third ?? '', Date.now() - 1_000);
    const answer = await list({ workspace_id });
    expect(answer.body.pagination).toEqual({ next_cursor: null, has_more: false });
    expect(answer.body.success).toBe(true);
    expect(answer.body.data.map((key: Answer['body']) => [key.name, key.status])).toEqual([
      ['fourth', 'active'],
      ['third', 'expired'],
      ['second', 'revoked'],
      ['first', 'active'],
    ]);
    for (const key of answer.body.data) {
      expect((await app.get(`/v1/api-keys/${key.id}`)).body.data).toEqual(key);
      expect(key).not.toHaveProperty('key');
    }
  });

  test('is empty where nothing fits', async () => {
    expect((await list({ workspace_id: 'ws_of_nobody' })).body).toEqual({
      success: true,
      data: [],
      pagination: { next_cursor: null, has_more: false },
    });
  });

  test('holds 20 keys unless it is said, and 1 to 100', async () => {
    const workspace_id = 'ws_limits';
    const { id } = await app.createKey({ workspace_id });
    for (let count = 1; count < 101; count++) await copyKey(id, Date.now() - count);
    const lengthOf = async (filters: object) => (await list({ workspace_id, ...filters })).body.data.length;
    expect(await lengthOf({})).toBe(20);
    expect(await lengthOf({ limit: 1 })).toBe(1);
    expect(await lengthOf({ limit: 99 })).toBe(99);
    expect(await lengthOf({ limit: 100 })).toBe(100);
    for (const limit of ['0', '101', '-1', '1.5', '', 'ten', '1e1', '010', ' 5']) {
      await expectRefused({ workspace_id, limit }, 'limit');
    }
  });

  test('says that there is more just when there is', async () => {
    const workspace_id = 'ws_more';
    for (const name of ['a', 'b', 'c']) await app.createKey({ workspace_id, name });
    const moreWith = async (limit: number) => (await list({ workspace_id, limit })).body.pagination.has_more;
    expect(await moreWith(2)).toBe(true);
    expect(await moreWith(3)).toBe(false);
    expect(await moreWith(4)).toBe(false);
  });

  test('names a filter that there is not, and takes each one once', async () => {
    await expectRefused({ workspace: 'ws_acme' }, 'workspace');
    const twice = await app.get('/v1/api-keys?status=active&status=revoked');
    expect(twice.status).toBe(400);
    expect(twice.body.errors).toMatchObject([{ path: 'status' }]);
  });

  test.each([
    ['workspace_id', '..'],
    ['environment', 'LIVE'],
    ['status', 'dead'],
    ['scope', 'Read'],
    ['name', ''],
    ['name', 'x'.repeat(121)],
    ['name', 'a\0b'],
    ['created_by', ''],
    ['created_by', '\0'],
    ['expires_before', 'tomorrow'],
    ['unused_since', '2026-01-01'],
    ['rotation_due', 'false'],
    ['cursor', 'nonsense'],
    ['cursor', ''],
  ])('refuses %s=%j', async (name, value) => {
    await expectRefused({ [name]: value }, name);
  });
});

describe('filters', () => {
  test('find by the literal beginning of the name, in its case', async () => {
    const workspace_id = 'ws_names';
    const names = [
      '100%',
      '100x',
      '100% sure',
      'a_b',
      'aXb',
      'back\\slash',
      'backslash',
      'Ünïcode',
      'u\u0308ber',
      '名前テスト',
      '🔑 key',
      "it's",
      'Case',
      'case',
      ' led by a space',
    ];
    for (const name of names) await app.createKey({ workspace_id, name });
    for (const prefix of [
      ...names,
      '%',
      '_',
      '\\',
      '10',
      '100',
      'a_',
      'aX',
      'back',
      'back\\',
      'Ü',
      'ü',
      'u',
      '名前',
      '🔑',
      'C',
      'c',
      ' ',
      "it'",
    ]) {
      const found = await namesIn({ workspace_id, name: prefix });
      expect(found.sort(), prefix).toEqual(names.filter((name) => name.startsWith(prefix)).sort());
    }
  });

  test('give, alone and in every combination, just the keys that fit all of them', async () => {
    const now = Date.now();
    const later = new Date(now + 3_600_000).toISOString();
    const shapes = [
      { workspace_id: 'ws_f1', name: 'ab', scopes: ['read'], created_by: 'usr_1' },
      { workspace_id: 'ws_f1', name: 'abc', scopes: ['read', 'write'], environment: 'test' },
      { workspace_id: 'ws_f1', name: 'b', scopes: [], created_by: 'usr_1', expires_at: later },
      { workspace_id: 'ws_f2', name: 'ab', scopes: ['write'], created_by: 'usr_2' },
      { workspace_id: 'ws_f2', name: 'a', scopes: ['read'], environment: 'test', expires_at: later },
    ];
    for (const shape of shapes) {
      const { id } = await app.createKey(shape);
      const old = now - 91 * DAY_MS;
      await copyKey(id, old);
      await copyKey(id, old - 1_000, { expires_at: new Date(now - 5_000) });
      await copyKey(id, now - 10 * DAY_MS, { expires_at: new Date(now - 5_000), name: 'abd' });
      await copyKey(id, old - 2_000, { revoked_at: new Date(now - 1_000), revoked_reason: 'leaked' });
      const revoked = await app.createKey(shape);
      await app.delete(`/v1/api-keys/${revoked.id}`);
    }
    const all = await walk({ limit: 100 });
    expect(all.length).toBeGreaterThanOrEqual(30);

    const values = {
      workspace_id: fc.constantFrom('ws_f1', 'ws_f2'),
      environment: fc.constantFrom('live', 'test', 'svc'),
      status: fc.constantFrom('active', 'expired', 'revoked'),
      scope: fc.constantFrom('read', 'write'),
      name: fc.constantFrom('a', 'ab', 'abc', 'b'),
      created_by: fc.constantFrom('usr_1', 'usr_2'),
      expires_before: fc.constantFrom(new Date(now).toISOString(), '2999-01-01T00:00:00Z'),
      unused_since: fc.constantFrom(new Date(now - DAY_MS).toISOString(), '2999-01-01T00:00:00Z'),
      rotation_due: fc.constant('true'),
    };
    const fits = (key: Answer['body'], filters: Record<string, string>): boolean =>
      Object.entries(filters).every(([filter, value]) => {
        switch (filter) {
          case 'scope':
            return key.scopes.includes(value);
          case 'name':
            return key.name.startsWith(value);
          case 'expires_before':
            return key.expires_at !== null && Date.parse(key.expires_at) < Date.parse(value);
          case 'unused_since':
            return Date.parse(key.created_at) < Date.parse(value);
          case 'rotation_due':
            return key.status === 'active' && Date.parse(key.rotation_due_at) < now;
          default:
            return key[filter] === value;
        }
      });

    // Each alone, then two to four of them together, in pages of any size.
    const alone = Object.entries(values).flatMap(([filter, arbitrary]) =>
      fc.sample<string>(arbitrary, { numRuns: 12, seed: 1 }).map((value) => ({ [filter]: value })),
    );
    const some = fc
      .subarray(Object.keys(values) as (keyof typeof values)[], { minLength: 2, maxLength: 4 })
      .chain((names) =>
        fc.record<Record<string, string>>(Object.fromEntries(names.map((name) => [name, values[name]]))),
      );
    const together = fc.sample(some, { numRuns: 200, seed: 1 });
    let found = 0;
    const seen = new Set<string>();
    for (const filters of [...alone, ...together]) {
      const limit = 1 + (seen.size % 12);
      const key = JSON.stringify(filters);
      if (seen.has(key)) continue;
      seen.add(key);
      const expected = all.filter((one) => fits(one, filters));
      const shown = await walk({ ...filters, limit });
      expect(
        shown.map(({ id }) => id),
        key,
      ).toEqual(expected.map(({ id }) => id));
      if (expected.length > 0) found++;
    }
    expect(found).toBeGreaterThan(60);
  });
});

describe('the status and the age of keys, by the time of asking', () => {
  let database: Database;
  beforeAll(() => {
    database = createDatabase({
      url: app.database.url,
      poolSize: 1,
      applicationName: 'test',
      onConnectionLost: () => undefined,
    });
  });
  afterAll(() => database.close());

  async function idsAt(nowMs: number, filters: KeyFilters): Promise<string[]> {
    const keys = await database.read((executor) =>
      listKeys(executor, {
        filters,
        visibleWorkspaces: null,
        includeSystem: false,
        after: undefined,
        limit: 10,
        nowMs,
      }),
    );
    return keys.map(({ id }) => id);
  }

  test('a key is active up to the millisecond before its expiry, and expired from it on', async () => {
    const workspaceId = 'ws_boundary';
    const expiry = Date.parse('2999-01-01T00:00:00.500Z');
    const { id } = await app.createKey({
      workspace_id: workspaceId,
      expires_at: new Date(expiry).toISOString(),
    });
    expect(await idsAt(expiry - 1, { workspaceId, status: 'active' })).toEqual([id]);
    expect(await idsAt(expiry - 1, { workspaceId, status: 'expired' })).toEqual([]);
    expect(await idsAt(expiry, { workspaceId, status: 'active' })).toEqual([]);
    expect(await idsAt(expiry, { workspaceId, status: 'expired' })).toEqual([id]);
    expect(await idsAt(expiry, { workspaceId, expiresBefore: expiry })).toEqual([]);
    expect(await idsAt(expiry, { workspaceId, expiresBefore: expiry + 1 })).toEqual([id]);
    await app.delete(`/v1/api-keys/${id}`);
    for (const now of [expiry - 1, expiry]) {
      expect(await idsAt(now, { workspaceId, status: 'revoked' })).toEqual([id]);
      expect(await idsAt(now, { workspaceId, status: 'active' })).toEqual([]);
      expect(await idsAt(now, { workspaceId, status: 'expired' })).toEqual([]);
    }
  });

  test('a key that was never used is unused since any time after its creation', async () => {
    const workspaceId = 'ws_unused';
    const { id, data } = await app.createKey({ workspace_id: workspaceId });
    const createdAt = Date.parse(data.created_at);
    expect(
      await namesIn({ workspace_id: workspaceId, unused_since: new Date(createdAt).toISOString() }),
    ).toEqual([]);
    expect(
      await namesIn({ workspace_id: workspaceId, unused_since: new Date(createdAt + 1).toISOString() }),
    ).toEqual(['Test key']);
    expect(await idsAt(createdAt, { workspaceId, unusedSince: createdAt + 1 })).toEqual([id]);
  });

  test('only an active key is due for rotation, once it is 90 days old', async () => {
    const workspace_id = 'ws_due';
    const { id } = await app.createKey({ workspace_id, name: 'new' });
    const now = Date.now();
    await copyKey(id, now - 90 * DAY_MS - 1_000, { name: 'due' });
    await copyKey(id, now - 90 * DAY_MS + 60_000, { name: 'due in a minute' });
    await copyKey(id, now - 95 * DAY_MS, { name: 'revoked', revoked_at: new Date(now) });
    await copyKey(id, now - 95 * DAY_MS, { name: 'expired', expires_at: new Date(now - 1_000) });
    await copyKey(id, now - 95 * DAY_MS, { name: 'expires later', expires_at: new Date(now + 60_000) });
    expect(await namesIn({ workspace_id, rotation_due: 'true' })).toEqual(['due', 'expires later']);
  });
});

describe('pages', () => {
  test('walk all keys exactly once, newest first, while others are made', async () => {
    const workspace_id = 'ws_walk';
    const made: string[] = [];
    for (let count = 0; count < 11; count++) made.push((await app.createKey({ workspace_id })).id);
    for (const filters of [
      { workspace_id },
      { workspace_id, status: 'active' },
      { workspace_id, name: 'Test' },
    ]) {
      const before = (await walk({ ...filters, limit: 100 })).map(({ id }) => id);
      expect(before).toEqual(expect.arrayContaining(made));
      const walked = await walk(
        { ...filters, limit: 3 },
        { betweenPages: () => app.createKey({ workspace_id }) },
      );
      expect(walked.map(({ id }) => id)).toEqual(before);
    }
  });

  test('walk keys that were made in one millisecond, too', async () => {
    const workspace_id = 'ws_same_time';
    const { id } = await app.createKey({ workspace_id });
    const time = Date.now() - 60_000;
    const copies = await Promise.all([1, 2, 3, 4, 5].map(() => copyKey(id, time)));
    for (const limit of [1, 2, 5]) {
      const walked = (await walk({ workspace_id, limit })).map((key) => key.id);
      expect(walked).toEqual([id, ...[...copies].sort().reverse()]);
    }
  });

  test('go on where the page before ended, though its last key was revoked meanwhile', async () => {
    const workspace_id = 'ws_moving';
    for (const name of ['a', 'b', 'c']) await app.createKey({ workspace_id, name });
    const first = await list({ workspace_id, status: 'active', limit: 2 });
    await app.delete(`/v1/api-keys/${first.body.data[1].id}`);
    const cursor = first.body.pagination.next_cursor;
    expect(await namesIn({ workspace_id, status: 'active', limit: 2, cursor })).toEqual(['a']);
  });

  test('belong to their filters, and to pages of any size', async () => {
    const workspace_id = 'ws_cursor';
    for (const name of ['a', 'b', 'c']) await app.createKey({ workspace_id, name });
    const { next_cursor: cursor } = (await list({ workspace_id, limit: 1 })).body.pagination;
    expect(await namesIn({ workspace_id, cursor, limit: 1 })).toEqual(['b']);
    expect(await namesIn({ workspace_id, cursor, limit: 50 })).toEqual(['b', 'a']);
    await expectRefused({ cursor }, 'cursor');
    await expectRefused({ workspace_id: 'ws_cursor2', cursor }, 'cursor');
    await expectRefused({ workspace_id, status: 'active', cursor }, 'cursor');
    await expectRefused({ name: workspace_id, cursor }, 'cursor');
  });

  test('cannot be made up or changed', async () => {
    const workspace_id = 'ws_cursor';
    const { next_cursor: cursor } = (await list({ workspace_id, limit: 1 })).body.pagination;
    expect(cursor).toMatch(/^[A-Za-z0-9_-]+$/);
    for (let at = 0; at < cursor.length; at++) {
      const other = cursor[at] === 'A' ? 'B' : 'A';
      await expectRefused(
        { workspace_id, cursor: cursor.slice(0, at) + other + cursor.slice(at + 1) },
        'cursor',
      );
    }
    for (const wrong of [`${cursor}A`, cursor.slice(1), ` ${cursor}`, `${cursor}=`, cursor.repeat(2)]) {
      await expectRefused({ workspace_id, cursor: wrong }, 'cursor');
    }
  });
});

describe('what a list shows depends on who asks', () => {
  test('service keys are shown to an admin alone', async () => {
    const reader = await app.createServiceKey(['keys:read'], { name: 'a reader' });
    expect(await namesIn({ environment: 'svc', name: 'a reader' })).toEqual(['a reader']);
    expect(await namesIn({ environment: 'svc' }, { as: reader.token })).toEqual([]);
    expect(await namesIn({ name: 'a reader' }, { as: reader.token })).toEqual([]);
  });

  test('a key bound to workspaces lists those alone, newest first over all of them, each key once', async () => {
    const made: string[] = [];
    for (const workspace_id of ['ws_n1', 'ws_n2', 'ws_n1', 'ws_n3', 'ws_n2']) {
      const name = `${workspace_id} ${made.length}`;
      await app.createKey({ workspace_id, name });
      made.unshift(name);
    }
    const { token } = await app.createServiceKey(['keys:read'], {
      restrictions: { allowed_workspaces: ['ws_n1', 'ws_n2', 'ws_n1'] },
    });
    const seen = made.filter((name) => !name.startsWith('ws_n3'));
    for (const limit of [1, 2, 3, 100]) {
      const walked = await walk({ limit }, { as: token });
      expect(walked.map(({ name }) => name)).toEqual(seen);
    }
    expect((await list({ workspace_id: 'ws_n3' }, { as: token })).status).toBe(403);
    expect(await namesIn({ workspace_id: 'ws_n2' }, { as: token })).toHaveLength(2);
  });
});
