import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { appOfTest, createTestApp, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';

/** Long enough that no test sees it turn but by chance of one in thousands. */
const WINDOW = 86_400;
const NOWHERE = 2_678_400;

let app: TestApp;
beforeAll(async () => {
  app = await createTestApp();
});
afterAll(() => app.close());

const limited = (limit: number, settings: object = {}) =>
  app.createKey({ rate_limit: { limit, window_seconds: WINDOW }, ...settings });
const standing = (limit: number, remaining: number) => ({
  limit,
  remaining,
  reset: expect.any(Number),
  window_seconds: WINDOW,
});
const outcome = ({ body }: Answer): string => (body.active ? 'active' : body.reason.code);
const countOf = (answers: readonly Answer[], wanted: string) =>
  answers.filter((answer) => outcome(answer) === wanted).length;

describe('a limit', () => {
  test('admits as many uses as it says, tells what remains after each, then refuses with 429', async () => {
    const { token } = await limited(3);
    for (const remaining of [2, 1, 0]) {
      const { body } = await app.introspect(token);
      expect(body).toMatchObject({ active: true, rate_limit: standing(3, remaining) });
    }
    const { status, body } = await app.introspect(token);
    expect(status).toBe(200);
    expect(body).toEqual({
      active: false,
      reason: { code: 'rate_limited', status: 429, detail: expect.stringContaining('3 in 86400 s') },
      rate_limit: standing(3, 0),
      retry_after: expect.any(Number),
    });
    const reset = body.rate_limit.reset;
    expect(reset % WINDOW).toBe(0);
    const left = reset - Date.now() / 1000;
    expect(body.retry_after).toBeGreaterThanOrEqual(Math.floor(left));
    expect(body.retry_after).toBeLessThanOrEqual(Math.ceil(left) + 5);
  });

  test('admits exactly as many of a burst', async () => {
    for (const limit of [1, 7, 100, 999, 1000, 1001]) {
      const { token } = await limited(limit);
      const answers = await Promise.all(Array.from({ length: limit + 50 }, () => app.introspect(token)));
      expect(countOf(answers, 'active'), `limit ${limit}`).toBe(limit);
      expect(countOf(answers, 'rate_limited')).toBe(50);
    }
  });

  test('is charged last: a use that any other check refuses spends nothing', async () => {
    const { token } = await limited(1, {
      scopes: ['read'],
      restrictions: { allowed_ips: ['203.0.113.0/24'] },
    });
    const request = { ip: '203.0.113.9' };
    expect(outcome(await app.introspect(token, { request, scopes: ['write'] }))).toBe('insufficient_scope');
    expect(outcome(await app.introspect(token))).toBe('ip_not_allowed');
    expect(outcome(await app.introspect(token, { request, workspace_id: 'ws_other' }))).toBe(
      'wrong_workspace',
    );
    expect(outcome(await app.introspect(token, { request }))).toBe('active');
    expect(outcome(await app.introspect(token, { request }))).toBe('rate_limited');
    expect(outcome(await app.introspect(token, { request, scopes: ['write'] }))).toBe('insufficient_scope');
  });

  test('of none at all is null, and never refuses', async () => {
    const { token } = await app.createKey({ rate_limit: null });
    expect((await app.introspect(token, { cost: 10_000 })).body).toMatchObject({
      active: true,
      rate_limit: null,
    });
  });

  test('counts each key by itself', async () => {
    const [one, other] = [await limited(1), await limited(1)];
    expect(outcome(await app.introspect(one.token))).toBe('active');
    expect(outcome(await app.introspect(other.token))).toBe('active');
    expect(outcome(await app.introspect(one.token))).toBe('rate_limited');
  });

  test('is charged one use by RFC 7662, and answers no more than inactive', async () => {
    const { token } = await limited(2);
    const ask = () =>
      app.send('POST', '/v1/introspect', {
        headers: { 'content-type': 'application/x-www-form-urlencoded' },
        body: `token=${token}`,
      });
    expect((await ask()).body.active).toBe(true);
    expect((await app.introspect(token)).body.rate_limit.remaining).toBe(0);
    expect((await ask()).body).toEqual({ active: false });
  });
});

describe('a cost', () => {
  test('of 5 fits a limit of 100 twenty times, also in a burst', async () => {
    const { token } = await limited(100);
    const answers = await Promise.all(Array.from({ length: 60 }, () => app.introspect(token, { cost: 5 })));
    expect(countOf(answers, 'active')).toBe(20);
    expect((await app.introspect(token, { cost: 0 })).body.rate_limit).toEqual(standing(100, 0));
  });

  test('of 0 spends nothing, before and after the limit is spent', async () => {
    const { token } = await limited(2);
    for (const spent of [0, 1, 2]) {
      const { body } = await app.introspect(token, { cost: 0 });
      expect(body).toMatchObject({ active: true, rate_limit: standing(2, 2 - spent) });
      await app.introspect(token);
    }
  });

  test('that is more than what remains is refused, and spends nothing', async () => {
    const { token } = await limited(7);
    expect((await app.introspect(token, { cost: 5 })).body.rate_limit).toEqual(standing(7, 2));
    for (let times = 0; times < 3; times++) {
      const { body } = await app.introspect(token, { cost: 5 });
      expect(body).toMatchObject({ active: false, rate_limit: standing(7, 2) });
    }
    expect((await app.introspect(token, { cost: 2 })).body.rate_limit).toEqual(standing(7, 0));
  });

  test('above the limit is always refused, and spends nothing', async () => {
    const { token } = await limited(7);
    for (let times = 0; times < 2; times++) {
      const { body } = await app.introspect(token, { cost: 8 });
      expect(body).toMatchObject({ active: false, reason: { status: 429 }, rate_limit: standing(7, 7) });
    }
    expect((await app.introspect(token, { cost: 7 })).body.rate_limit).toEqual(standing(7, 0));
  });

  test('that differs from use to use is refused only where less than that remains', async () => {
    const { token } = await limited(300);
    const costs = Array.from({ length: 300 }, (_, index) => [1, 7, 3, 20, 5][index % 5] ?? 1);
    const answers = await Promise.all(costs.map((cost) => app.introspect(token, { cost })));
    const isActive = (index: number) => answers[index]?.body.active === true;
    const spent = costs.reduce((sum, cost, index) => sum + (isActive(index) ? cost : 0), 0);
    const refused = costs.filter((_, index) => !isActive(index));
    expect(spent).toBeLessThanOrEqual(300);
    expect(300 - spent).toBeLessThan(Math.min(...refused));
  });
});

describe('a change of the limit', () => {
  test('holds at the answer: lowered, raised, taken away, given', async () => {
    const { id, token } = await limited(10);
    const put = (rate_limit: object | null) => app.patch(`/v1/api-keys/${id}`, { rate_limit });
    for (let times = 0; times < 4; times++) await app.introspect(token);
    await put({ limit: 5 });
    expect((await app.introspect(token)).body.rate_limit).toEqual(standing(5, 0));
    expect(outcome(await app.introspect(token))).toBe('rate_limited');
    await put({ limit: 7 });
    expect((await app.introspect(token)).body.rate_limit).toEqual(standing(7, 1));
    await put({ limit: 2 });
    expect((await app.introspect(token)).body).toMatchObject({ active: false, rate_limit: standing(2, 0) });
    await put(null);
    expect((await app.introspect(token)).body.rate_limit).toBeNull();
    await put({ limit: 7, window_seconds: WINDOW });
    expect((await app.introspect(token)).body.rate_limit).toEqual(standing(7, 0));
    expect(outcome(await app.introspect(token))).toBe('rate_limited');
  });

  test('to windows of another length counts those by themselves, and going back grants nothing twice', async () => {
    const { id, token } = await limited(2);
    const put = (window_seconds: number) =>
      app.patch(`/v1/api-keys/${id}`, { rate_limit: { limit: 2, window_seconds } });
    await app.introspect(token);
    await put(NOWHERE);
    for (const remaining of [1, 0])
      expect((await app.introspect(token)).body.rate_limit).toMatchObject({
        remaining,
        window_seconds: NOWHERE,
      });
    expect(outcome(await app.introspect(token))).toBe('rate_limited');
    await put(WINDOW);
    expect((await app.introspect(token)).body.rate_limit).toEqual(standing(2, 0));
    expect(outcome(await app.introspect(token))).toBe('rate_limited');
    await put(NOWHERE);
    expect(outcome(await app.introspect(token))).toBe('rate_limited');
  });
});

describe("a workspace's limit", () => {
  const workspace = (name: string, limit: number | null) =>
    app.send('PUT', `/v1/workspaces/${name}`, {
      body: { rate_limit: limit === null ? null : { limit, window_seconds: WINDOW } },
    });
  const member = (name: string, limit: number | null) =>
    app.createKey({
      workspace_id: name,
      rate_limit: limit === null ? null : { limit, window_seconds: WINDOW },
    });

  test('is shared by its keys, and shown where it is the tighter one', async () => {
    await workspace('ws_shared', 5);
    const [one, other] = [await member('ws_shared', null), await member('ws_shared', 3)];
    expect((await app.introspect(one.token)).body.rate_limit).toEqual(standing(5, 4));
    expect((await app.introspect(other.token)).body.rate_limit).toEqual(standing(3, 2));
    expect((await app.introspect(one.token, { cost: 2 })).body.rate_limit).toEqual(standing(5, 1));
    expect((await app.introspect(other.token)).body.rate_limit).toEqual(standing(5, 0));
    expect((await app.introspect(other.token)).body).toMatchObject({
      active: false,
      rate_limit: standing(5, 0),
    });
  });

  test('that refuses leaves the limit of the key unspent, in a burst too', async () => {
    await workspace('ws_tight', 10);
    const { id, token } = await member('ws_tight', 50);
    const answers = await Promise.all(Array.from({ length: 100 }, () => app.introspect(token)));
    expect(countOf(answers, 'active')).toBe(10);
    await workspace('ws_tight', null);
    expect((await app.introspect(token)).body.rate_limit, id).toEqual(standing(50, 39));
    const rest = await Promise.all(Array.from({ length: 100 }, () => app.introspect(token)));
    expect(countOf(rest, 'active')).toBe(39);
  });

  test('is left unspent by a key that is refused by its own', async () => {
    await workspace('ws_wide', 30);
    const [tight, other] = [await member('ws_wide', 10), await member('ws_wide', null)];
    const answers = await Promise.all(Array.from({ length: 60 }, () => app.introspect(tight.token)));
    expect(countOf(answers, 'active')).toBe(10);
    expect((await app.introspect(other.token)).body.rate_limit).toEqual(standing(30, 19));
  });

  test('holds when its change has answered', async () => {
    await workspace('ws_changing', 4);
    const { token } = await member('ws_changing', null);
    for (let times = 0; times < 2; times++) await app.introspect(token);
    await workspace('ws_changing', 2);
    expect(outcome(await app.introspect(token))).toBe('rate_limited');
    await workspace('ws_changing', 3);
    expect((await app.introspect(token)).body.rate_limit).toEqual(standing(3, 0));
    expect(outcome(await app.introspect(token))).toBe('rate_limited');
  });
});

describe('GET …/rate-limit', () => {
  const look = async (id: string) => (await app.get(`/v1/api-keys/${id}/rate-limit`)).body.data;

  test('shows what is left of the window, spends nothing, and knows nothing of other windows', async () => {
    const { id, token } = await limited(5);
    expect(await look(id)).toEqual({ ...standing(5, 5), workspace: null });
    await app.introspect(token, { cost: 3 });
    for (let times = 0; times < 3; times++) expect(await look(id)).toMatchObject(standing(5, 2));
    expect((await app.introspect(token)).body.rate_limit).toEqual(standing(5, 1));
    await app.patch(`/v1/api-keys/${id}`, { rate_limit: { window_seconds: NOWHERE } });
    expect(await look(id)).toMatchObject({ limit: 5, remaining: 5, window_seconds: NOWHERE });
  });

  test('shows null for a key without a limit, and the limit of its workspace beside', async () => {
    const { id } = await app.createKey({ rate_limit: null, workspace_id: 'ws_looked_at' });
    const none = { limit: null, remaining: null, reset: null, window_seconds: null };
    expect(await look(id)).toEqual({ ...none, workspace: null });
    await app.send('PUT', '/v1/workspaces/ws_looked_at', {
      body: { rate_limit: { limit: 9, window_seconds: WINDOW } },
    });
    expect(await look(id)).toEqual({ ...none, workspace: standing(9, 9) });
  });

  test('is not found for a key that the caller may not see', async () => {
    const { id } = await app.createKey({ workspace_id: 'ws_hidden' });
    const narrow = await app.createServiceKey(['keys:read'], {
      restrictions: { allowed_workspaces: ['ws_other'] },
    });
    for (const name of [id, 'key_00000000000000000000000000', 'none'])
      expect((await app.get(`/v1/api-keys/${name}/rate-limit`, { as: narrow.token })).status).toBe(404);
  });
});

describe('a service key', () => {
  test('that was given no limit has none', async () => {
    const { id } = await app.createServiceKey(['keys:read']);
    expect((await app.get(`/v1/api-keys/${id}`)).body.data.rate_limit).toBeNull();
  });

  test('that was given one is refused with 429 when it is spent, whatever it calls', async () => {
    const { id, token } = await app.createServiceKey(['introspect'], {
      rate_limit: { limit: 3, window_seconds: WINDOW },
    });
    const as = token;
    const first = await app.introspect('no token', {}, { as });
    expect(first.headers).toMatchObject({ 'x-ratelimit-limit': '3', 'x-ratelimit-remaining': '2' });
    expect((await app.get('/v1/me', { as })).status).toBe(200);
    // Not its permission, but its call.
    expect((await app.get('/v1/api-keys', { as })).status).toBe(403);
    const refused = await app.introspect('no token', {}, { as });
    expect(refused.status).toBe(429);
    expect(refused.body).toMatchObject({ code: 'rate_limited', status: 429 });
    expect(refused.headers).toMatchObject({ 'x-ratelimit-limit': '3', 'x-ratelimit-remaining': '0' });
    expect(Number(refused.headers['retry-after'])).toBeGreaterThan(0);
    expect(Number(refused.headers['x-ratelimit-reset']) % WINDOW).toBe(0);
    await app.patch(`/v1/api-keys/${id}`, { rate_limit: null });
    expect((await app.get('/v1/me', { as })).status).toBe(200);
  });
});

describe('two instances', () => {
  let database: TestDatabase;
  let second: TestApp;
  let first: TestApp;
  beforeAll(async () => {
    database = await createTestDatabase();
    first = await createTestApp({}, database);
    second = await createTestApp({}, database);
  });
  afterAll(async () => {
    await first.close();
    await second.close();
    await database.drop();
  });

  const twice = (limit: number) => first.createKey({ rate_limit: { limit, window_seconds: WINDOW } });

  test.each([7, 100, 1000, 1500])('admit exactly %i of three times as many at once', async (limit) => {
    const { token } = await twice(limit);
    const answers = await Promise.all(
      Array.from({ length: limit * 3 }, (_, index) => (index % 2 === 0 ? first : second).introspect(token)),
    );
    expect(countOf(answers, 'active')).toBe(limit);
  });

  test('one of which holds a stock that the other needs admit every use of the limit, one after another', async () => {
    const { token } = await twice(2000);
    // So much at once that the next chunk is large.
    await Promise.all(Array.from({ length: 500 }, () => first.introspect(token)));
    await first.introspect(token);
    const [held] = await database.query<{ stocked: string }>(
      'SELECT max(stocked) AS stocked FROM rate_windows',
    );
    expect(Number(held?.stocked)).toBeGreaterThan(0);
    let admitted = 501;
    while (outcome(await second.introspect(token)) === 'active') admitted++;
    expect(admitted).toBe(2000);
    expect(outcome(await first.introspect(token))).toBe('rate_limited');
  });

  test('tell exactly what remains of a limit of which both hold some', async () => {
    const { id, token } = await twice(4000);
    for (const app of [first, second]) {
      await Promise.all(Array.from({ length: 300 }, () => app.introspect(token)));
      await app.introspect(token);
    }
    const { body } = await first.get(`/v1/api-keys/${id}/rate-limit`);
    expect(body.data).toMatchObject(standing(4000, 4000 - 602));
  });

  test('of which one drains leave nothing of the limit behind', async () => {
    const third = await createTestApp({}, database);
    const { token } = await twice(1200);
    await Promise.all(Array.from({ length: 300 }, () => third.introspect(token)));
    await third.introspect(token);
    await third.close();
    let admitted = 301;
    while (outcome(await second.introspect(token)) === 'active') admitted++;
    expect(admitted).toBe(1200);
  });

  test('both know at once that a limit was lowered', async () => {
    const { id, token } = await twice(3000);
    await Promise.all(Array.from({ length: 200 }, () => second.introspect(token)));
    await second.introspect(token);
    await first.patch(`/v1/api-keys/${id}`, { rate_limit: { limit: 210 } });
    const answers = await Promise.all(Array.from({ length: 50 }, () => second.introspect(token)));
    expect(countOf(answers, 'active')).toBe(9);
  });
});

test('a use of many keys at once is one statement, not one each', async () => {
  const own = await appOfTest();
  const keys = [];
  for (let count = 0; count < 40; count++)
    keys.push(await own.createKey({ rate_limit: { limit: 5, window_seconds: WINDOW } }));
  await Promise.all(keys.map(({ token }) => own.introspect(token, { cost: 0 })));
  const statements = async () => {
    const { text } = await own.get('/metrics', { as: null });
    return Number(/^claviger_rate_limit_statement_seconds_count (\d+)$/m.exec(text)?.[1]);
  };
  const before = await statements();
  const answers = await Promise.all(keys.map(({ token }) => own.introspect(token)));
  expect(countOf(answers, 'active')).toBe(40);
  expect((await statements()) - before).toBeLessThanOrEqual(5);
});
