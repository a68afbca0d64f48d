import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { keyIdToUuid } from '../../src/domain/key-id.ts';
import { createTestApp, type TestApp } from '../support/app.ts';
import { expectRefusal } from './problem.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const IN_TIME = { timeout: 5_000, interval: 100 };

let app: TestApp;

beforeAll(async () => {
  app = await createTestApp({ CALLER_RATE_LIMIT: 'off' });
});
afterAll(() => app.close());

const at = (timeMs: number) => new Date(timeMs).toISOString();
const hourOf = (timeMs: number) => Math.floor(timeMs / HOUR_MS) * HOUR_MS;

/** Usage as it was written at some time, past the recorder. */
async function insertUsage(
  rows: readonly { workspace: string; key: string; hourMs: number; code: string; count: number }[],
): Promise<void> {
  for (const { workspace, key, hourMs, code, count } of rows) {
    for (const id of [keyIdToUuid(key), '00000000-0000-0000-0000-000000000000']) {
      await app.database.query(
        `INSERT INTO usage AS known VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (workspace_id, key_id, hour, code) DO UPDATE SET count = known.count + excluded.count`,
        [workspace, id, at(hourMs), code, count],
      );
    }
  }
}

const usageOf = async (path: string, query = '') => (await app.get(`${path}/usage?${query}`)).body.data;

