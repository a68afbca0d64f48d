import type { IncomingMessage } from 'node:http';
import net from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createTestApp, type TestApp } from '../support/app.ts';
import { listen } from './listen.ts';
import { request } from './raw.ts';

/*
 * The fast path beside Fastify: over a socket a plain request takes the first, and injected always the second. Both
 * have to answer alike, to the last header.
 */

let app: TestApp;
let port: number;
/** Others on the same database: one behind a proxy, one that limits its callers. */
const others: Partial<Record<'proxied' | 'limiting', { app: TestApp; port: number }>> = {};
let arrived: IncomingMessage[] = [];
/** By what is special about it. */
const callers: Record<string, string> = {};
const keys: Record<string, string> = {};

beforeAll(async () => {
  app = await createTestApp({ FAILED_AUTH_RATE_LIMIT: 'off', CALLER_RATE_LIMIT: 'off' });
  port = await listen(app);
  const startOther = async (settings: Record<string, string>) => {
    const other = await createTestApp({ CALLER_RATE_LIMIT: 'off', ...settings }, app.database);
    return { app: other, port: await listen(other) };
  };
  others.proxied = await startOther({ TRUSTED_PROXY_CIDRS: '127.0.0.0/8' });
  others.limiting = await startOther({ INTROSPECT_RATE_LIMIT: '1000000' });
  for (const { server } of [app.app, others.proxied.app.app, others.limiting.app.app])
    server.on('request', (message) => arrived.push(message));
  callers.plain = (await app.createServiceKey(['introspect'])).token;
  callers.reader = (await app.createServiceKey(['keys:read'])).token;
  callers.limited = (
    await app.createServiceKey(['introspect'], { rate_limit: { limit: 1_000_000, window_seconds: 3_600 } })
  ).token;
  callers.bound = (
    await app.createServiceKey(['introspect'], { restrictions: { allowed_workspaces: ['ws_other'] } })
  ).token;
  callers.elsewhere = (
    await app.createServiceKey(['introspect'], { restrictions: { allowed_ips: ['203.0.113.1'] } })
  ).token;
  const plain = { rate_limit: null, scopes: ['read', 'write'] };
  keys.plain = (await app.createKey({ ...plain, name: 'Schlüssel "eins"', metadata: { a: ['ä', 1] } })).token;
  keys.limited = (await app.createKey({ ...plain, rate_limit: { limit: 5, window_seconds: 3_600 } })).token;
  keys.bound = (await app.createKey({ ...plain, restrictions: { allowed_ips: ['203.0.113.9'] } })).token;
  const revoked = await app.createKey(plain);
  await app.send('DELETE', `/v1/api-keys/${revoked.id}`);
  keys.revoked = revoked.token;
});
afterAll(async () => {
  const all = [...Object.values(others).map((other) => other.app), app];
  for (const { logLines } of all) expect(logLines.filter((line) => JSON.parse(line).level >= 50)).toEqual([]);
  for (const one of all) await one.close();
});

interface Request {
  readonly method?: string;
  readonly url?: string;
  readonly headers: readonly string[];
  readonly body?: string;
  /** Which instance is asked; without it the plain one. */
  readonly to?: keyof typeof others;
}

/** What the metrics tell of lookups, verdicts and problems. */
async function counted(of: TestApp): Promise<Map<string, number>> {
  const { payload } = await of.app.inject({ method: 'GET', url: '/metrics' });
  const lines = payload.match(/^claviger_(lookups|verdicts|introspections|problems)_total.* \d+$/gm) ?? [];
  return new Map(lines.map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.split(' ').at(-1))]));
}

function difference(after: Map<string, number>, before: Map<string, number>): Record<string, number> {
  const grown = [...after].map(([name, count]) => [name, count - (before.get(name) ?? 0)] as const);
  return Object.fromEntries(grown.filter(([, count]) => count !== 0));
}

/** The log's line of a request, but for how long it took. */
async function lineOf(of: TestApp, from: number): Promise<unknown> {
  const lines = () =>
    of.logLines
      .slice(from)
      .map((line) => JSON.parse(line))
      .filter(({ request_id }) => request_id === 'both-ways');
  await expect.poll(() => lines().length).toBe(1);
  const { time: _time, duration_ms: _took, ...line } = lines()[0];
  return line;
}

