import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createTestApp, type TestApp } from '../support/app.ts';
import { listen } from './listen.ts';
import { expectProblem, expectSilentOn } from './problem.ts';
import { request } from './raw.ts';

let app: TestApp;
let port: number;
let admin: string;
let ordinary: { id: string; token: string };

beforeAll(async () => {
  app = await createTestApp({ FAILED_AUTH_RATE_LIMIT: 'off', CALLER_RATE_LIMIT: 'off' });
  port = await listen(app);
  admin = app.adminToken;
  ordinary = await app.createKey();
});
afterAll(() => app.close());

const me = (...headers: string[]) => request({ port, line: 'GET /v1/me HTTP/1.1', headers });

describe('a service key is taken from', () => {
  test.each([
    ['Authorization: Bearer', (token: string) => [`Authorization: Bearer ${token}`]],
    ['a scheme in lower case', (token: string) => [`authorization: bearer ${token}`]],
    ['a scheme in any case', (token: string) => [`AUTHORIZATION: bEaReR ${token}`]],
    ['behind several spaces', (token: string) => [`Authorization:   Bearer    ${token}   `]],
    ['X-Api-Key', (token: string) => [`X-Api-Key: ${token}`]],
    ['x-api-key with spaces around', (token: string) => [`x-api-key:   ${token}  `]],
    [
      'both, where they are equal',
      (token: string) => [`Authorization: Bearer ${token}`, `X-Api-Key: ${token}`],
    ],
    [
      'X-Api-Key twice, where they are equal',
      (token: string) => [`X-Api-Key: ${token}`, `X-API-KEY: ${token}`],
    ],
  ])('%s', async (_where, headers) => {
    const answer = await me(...headers(admin));
    expect(answer.status, answer.text).toBe(200);
    expect(answer.body.data.permissions).toEqual(['admin']);
  });
});

describe('more than one credential is 400, valid ones among them too', () => {
  test.each([
    [
      'two Authorization headers',
      (token: string) => [`Authorization: Bearer ${token}`, `Authorization: Bearer ${token}`],
    ],
    [
      'an invalid Authorization first',
      (token: string) => ['Authorization: Bearer x', `Authorization: Bearer ${token}`],
    ],
    [
      'an invalid Authorization last',
      (token: string) => [`Authorization: Bearer ${token}`, 'Authorization: Basic eDp5'],
    ],
    ['an empty Authorization last', (token: string) => [`Authorization: Bearer ${token}`, 'Authorization:']],
    [
      'Bearer and X-Api-Key that differ',
      (token: string) => [`Authorization: Bearer ${token}`, 'X-Api-Key: other'],
    ],
    [
      'X-Api-Key and Bearer that differ',
      (token: string) => [`X-Api-Key: ${token}`, 'Authorization: Bearer other'],
    ],
    ['Basic beside X-Api-Key', (token: string) => ['Authorization: Basic eDp5', `X-Api-Key: ${token}`]],
    ['an empty X-Api-Key beside Bearer', (token: string) => [`Authorization: Bearer ${token}`, 'X-Api-Key:']],
    ['two X-Api-Key that differ', (token: string) => [`X-Api-Key: ${token}`, 'X-Api-Key: other']],
    [
      'a second Authorization behind more headers than Node keeps',
      (token: string) => [
        `Authorization: Bearer ${token}`,
        ...Array.from({ length: 2_100 }, () => 'a:'),
        'Authorization: Bearer other',
      ],
    ],
  ])('%s', async (_what, headers) => {
    const answer = await me(...headers(admin));
    expectProblem(answer, 'invalid_request');
    expectSilentOn(answer, admin);
  });
});

