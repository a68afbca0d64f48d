import { METHODS } from 'node:http';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createTestApp, type TestApp } from '../support/app.ts';
import { listen } from './listen.ts';
import { exchange, type RawAnswer, request } from './raw.ts';

/*
 * `/v1/authorize` over a socket: what a gateway, or its client through it, may send in bytes. Whatever comes, the
 * answer is 200, 401, 403, 429 or 503.
 */

const STATUSES = [200, 401, 403, 429, 503];
/** CONNECT asks for a tunnel to another host: it has no path. */
const ANY_METHOD = METHODS.filter((method) => method !== 'CONNECT');

let app: TestApp;
let port: number;
let identity: string[];
let key: { id: string; token: string };

beforeAll(async () => {
  app = await createTestApp({ FAILED_AUTH_RATE_LIMIT: 'off', CALLER_RATE_LIMIT: 'off' });
  port = await listen(app);
  const gateway = await app.createServiceKey(['introspect']);
  key = await app.createKey({
    rate_limit: null,
    scopes: ['read'],
    restrictions: { allowed_endpoints: [{ path: '/contacts/*' }], allowed_ips: ['203.0.113.9'] },
  });
  identity = [
    `X-Claviger-Service-Key: ${gateway.token}`,
    'X-Forwarded-Method: GET',
    'X-Forwarded-Uri: /contacts/17?a=b',
    'X-Forwarded-For: 203.0.113.9',
  ];
});
afterAll(async () => {
  expect(app.logLines.filter((line) => JSON.parse(line).level >= 50)).toEqual([]);
  await app.close();
});

function ask(line: string, headers: readonly string[] = [], body?: string | Buffer): Promise<RawAnswer> {
  return request({
    port,
    line,
    headers: [...identity, `Authorization: Bearer ${key.token}`, ...headers],
    ...(body === undefined ? {} : { body }),
    ...(line.startsWith('HEAD ') ? { method: 'HEAD' as const } : {}),
  });
}

function expectAllowed(answer: RawAnswer): void {
  expect(answer.status, answer.text).toBe(200);
  expect(answer.text).toBe('');
  expect(answer.headers['x-claviger-key-id']).toBe(key.id);
}

const TYPES = [
  'application/json',
  'application/x-www-form-urlencoded',
  'multipart/form-data; boundary=x',
  'text/plain',
  'application/octet-stream',
  'nonsense',
  'a/b; c',
  '',
];

test.each(ANY_METHOD)('%s passes with any content type, with a body and without', async (method) => {
  for (const type of TYPES) {
    const headers = [`Content-Type: ${type}`];
    expectAllowed(await ask(`${method} /v1/authorize HTTP/1.1`, headers));
    expectAllowed(await ask(`${method} /v1/authorize HTTP/1.1`, headers, '{'));
  }
  expectAllowed(await ask(`${method} /v1/authorize HTTP/1.1`));
  expectAllowed(await ask(`${method} /v1/authorize HTTP/1.1`, [], 'x'));
});

describe('a body', () => {
  test('is not waited for: of 10 MB not a byte has to come before the answer', async () => {
    for (const head of [
      'Content-Length: 10485760',
      'Transfer-Encoding: chunked',
      'Expect: 100-continue\r\nContent-Length: 1',
    ]) {
      expectAllowed(await ask('POST /v1/authorize HTTP/1.1', [head]));
    }
  });

  test('that does come does not break the next request on its connection', async () => {
    const size = 10 * 1_048_576;
    const head = (index: number, length: number) =>
      [
        'POST /v1/authorize HTTP/1.1',
        'Host: gateway.test',
        ...identity,
        `Authorization: Bearer ${key.token}`,
        `X-Request-Id: ${index}`,
        `Content-Length: ${length}`,
        '\r\n',
      ].join('\r\n');
    const bytes = [head(0, size), Buffer.alloc(size, 'x'), head(1, 3), 'abc', head(2, 0)];
    const { answers } = await exchange(bytes, { port, responses: 3 });
    expect(answers.map(({ status, headers }) => [status, headers['x-request-id']])).toEqual([
      [200, '0'],
      [200, '1'],
      [200, '2'],
    ]);
  });

  test.each(['Content-Encoding: gzip', 'Expect: 200-ok', 'Upgrade: websocket\r\nConnection: Upgrade'])(
    'may come with %s',
    async (header) => {
      expectAllowed(await ask('POST /v1/authorize HTTP/1.1', [header], 'x'));
    },
  );
});