/** What is of the connection, or of the moment. */
const PASSING = ['date', 'connection', 'keep-alive', 'transfer-encoding'];

/**
 * Sends a request both ways; answers what each was answered and what it left behind, and whether Fastify saw the one from
 * the socket.
 */
async function bothWays({ method = 'POST', url = '/v1/introspect', headers, body, to }: Request) {
  const asked = to === undefined ? { app, port } : others[to];
  if (asked === undefined) throw new Error(`there is no instance ${to}`);
  const { app: of } = asked;
  const id = ['X-Request-Id: both-ways'];
  arrived = [];
  const traceOf = async (
    send: () => Promise<{ status: number; headers: Record<string, unknown>; text: string }>,
  ) => {
    const [before, from] = [await counted(of), of.logLines.length];
    const answer = await send();
    const line = await lineOf(of, from);
    return {
      ...answer,
      headers: Object.fromEntries(
        Object.entries(answer.headers)
          .filter(([name]) => !PASSING.includes(name))
          .map(([name, value]) => [name, String(value)]),
      ),
      line,
      counted: difference(await counted(of), before),
    };
  };
  const socket = await traceOf(async () => {
    const answer = await request({
      port: asked.port,
      line: `${method} ${url} HTTP/1.1`,
      headers: [...id, ...headers],
      ...(body === undefined ? {} : { body }),
      ...(method === 'HEAD' ? { method } : {}),
    });
    return { status: answer.status, headers: answer.headers, text: answer.text };
  });
  const injected = await traceOf(async () => {
    const answer = await of.app.inject({
      method: method as 'GET',
      url,
      headers: Object.fromEntries(
        ['Host: claviger.test', ...id, ...headers].map((line) => {
          const colon = line.indexOf(':');
          return [line.slice(0, colon), line.slice(colon + 1).trim()];
        }),
      ),
      ...(body === undefined ? {} : { payload: body }),
    });
    return { status: answer.statusCode, headers: answer.headers, text: answer.payload };
  });
  // Fastify notes where a request wanted to go before it is routed.
  return { socket, injected, throughFastify: arrived.some((message) => 'originalUrl' in message) };
}

/** A request that memory knows all about is answered alike both ways; answers what it left behind. */
async function expectAlike(
  make: () => Request,
  expected: { readonly status: number; readonly throughFastify: boolean },
) {
  // The first lets memory know what it is about.
  await bothWays(make());
  const { socket, injected, throughFastify } = await bothWays(make());
  expect(throughFastify).toBe(expected.throughFastify);
  expect(socket).toEqual(injected);
  expect(socket.status).toBe(expected.status);
  return socket;
}

const JSON_TYPE = 'Content-Type: application/json';
const bearer = (token: string | undefined) => `Authorization: Bearer ${token}`;