describe('usage', () => {
  test('tells each outcome under its code, for the key and for its workspace, within two seconds', async () => {
    const workspace_id = 'ws_outcomes';
    const first = await app.createKey({ workspace_id, scopes: ['read'] });
    const second = await app.createKey({ workspace_id });
    for (let time = 0; time < 4; time++) await app.introspect(first.token);
    await app.introspect(first.token, { scopes: ['write'] });
    await app.introspect(second.token, { workspace_id: 'ws_expected' });
    await app.send('POST', '/v1/introspect', {
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
      body: `token=${second.token}`,
    });
    await app.delete(`/v1/api-keys/${second.id}`);
    await app.introspect(second.token);
    await app.introspect('no key at all');
    const toldBy = performance.now() + 2_000;

    const path = `/v1/workspaces/${workspace_id}`;
    await expect
      .poll(async () => (await usageOf(path)).totals, { timeout: 5_000, interval: 50 })
      .toEqual({ active: 5, insufficient_scope: 1, wrong_workspace: 1, revoked: 1 });
    // With room for a machine that is not idle.
    expect(performance.now()).toBeLessThan(toldBy + 1_000);
    expect(await usageOf(path)).toMatchObject({ success_rate: 5 / 8, response_times: null });
    expect(await usageOf(`/v1/api-keys/${first.id}`)).toMatchObject({
      totals: { active: 4, insufficient_scope: 1 },
      success_rate: 0.8,
    });
    expect((await usageOf(`/v1/api-keys/${second.id}`)).totals).toEqual({
      active: 1,
      wrong_workspace: 1,
      revoked: 1,
    });
  });

  test('has 24 buckets by default, this hour the last, and those without introspections too', async () => {
    const { id } = await app.createKey({ workspace_id: 'ws_default' });
    const hour = hourOf(Date.now());
    await insertUsage([
      { workspace: 'ws_default', key: id, hourMs: hour - 24 * HOUR_MS, code: 'active', count: 1 },
      { workspace: 'ws_default', key: id, hourMs: hour - 23 * HOUR_MS, code: 'active', count: 10 },
      { workspace: 'ws_default', key: id, hourMs: hour, code: 'expired', count: 30 },
    ]);
    for (const path of [`/v1/api-keys/${id}`, '/v1/workspaces/ws_default']) {
      const { totals, success_rate, buckets } = await usageOf(path);
      expect(totals).toEqual({ active: 10, expired: 30 });
      expect(success_rate).toBe(0.25);
      expect(buckets).toHaveLength(24);
      expect(buckets[0]).toEqual({
        start: at(hour - 23 * HOUR_MS),
        totals: { active: 10 },
        success_rate: 1,
        response_times: null,
      });
      expect(buckets[1]).toEqual({
        start: at(hour - 22 * HOUR_MS),
        totals: {},
        success_rate: null,
        response_times: null,
      });
      expect(buckets[23]).toMatchObject({ start: at(hour), totals: { expired: 30 }, success_rate: 0 });
    }
  });

  test('counts the hours that from and to lie in, and a day by the hours of it that were asked for', async () => {
    const { id } = await app.createKey({ workspace_id: 'ws_days' });
    const midnight = Math.floor(Date.now() / DAY_MS) * DAY_MS - 3 * DAY_MS;
    const rows = [-2, -1, 0, 1, 22, 23, 24].map((hour) => ({
      workspace: 'ws_days',
      key: id,
      hourMs: midnight + hour * HOUR_MS,
      code: 'active',
      count: 10 ** (hour + 2) % 9_973 || 1,
    }));
    await insertUsage(rows);
    const sum = (...hours: number[]) =>
      rows
        .filter(({ hourMs }) => hours.includes((hourMs - midnight) / HOUR_MS))
        .reduce((total, { count }) => total + count, 0);
    const path = `/v1/api-keys/${id}`;
    const spanFrom = (fromMs: number, toMs: number) => `from=${at(fromMs)}&to=${at(toMs)}`;

    const days = await usageOf(
      path,
      `${spanFrom(midnight - HOUR_MS + 1, midnight + 22 * HOUR_MS + 1)}&granularity=day`,
    );
    expect(days.totals).toEqual({ active: sum(-1, 0, 1, 22) });
    expect(days.buckets).toMatchObject([
      { start: at(midnight - DAY_MS), totals: { active: sum(-1) } },
      { start: at(midnight), totals: { active: sum(0, 1, 22) } },
    ]);
    const hours = await usageOf(path, spanFrom(midnight, midnight + HOUR_MS));
    expect(hours.buckets).toMatchObject([{ start: at(midnight), totals: { active: sum(0) } }]);
    expect((await usageOf(path, spanFrom(midnight, midnight + HOUR_MS + 1))).buckets).toHaveLength(2);
    expect((await usageOf(path, `from=${at(midnight)}`)).totals).toEqual({ active: sum(0, 1, 22, 23, 24) });
    expect((await usageOf(path, `to=${at(midnight + HOUR_MS)}`)).buckets).toHaveLength(24);
  });

  const now = Date.now();
  test.each([
    ['a span that ends where it begins', `from=${at(now)}&to=${at(now)}`, 'to'],
    ['a span that ends before it begins', `from=${at(now)}&to=${at(now - 1)}`, 'to'],
    ['a beginning in the future, without an end', `from=${at(now + 2 * HOUR_MS)}`, 'from'],
    ['more than 31 days of hours', `from=${at(now - 32 * DAY_MS)}`, 'from'],
    ['more than 400 days of days', `from=${at(now - 401.1 * DAY_MS)}&granularity=day`, 'from'],
    ['another granularity', 'granularity=minute', 'granularity'],
    ['a time that is none', 'from=yesterday', 'from'],
    ['what it does not know', 'since=yesterday', 'since'],
  ])('refuses %s', async (_, query, path) => {
    const { id } = await app.createKey();
    for (const subject of [`/v1/api-keys/${id}`, '/v1/workspaces/ws_acme']) {
      const answer = await app.get(`${subject}/usage?${query}`);
      expectRefusal(answer, 'invalid_request');
      expect(answer.body.errors).toMatchObject([{ path }]);
    }
  });

  test('takes 31 days of hours and 400 days', async () => {
    const from = (days: number) => at(hourOf(now) - days * DAY_MS);
    expect((await usageOf('/v1/workspaces/ws_acme', `from=${from(31)}`)).buckets).toHaveLength(31 * 24 + 1);
    const days = await usageOf('/v1/workspaces/ws_acme', `from=${from(400)}&granularity=day`);
    expect(days.buckets.length).toBeGreaterThanOrEqual(400);
  });

  test('of what a caller may not see is not found, and of a workspace without keys is empty', async () => {
    const { id } = await app.createKey({ workspace_id: 'ws_foreign' });
    const { token } = await app.createServiceKey(['keys:read'], {
      restrictions: { allowed_workspaces: ['ws_own'] },
    });
    for (const path of [`/v1/api-keys/${id}`, '/v1/workspaces/ws_foreign', '/v1/workspaces/system']) {
      expectRefusal(await app.get(`${path}/usage`, { as: token }), 'not_found');
    }
    expectRefusal(await app.get('/v1/api-keys/key_01h455vb4pex5vsknk084sn02q/usage'), 'not_found');
    expectRefusal(await app.get('/v1/api-keys/nothing/usage'), 'not_found');
    const empty = await app.get('/v1/workspaces/ws_own/usage', { as: token });
    expect(empty.body.data).toMatchObject({ totals: {}, success_rate: null, response_times: null });
  });
});

