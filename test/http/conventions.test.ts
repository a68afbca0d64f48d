import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { appOfTest, createTestApp, type TestApp } from '../support/app.ts';
import { databaseOfTest } from '../support/database.ts';
import { listen } from './listen.ts';
import { expectProblem, expectRefusal, expectSilentOn } from './problem.ts';
import { exchange, request } from './raw.ts';
import { pathTo, ROUTES } from './routes.ts';

let app: TestApp;
let port: number;
let key: { id: string; token: string };

beforeAll(async () => {
  app = await createTestApp({ FAILED_AUTH_RATE_LIMIT: 'off', CALLER_RATE_LIMIT: 'off' });
  port = await listen(app);
  key = await app.createKey();
});
afterAll(() => app.close());

test('the table of routes that these tests walk is the table of the document', async () => {
  const document = (await app.get('/openapi.json')).body;
  const documented = Object.entries<Record<string, { security?: unknown[] }>>(document.paths)
    // What gateways ask has conventions of its own: authorize.test.ts.
    .filter(([path]) => path.startsWith('/v1/') && path !== '/v1/authorize')
    .flatMap(([path, operations]) =>
      Object.entries(operations)
        // Reports of leaks ask for no service key: leaks.test.ts.
        .filter(([, { security = [] }]) => security.length > 0)
        .map(([method]) => `${method.toUpperCase()} ${path}`),
    );
  expect(ROUTES.map(({ method, path }) => `${method} ${path}`).sort()).toEqual(documented.sort());
});

describe('request ids', () => {
  const kept = ['a', 'A-z_0.9', '-', 'x'.repeat(128), '....', 'req_mine'];
  const replaced = ['', 'x'.repeat(129), 'a b', 'a,b', 'a/b', 'ä', '"a"', 'a;b', 'a\tb', 'a%20b', '<script>'];

  test.each(kept)('an incoming id of the accepted form is kept: %s', async (id) => {
    const answer = await request({ port, line: 'GET /v1/me HTTP/1.1', headers: [`X-Request-Id: ${id}`] });
    expectProblem(answer, 'unauthorized');
    expect(answer.headers['x-request-id']).toBe(id);
  });

  test.each(replaced)('an id of another form is replaced by a new one: %j', async (id) => {
    const answer = await request({ port, line: 'GET /v1/me HTTP/1.1', headers: [`X-Request-Id: ${id}`] });
    expect(answer.headers['x-request-id']).toMatch(/^req_[0-9a-z]{1,40}$/);
  });

  test('two ids in one request are replaced by a new one', async () => {
    const answer = await request({
      port,
      line: 'GET /healthz HTTP/1.1',
      headers: ['X-Request-Id: one', 'X-Request-Id: two'],
    });
    expect(answer.headers['x-request-id']).toMatch(/^req_/);
  });

  test('no two requests get the same new id', async () => {
    const answers = await Promise.all(Array.from({ length: 50 }, () => app.get('/healthz')));
    expect(new Set(answers.map((answer) => answer.headers['x-request-id'])).size).toBe(50);
  });

  test('a token sent as a request id is not kept, so that no header, log or audit event holds it', async () => {
    const { token } = await app.createServiceKey(['keys:write']);
    for (const id of [token, `${token}.1`, `trace-${token}`, key.token]) {
      const answer = await app.post(
        '/v1/api-keys',
        { workspace_id: 'ws_request_id', name: 'Made in a request named like a token' },
        { as: token, headers: { 'x-request-id': id } },
      );
      expect(answer.status).toBe(201);
      expect(answer.headers['x-request-id']).toMatch(/^req_/);
    }
    const events = await app.database.query<{ request_id: string }>(
      "SELECT request_id FROM audit_events WHERE workspace_id = 'ws_request_id'",
    );
    expect(events).toHaveLength(4);
    for (const { request_id } of events) expect(request_id).toMatch(/^req_/);
    expect(app.logLines.join('\n')).not.toContain(token.slice(-40));
  });
});