describe('an introspection', () => {
  const introspection = (body: unknown, headers: readonly string[] = [bearer(callers.plain), JSON_TYPE]) => ({
    headers,
    body: typeof body === 'string' ? body : JSON.stringify(body),
  });
  const plain: Record<string, () => Request> = {
    'an active key': () => introspection({ key: keys.plain, scopes: ['read'] }),
    'an active key without a question': () => introspection({ token: keys.plain }),
    'a key that lacks a scope': () => introspection({ key: keys.plain, scopes: ['admin'] }),
    'a revoked key': () => introspection({ key: keys.revoked }),
    'a key of another address': () => introspection({ key: keys.bound, request: { ip: '203.0.113.8' } }),
    'a limit that is looked at': () => introspection({ key: keys.limited, cost: 0 }),
    'a limit that is too low': () => introspection({ key: keys.limited, cost: 6 }),
    'no key at all': () => introspection({ key: 'nonsense' }),
    'a key that its caller may not see': () =>
      introspection({ key: keys.plain }, [bearer(callers.bound), JSON_TYPE]),
    'odd case': () =>
      introspection({ key: keys.plain }, [`AUTHORIZATION: Bearer ${callers.plain}`, JSON_TYPE]),
    'the address of a client that a trusted proxy forwards': () => ({
      ...introspection({ key: keys.plain }, [
        bearer(callers.elsewhere),
        JSON_TYPE,
        'X-Forwarded-For: 203.0.113.1',
      ]),
      to: 'proxied',
    }),
    'headers that say nothing here': () =>
      introspection({ key: keys.plain }, [
        bearer(callers.plain),
        JSON_TYPE,
        'Accept: text/html',
        'X-Forwarded-For: 203.0.113.1',
        'Accept-Encoding: gzip',
      ]),
  };
  test.each(Object.entries(plain))('on the fast path is answered as by Fastify: %s', async (_name, make) => {
    const socket = await expectAlike(make, { status: 200, throughFastify: false });
    // Its caller's key at least.
    expect(socket.counted['claviger_lookups_total{way="memory"}']).toBeGreaterThanOrEqual(1);
  });

  const other: Record<string, [number, () => Request]> = {
    'a body with an escape': [200, () => introspection(`{"key":"\\u0061${keys.plain}"}`)],
    'a body that is no JSON': [400, () => introspection('{"key":')],
    'an unknown member': [400, () => introspection({ key: keys.plain, more: 1 })],
    'a key twice': [400, () => introspection({ key: keys.plain, token: keys.plain })],
    'no key': [400, () => introspection({ scopes: ['read'] })],
    'a scope that is none': [400, () => introspection({ key: keys.plain, scopes: ['Read'] })],
    'a workspace that its caller may not see': [
      403,
      () => introspection({ key: keys.plain, workspace_id: 'ws_acme' }, [bearer(callers.bound), JSON_TYPE]),
    ],
    'a long body': [200, () => introspection({ key: 'x'.repeat(4_000) })],
    'a body of 64 KiB': [413, () => introspection({ key: 'x'.repeat(65_536) })],
    'a form': [
      200,
      () =>
        introspection(`token=${keys.plain}`, [
          bearer(callers.plain),
          'Content-Type: application/x-www-form-urlencoded',
        ]),
    ],
    'another type': [415, () => introspection('x', [bearer(callers.plain), 'Content-Type: text/plain'])],
    'a coding': [
      415,
      () => introspection({ key: keys.plain }, [bearer(callers.plain), JSON_TYPE, 'Content-Encoding: gzip']),
    ],
    'no body': [400, () => ({ headers: [bearer(callers.plain), JSON_TYPE] })],
    'X-Api-Key': [200, () => introspection({ key: keys.plain }, [`X-Api-Key: ${callers.plain}`, JSON_TYPE])],
    'two keys of its caller': [
      400,
      () =>
        introspection({ key: keys.plain }, [bearer(callers.plain), `X-Api-Key: ${callers.bound}`, JSON_TYPE]),
    ],
    'no service key': [401, () => introspection({ key: keys.plain }, [JSON_TYPE])],
    'a key that is no service key': [
      401,
      () => introspection({ key: keys.plain }, [bearer(keys.plain), JSON_TYPE]),
    ],
    'a service key without the permission': [
      403,
      () => introspection({ key: keys.plain }, [bearer(callers.reader), JSON_TYPE]),
    ],
    'a service key of another address': [
      403,
      () => introspection({ key: keys.plain }, [bearer(callers.elsewhere), JSON_TYPE]),
    ],
    'another method': [404, () => ({ ...introspection({ key: keys.plain }), method: 'PUT' })],
    'a query': [200, () => ({ ...introspection({ key: keys.plain }), url: '/v1/introspect?a=b' })],
  };
  test.each(Object.entries(other))('goes to Fastify with %s', async (_name, [status, make]) => {
    await expectAlike(make, { status, throughFastify: true });
  });

  test.each([
    ['a caller with a limit', () => introspection({ key: keys.plain }, [bearer(callers.limited), JSON_TYPE])],
    ['INTROSPECT_RATE_LIMIT', (): Request => ({ ...introspection({ key: keys.plain }), to: 'limiting' })],
  ])('goes to Fastify for %s, and counts once', async (_name, make) => {
    const asked = make();
    const left = async () => {
      const { socket, throughFastify } = await bothWays(asked);
      expect(throughFastify).toBe(true);
      return Number(socket.headers['x-ratelimit-remaining']);
    };
    // Each is one from the socket and one injected.
    const first = await left();
    expect(await left()).toBe(first - 2);
  });
});