test('two Authorization headers are one too many', async () => {
  const answer = await ask('GET /v1/authorize HTTP/1.1', ['authorization: Bearer x']);
  expect([answer.status, answer.body.code]).toEqual([401, 'invalid']);
});

describe('a request that is none as it should be', () => {
  test.each([
    ['no Host', 'GET /v1/authorize HTTP/1.1', []],
    ['two Hosts', 'GET /v1/authorize HTTP/1.1', ['Host: a', 'Host: b']],
    ['an unknown method', 'FETCH /v1/authorize HTTP/1.1', ['Host: a']],
    ['a method in lower case', 'get /v1/authorize/path?x HTTP/1.1', ['Host: a']],
    ['an unknown version', 'GET /v1/authorize HTTP/3.0', ['Host: a']],
    ['a head that is too large', 'GET /v1/authorize HTTP/1.1', ['Host: a', `X-Large: ${'x'.repeat(20_000)}`]],
    ['a header without a colon', 'GET /v1/authorize HTTP/1.1', ['Host: a', 'nonsense']],
    ['a header with a NUL', 'GET /v1/authorize HTTP/1.1', ['Host: a', 'X-A: a\0b']],
    ['two lengths', 'POST /v1/authorize HTTP/1.1', ['Host: a', 'Content-Length: 1', 'Content-Length: 2']],
    [
      'length and chunks',
      'POST /v1/authorize HTTP/1.1',
      ['Host: a', 'Content-Length: 1', 'Transfer-Encoding: chunked'],
    ],
    ['a prefix in escapes', 'GET /v1/%61uthorize HTTP/1.1', ['Host: a']],
    ['a prefix in escapes and options', 'GET /v1/%61uthorize?scope=admin HTTP/1.1', ['Host: a']],
  ])('is 403 all the same: %s', async (_what, line, headers) => {
    const answer = await request({
      port,
      bare: true,
      line,
      headers: [...headers, ...identity, `Authorization: Bearer ${key.token}`],
    });
    expect(answer.status, answer.text).toBe(403);
    expect(answer.body).toMatchObject({ code: 'forbidden', status: 403, success: false });
    expect(answer.headers['content-type']).toMatch(/^application\/problem\+json/);
  });

  test('elsewhere keeps its status', async () => {
    const elsewhere = await request({ port, bare: true, line: 'FETCH /v1/authorized HTTP/1.1' });
    expect([elsewhere.status, elsewhere.body.code]).toEqual([400, 'invalid_request']);
  });

  test('of HTTP/1.0 needs no Host', async () => {
    const answer = await request({
      port,
      bare: true,
      line: 'GET /v1/authorize HTTP/1.0',
      headers: [...identity, `Authorization: Bearer ${key.token}`],
    });
    expectAllowed(answer);
  });
});

test('a target with scheme and authority is read as one without', async () => {
  expectAllowed(await ask('GET http://claviger.test/v1/authorize?scope=read HTTP/1.1'));
  const lacking = await ask('GET HTTP://claviger.test/v1/authorize?scope=write HTTP/1.1');
  expect([lacking.status, lacking.body.code]).toEqual([403, 'insufficient_scope']);
});