describe('every answer', () => {
  const paths = [
    ['GET', '/v1/me'],
    ['GET', '/v1/api-keys'],
    ['GET', '/v1/nothing'],
    ['GET', '/v1'],
    ['GET', '/v1/'],
    ['GET', '/oauth'],
    ['POST', '/oauth/nothing'],
    ['PUT', '/v1/api-keys'],
    ['GET', '/v1/api-keys/%ff'],
    ['GET', '/oauth/%zz'],
    ['GET', '/'],
    ['GET', '/nothing'],
    ['GET', '/healthz'],
    ['GET', '/readyz'],
    ['GET', '/docs'],
    ['GET', '/docs/'],
    ['GET', '/docs/nothing'],
    ['GET', '/openapi.json'],
  ] as const;

  test.each(paths)(
    'carries a request id, and is not to be stored under /v1 and /oauth: %s %s',
    async (method, path) => {
      for (const as of [app.adminToken, null]) {
        const answer = await app.send(method, path, { as });
        expect(answer.headers['x-request-id']).toMatch(/^req_/);
        if (/^\/(v1|oauth)/.test(path)) expect(answer.headers['cache-control']).toBe('no-store');
        if (answer.status >= 400) expectProblem(answer);
      }
    },
  );

  test('of a success to each route does so too', async () => {
    for (const route of ROUTES) {
      const { id } = await app.createKey({ workspace_id: 'ws_each' });
      const path = pathTo(route, { keyId: id, workspaceId: 'ws_each' });
      const answer = await app.send(route.method, path, { body: route.body });
      expect(answer.status, `${route.method} ${path}: ${answer.text}`).toBeLessThan(300);
      expect(answer.headers['x-request-id']).toMatch(/^req_/);
      expect(answer.headers['cache-control']).toBe('no-store');
      expect(answer.headers['content-type']).toMatch(/^application\/json\b/);
    }
  });

  test('to HEAD is the head of the answer to GET', async () => {
    for (const path of ['/healthz', '/v1/me', '/v1/api-keys', '/v1/nothing']) {
      const headers = [`Authorization: Bearer ${app.adminToken}`];
      const get = await request({ port, line: `GET ${path} HTTP/1.1`, headers });
      const head = await request({ port, line: `HEAD ${path} HTTP/1.1`, headers, method: 'HEAD' });
      expect(head.status).toBe(get.status);
      expect(head.headers['content-type']).toBe(get.headers['content-type']);
      expect(head.text).toBe('');
    }
  });
});

describe('problems', () => {
  test('an unknown route, method or key is 404 not_found', async () => {
    for (const [method, path] of [
      ['GET', '/v1/nothing'],
      ['GET', '/v2/me'],
      ['GET', '/v1/me/'],
      ['POST', '/v1/me'],
      ['PUT', '/v1/api-keys'],
      ['DELETE', '/v1/api-keys'],
      ['OPTIONS', '/v1/api-keys'],
      ['GET', `/v1/api-keys/${key.id}/`],
      ['GET', '/v1/api-keys/key_01jzzzzzzzzzzzzzzzzzzzzzzz'],
      ['GET', '/v1/api-keys/not-an-id'],
      ['PATCH', '/v1/api-keys/KEY_01JZZZZZZZZZZZZZZZZZZZZZZZ'],
    ] as const) {
      const answer = await app.send(method, path, { body: method === 'PATCH' ? {} : undefined });
      expectProblem(answer, 'not_found');
    }
  });

  test('an unknown route is unknown whatever body comes with it', async () => {
    for (const [type, body] of [
      ['text/plain', 'text'],
      ['application/json', '{'],
      ['multipart/form-data; boundary=x', '--x--'],
      ['nonsense', 'x'],
      ['application/json', `"${'x'.repeat(70_000)}"`],
    ] as const) {
      const answer = await app.send('POST', '/v1/nothing', { headers: { 'content-type': type }, body });
      expectProblem(answer, 'not_found');
    }
  });

  test('bad input is named by its path, and only by that', async () => {
    const answer = await app.post('/v1/api-keys', {
      workspace_id: 17,
      name: '',
      scopes: ['read', 'NOT A SCOPE'],
      restrictions: { allowed_endpoints: [{ path: 1 }], allowed_ports: [1] },
      rate_limit: { limit: 0, window_seconds: 1.5 },
      colour: 'blue',
    });
    expectProblem(answer, 'invalid_request');
    expect(answer.body.errors.map(({ path }: { path: string }) => path).sort()).toEqual([
      'colour',
      'name',
      'rate_limit.limit',
      'rate_limit.window_seconds',
      'restrictions.allowed_endpoints.0.path',
      'restrictions.allowed_ports',
      'scopes.1',
      'workspace_id',
    ]);
    expect(answer.text).not.toMatch(/NOT A SCOPE|blue|17/);
  });

  test('however many faults a body has, the answer names no more than a hundred', async () => {
    const body = Object.fromEntries(Array.from({ length: 5_000 }, (_, index) => [`m${index}`, 0]));
    const answer = await app.post('/v1/api-keys', body);
    expectProblem(answer, 'invalid_request');
    expect(answer.body.errors.length).toBeLessThanOrEqual(100);
    expect(answer.text.length).toBeLessThan(16_384);
  });

  test('a problem names no fault of input where there is none', async () => {
    for (const answer of [await app.get('/v1/nothing'), await app.get('/v1/me', { as: null })]) {
      expect(answer.body).not.toHaveProperty('errors');
    }
  });
});