describe('a gateway that asks', () => {
  const told = [
    'X-Forwarded-Method: GET',
    'X-Forwarded-Uri: /contacts/17?a=b',
    'X-Forwarded-For: 203.0.113.9',
  ];
  const gateway = (headers: readonly string[], url = '/v1/authorize', method = 'GET') => ({
    method,
    url,
    headers: [...told, ...headers],
  });
  const shown = () => `X-Claviger-Service-Key: ${callers.plain}`;

  const plain: Record<string, [number, () => Request]> = {
    'an active key': [200, () => gateway([shown(), bearer(keys.plain)])],
    'an active key in X-Api-Key': [200, () => gateway([shown(), `X-Api-Key: ${keys.plain}`])],
    'a key that has the scopes': [
      200,
      () => gateway([shown(), bearer(keys.plain)], '/v1/authorize?scope=read'),
    ],
    'a key that lacks a scope': [
      403,
      () => gateway([shown(), bearer(keys.plain)], '/v1/authorize?scope=admin'),
    ],
    'a key that is bound to the address': [200, () => gateway([shown(), bearer(keys.bound)])],
    'a revoked key': [401, () => gateway([shown(), bearer(keys.revoked)])],
    'no key': [401, () => gateway([shown()])],
    'two keys': [401, () => gateway([shown(), bearer(keys.plain), `X-Api-Key: ${keys.bound}`])],
    'an option that there is not': [
      403,
      () => gateway([shown(), bearer(keys.plain)], '/v1/authorize?more=1'),
    ],
    'a workspace that the gateway may not see': [
      403,
      () =>
        gateway(
          [`X-Claviger-Service-Key: ${callers.bound}`, bearer(keys.plain)],
          '/v1/authorize?workspace_id=ws_acme',
        ),
    ],
    HEAD: [200, () => gateway([shown(), bearer(keys.plain)], '/v1/authorize', 'HEAD')],
    'HEAD, refused': [401, () => gateway([shown(), bearer(keys.revoked)], '/v1/authorize', 'HEAD')],
    'a refused key, forwarded by a trusted proxy': [
      401,
      () => ({ ...gateway([shown(), bearer(keys.revoked)]), to: 'proxied' }),
    ],
    POST: [200, () => ({ ...gateway([shown(), bearer(keys.plain)], '/v1/authorize', 'POST'), body: '{' })],
    'a path below': [200, () => gateway([shown(), bearer(keys.plain)], '/v1/authorize/contacts/%zz')],
  };
  test.each(Object.entries(plain))(
    'on the fast path is answered as by Fastify: %s',
    async (_name, [status, make]) => {
      await expectAlike(make, { status, throughFastify: false });
    },
  );

  const other: Record<string, [number, () => Request]> = {
    'no service key': [401, () => gateway([bearer(keys.plain)])],
    'a key that is no service key': [401, () => gateway([`X-Claviger-Service-Key: ${keys.plain}`])],
    'a service key without the permission': [
      403,
      () => gateway([`X-Claviger-Service-Key: ${callers.reader}`]),
    ],
    'a service key with a limit': [
      200,
      () => gateway([`X-Claviger-Service-Key: ${callers.limited}`, bearer(keys.plain)]),
    ],
    'another spelling of the path': [403, () => gateway([shown(), bearer(keys.plain)], '/v1/%61uthorize')],
  };
  test.each(Object.entries(other))('goes to Fastify with %s', async (_name, [status, make]) => {
    await expectAlike(make, { status, throughFastify: true });
  });

  test('is told of the limits of the key, both ways', async () => {
    const asked = gateway([shown(), bearer(keys.limited)]);
    for (let pair = 0; pair < 4; pair++) {
      const way = await bothWays(asked);
      for (const { status, headers } of [way.socket, way.injected]) {
        expect([200, 429]).toContain(status);
        expect(headers['x-ratelimit-limit']).toBe('5');
        expect(headers['ratelimit-policy']).toBe('"key";q=5;w=3600');
        expect(headers.ratelimit).toMatch(/^"key";r=[0-4];t=\d+$/);
      }
    }
    const { socket, injected } = await bothWays(asked);
    expect(socket.status).toBe(429);
    expect(socket.headers['retry-after']).toMatch(/^\d+$/);
    expect(Object.keys(socket.headers).sort()).toEqual(Object.keys(injected.headers).sort());
    expect(JSON.parse(socket.text).code).toBe('rate_limited');
  });
});