describe('the last use', () => {
  test('is told within two seconds wherever a key is shown, with the address that was told', async () => {
    const { id, token, data } = await app.createKey({ workspace_id: 'ws_last' });
    expect(data).toMatchObject({ last_used: null, last_used_ip: null });
    const unused = await app.createKey({ workspace_id: 'ws_last' });
    const before = Date.now();
    await app.introspect(token, { request: { ip: '::ffff:203.0.113.9' } });
    const usedBy = Date.now();
    await expect
      .poll(async () => (await app.get(`/v1/api-keys/${id}`)).body.data.last_used, IN_TIME)
      .not.toBeNull();

    const { last_used, last_used_ip } = (await app.get(`/v1/api-keys/${id}`)).body.data;
    // The machine's clock and the database's are one here, but what they say is rounded.
    expect(Date.parse(last_used)).toBeGreaterThanOrEqual(before - 100);
    expect(Date.parse(last_used)).toBeLessThanOrEqual(usedBy + 100);
    expect(last_used_ip).toBe('203.0.113.9');
    const page = (await app.get('/v1/api-keys?workspace_id=ws_last')).body.data;
    expect(page).toMatchObject([
      { id: unused.id, last_used: null, last_used_ip: null },
      { id, last_used, last_used_ip },
    ]);
    const use = { last_used, last_used_ip };
    expect((await app.patch(`/v1/api-keys/${id}`, { name: 'Renamed' })).body.data).toMatchObject(use);
    expect((await app.delete(`/v1/api-keys/${id}`)).body.data).toMatchObject(use);
    expect((await app.delete(`/v1/api-keys/${id}`)).body.data).toMatchObject(use);
  });

  test('is no refusal', async () => {
    const { id, token } = await app.createKey({ workspace_id: 'ws_refused' });
    await app.introspect(token, { scopes: ['write'], request: { ip: '203.0.113.9' } });
    await expect
      .poll(async () => (await usageOf(`/v1/api-keys/${id}`)).totals, IN_TIME)
      .toEqual({ insufficient_scope: 1 });
    expect((await app.get(`/v1/api-keys/${id}`)).body.data).toMatchObject({ last_used: null });
  });

  test('of a service key is its last call, from the address it came from', async () => {
    const { id, token } = await app.createServiceKey(['keys:read']);
    expect((await app.get(`/v1/api-keys/${id}`)).body.data.last_used).toBeNull();
    await app.get('/v1/me', { as: token });
    await expect
      .poll(async () => (await app.get(`/v1/api-keys/${id}`)).body.data.last_used, IN_TIME)
      .not.toBeNull();
    expect((await app.get(`/v1/api-keys/${id}`)).body.data.last_used_ip).toBe('127.0.0.1');
  });

  test('decides what is unused since when, for used keys and for those that never were', async () => {
    const workspace_id = 'ws_unused';
    const used = await app.createKey({ workspace_id });
    const never = await app.createKey({ workspace_id });
    await app.introspect(used.token);
    await expect
      .poll(async () => (await app.get(`/v1/api-keys/${used.id}`)).body.data.last_used, IN_TIME)
      .not.toBeNull();
    const { last_used } = (await app.get(`/v1/api-keys/${used.id}`)).body.data;
    const lastUsed = Date.parse(last_used);
    const made = Date.parse(never.data.created_at);
    const { token: bound } = await app.createServiceKey(['keys:read'], {
      restrictions: { allowed_workspaces: [workspace_id, 'ws_other'] },
    });
    const unusedSince = async (timeMs: number) => {
      const answers = [
        await app.get(`/v1/api-keys?workspace_id=${workspace_id}&unused_since=${at(timeMs)}`),
        await app.get(`/v1/api-keys?unused_since=${at(timeMs)}`, { as: bound }),
      ];
      const [one, other] = answers.map(({ body }) => body.data.map((key: { id: string }) => key.id));
      expect(one).toEqual(other);
      return one;
    };
    expect(await unusedSince(lastUsed + 1)).toEqual([never.id, used.id]);
    expect(await unusedSince(lastUsed)).toEqual([never.id]);
    expect(await unusedSince(made + 1)).toEqual([never.id]);
    expect(await unusedSince(made)).toEqual([]);
  });
});