describe('no valid service key is 401', () => {
  const changed = (token: string, index: number) =>
    `${token.slice(0, index)}${token[index] === 'A' ? 'B' : 'A'}${token.slice(index + 1)}`;

  test.each([
    ['an empty Authorization', () => ['Authorization:']],
    ['Bearer alone', () => ['Authorization: Bearer']],
    ['Bearer and spaces', () => ['Authorization: Bearer    ']],
    ['the token without a scheme', () => [`Authorization: ${admin}`]],
    ['the token in Basic', () => [`Authorization: Basic ${Buffer.from(`x:${admin}`).toString('base64')}`]],
    [
      'the token as a user of Basic',
      () => [`Authorization: Basic ${Buffer.from(`${admin}:`).toString('base64')}`],
    ],
    ['another scheme', () => [`Authorization: Token ${admin}`]],
    ['a scheme that begins like Bearer', () => [`Authorization: Bearers ${admin}`]],
    ['Bearer glued to the token', () => [`Authorization: Bearer${admin}`]],
    ['two tokens in one header', () => [`Authorization: Bearer ${admin} ${admin}`]],
    ['two tokens with a comma', () => [`Authorization: Bearer ${admin},${admin}`]],
    ['a quoted token', () => [`Authorization: Bearer "${admin}"`]],
    ['a tab behind Bearer', () => [`Authorization: Bearer\t${admin}`]],
    ['an empty X-Api-Key', () => ['X-Api-Key:']],
    ['X-Api-Key with a scheme', () => [`X-Api-Key: Bearer ${admin}`]],
    ['garbage', () => ['Authorization: Bearer \u00ff\u00fe%00{}"']],
    ['a very long string', () => [`Authorization: Bearer ${'A'.repeat(8_000)}`]],
    ['the token in upper case', () => [`Authorization: Bearer ${admin.toUpperCase()}`]],
    ['the token without its last character', () => [`Authorization: Bearer ${admin.slice(0, -1)}`]],
    ['the token and one character more', () => [`Authorization: Bearer ${admin}0`]],
    ['the token with its first character changed', () => [`Authorization: Bearer ${changed(admin, 8)}`]],
    ['the token with its secret changed', () => [`Authorization: Bearer ${changed(admin, 40)}`]],
    ['the token with its last character changed', () => [`Authorization: Bearer ${changed(admin, 72)}`]],
    ['the key of a workspace', () => [`Authorization: Bearer ${ordinary.token}`]],
    ['the id of the key', () => [`X-Api-Key: ${ordinary.id}`]],
  ])('%s', async (_what, headers) => {
    const answer = await me(...headers());
    expectProblem(answer, 'unauthorized');
    expect(answer.headers['www-authenticate']).toBe('Bearer realm="claviger", error="invalid_token"');
    expectSilentOn(answer, admin);
    expectSilentOn(answer, ordinary.token);
  });

  test.each([
    'X-Claviger-Service-Key',
    'Proxy-Authorization',
    'Cookie',
    'Api-Key',
    'X_Api_Key',
    'Authorization2',
  ])('a token in another header is none: %s', async (name) => {
    const answer = await me(`${name}: Bearer ${admin}`);
    expectProblem(answer, 'unauthorized');
    expect(answer.headers['www-authenticate']).toBe('Bearer realm="claviger"');
    expectSilentOn(answer, admin);
  });

  test('a token in the query is none', async () => {
    for (const name of ['access_token', 'api_key', 'key', 'token']) {
      const answer = await request({ port, line: `GET /v1/api-keys?${name}=${admin} HTTP/1.1` });
      expectProblem(answer, 'unauthorized');
      expectSilentOn(answer, admin);
    }
  });

  test('a token in a trailer is none', async () => {
    const answer = await request({
      port,
      line: 'POST /v1/api-keys HTTP/1.1',
      headers: [
        'Content-Type: application/json',
        'Transfer-Encoding: chunked',
        `Trailer: Authorization\r\n\r\n2\r\n{}\r\n0\r\nAuthorization: Bearer ${admin}`,
      ],
    });
    expectProblem(answer, 'unauthorized');
  });

  test('a revoked service key, from the request after on', async () => {
    const { id, token } = await app.createServiceKey(['keys:read']);
    expect((await me(`X-Api-Key: ${token}`)).status).toBe(200);
    expect((await app.delete(`/v1/api-keys/${id}`)).status).toBe(200);
    const answer = await me(`X-Api-Key: ${token}`);
    expectProblem(answer, 'unauthorized');
    expect(answer.headers['www-authenticate']).toContain('invalid_token');
  });

  test('an expired service key', async () => {
    const { id, token } = await app.createServiceKey(['keys:read'], { expires_at: '2099-01-01T00:00:00Z' });
    expect((await me(`X-Api-Key: ${token}`)).status).toBe(200);
    const later = new Date(Date.now() + 250).toISOString();
    expect((await app.patch(`/v1/api-keys/${id}`, { expires_at: later })).status).toBe(200);
    await expect
      .poll(async () => (await me(`X-Api-Key: ${token}`)).status, { interval: 20, timeout: 10_000 })
      .toBe(401);
    expectProblem(await me(`X-Api-Key: ${token}`), 'unauthorized');
  });

  test('before anything of the request is looked at', async () => {
    for (const headers of [
      { 'content-type': 'text/plain' },
      { 'content-type': 'application/json', 'content-encoding': 'gzip' },
      { 'content-type': 'nonsense' },
    ]) {
      expectProblem(await app.send('POST', '/v1/api-keys', { as: 'x', headers, body: '{' }), 'unauthorized');
    }
    expectProblem(
      await app.send('POST', '/v1/api-keys', { as: 'x', body: 'x'.repeat(100_000) }),
      'unauthorized',
    );
    expectProblem(await app.get('/v1/api-keys?limit=nonsense&what=1', { as: 'x' }), 'unauthorized');
  });
});

