import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { appOfTest, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';
import { listen } from './listen.ts';
import { expectProblem } from './problem.ts';
import { request } from './raw.ts';
import { pathTo, ROUTES } from './routes.ts';

const NOW = Date.UTC(2026, 5, 1, 12, 0, 0);
const NOW_SECONDS = NOW / 1000;

// The limits count by the clock of the process: it stands still until a test moves it.
beforeEach(() => {
  vi.useFakeTimers({ toFake: ['Date'], now: NOW });
});
afterEach(() => {
  vi.useRealTimers();
});

function limitHeaders({ headers }: Answer) {
  return [headers['x-ratelimit-limit'], headers['x-ratelimit-remaining'], headers['x-ratelimit-reset']];
}

/** Sends until a request is refused; answers how many were not. */
async function countAdmitted(
  send: () => Promise<Answer>,
  most = 50,
): Promise<{ admitted: number; last: Answer }> {
  for (let admitted = 0; ; admitted++) {
    const last = await send();
    if (last.status === 429 || admitted === most) return { admitted, last };
  }
}

describe('CALLER_RATE_LIMIT', () => {
  test('counts the management requests of a service key, and tells how many are left until when', async () => {
    const app = await appOfTest({ CALLER_RATE_LIMIT: '3' });
    const reset = String(NOW_SECONDS + 60);
    expect(limitHeaders(await app.get('/v1/me'))).toEqual(['3', '2', reset]);
    vi.setSystemTime(NOW + 20_000);
    expect(limitHeaders(await app.get('/v1/api-keys'))).toEqual(['3', '1', reset]);
    expect(limitHeaders(await app.get('/v1/api-keys/nonsense'))).toEqual(['3', '0', reset]);
    const refused = await app.get('/v1/me');
    expectProblem(refused, 'rate_limited');
    expect(limitHeaders(refused)).toEqual(['3', '0', reset]);
    expect(refused.headers['retry-after']).toBe('40');
    vi.setSystemTime(NOW + 60_000);
    expect(limitHeaders(await app.get('/v1/me'))).toEqual(['3', '2', String(NOW_SECONDS + 120)]);
  });

  test('is each service key its own', async () => {
    const app = await appOfTest({ CALLER_RATE_LIMIT: '3' });
    const { token } = await app.createServiceKey(['keys:read']);
    expect((await countAdmitted(() => app.get('/v1/me', { as: token }))).admitted).toBe(3);
    expect((await app.get('/v1/me')).status).toBe(200);
  });

  test('counts a request that fails for what it asks, and for a permission that is missing', async () => {
    const app = await appOfTest({ CALLER_RATE_LIMIT: '5' });
    const { token: as } = await app.createServiceKey(['keys:write']);
    const bad = await countAdmitted(() => app.post('/v1/api-keys', {}, { as }));
    expect(bad.admitted).toBe(5);
    const { token } = await app.createServiceKey([]);
    const forbidden = await countAdmitted(() => app.get('/v1/api-keys', { as: token }));
    expect(forbidden.admitted).toBe(5);
    expectProblem(forbidden.last, 'rate_limited');
  });

  test('does not count introspections, nor what needs no key', async () => {
    const app = await appOfTest({ CALLER_RATE_LIMIT: '2' });
    const { token: as } = await app.createServiceKey(['introspect']);
    for (let index = 0; index < 10; index++) {
      const answer = await app.introspect('x', {}, { as });
      expect(answer.status).toBe(200);
      expect(limitHeaders(answer)).toEqual([undefined, undefined, undefined]);
      expect((await app.get('/healthz', { as })).status).toBe(200);
    }
    expect((await countAdmitted(() => app.get('/v1/me', { as }))).admitted).toBe(2);
  });

  test('off, it refuses nobody and tells nothing', async () => {
    const app = await appOfTest({ CALLER_RATE_LIMIT: 'off' });
    const { admitted, last } = await countAdmitted(() => app.get('/v1/me'), 100);
    expect(admitted).toBe(100);
    expect(limitHeaders(last)).toEqual([undefined, undefined, undefined]);
  });
});

describe('INTROSPECT_RATE_LIMIT', () => {
  test('counts the introspections of a service key, JSON and forms together, and nothing else', async () => {
    const app = await appOfTest({ INTROSPECT_RATE_LIMIT: '4' });
    const { token: as } = await app.createServiceKey(['introspect']);
    const form = () =>
      app.post('/v1/introspect', 'token=x', {
        as,
        headers: { 'content-type': 'application/x-www-form-urlencoded' },
      });
    expect(limitHeaders(await app.introspect('x', {}, { as }))).toEqual(['4', '3', String(NOW_SECONDS + 60)]);
    expect(limitHeaders(await form())).toEqual(['4', '2', String(NOW_SECONDS + 60)]);
    expect((await countAdmitted(form)).admitted).toBe(2);
    expectProblem(await app.introspect('x', {}, { as }), 'rate_limited');
    expect((await app.get('/v1/me', { as })).status).toBe(200);
    expect((await app.introspect('x')).status).toBe(200);
  });
});

describe('FAILED_AUTH_RATE_LIMIT', () => {
  const failures: [string, (app: TestApp) => Promise<Answer>][] = [
    ['no credential', (app) => app.get('/v1/me', { as: null })],
    ['a bad credential', (app) => app.get('/v1/me', { as: 'x' })],
    ['an unknown route', (app) => app.get('/v1/nothing', { as: null })],
    ['an unknown route with a bad credential', (app) => app.post('/nothing', {}, { as: 'x' })],
    ['an unknown page of the documentation', (app) => app.get('/docs/nothing', { as: null })],
  ];

  test.each(failures)('counts failures by address: %s', async (_what, fail) => {
    const app = await appOfTest({ FAILED_AUTH_RATE_LIMIT: '3' });
    const { admitted, last } = await countAdmitted(() => fail(app));
    expect(admitted).toBe(3);
    expectProblem(last, 'rate_limited');
    expect(limitHeaders(last)).toEqual(['3', '0', String(NOW_SECONDS + 60)]);
    expect(last.headers['retry-after']).toBe('60');
    for (const [, other] of failures) expectProblem(await other(app), 'rate_limited');
    vi.setSystemTime(NOW + 60_000);
    expect((await fail(app)).status).not.toBe(429);
  });

  test('never refuses a valid service key for what others at its address did, on any route', async () => {
    const app = await appOfTest({ FAILED_AUTH_RATE_LIMIT: '1', CALLER_RATE_LIMIT: '1000' });
    const { id } = await app.createKey();
    await app.send('PUT', '/v1/scopes/list', { body: {} });
    const { token: as } = await app.createServiceKey([]);
    await countAdmitted(() => app.get('/v1/me', { as: 'x' }));
    for (const [method, path] of [
      ['GET', '/v1/nothing'],
      ['POST', '/v1/nothing'],
      ['GET', '/docs/nothing'],
      ['PUT', '/v1/me'],
    ] as const) {
      for (const token of [app.adminToken, as]) {
        const answer = await app.send(method, path, { as: token });
        expectProblem(answer, 'not_found');
        // What the others have left is no news for this caller.
        expect(limitHeaders(answer)).toEqual([undefined, undefined, undefined]);
      }
    }
    for (const route of ROUTES) {
      const path = pathTo(route, { keyId: id });
      const answer = await app.send(route.method, path, { body: route.body });
      expect(answer.status, `${route.method} ${path}`).toBeLessThan(300);
      expectProblem(await app.send(route.method, path, { as: 'x' }), 'rate_limited');
    }
    expect((await app.get('/healthz', { as: null })).status).toBe(200);
    expect((await app.get('/docs/', { as: null })).status).toBe(200);
    expect((await app.get('/openapi.json', { as: null })).status).toBe(200);
  });

  test('counts a valid service key from an address that it may not be used from', async () => {
    const app = await appOfTest({ FAILED_AUTH_RATE_LIMIT: '3' });
    const { token: as } = await app.createServiceKey([], { restrictions: { allowed_ips: ['192.0.2.1'] } });
    const { admitted } = await countAdmitted(() => app.get('/v1/me', { as }));
    expect(admitted).toBe(3);
  });

  test('is each address its own, an IPv6 client as large as its /64', async () => {
    const app = await appOfTest({ FAILED_AUTH_RATE_LIMIT: '2' });
    const from = async (remoteAddress: string) =>
      (await app.app.inject({ url: '/v1/me', remoteAddress })).statusCode;
    for (const addresses of [
      ['192.0.2.1', '::ffff:192.0.2.1', '192.0.2.1'],
      ['192.0.2.2', '192.0.2.2', '192.0.2.2'],
      ['2001:db8::1', '2001:db8::ffff:0:0:2', '2001:db8:0:0:1::'],
      ['2001:db8:0:1::1', '2001:db8:0:1::2', '2001:db8:0:1::3'],
    ]) {
      const statuses = [];
      for (const address of addresses) statuses.push(await from(address));
      expect(statuses, addresses[0]).toEqual([401, 401, 429]);
    }
  });

  test('is by the forwarded address behind a trusted proxy, and no client can pass for another', async () => {
    const app = await appOfTest({ FAILED_AUTH_RATE_LIMIT: '1', TRUSTED_PROXY_CIDRS: '127.0.0.9' });
    const port = await listen(app);
    const send = async (from: string, forwarded: string) =>
      (
        await request({
          port,
          from,
          line: 'GET /v1/me HTTP/1.1',
          headers: [`X-Forwarded-For: ${forwarded}`],
        })
      ).status;
    expect(await send('127.0.0.9', '192.0.2.1')).toBe(401);
    expect(await send('127.0.0.9', '192.0.2.2')).toBe(401);
    expect(await send('127.0.0.9', '192.0.2.3, 192.0.2.1')).toBe(429);
    expect(await send('127.0.0.1', '192.0.2.4')).toBe(401);
    expect(await send('127.0.0.1', '192.0.2.5')).toBe(429);
    expect(await send('127.0.0.9', 'nonsense')).toBe(401);
    expect(await send('127.0.0.9', 'other nonsense')).toBe(429);
  });

  test('off, it refuses nobody', async () => {
    const app = await appOfTest({ FAILED_AUTH_RATE_LIMIT: 'off' });
    for (const [, fail] of failures) expect((await countAdmitted(() => fail(app), 30)).admitted).toBe(30);
  });
});
