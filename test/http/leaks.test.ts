import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { keySecret } from '../../src/domain/key-secret.ts';
import { createTokenMint } from '../../src/domain/token.ts';
import { appOfTest, createTestApp, TEST_KEY_SECRET, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';
import { expectProblem } from './problem.ts';

let app: TestApp;
beforeAll(async () => {
  app = await createTestApp({ FAILED_AUTH_RATE_LIMIT: 'off', TRUSTED_PROXY_CIDRS: '127.0.0.1' });
});
afterAll(() => app.close());

const mint = createTokenMint([keySecret(TEST_KEY_SECRET).derive('mint')], randomBytes);
const report = (tokens: unknown, options = {}): Promise<Answer> =>
  app.post('/v1/leaks', { tokens }, { as: null, ...options });
const statusOf = async (id: string) => (await app.get(`/v1/api-keys/${id}`)).body.data;

describe('POST /v1/leaks', () => {
  test('takes no credential, and revokes the keys of genuine tokens before it answers', async () => {
    const live = await app.createKey();
    const other = await app.createKey({ workspace_id: 'ws_other', environment: 'test' });
    const service = await app.createServiceKey(['keys:read']);
    expect((await app.introspect(live.token)).body.active).toBe(true);

    const answer = await report([live.token, 'nothing', other.token, service.token], {
      headers: { 'x-request-id': 'req-leak', 'x-forwarded-for': '198.51.100.7' },
    });
    expect(answer.status).toBe(202);
    expect(answer.body).toEqual({ success: true, data: { received: 4 } });
    for (const { token } of [live, other]) {
      expect((await app.introspect(token)).body).toMatchObject({
        active: false,
        reason: { code: 'revoked' },
      });
    }
    expect((await app.get('/v1/me', { as: service.token })).status).toBe(401);
    for (const { id } of [live, other, service]) {
      expect(await statusOf(id)).toMatchObject({ status: 'revoked', revoked_reason: 'leaked' });
      const { body } = await app.get(`/v1/audit-events?key_id=${id}&action=key.revoked`);
      expect(body.data).toMatchObject([
        {
          actor: 'leak_report',
          target: { type: 'key', id },
          address: '198.51.100.7',
          request_id: 'req-leak',
          after: { revoked_reason: 'leaked' },
        },
      ]);
    }
  });

  test('shows its events under actor=leak_report, and not under the operator', async () => {
    const { id, token } = await app.createKey({ workspace_id: 'ws_events' });
    await report([token]);
    const eventsBy = async (actor: string) =>
      (await app.get(`/v1/audit-events?key_id=${id}&actor=${actor}`)).body.data.map(
        ({ action }: { action: string }) => action,
      );
    expect(await eventsBy('leak_report')).toEqual(['key.revoked']);
    expect(await eventsBy('github')).toEqual([]);
    expect(await eventsBy('operator')).toEqual([]);
  });

  test('answers the same to whatever strings, in the order of their number alone', async () => {
    const [genuine, revoked, expired] = [
      await app.createKey(),
      await app.createKey(),
      await app.createKey({ expires_at: '2999-01-01T00:00:00Z' }),
    ];
    await app.delete(`/v1/api-keys/${revoked.id}`);
    await app.database.query(
      "UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE expires_at IS NOT NULL",
    );
    const forged = mint.mint({ prefix: 'ck', environment: 'live', id: genuine.id });
    const cases = [[forged], [genuine.token], [genuine.token], [revoked.token], [expired.token], ['x'], ['']];
    const answers: Answer[] = [];
    for (const tokens of cases) {
      answers.push(await report(tokens));
      if (tokens[0] === forged) expect(await statusOf(genuine.id)).toMatchObject({ status: 'active' });
    }
    const told = answers.map(({ status, headers, body }) => {
      const { 'x-request-id': _, date: __, ...others } = headers;
      return JSON.stringify({ status, others, body });
    });
    expect(new Set(told).size).toBe(1);
    expect(await statusOf(expired.id)).toMatchObject({ revoked_reason: 'leaked' });
    expect(await statusOf(revoked.id)).toMatchObject({ revoked_reason: null });
  });

  test('is there for the last admin key too', async () => {
    const own = await appOfTest();
    const answer = await own.post('/v1/leaks', { tokens: [own.adminToken] }, { as: null });
    expect(answer.status).toBe(202);
    expect((await own.get('/v1/me')).status).toBe(401);
  });

  test('takes 1 to 100 strings of up to 4096 characters, and nothing else', async () => {
    const refused: [unknown, string][] = [
      [{ tokens: [] }, 'tokens'],
      [{ tokens: Array(101).fill('x') }, 'tokens'],
      [{ tokens: 'ck_live_' }, 'tokens'],
      [{ tokens: [5] }, 'tokens.0'],
      [{ tokens: ['x'.repeat(4_097)] }, 'tokens.0'],
      [{ tokens: ['x'], source: 'me' }, 'source'],
      [{}, 'tokens'],
    ];
    for (const [body, path] of refused) {
      const answer = await app.post('/v1/leaks', body, { as: null });
      expectProblem(answer, 'invalid_request');
      expect(answer.body.errors).toMatchObject([{ path }]);
    }
    const answers = await Promise.all([
      report(Array(100).fill('x')),
      report(['x'.repeat(4_096), '🔑', 'é', ' ck_live_ ']),
    ]);
    expect(answers.map(({ body }) => body.data?.received)).toEqual([100, 4]);
  });

  test('a string that is refused ends nothing, and takes those beside it with it', async () => {
    const { id, token } = await app.createKey();
    expect((await report([token, 5])).status).toBe(400);
    expect(await statusOf(id)).toMatchObject({ status: 'active' });
  });

  test('keeps and logs none of what it was sent', async () => {
    const { token } = await app.createKey();
    const forged = mint.mint({ prefix: 'ck', environment: 'live', id: (await app.createKey()).id });
    const strings = [token, forged, 'a-string-of-nobody-1234567890'];
    await report(strings);
    await report([...strings, 7]);
    await app.post('/v1/leaks', `{"tokens": ["${token}", `, { as: null });
    const logged = app.logLines.join('');
    const tables = await app.database.query<{ name: string }>(
      `SELECT format('%I.%I', table_schema, table_name) AS name FROM information_schema.tables
       WHERE table_schema IN ('public', 'partitions') AND table_type = 'BASE TABLE'`,
    );
    let stored = '';
    for (const { name } of tables) {
      const rows = await app.database.query<{ row: string }>(`SELECT t::text AS row FROM ${name} t`);
      stored += rows.map(({ row }) => row).join('');
    }
    expect(stored).toContain('leak_report');
    for (const text of strings) {
      expect(logged).not.toContain(text);
      expect(stored).not.toContain(text);
    }
  });
});

describe('the limit of POST /v1/leaks', () => {
  test('counts by address, apart from failed authentication, and shows what is left', async () => {
    const own = await appOfTest({ FAILED_AUTH_RATE_LIMIT: '2', TRUSTED_PROXY_CIDRS: '127.0.0.1' });
    const send = (address: string, body: unknown = { tokens: ['x'] }) =>
      own.post('/v1/leaks', body, { as: null, headers: { 'x-forwarded-for': address } });
    const first = await send('203.0.113.1');
    expect(first.status).toBe(202);
    expect(first.headers).toMatchObject({ 'x-ratelimit-limit': '2', 'x-ratelimit-remaining': '1' });
    // What is malformed counts as well.
    expect((await send('203.0.113.1', {})).status).toBe(400);
    const { token } = await own.createKey();
    const refused = await send('203.0.113.1', { tokens: [token] });
    expectProblem(refused, 'rate_limited');
    expect(Number(refused.headers['retry-after'])).toBeGreaterThanOrEqual(1);
    expect((await own.introspect(token)).body.active).toBe(true);
    expect((await send('203.0.113.2')).status).toBe(202);
    const stranger = { as: null, headers: { 'x-forwarded-for': '203.0.113.1' } };
    expect((await own.get('/v1/me', stranger)).status).toBe(401);
  });
});