describe('a service key that is bound to addresses', () => {
  const from = (token: string, address: string, headers: string[] = [], to = port) =>
    request({
      port: to,
      from: address,
      line: 'GET /v1/me HTTP/1.1',
      headers: [`Authorization: Bearer ${token}`, ...headers],
    });

  test("is held to the socket's address", async () => {
    const { token } = await app.createServiceKey([], {
      restrictions: { allowed_ips: ['127.0.0.2', '127.1.0.0/16'] },
    });
    for (const address of ['127.0.0.2', '127.1.0.0', '127.1.255.255']) {
      expect((await from(token, address)).status, address).toBe(200);
    }
    for (const address of ['127.0.0.1', '127.0.0.3', '127.2.0.0', '127.0.255.255']) {
      const answer = await from(token, address);
      expectProblem(answer, 'forbidden');
      expect(answer.text).not.toContain('127.');
    }
  });

  test('is not told what it may be used from, nor whether it is valid when it is not', async () => {
    const { id, token } = await app.createServiceKey([], { restrictions: { allowed_ips: ['127.0.0.2'] } });
    expectProblem(await from(token, '127.0.0.1'), 'forbidden');
    await app.delete(`/v1/api-keys/${id}`);
    expectProblem(await from(token, '127.0.0.1'), 'unauthorized');
  });

  test('is not freed by any header where no proxy is trusted', async () => {
    const { token } = await app.createServiceKey([], { restrictions: { allowed_ips: ['127.0.0.2'] } });
    for (const header of [
      'X-Forwarded-For: 127.0.0.2',
      'X-Forwarded-For: 127.0.0.2, 127.0.0.2',
      'Forwarded: for=127.0.0.2',
      'X-Real-IP: 127.0.0.2',
      'X-Client-IP: 127.0.0.2',
      'True-Client-IP: 127.0.0.2',
      'CF-Connecting-IP: 127.0.0.2',
    ]) {
      expectProblem(await from(token, '127.0.0.1', [header]), 'forbidden');
      expect((await from(token, '127.0.0.2', [header.replace('127.0.0.2', '127.0.0.9')])).status).toBe(200);
    }
  });

  test('is one address with its IPv4-mapped form', async () => {
    const { token } = await app.createServiceKey([], { restrictions: { allowed_ips: ['192.0.2.7'] } });
    const status = async (remoteAddress: string) =>
      (await app.app.inject({ url: '/v1/me', remoteAddress, headers: { 'x-api-key': token } })).statusCode;
    expect(await status('192.0.2.7')).toBe(200);
    expect(await status('::ffff:192.0.2.7')).toBe(200);
    expect(await status('::ffff:c000:207')).toBe(200);
    expect(await status('192.0.2.8')).toBe(403);
    expect(await status('::ffff:192.0.2.8')).toBe(403);
    expect(await status('::192.0.2.7')).toBe(403);
    expect(await status('64:ff9b::192.0.2.7')).toBe(403);
  });

  test('follows X-Forwarded-For of a trusted proxy, and of nobody else', async () => {
    const proxied = await createTestApp(
      { TRUSTED_PROXY_CIDRS: '127.0.0.9, 127.7.0.0/16', FAILED_AUTH_RATE_LIMIT: 'off' },
      app.database,
    );
    try {
      const to = await listen(proxied);
      const { token } = await app.createServiceKey([], { restrictions: { allowed_ips: ['203.0.113.5'] } });
      const allowed: [string, string[]][] = [
        ['127.0.0.9', ['X-Forwarded-For: 203.0.113.5']],
        ['127.7.1.1', ['X-Forwarded-For: 203.0.113.5']],
        // What the client wrote itself stands further left.
        ['127.0.0.9', ['X-Forwarded-For: 198.51.100.1, 203.0.113.5']],
        ['127.0.0.9', ['X-Forwarded-For: nonsense, 203.0.113.5']],
        // Two trusted proxies in a row.
        ['127.0.0.9', ['X-Forwarded-For: 203.0.113.5, 127.7.0.1']],
        ['127.0.0.9', ['X-Forwarded-For: 203.0.113.5', 'X-Forwarded-For: 127.7.0.1']],
        ['127.0.0.9', ['X-Forwarded-For: ::ffff:203.0.113.5']],
        // RFC 9110 §5.6.1: empty elements of a list do not count.
        ['127.0.0.9', ['X-Forwarded-For: , 203.0.113.5,']],
      ];
      for (const [peer, headers] of allowed) {
        const answer = await from(token, peer, headers, to);
        expect(answer.status, `${peer} ${headers}: ${answer.text}`).toBe(200);
      }
      const refused: [string, string[]][] = [
        ['127.0.0.1', ['X-Forwarded-For: 203.0.113.5']],
        ['127.0.0.9', []],
        ['127.0.0.9', ['X-Forwarded-For:']],
        ['127.0.0.9', ['X-Forwarded-For: 203.0.113.5, 198.51.100.1']],
        ['127.0.0.9', ['X-Forwarded-For: 203.0.113.5', 'X-Forwarded-For: 198.51.100.1']],
        ['127.0.0.9', ['X-Forwarded-For: 203.0.113.5, nonsense']],
        ['127.0.0.9', ['X-Forwarded-For: 203.0.113.5:80']],
        ['127.0.0.9', ['X-Forwarded-For: "203.0.113.5"']],
        ['127.0.0.9', ['X-Forwarded-For: 203.0.113.005']],
        ['127.0.0.9', ['X-Forwarded-For: 203.0.113.5%00']],
        ['127.0.0.9', ['X-Forwarded-For: 203.0.113.5 198.51.100.1']],
        ['127.0.0.9', ['Forwarded: for=203.0.113.5']],
        ['127.0.0.9', [`X-Forwarded-For: ${'1.1.1.1,'.repeat(1_500)}fe80::1%eth0`]],
      ];
      for (const [peer, headers] of refused) {
        const answer = await from(token, peer, headers, to);
        expect(answer.status, `${peer} ${headers}`.slice(0, 200)).toBe(403);
        expectProblem(answer, 'forbidden');
      }
    } finally {
      await proxied.close();
    }
  });

  test('a proxy that forwards something else than an address brings it into no log and no audit event', async () => {
    const proxied = await createTestApp({ TRUSTED_PROXY_CIDRS: '127.0.0.9' }, app.database);
    try {
      const to = await listen(proxied);
      for (const forwarded of [ordinary.token, `1.2.3.4, ${ordinary.token}`, 'fe80::1%25eth0', 'a,b,,']) {
        const answer = await request({
          port: to,
          from: '127.0.0.9',
          line: 'POST /v1/api-keys HTTP/1.1',
          headers: [
            `Authorization: Bearer ${admin}`,
            'Content-Type: application/json',
            `X-Forwarded-For: ${forwarded}`,
          ],
          body: JSON.stringify({ workspace_id: 'ws_forwarded', name: 'Forwarded' }),
        });
        expect(answer.status, answer.text).toBe(201);
        expectProblem(
          await request({
            port: to,
            from: '127.0.0.9',
            line: 'GET /v1/me HTTP/1.1',
            headers: ['X-Api-Key: x', `X-Forwarded-For: ${forwarded}`],
          }),
          'unauthorized',
        );
      }
      const events = await app.database.query<{ address: string }>(
        "SELECT address FROM audit_events WHERE workspace_id = 'ws_forwarded'",
      );
      expect(events.map(({ address }) => address)).toEqual(['unknown', 'unknown', 'unknown', 'unknown']);
      expect(proxied.logLines.join('\n')).not.toContain(ordinary.token.slice(10, 40));
    } finally {
      await proxied.close();
    }
  });
});