test('a gateway that asks wrongly has used its key all the same', async () => {
  const { id, token } = await app.createServiceKey(['introspect']);
  const asked = {
    method: 'GET',
    url: '/v1/authorize?more=1',
    headers: [`X-Claviger-Service-Key: ${token}`],
  };
  const lastUsed = async () => (await app.get(`/v1/api-keys/${id}`)).body.data.last_used;
  await bothWays(asked);
  await expect.poll(lastUsed, { timeout: 5_000 }).not.toBeNull();
  const first = await lastUsed();
  const line = 'GET /v1/authorize?more=1 HTTP/1.1';
  expect((await request({ port, line, headers: asked.headers })).status).toBe(403);
  await expect.poll(lastUsed, { timeout: 5_000 }).not.toBe(first);
});

/** Requests to a route that ended with this status, as the metrics tell. */
async function endedWith(route: string, status: string): Promise<number> {
  const { text } = await app.send('GET', '/metrics');
  const line = new RegExp(
    `^claviger_http_requests_total\\{method="POST",route="${route}",status="${status}"\\} (\\d+)$`,
    'm',
  );
  return Number(line.exec(text)?.[1] ?? 0);
}

test('each request counts once in the metrics, whichever way it takes', async () => {
  const before = await endedWith('/v1/introspect', '200');
  const headers = [bearer(callers.plain), JSON_TYPE];
  await bothWays({ headers, body: JSON.stringify({ key: keys.plain }) });
  await bothWays({ headers, body: `{"key":"\\u0061"}` });
  await expect.poll(() => endedWith('/v1/introspect', '200')).toBe(before + 4);
});

test('a client that leaves in the middle of its body is counted as such', async () => {
  const before = await endedWith('/v1/introspect', 'left');
  const socket = net.connect({ host: '127.0.0.1', port });
  socket.write(
    `POST /v1/introspect HTTP/1.1\r\nHost: a\r\n${bearer(callers.plain)}\r\n${JSON_TYPE}\r\nContent-Length: 100\r\n\r\n{"key":`,
  );
  await expect.poll(() => arrived.some(({ method, complete }) => method === 'POST' && !complete)).toBe(true);
  socket.destroy();
  await expect.poll(() => endedWith('/v1/introspect', 'left')).toBe(before + 1);
});

test('of two requests that came at once, each is counted, though the client leaves before the second is whole', async () => {
  const ended = () => Promise.all(['200', 'left'].map((status) => endedWith('/v1/introspect', status)));
  const [answered = 0, left = 0] = await ended();
  const body = JSON.stringify({ key: keys.plain });
  const head = `POST /v1/introspect HTTP/1.1\r\nHost: a\r\n${bearer(callers.plain)}\r\n${JSON_TYPE}\r\nContent-Length: ${body.length}\r\n\r\n`;
  const socket = net.connect({ host: '127.0.0.1', port });
  socket.write(`${head}${body}${head}${body.slice(1)}`);
  await expect.poll(ended).toEqual([answered + 1, left]);
  socket.destroy();
  await expect.poll(ended).toEqual([answered + 1, left + 1]);
});

test('a body that comes in parts is answered when it is whole', async () => {
  const body = JSON.stringify({ key: keys.plain, scopes: ['read'] });
  const socket = net.connect({ host: '127.0.0.1', port, noDelay: true });
  socket.write(
    `POST /v1/introspect HTTP/1.1\r\nHost: a\r\n${bearer(callers.plain)}\r\n${JSON_TYPE}\r\nContent-Length: ${body.length}\r\n\r\n`,
  );
  let received = '';
  socket.setEncoding('utf8').on('data', (text: string) => {
    received += text;
  });
  for (const part of body.match(/.{1,30}/g) ?? []) {
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(received).toBe('');
    socket.write(part);
  }
  await expect.poll(() => received).toContain('"active":true');
  socket.destroy();
});
