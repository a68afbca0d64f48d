import { createHash, randomBytes } from 'node:crypto';
import { connect } from 'node:net';
import fc from 'fast-check';
import { parseList } from 'structured-headers';
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import { listen } from '../http/listen.ts';
import { exchange, type RawAnswer, request } from '../http/raw.ts';
import { createTestApp, type TestApp } from '../support/app.ts';
import { startTcpProxy, type TcpProxy } from '../support/tcp-proxy.ts';
import { type Echo, type Received, startEcho } from './echo.ts';
import type { Gateway, Recipe } from './gateway.ts';
import { envoy, traefik } from './played.ts';
import { caddy, nginx } from './real.ts';

/*
 * A service that knows nothing of keys, behind each gateway by its recipe. What a client may do, and what it may not
 * make the gateway or the service believe, is the same for all.
 */

const IDENTITY = ['key-id', 'workspace-id', 'environment', 'scopes', 'key-name'].map(
  (name) => `x-claviger-${name}`,
);
const FAR = 2_678_400;

describe.each<Recipe>([nginx, caddy, traefik, envoy])('$name', (recipe) => {
  let app: TestApp;
  let claviger: TcpProxy;
  let echo: Echo;
  let gateway: Gateway;
  let serviceKey: string;
  let clavigerPort: number;
  let key: { id: string; token: string };

  beforeAll(async () => {
    app = await createTestApp({
      FAILED_AUTH_RATE_LIMIT: 'off',
      CALLER_RATE_LIMIT: 'off',
      ...recipe.settings,
    });
    clavigerPort = await listen(app);
    claviger = await startTcpProxy(clavigerPort);
    echo = await startEcho();
    serviceKey = (await app.createServiceKey(['introspect'])).token;
    gateway = await recipe.start({ claviger: claviger.port, service: echo.port, serviceKey });
    key = await app.createKey({
      workspace_id: 'ws_gateway',
      name: 'Größe "17"\r\nX-Claviger-Key-Id: forged',
      scopes: ['contacts:read', 'contacts:write'],
      rate_limit: null,
    });
  });
  afterAll(async () => {
    await gateway?.stop();
    await echo?.close();
    await claviger?.close();
    await app?.close();
  });
  beforeEach(() => {
    echo.received.length = 0;
  });

  interface Sending {
    readonly headers?: readonly string[];
    readonly body?: Buffer;
    readonly token?: string | null;
    readonly port?: number;
    readonly from?: string;
  }

  function send(line: string, sending: Sending = {}): Promise<RawAnswer> {
    const { headers = [], body, token = key.token, port = gateway.port, from } = sending;
    return request({
      port,
      line: `${line} HTTP/1.1`,
      headers: [...headers, ...(token === null ? [] : [`Authorization: Bearer ${token}`])],
      ...(body === undefined ? {} : { body }),
      ...(from === undefined ? {} : { from }),
      ...(line.startsWith('HEAD ') ? { method: 'HEAD' as const } : {}),
    });
  }

  /** What reached the service, once and as a request of the key. */
  function receivedOnce(): Received {
    expect(echo.received).toHaveLength(1);
    const [received] = echo.received;
    if (received === undefined) throw new Error('nothing was received');
    const { headers } = received;
    expect(headers['x-claviger-key-id']).toEqual([key.id]);
    expect(headers['x-claviger-workspace-id']).toEqual(['ws_gateway']);
    expect(headers['x-claviger-environment']).toEqual(['live']);
    expect(headers['x-claviger-scopes']).toEqual(['contacts:read contacts:write']);
    const [name = '', ...more] = headers['x-claviger-key-name'] ?? [];
    expect(more).toEqual([]);
    expect(decodeURIComponent(name)).toBe('Größe "17"\r\nX-Claviger-Key-Id: forged');
    // Neither key is any business of the service.
    const all = JSON.stringify(headers);
    expect(all).not.toContain(key.token.slice(-20));
    expect(all).not.toContain(serviceKey.slice(-20));
    return received;
  }

  /** An answer of the gateway, not of the service, which heard nothing. */
  function expectRefusal(answer: RawAnswer, status: number, code?: string): void {
    expect(answer.status, `${answer.text}\n${gateway.log()}`).toBe(status);
    expect(answer.headers['x-from']).toBeUndefined();
    expect(echo.received).toEqual([]);
    if (!recipe.passesProblems || code === undefined || answer.text === '') return;
    expect(answer.body.code).toBe(code);
    expect(answer.headers['content-type']).toMatch(/^application\/problem\+json/);
  }

  describe('lets in', () => {
    test.each(['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'PROPFIND', 'REPORT'])(
      '%s, and tells the service whose key it is',
      async (method) => {
        const answer = await send(`${method} /contacts/17?scope=admin&rate_limited_status=403&x=%20y`);
        expect(answer.status, gateway.log()).toBe(200);
        const received = receivedOnce();
        expect(received.method).toBe(method);
        expect(received.url).toBe('/contacts/17?scope=admin&rate_limited_status=403&x=%20y');
      },
    );

    test('HEAD, without a body in the answer', async () => {
      const answer = await send('HEAD /contacts');
      expect(answer.status).toBe(200);
      expect(answer.headers['x-from']).toBe('service');
      expect(receivedOnce().method).toBe('HEAD');
    });

    test('a key in X-Api-Key', async () => {
      const answer = await send('GET /', { token: null, headers: [`X-Api-Key: ${key.token}`] });
      expect(answer.status).toBe(200);
      receivedOnce();
    });

    test.each([
      'application/json',
      'application/x-www-form-urlencoded',
      'multipart/form-data; boundary=x',
      'nonsense',
    ])('a request without a body that says %s', async (type) => {
      expect((await send('POST /', { headers: [`Content-Type: ${type}`, 'Content-Length: 0'] })).status).toBe(
        200,
      );
      expect(receivedOnce().bytes).toBe(0);
    });

    test('a body of 10 MB, untouched', async () => {
      const body = randomBytes(10 * 1_000_000);
      const answer = await send('POST /upload', { headers: ['Content-Type: application/json'], body });
      expect(answer.status, gateway.log()).toBe(200);
      const received = receivedOnce();
      expect(received.bytes).toBe(body.length);
      expect(received.sha256).toBe(createHash('sha256').update(body).digest('hex'));
    });

    test('a body in chunks, untouched', async () => {
      const head = `PUT /upload HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nAuthorization: Bearer ${key.token}\r\n\r\n`;
      const { answers } = await exchange([head, '3\r\nabc\r\n', '4\r\ndefg\r\n0\r\n\r\n'], {
        port: gateway.port,
        responses: 1,
      });
      expect(answers[0]?.status).toBe(200);
      expect(receivedOnce().sha256).toBe(createHash('sha256').update('abcdefg').digest('hex'));
    });

    test('one request after another on one connection', async () => {
      const head = (index: number, token: string) =>
        `GET /${index} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${token}\r\n\r\n`;
      const { answers } = await exchange(head(0, key.token), {
        port: gateway.port,
        responses: 3,
        afterFirst: head(1, 'nonsense') + head(2, key.token),
      });
      expect(answers.map(({ status }) => status)).toEqual([200, 401, 200]);
      expect(echo.received.map(({ url }) => url)).toEqual(['/0', '/2']);
    });

    test('a WebSocket, and out one without a key', async () => {
      const upgrade = (lines: string[]) =>
        [
          'GET /socket HTTP/1.1',
          'Host: a',
          'Connection: Upgrade',
          'Upgrade: websocket',
          ...lines,
          '',
          '',
        ].join('\r\n');
      const spoken = await speak(gateway.port, upgrade([`Authorization: Bearer ${key.token}`]), 'hello');
      expect(spoken).toMatch(/^HTTP\/1\.1 101 /);
      expect(spoken).toMatch(/\r\n\r\nhello$/);
      receivedOnce();
      echo.received.length = 0;
      const refused = await speak(gateway.port, upgrade([]), 'hello');
      expect(refused).toMatch(/^HTTP\/1\.1 401 /);
      expect(echo.received).toEqual([]);
    });

    test('a client that is told its limits, where it has any', async () => {
      const limited = await app.createKey({ rate_limit: { limit: 5, window_seconds: FAR } });
      const first = await send('GET /', { token: limited.token });
      expect(first.status).toBe(200);
      if (recipe.tellsLimits) {
        expect(parseList(first.headers['ratelimit-policy'] ?? '')).toEqual([
          [
            'key',
            new Map([
              ['q', 5],
              ['w', FAR],
            ]),
          ],
        ]);
        expect(parseList(first.headers.ratelimit ?? '')[0]?.[1].get('r')).toBe(4);
      }
      const unlimited = await send('GET /');
      expect(unlimited.headers.ratelimit ?? '').toBe('');
      expect(unlimited.headers['ratelimit-policy'] ?? '').toBe('');
    });
  });

  describe('refuses', () => {
    test('who shows no key, or two', async () => {
      const answer = await send('GET /', { token: null });
      expectRefusal(answer, 401, 'invalid');
      expect(answer.headers['www-authenticate']).toBe('Bearer realm="claviger"');
      expectRefusal(await send('GET /', { headers: ['X-Api-Key: another'] }), 401, 'invalid');
    });

    test('a key that is none, revoked, expired or disabled', async () => {
      const refused = await send('POST /', { token: 'nonsense', body: Buffer.from('x') });
      expectRefusal(refused, 401, 'invalid');
      expect(refused.headers['www-authenticate']).toContain('error="invalid_token"');
      expectRefusal(await send('GET /', { token: serviceKey }), 401, 'invalid');

      const revoked = await app.createKey({ workspace_id: 'ws_refused' });
      expect((await send('GET /', { token: revoked.token })).status).toBe(200);
      echo.received.length = 0;
      await app.delete(`/v1/api-keys/${revoked.id}`);
      expectRefusal(await send('GET /', { token: revoked.token }), 401, 'revoked');

      const expired = await app.createKey({ workspace_id: 'ws_refused', name: 'Expired' });
      await app.database.query(
        "UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE name = 'Expired'",
      );
      expectRefusal(await send('GET /', { token: expired.token }), 401, 'expired');

      const disabled = await app.createKey({ workspace_id: 'ws_refused' });
      await app.put('/v1/workspaces/ws_refused', { disabled: true });
      expectRefusal(await send('GET /', { token: disabled.token }), 403, 'workspace_disabled');
    });

    test('an address, a page or an endpoint that the key is not for, whatever the client says of itself', async () => {
      const { token } = await app.createKey({
        restrictions: {
          allowed_ips: ['127.0.0.1'],
          allowed_referrers: ['https://app.example.com/*'],
          allowed_endpoints: [{ methods: ['GET'], path: '/contacts/:id' }],
        },
      });
      const referer = 'Referer: https://app.example.com/x';
      const lies = [
        ...['X-Forwarded-For', 'X_Forwarded_For', 'x-forwarded-FOR', 'X-Real-IP'].map(
          (name) => `${name}: 127.0.0.1`,
        ),
        ...['X-Forwarded-Uri', 'X-Original-URI', 'X_Forwarded_Uri', 'X-Rewrite-URL'].map(
          (name) => `${name}: /contacts/17`,
        ),
        ...['X-Forwarded-Method', 'X-Original-Method', 'X_Original_Method', 'X-HTTP-Method-Override'].map(
          (name) => `${name}: GET`,
        ),
        'Forwarded: for=127.0.0.1',
      ];
      const ask = (line: string, headers: string[], from = '127.0.0.1') =>
        send(line, { token, from, headers: [...lies, ...headers, ...lies] });
      expect((await ask('GET /contacts/17?a=b', [referer])).status).toBe(200);
      echo.received.length = 0;
      expectRefusal(await ask('GET /contacts/17', [referer], '127.0.0.9'), 403, 'ip_not_allowed');
      expectRefusal(await ask('GET /contacts/17', []), 403, 'referrer_not_allowed');
      expectRefusal(await ask('DELETE /contacts/17', [referer]), 403, 'endpoint_not_allowed');
      expectRefusal(await ask('GET /admin', [referer]), 403, 'endpoint_not_allowed');
      expectRefusal(await ask('GET /admin?/contacts/17', [referer]), 403, 'endpoint_not_allowed');
    });

    test('a spent rate limit with 429, and says when to come again', async () => {
      const { token } = await app.createKey({ rate_limit: { limit: 1, window_seconds: FAR } });
      expect((await send('GET /', { token })).status).toBe(200);
      echo.received.length = 0;
      const spent = await send('GET /', { token });
      expectRefusal(spent, 429, 'rate_limited');
      expect(Number(spent.headers['retry-after'])).toBeGreaterThan(0);
      expect(parseList(spent.headers.ratelimit ?? '')[0]?.[1].get('r')).toBe(0);
    });

    test('what the options of its recipe demand and the key has not', async () => {
      const options = { scope: 'contacts:read', workspace_id: 'ws_gateway', environment: 'live' };
      const strict = await recipe.start({ claviger: claviger.port, service: echo.port, serviceKey, options });
      onTestFinished(() => strict.stop());
      const port = strict.port;
      expect((await send('GET /?scope=x', { port })).status, strict.log()).toBe(200);
      receivedOnce();
      echo.received.length = 0;
      const make = (settings: Record<string, unknown>) =>
        app.createKey({ workspace_id: 'ws_gateway', scopes: ['contacts:read'], ...settings });
      const other = await make({ workspace_id: 'ws_other' });
      expectRefusal(await send('GET /', { port, token: other.token }), 403, 'wrong_workspace');
      const testing = await make({ environment: 'test' });
      expectRefusal(await send('GET /', { port, token: testing.token }), 403, 'wrong_environment');
      const lacking = await make({ scopes: ['contacts:list'] });
      // A client asks for no less by asking itself.
      const headers = ['X-Claviger-Scope: contacts:list', 'X_Claviger_Scope: contacts:list'];
      expectRefusal(
        await send('GET /?scope=contacts:list', { port, token: lacking.token, headers }),
        403,
        'insufficient_scope',
      );
    });

    test('a route that the scope catalogue does not open to the key', async () => {
      await app.put('/v1/scopes/contacts:read', { grants: [{ methods: ['GET'], path: '/contacts/*' }] });
      await app.put('/v1/scopes/contacts:write', { grants: [{ path: '/contacts/*' }] });
      onTestFinished(async () => {
        await app.delete('/v1/scopes/contacts:write');
        await app.delete('/v1/scopes/contacts:read');
      });
      const { token } = await app.createKey({ scopes: ['contacts:read'] });
      expect((await send('GET /contacts/17', { token })).status).toBe(200);
      echo.received.length = 0;
      expectRefusal(await send('POST /contacts/17', { token }), 403, 'insufficient_scope');
      expectRefusal(await send('GET /invoices', { token }), 403, 'insufficient_scope');
    });

    test('everybody, where its own service key is none', async () => {
      if (recipe.settings.AUTHORIZE_TRUSTED_CIDRS !== undefined) return;
      const lost = await recipe.start({
        claviger: claviger.port,
        service: echo.port,
        serviceKey: 'ck_svc_lost',
      });
      onTestFinished(() => lost.stop());
      expectRefusal(await send('GET /', { port: lost.port }), 401, 'unauthorized');
      // Also a client that shows one.
      const headers = [`X-Claviger-Service-Key: ${serviceKey}`];
      expectRefusal(await send('GET /', { port: lost.port, headers }), 401, 'unauthorized');
    });
  });

  test('no header of a client is taken for one of the gateway’s, however it is spelled, once or twice', async () => {
    const name = fc.constantFrom(
      ...IDENTITY,
      'x-claviger-service-key',
      'x-claviger-scope',
      'x-claviger-workspace',
      'x-claviger-environment-expected',
      'x-forwarded-for',
      'x-forwarded-method',
      'x-forwarded-uri',
      'x-original-method',
      'x-original-uri',
      'x-real-ip',
    );
    const header = fc
      .record({
        name,
        underscores: fc.constantFrom('none', 'all', 'first'),
        upper: fc.array(fc.boolean(), { minLength: 32, maxLength: 32 }),
        value: fc.constantFrom(
          'ws_other',
          'admin',
          'contacts:list',
          '203.0.113.9',
          'DELETE',
          '/admin',
          'test',
          '',
        ),
        times: fc.constantFrom(1, 2),
      })
      .map(({ name, underscores, upper, value, times }) => {
        const spelled = [...name]
          .map((letter, index) => (upper[index] ? letter.toUpperCase() : letter))
          .join('');
        const written =
          underscores === 'all'
            ? spelled.replaceAll('-', '_')
            : underscores === 'first'
              ? spelled.replace('-', '_')
              : spelled;
        return Array.from({ length: times }, () => `${written}: ${value}`);
      });
    const bound = await app.createKey({
      workspace_id: 'ws_gateway',
      restrictions: {
        allowed_ips: ['127.0.0.1'],
        allowed_endpoints: [{ methods: ['GET'], path: '/contacts/:id' }],
      },
      rate_limit: null,
    });
    await fc.assert(
      fc.asyncProperty(fc.array(header, { minLength: 1, maxLength: 6 }), async (lines) => {
        const headers = lines.flat();
        echo.received.length = 0;
        expect((await send('GET /contacts/17', { headers })).status, gateway.log()).toBe(200);
        const received = receivedOnce();
        // Behind the gateway some read "_" and "-" as one.
        for (const [name, values] of Object.entries(received.headers)) {
          const read = name.replaceAll('_', '-');
          if (IDENTITY.includes(read)) expect([name, values.length]).toEqual([read, 1]);
          if (/^x-(original|forwarded-(method|uri))/.test(read))
            expect(values.join('')).not.toMatch(/DELETE|admin/);
          if (read === 'x-forwarded-for') expect(values.join(',')).toMatch(/127\.0\.0\.1$/);
        }
        echo.received.length = 0;
        expectRefusal(await send('GET /admin', { headers, token: bound.token }), 403, 'endpoint_not_allowed');
        const away = { headers, token: bound.token, from: '127.0.0.9' };
        expectRefusal(await send('GET /contacts/17', away), 403, 'ip_not_allowed');
      }),
      { numRuns: 40 },
    );
  });

  describe('while Claviger cannot be asked', () => {
    test('nobody is let in and is told so; afterwards they are again', async () => {
      for (const how of ['reset', 'end'] as const) {
        claviger.cut(how);
        const answer = await send('POST /', { body: Buffer.from('x') });
        expectRefusal(answer, recipe.statusWithoutClaviger);
        if (!recipe.passesProblems) expect(answer.headers['retry-after']).toBe('1');
        claviger.deliver();
        await expect.poll(async () => (await send('GET /')).status, { timeout: 10_000 }).toBe(200);
        echo.received.length = 0;
      }
    });

    test('one that hangs is given up', async () => {
      claviger.stall();
      const startedAt = performance.now();
      expectRefusal(await send('GET /'), recipe.statusWithoutClaviger);
      expect(performance.now() - startedAt).toBeLessThan(10_000);
      claviger.deliver();
      await expect.poll(async () => (await send('GET /')).status, { timeout: 10_000 }).toBe(200);
    });

    test('also of one that says 503', async () => {
      const cut = await createTestApp(recipe.settings);
      onTestFinished(() => cut.close());
      const { token } = await cut.createKey();
      const own = (await cut.createServiceKey(['introspect'])).token;
      const name = new URL(cut.database.url).pathname.slice(1);
      const port = await listen(cut);
      const strict = await recipe.start({ claviger: port, service: echo.port, serviceKey: own });
      onTestFinished(() => strict.stop());
      await app.database.query(`ALTER DATABASE ${name} WITH ALLOW_CONNECTIONS false`);
      await app.database.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1', [
        name,
      ]);
      const answer = await send('GET /', { port: strict.port, token });
      expectRefusal(answer, 503, 'unavailable');
      expect(answer.headers['retry-after']).toMatch(/^[1-9]\d*$/);
      await app.database.query(`ALTER DATABASE ${name} WITH ALLOW_CONNECTIONS true`);
    });
  });
});

/** Sends a head, then once the answer's has come a text; answers all that came within a moment of quiet. */
function speak(port: number, head: string, text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: '127.0.0.1', port });
    let received = '';
    let said = false;
    const timer = setTimeout(() => {
      socket.destroy();
      reject(new Error(`no answer to the upgrade; so far: ${received}`));
    }, 10_000);
    const finish = () => {
      clearTimeout(timer);
      socket.destroy();
      resolve(received);
    };
    socket.setEncoding('latin1').on('data', (chunk) => {
      received += chunk;
      if (!received.includes('\r\n\r\n')) return;
      if (!received.startsWith('HTTP/1.1 101')) return finish();
      if (!said) socket.write(text);
      said = true;
      if (received.endsWith(text)) finish();
    });
    socket.on('error', reject);
    socket.on('close', finish);
    socket.write(head);
  });
}