describe('reports of usage', () => {
  const reportOf = (key_id: string, more: Record<string, unknown> = {}) => ({
    key_id,
    at: at(Date.now() - 1_000),
    status: 200,
    duration_ms: 12.5,
    ...more,
  });

  test('appear as response times, of the key and of its workspace, in the hour that they are of', async () => {
    const workspace_id = 'ws_reports';
    const first = await app.createKey({ workspace_id });
    const second = await app.createKey({ workspace_id });
    const hour = hourOf(Date.now() - 5 * HOUR_MS);
    const durations = Array.from({ length: 100 }, (_, index) => index + 1);
    const answer = await app.post('/v1/usage-reports', {
      reports: [
        ...durations.map((duration_ms) => reportOf(first.id, { duration_ms, at: at(hour + duration_ms) })),
        reportOf(second.id, { duration_ms: 1_000.25, method: 'GET', path: '/contacts/17?page=2' }),
      ],
    });
    expect(answer.body).toEqual({ success: true, data: { accepted: 101 } });

    const key = await usageOf(`/v1/api-keys/${first.id}`);
    expect(key).toMatchObject({ totals: {}, success_rate: null });
    const { response_times } = key;
    expect(response_times).toMatchObject({ count: 100, mean_ms: 50.5 });
    for (const [name, exact] of [
      ['p50_ms', 50],
      ['p95_ms', 95],
      ['p99_ms', 99],
    ] as const) {
      expect(Math.abs(response_times[name] - exact)).toBeLessThanOrEqual(exact * 0.0101);
    }
    const bucket = key.buckets.find(({ start }: { start: string }) => start === at(hour));
    expect(bucket.response_times).toEqual(response_times);
    const whole = await usageOf(`/v1/workspaces/${workspace_id}`);
    expect(whole.response_times).toMatchObject({ count: 101, mean_ms: 59.903 });
  });

  test('are taken by the thousand, with long paths too, and no more at once', async () => {
    const { id } = await app.createKey({ workspace_id: 'ws_thousand' });
    const reports = Array.from({ length: 1_000 }, () =>
      reportOf(id, { method: 'DELETE', path: `/${'x'.repeat(800)}` }),
    );
    expect((await app.post('/v1/usage-reports', { reports })).body.data).toEqual({ accepted: 1_000 });
    expectRefusal(
      await app.post('/v1/usage-reports', { reports: Array(1_001).fill(reportOf(id)) }),
      'invalid_request',
    );
    expect((await usageOf(`/v1/api-keys/${id}`)).response_times.count).toBe(1_000);
  });

  test('of which any is faulty are all refused, and each fault is named', async () => {
    const { id } = await app.createKey({ workspace_id: 'ws_faulty' });
    const refusedBy = async (code: 'invalid_request' | 'not_found', ...faults: Record<string, unknown>[]) => {
      const reports = [reportOf(id), ...faults.map((fault) => reportOf(id, fault))];
      const answer = await app.post('/v1/usage-reports', { reports });
      expectRefusal(answer, code);
      return answer.body.errors.map(({ path }: { path: string }) => path);
    };
    const now = Date.now();
    expect(
      await refusedBy(
        'invalid_request',
        { at: at(now + 60_000) },
        {},
        { at: at(now - 7 * DAY_MS - 60_000) },
        { at: at(now - 7 * DAY_MS + 60_000) },
      ),
    ).toEqual(['reports.1.at', 'reports.3.at']);
    expect(
      await refusedBy(
        'invalid_request',
        { at: 'yesterday' },
        { status: 99 },
        { status: 600 },
        { status: 200.5 },
        { duration_ms: -0.001 },
        { duration_ms: 86_400_001 },
        { method: 'get' },
        { path: `/${'x'.repeat(1_024)}` },
        { duration: 1 },
      ),
    ).toEqual([
      'reports.1.at',
      'reports.2.status',
      'reports.3.status',
      'reports.4.status',
      'reports.5.duration_ms',
      'reports.6.duration_ms',
      'reports.7.method',
      'reports.8.path',
      'reports.9.duration',
    ]);
    expect((await usageOf(`/v1/api-keys/${id}`)).response_times).toBeNull();
  });

  test('of a foreign key, a service key, an unknown key and no key are refused alike', async () => {
    const own = await app.createKey({ workspace_id: 'ws_reporting' });
    const foreign = await app.createKey({ workspace_id: 'ws_elsewhere' });
    const { id: service, token } = await app.createServiceKey(['introspect'], {
      restrictions: { allowed_workspaces: ['ws_reporting'] },
    });
    const answerTo = async (keyId: string) => {
      const answer = await app.post(
        '/v1/usage-reports',
        { reports: [reportOf(own.id), reportOf(keyId)] },
        { as: token },
      );
      expectRefusal(answer, 'not_found');
      const { request_id, instance, ...rest } = answer.body;
      return rest;
    };
    const toForeign = await answerTo(foreign.id);
    expect(toForeign.errors).toEqual([{ path: 'reports.1.key_id', message: 'there is no such key' }]);
    for (const id of [service, 'key_01h455vb4pex5vsknk084sn02q', 'nothing']) {
      expect(await answerTo(id)).toEqual(toForeign);
    }
    expect((await usageOf(`/v1/api-keys/${own.id}`)).response_times).toBeNull();
    expect((await usageOf(`/v1/api-keys/${foreign.id}`)).response_times).toBeNull();
    // An admin may see every key, but a service key is never what an API was called with.
    expectRefusal(await app.post('/v1/usage-reports', { reports: [reportOf(service)] }), 'not_found');
  });

  test('of a key that was revoked meanwhile are taken', async () => {
    const { id } = await app.createKey({ workspace_id: 'ws_revoked' });
    await app.delete(`/v1/api-keys/${id}`);
    expect((await app.post('/v1/usage-reports', { reports: [reportOf(id)] })).status).toBe(200);
  });

  test('that hold a token in their path are refused', async () => {
    const { id, token } = await app.createKey({ workspace_id: 'ws_token' });
    const answer = await app.post('/v1/usage-reports', {
      reports: [reportOf(id, { path: `/login?key=${token}` })],
    });
    expectRefusal(answer, 'invalid_request');
    expect(answer.body.errors).toEqual([{ path: 'reports.0.path', message: 'must not hold a token' }]);
  });
});

test('RECORDING=off leaves no usage and no last use of introspections, and takes reports', async () => {
  const off = await createTestApp({ RECORDING: 'off' });
  const { id, token } = await off.createKey();
  await off.introspect(token);
  const report = { key_id: id, at: at(Date.now()), status: 200, duration_ms: 1 };
  expect((await off.post('/v1/usage-reports', { reports: [report] })).status).toBe(200);
  const { totals, response_times } = (await off.get(`/v1/api-keys/${id}/usage`)).body.data;
  expect({ totals, count: response_times.count }).toEqual({ totals: {}, count: 1 });
  await off.close();
});