describe('WWW-Authenticate', () => {
  test('asks for a credential where none was sent', async () => {
    const answer = await app.get('/v1/me', { as: null });
    expectProblem(answer, 'unauthorized');
    expect(answer.headers['www-authenticate']).toBe('Bearer realm="claviger"');
  });

  test('says that the credential is invalid where one was sent', async () => {
    for (const headers of [
      { authorization: 'Bearer wrong' },
      { 'x-api-key': 'wrong' },
      { authorization: `Bearer ${key.token}` },
    ]) {
      const answer = await app.get('/v1/me', { as: null, headers });
      expectProblem(answer, 'unauthorized');
      expect(answer.headers['www-authenticate']).toBe('Bearer realm="claviger", error="invalid_token"');
    }
  });

  test('names the permission that is missing', async () => {
    const { token } = await app.createServiceKey([]);
    for (const route of ROUTES) {
      if (route.permission === null) continue;
      const answer = await app.send(route.method, pathTo(route, { keyId: key.id }), {
        as: token,
        body: route.body,
      });
      expectProblem(answer, 'forbidden');
      expect(answer.headers['www-authenticate']).toBe(
        `Bearer realm="claviger", error="insufficient_scope", scope="${route.permission}"`,
      );
    }
  });

  test('is on no answer but these', async () => {
    for (const answer of [
      await app.get('/v1/me'),
      await app.get('/v1/nothing', { as: null }),
      await app.post('/v1/api-keys', {}),
    ]) {
      expect(answer.headers).not.toHaveProperty('www-authenticate');
    }
  });
});

describe('Retry-After', () => {
  test('is on 429', async () => {
    const limited = await appOfTest({ CALLER_RATE_LIMIT: '1' });
    expect((await limited.get('/v1/me')).status).toBe(200);
    const answer = await limited.get('/v1/me');
    expectProblem(answer, 'rate_limited');
    expect(Number(answer.headers['retry-after'])).toBeGreaterThanOrEqual(1);
    expect(Number(answer.headers['retry-after'])).toBeLessThanOrEqual(60);
  });

  test('is on 503, and the process lives on while the database is away', async () => {
    const cut = await appOfTest();
    const name = new URL(cut.database.url).pathname.slice(1);
    expect((await cut.get('/readyz')).status).toBe(200);
    const beside = await databaseOfTest();
    await beside.query(`ALTER DATABASE ${name} WITH ALLOW_CONNECTIONS false`);
    await beside.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1', [name]);
    for (const path of ['/readyz', '/v1/me', '/v1/api-keys']) {
      const answer = await cut.get(path);
      expectProblem(answer, 'unavailable');
      expectSilentOn(answer, cut.adminToken);
    }
    expect((await cut.get('/healthz')).body).toEqual({ status: 'ok' });
    await beside.query(`ALTER DATABASE ${name} WITH ALLOW_CONNECTIONS true`);
    expect((await cut.get('/v1/me')).status).toBe(200);
  });
});

describe('the documentation', () => {
  test.each([
    '/docs/%2e%2e/package.json',
    '/docs/static/..%2f..%2f..%2fpackage.json',
    '/docs/static/%2e%2e%2f%2e%2e%2fpackage.json',
    '/docs/static/nothing.js',
    '/docs/static/%00',
    '/docs/..%5c..%5cpackage.json',
    '/docs/static//etc/passwd',
    '/docs/static/%ff',
    '/docs/static/.git/config',
  ])('hands out its own files alone: %s', async (path) => {
    const answer = await request({ port, line: `GET ${path} HTTP/1.1` });
    expectRefusal(answer);
  });

  test('needs no credential and names no other host', async () => {
    const page = await app.get('/docs/', { as: null });
    expect(page.status).toBe(200);
    expect(page.text).not.toMatch(/https?:\/\/(?!localhost)/);
    expect(page.headers['content-security-policy']).toBeDefined();
  });
});

test('requests on one connection are answered in their order', async () => {
  const paths = ['/v1/me', '/healthz', '/v1/nothing', '/v1/me', '/healthz'];
  const bytes = paths.map((path, index) =>
    [
      `GET ${path} HTTP/1.1`,
      'Host: claviger.test',
      `Authorization: Bearer ${app.adminToken}`,
      `X-Request-Id: ${index}`,
      '\r\n',
    ].join('\r\n'),
  );
  const { answers } = await exchange(bytes.join(''), { port, responses: paths.length });
  expect(answers.map((answer) => answer.headers['x-request-id'])).toEqual(['0', '1', '2', '3', '4']);
  expect(answers.map((answer) => answer.status)).toEqual([200, 200, 404, 200, 200]);
});