test('routes beside it are not taken for it', async () => {
  for (const target of [
    '/v1/authorized',
    '/v1/authorize;a',
    '/v1//authorize',
    '/V1/authorize',
    '/x?/v1/authorize',
  ]) {
    expect((await ask(`GET ${target} HTTP/1.1`)).status, target).toBe(404);
  }
});

/** What a client may send of its own: headers that mean something to some gateway, spelled in every way. */
const smuggled = fc
  .tuple(
    fc.constantFrom(
      'x-claviger-key-id',
      'x-claviger-workspace-id',
      'x-claviger-scopes',
      'x-claviger-scope',
      'x-claviger-workspace',
      'x-claviger-environment-expected',
      'x-original-method',
      'x-original-uri',
      'x-original-url',
      'x-rewrite-url',
      'x-http-method-override',
      'x-forwarded-path',
      'x-forwarded-host',
      'x-forwarded-proto',
      'x-real-ip',
      'forwarded',
      'x_forwarded_for',
      'x_forwarded_uri',
      'x_forwarded_method',
      'x_claviger_service_key',
      'x_api_key',
      'true-client-ip',
      'accept-version',
    ),
    fc.constantFrom(
      '/contacts/17',
      '/admin',
      'DELETE',
      '203.0.113.9',
      '198.51.100.1',
      'admin',
      'ws_other',
      '',
    ),
    fc.infiniteStream(fc.boolean()),
    fc.boolean(),
  )
  .map(([name, value, upper, isUnderscored]) => {
    const spelled = [...name].map((letter) => (upper.next().value ? letter.toUpperCase() : letter)).join('');
    return `${isUnderscored ? spelled.replaceAll('-', '_') : spelled}: ${value}`;
  });

test('what a client sends under other names changes neither decision nor identity', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(smuggled, { maxLength: 8 }), fc.boolean(), async (headers, isRight) => {
      const path = isRight ? '/contacts/17' : '/admin';
      const answer = await request({
        port,
        line: 'GET /v1/authorize HTTP/1.1',
        headers: [
          ...headers,
          ...identity.filter((line) => !line.startsWith('X-Forwarded-Uri')),
          `X-Forwarded-Uri: ${path}`,
          `Authorization: Bearer ${key.token}`,
          ...headers,
        ],
      });
      if (isRight) expectAllowed(answer);
      else expect([answer.status, answer.body.code]).toEqual([403, 'endpoint_not_allowed']);
      expect(answer.headers['x-claviger-workspace-id']).toBe(isRight ? 'ws_acme' : undefined);
    }),
    { numRuns: 100 },
  );
});

test('whatever comes, the answer is one that lets in or says why not', async () => {
  const text = fc
    .string({ unit: 'binary-ascii', maxLength: 40 })
    .map((value) => value.replaceAll(/[\r\n\0]/g, ''));
  const target = fc.oneof(
    fc.constantFrom('', '/', '?', '/%', '/%00', '?scope=%', '?rate_limited_status=403', '*', '/a b'),
    fc.webQueryParameters().map((query) => `?${query}`),
    fc.webPath(),
  );
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...ANY_METHOD, 'FETCH', ''),
      target,
      fc.array(
        fc.oneof(
          smuggled,
          fc
            .tuple(
              fc.constantFrom(
                'Authorization',
                'X-Api-Key',
                'X-Claviger-Service-Key',
                'X-Forwarded-For',
                'X-Forwarded-Uri',
                'Content-Length',
                'Content-Type',
                'Host',
              ),
              text,
            )
            .map(([name, value]) => `${name}: ${value}`),
        ),
        { maxLength: 6 },
      ),
      async (method, behind, headers) => {
        const answer = await request({
          port,
          line: `${method} /v1/authorize${behind} HTTP/1.1`,
          headers,
          ...(method === 'HEAD' ? { method: 'HEAD' as const } : {}),
        });
        expect(STATUSES, answer.text).toContain(answer.status);
      },
    ),
    { numRuns: 200 },
  );
});
