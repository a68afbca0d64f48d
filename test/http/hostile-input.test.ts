import { gzipSync } from 'node:zlib';
import fc from 'fast-check';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { createTestApp, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';
import { listen } from './listen.ts';
import { expectProblem, expectRefusal, expectSilentOn, piecesOf } from './problem.ts';
import { request } from './raw.ts';
import { BODY_ROUTES, pathTo, ROUTES, type Route } from './routes.ts';

/*
 * Bodies and queries that no well-meaning client sends. Nothing of them yields a 5xx, and nothing of them is repeated
 * in an error, since it may hold a token.
 */

let app: TestApp;
let port: number;
let key: { id: string; token: string };

beforeAll(async () => {
  app = await createTestApp({ FAILED_AUTH_RATE_LIMIT: 'off', CALLER_RATE_LIMIT: 'off' });
  port = await listen(app);
});
afterAll(async () => {
  // A fault of ours would stand in the log; a caller's mistake is no news to it.
  expect(app.logLines.filter((line) => JSON.parse(line).level >= 50)).toEqual([]);
  await app.close();
});
beforeEach(async () => {
  // Once it holds an entry, keys are given no other scope.
  await app.delete('/v1/scopes/read');
  key = await app.createKey({ workspace_id: 'ws_hostile' });
});

const pathOf = (route: Route) => pathTo(route, { keyId: key.id, workspaceId: 'ws_nobody' });

/** Sends a body, byte for byte, over a socket. */
function sendBytes(
  route: Route,
  body: string | Buffer,
  contentType = 'application/json',
  headers: string[] = [],
) {
  return request({
    port,
    line: `${route.method} ${pathOf(route)} HTTP/1.1`,
    headers: [
      `Authorization: Bearer ${app.adminToken}`,
      ...(contentType === '' ? [] : [`Content-Type: ${contentType}`]),
      ...headers,
    ],
    body,
  });
}

function send(route: Route, body: unknown): Promise<Answer> {
  return app.send(route.method, pathOf(route), { body: JSON.stringify(body) });
}

function expectFault(answer: Answer, path: RegExp): void {
  expectProblem(answer, 'invalid_request');
  expect(answer.body.errors.map((fault: { path: string }) => fault.path).join(' ')).toMatch(path);
}

const routeOf = (method: string, path: string): Route => {
  const found = ROUTES.find((route) => route.method === method && route.path === path);
  if (found === undefined) throw new Error(`no such route: ${method} ${path}`);
  return found;
};
const CREATE = routeOf('POST', '/v1/api-keys');
const PATCH = routeOf('PATCH', '/v1/api-keys/{id}');
const REVOKE = routeOf('POST', '/v1/api-keys/{id}/revoke');
const DELETE = routeOf('DELETE', '/v1/api-keys/{id}');
const BULK = routeOf('POST', '/v1/workspaces/{id}/revoke-keys');
const PUT_SCOPE = routeOf('PUT', '/v1/scopes/{name}');
const INTROSPECT = routeOf('POST', '/v1/introspect');

const nested = (depth: number, open: string, close: string) => `${open.repeat(depth)}1${close.repeat(depth)}`;

describe('a body that is not JSON as it should be is 400 on every route', () => {
  test.each<[string, string | Buffer]>([
    ['a brace', '{'],
    ['half a member', '{"name"'],
    ['a trailing comma', '{"name":"x",}'],
    ['trailing garbage', '{"name":"x"} x'],
    ['two values', '{"name":"x"}{"name":"y"}'],
    ['a comment', '{"name":"x"/* */}'],
    ['single quotes', "{'name':'x'}"],
    ['a bare name', '{name:"x"}'],
    ['NaN', '{"name":NaN}'],
    ['Infinity', '{"name":-Infinity}'],
    ['undefined', 'undefined'],
    ['hexadecimal', '{"cost":0x10}'],
    ['a leading zero', '{"cost":01}'],
    ['a leading plus', '{"cost":+1}'],
    ['a raw newline in a string', '{"name":"a\nb"}'],
    ['a raw NUL in a string', '{"name":"a\0b"}'],
    ['a NUL behind it', '{"name":"x"}\0'],
    ['an unknown escape', '{"name":"\\x41"}'],
    ['half an escape', '{"name":"\\u00"}'],
    ['an open string', '{"name":"x'],
    ['an open string with an escape at its end', '{"name":"x\\'],
    ['XML', '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'],
    ['a form', 'key=value'],
    ['spaces alone', '   '],
    ['invalid UTF-8', Buffer.from('{"name":"\xff"}', 'latin1')],
    ['overlong UTF-8', Buffer.from([0x7b, 0x22, 0xc0, 0xae, 0x22, 0x3a, 0x31, 0x7d])],
    ['a surrogate in UTF-8', Buffer.from([0x22, 0xed, 0xa0, 0x80, 0x22])],
    ['half a character', Buffer.from([0x22, 0xf0, 0x9f, 0x94])],
    ['UTF-16', Buffer.from('{"name":"x"}', 'utf16le')],
    ['UTF-16 with a mark', Buffer.from('\ufeff{"name":"x"}', 'utf16le')],
    ['two byte order marks', '\ufeff\ufeff{"name":"x"}'],
    ['gzip', gzipSync('{"name":"x"}')],
    ['an escaped NUL', '{"name":"a\\u0000b"}'],
    ['an escaped NUL in a name', '{"a\\u0000":1}'],
    ['an escaped NUL deep in metadata', '{"metadata":{"a":[{"b\\u0000":1}]}}'],
    ['an unpaired high surrogate', '{"name":"\\ud83d"}'],
    ['an unpaired low surrogate', '{"name":"\\udd11x"}'],
    ['surrogates in the wrong order', '{"name":"\\udd11\\ud83d"}'],
    ['an unpaired surrogate in a name', '{"\\ud83d":1}'],
    ['a member twice', '{"name":"x","name":"x"}'],
    ['a member twice, once escaped', '{"name":"x","\\u006eame":"y"}'],
    ['a member twice, deep down', '{"metadata":{"a":[1,{"b":1,"c":2,"b":3}]}}'],
    ['an unknown member twice', '{"x":1,"x":1}'],
    ['the key twice, once escaped', '{"key":"x","\\u006bey":"y"}'],
    ['an empty name twice', '{"":1,"":2}'],
    ['__proto__', '{"__proto__":{"admin":true}}'],
    ['__proto__ with an escape', '{"\\u005f_proto__":{"admin":true}}'],
    ['__proto__ deep down', '{"metadata":{"a":[{"__proto__":null}]}}'],
    ['constructor.prototype', '{"constructor":{"prototype":{"admin":true}}}'],
    ['constructor.prototype deep down', '{"metadata":{"constructor":{"prototype":{}}}}'],
    ['a number beyond all numbers', '{"cost":1e999}'],
    ['a negative number beyond all numbers', '{"metadata":{"a":-1e999}}'],
    ['2^53 + 1', '{"metadata":{"a":9007199254740993}}'],
    ['2^53', '{"metadata":{"a":[9007199254740992]}}'],
    ['-2^53', '{"metadata":{"a":-9007199254740992}}'],
    ['1e308', '{"metadata":{"a":1e308}}'],
    ['a number of many digits', `{"metadata":{"a":${'9'.repeat(5_000)}}}`],
    ['lists nested too deep', `{"metadata":{"a":${nested(31, '[', ']')}}}`],
    ['lists nested much too deep', nested(30_000, '[', ']')],
    ['objects nested much too deep', nested(10_000, '{"a":', '}')],
    ['brackets that never close', '['.repeat(60_000)],
    ['objects that never close', '{"a":'.repeat(12_000)],
    ['a list', '[]'],
    ['a list of a body', '[{"name":"x"}]'],
    ['a string', '"name"'],
    ['a number', '1'],
    ['true', 'true'],
  ])('%s', async (_what, body) => {
    for (const route of BODY_ROUTES) {
      const answer = await sendBytes(route, body);
      expectRefusal(answer, 'invalid_request');
    }
    expect((await app.get(`/v1/api-keys/${key.id}`)).body.data.status).toBe('active');
    expect({}).not.toHaveProperty('admin');
  });

  test('no body, or null, is none: refused where one is needed, and else taken for an empty one', async () => {
    for (const [contentType, body] of [
      ['application/json', ''],
      ['application/json', 'null'],
      ['', ''],
    ] as const) {
      for (const route of [CREATE, PATCH, INTROSPECT]) {
        expectRefusal(await sendBytes(route, body, contentType), 'invalid_request');
      }
      for (const route of [REVOKE, DELETE, BULK]) {
        expect((await sendBytes(route, body, contentType)).status).toBe(200);
      }
    }
  });

  test('one byte order mark is skipped, as RFC 8259 allows', async () => {
    const answer = await sendBytes(CREATE, '\ufeff{"workspace_id":"ws_hostile","name":"Marked"}');
    expect(answer.status, answer.text).toBe(201);
    expect(answer.body.data.name).toBe('Marked');
  });
});

describe('a body of another kind', () => {
  test.each([
    'text/plain',
    'text/json',
    'application/xml',
    'application/jsonp',
    'application/json5',
    'application/json-seq',
    'application/ld+json',
    'application/octet-stream',
    'multipart/form-data; boundary=x',
    'multipart/form-data',
    'multipart/mixed',
    'application',
    'application/',
    '/json',
    'json',
    '*/*',
    'application/*',
    ';',
    'application/json, text/plain',
    'application/json application/json',
    'application/x-www-form-urlencodedx',
    'application/cbor',
    '\xff\xfe',
    'x'.repeat(5_000),
  ])('is 415 on every route: %.60s', async (contentType) => {
    for (const route of BODY_ROUTES) {
      const answer = await sendBytes(route, JSON.stringify(route.body ?? {}), contentType);
      expectRefusal(answer, 'unsupported_media_type');
    }
  });

  test('is a form for introspection alone', async () => {
    for (const route of BODY_ROUTES) {
      const answer = await sendBytes(route, 'token=x', 'application/x-www-form-urlencoded');
      if (route === INTROSPECT) expect(answer.body).toEqual({ active: false });
      else expectRefusal(answer, 'unsupported_media_type');
    }
  });

  test('is one without a type', async () => {
    for (const route of BODY_ROUTES) {
      expectRefusal(await sendBytes(route, JSON.stringify(route.body ?? {}), ''), 'unsupported_media_type');
    }
  });

  test('is a merge patch for what is not introspection', async () => {
    expect((await sendBytes(PATCH, '{"name":"Merged"}', 'application/merge-patch+json')).status).toBe(200);
    for (const body of ['{"key":"x"}', '{"key":1}', '{}', '{']) {
      const answer = await sendBytes(INTROSPECT, body, 'application/merge-patch+json');
      expectRefusal(answer, body === '{' ? 'invalid_request' : 'unsupported_media_type');
    }
  });

  test('is not one with parameters, or in upper case', async () => {
    for (const contentType of [
      'application/json; charset=utf-8',
      'application/json;charset=UTF-8',
      'Application/JSON',
      'application/json ; x="y;z"',
    ]) {
      for (const route of [CREATE, PATCH, INTROSPECT]) {
        const answer = await sendBytes(route, JSON.stringify(route.body), contentType);
        expect(answer.status, `${contentType} ${route.path} ${answer.text}`).toBeLessThan(300);
        expectRefusal(await sendBytes(route, '{"frob":1}', contentType), 'invalid_request');
      }
    }
    const form = await sendBytes(
      INTROSPECT,
      `token=${key.token}`,
      'Application/X-WWW-Form-URLencoded; charset=utf-8',
    );
    expect(form.body).toMatchObject({ active: true, client_id: key.id });
  });

  test.each(['gzip', 'deflate', 'br', 'x-gzip', 'gzip, identity', 'nonsense', 'GZIP'])(
    'is one in a coding, also where the body is not in that coding: %s',
    async (coding) => {
      for (const route of BODY_ROUTES) {
        const text = JSON.stringify(route.body ?? {});
        for (const body of [text, gzipSync(text)]) {
          const answer = await sendBytes(route, body, 'application/json', [`Content-Encoding: ${coding}`]);
          expectRefusal(answer, 'unsupported_media_type');
        }
      }
      expect((await app.get(`/v1/api-keys/${key.id}`)).body.data.status).toBe('active');
    },
  );

  test('is not one of the coding identity, nor where there is no body', async () => {
    const identity = await sendBytes(CREATE, JSON.stringify(CREATE.body), 'application/json', [
      'Content-Encoding: identity',
    ]);
    expect(identity.status).toBe(201);
    const headers = { 'content-encoding': 'gzip' };
    expect((await app.get('/v1/me', { headers })).status).toBe(200);
  });
});

describe('a body of 64 KiB', () => {
  const filled = (bytes: number) => {
    const head = '{"workspace_id":"ws_hostile","name":"Big"';
    return `${head}${' '.repeat(bytes - head.length - 1)}}`;
  };
  const chunked = (body: string) => `${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`;
  const sendChunked = (route: Route, body: string) =>
    request({
      port,
      line: `${route.method} ${pathOf(route)} HTTP/1.1`,
      headers: [
        `Authorization: Bearer ${app.adminToken}`,
        'Content-Type: application/json',
        `Transfer-Encoding: chunked\r\n\r\n${chunked(body).slice(0, -4)}`,
      ],
    });

  test('is read, and one more byte is 413, with a length and in chunks', async () => {
    expect((await sendBytes(CREATE, filled(65_536))).status).toBe(201);
    expectRefusal(await sendBytes(CREATE, filled(65_537)), 'payload_too_large');
    expect((await sendChunked(CREATE, filled(65_536))).status).toBe(201);
    expectRefusal(await sendChunked(CREATE, filled(65_537)), 'payload_too_large');
  });

  test('is the most on every route', async () => {
    for (const route of BODY_ROUTES) {
      const tooMuch = ' '.repeat((route.maxBodyBytes ?? 65_536) + 1);
      expectRefusal(await sendBytes(route, tooMuch), 'payload_too_large');
      expectRefusal(await sendChunked(route, tooMuch), 'payload_too_large');
    }
    const form = 'application/x-www-form-urlencoded';
    expectRefusal(await sendBytes(INTROSPECT, `token=${'x'.repeat(65_531)}`, form), 'payload_too_large');
    expect((await sendBytes(INTROSPECT, `token=${'x'.repeat(65_530)}`, form)).text).toBe('{"active":false}');
  });

  test('is refused by its announced length, before it is sent', async () => {
    const answer = await request({
      port,
      line: 'POST /v1/api-keys HTTP/1.1',
      headers: [
        `Authorization: Bearer ${app.adminToken}`,
        'Content-Type: application/json',
        'Content-Length: 1000000000',
      ],
    });
    expectRefusal(answer, 'payload_too_large');
  });
});

/** A value of each JSON type. */
const SAMPLES = {
  null: null,
  boolean: true,
  number: 7,
  string: 'x',
  array: ['x'],
  object: { a: 'x' },
};
type JsonType = keyof typeof SAMPLES;

interface Member {
  readonly route: Route;
  /** Where it stands: names, `0` for the first of a list. */
  readonly at: readonly string[];
  readonly types: readonly JsonType[];
}

const RESTRICTIONS: [string, JsonType[]][] = [
  ['restrictions', ['object', 'null']],
  ['restrictions.allowed_ips', ['array', 'null']],
  ['restrictions.allowed_ips.0', ['string']],
  ['restrictions.allowed_referrers', ['array', 'null']],
  ['restrictions.allowed_referrers.0', ['string']],
  ['restrictions.allowed_endpoints', ['array', 'null']],
  ['restrictions.allowed_endpoints.0', ['object']],
  ['restrictions.allowed_endpoints.0.path', ['string']],
  ['restrictions.allowed_endpoints.0.methods', ['array', 'null']],
  ['restrictions.allowed_endpoints.0.methods.0', ['string']],
  ['restrictions.allowed_workspaces', ['array', 'null']],
  ['restrictions.allowed_workspaces.0', ['string']],
];
const SETTINGS: [string, JsonType[]][] = [
  ...RESTRICTIONS,
  ['rate_limit', ['object', 'null']],
  ['rate_limit.limit', ['number']],
  ['rate_limit.window_seconds', ['number']],
  ['metadata', ['object', 'null']],
  ['expires_at', ['string', 'null']],
  ['name', ['string']],
  ['scopes.0', ['string']],
];
const TABLE: [Route, [string, JsonType[]][]][] = [
  [
    CREATE,
    [
      ...SETTINGS,
      ['workspace_id', ['string']],
      ['environment', ['string']],
      ['scopes', ['array']],
      ['created_by', ['string', 'null']],
    ],
  ],
  [PATCH, [...SETTINGS, ['scopes', ['array', 'null']]]],
  [REVOKE, [['reason', ['string', 'null']]]],
  [DELETE, [['reason', ['string', 'null']]]],
  [
    BULK,
    [
      ['reason', ['string', 'null']],
      ['environment', ['string']],
      ['created_by', ['string']],
    ],
  ],
  [
    PUT_SCOPE,
    [
      ['description', ['string', 'null']],
      ['implies', ['array', 'null']],
      ['implies.0', ['string']],
      ['grants', ['array', 'null']],
      ['grants.0', ['object']],
      ['grants.0.path', ['string']],
      ['grants.0.methods', ['array', 'null']],
      ['grants.0.methods.0', ['string']],
    ],
  ],
  [
    INTROSPECT,
    [
      ['key', ['string']],
      ['token', ['string']],
      ['scopes', ['array']],
      ['scopes.0', ['string']],
      ['workspace_id', ['string']],
      ['environment', ['string']],
      ['cost', ['number']],
      ['request', ['object']],
      ['request.ip', ['string', 'null']],
      ['request.method', ['string', 'null']],
      ['request.path', ['string', 'null']],
      ['request.referrer', ['string', 'null']],
    ],
  ],
];
const MEMBERS: Member[] = TABLE.flatMap(([route, members]) =>
  members.map(([path, types]) => ({ route, at: path.split('.'), types })),
);

/** A body that is right but for what stands at `at`. */
function bodyWith(route: Route, at: readonly string[], value: unknown): unknown {
  const [first = '', ...rest] = at;
  const base: Record<string, unknown> =
    route === CREATE
      ? { workspace_id: 'ws_hostile', name: 'Typed' }
      : route === INTROSPECT && first !== 'token'
        ? { key: 'x' }
        : {};
  return { ...base, [first]: wrap(rest, value) };
}

function wrap(at: readonly string[], value: unknown): unknown {
  const [first, ...rest] = at;
  if (first === undefined) return value;
  if (first === '0') return [wrap(rest, value)];
  const needed =
    first === 'methods'
      ? { path: '/x' }
      : first === 'limit'
        ? { window_seconds: 1 }
        : first === 'window_seconds'
          ? { limit: 1 }
          : {};
  return { ...needed, [first]: wrap(rest, value) };
}

describe('a member of the wrong type is 400 and named', () => {
  test.each(
    MEMBERS.map((member) => ({
      ...member,
      label: `${member.route.method} ${member.route.path} ${member.at.join('.')}`,
    })),
  )('$label', async ({ route, at, types }) => {
    for (const [type, sample] of Object.entries(SAMPLES)) {
      if (types.includes(type as JsonType)) continue;
      const answer = await send(route, bodyWith(route, at, sample));
      expectFault(answer, new RegExp(`^${at.join('\\.')}`));
    }
    if (types.includes('number')) {
      for (const number of [1.5, -1, 1e-7, Number.MAX_SAFE_INTEGER]) {
        expectFault(await send(route, bodyWith(route, at, number)), new RegExp(`^${at.join('\\.')}`));
      }
    }
  });

  test('so is a member that nobody knows, wherever it stands', async () => {
    for (const { route, at, types } of MEMBERS) {
      if (!types.includes('object') || at.join('.') === 'metadata') continue;
      for (const name of ['frob', 'Name', 'constructor', 'toString', 'hasOwnProperty', 'limit ', '']) {
        const answer = await send(route, bodyWith(route, at, { [name]: 1 }));
        expectProblem(answer, 'invalid_request');
        expect(answer.body.errors.map(({ message }: { message: string }) => message)).toContain(
          'is not a member of this request',
        );
      }
    }
    for (const route of BODY_ROUTES) {
      expectFault(await send(route, { ...(route.body as object), frob: 1 }), /\bfrob\b/);
    }
  });
});

describe('both sides of each bound', () => {
  const many = (count: number, entry: (index: number) => unknown) =>
    Array.from({ length: count }, (_, index) => entry(index));
  const metadataOf = (bytes: number) => ({ a: 'x'.repeat(bytes - '{"a":""}'.length) });
  const metadataIn2 = (bytes: number) => ({ a: 'ä'.repeat((bytes - '{"a":""}'.length) / 2) });

  const cases: [string, Route, string, unknown[], unknown[]][] = [
    [
      'workspace ids',
      CREATE,
      'workspace_id',
      ['w', 'w'.repeat(100), 'A.b_c:d-9', '...', '-', '__proto__'],
      ['', 'w'.repeat(101), '.', '..', 'a b', 'a/b', 'ä', 'a\n', '%', 'a,b'],
    ],
    [
      'names',
      CREATE,
      'name',
      [
        'n',
        'n'.repeat(120),
        ' ',
        '\u{1f511}'.repeat(120),
        "'; DROP TABLE api_keys; --",
        '\u202e',
        '\ufffe\uffff',
        '\t\n',
      ],
      ['', 'n'.repeat(121), '\u{1f511}'.repeat(121)],
    ],
    [
      'descriptions of scopes',
      PUT_SCOPE,
      'description',
      ['d', 'd'.repeat(500), '\u{1f511}'.repeat(500), null],
      ['', 'd'.repeat(501)],
    ],
    [
      'implied scopes',
      PUT_SCOPE,
      'implies',
      [[], ['a'], ['a'.repeat(64)], many(64, (index) => `s${index}`), ['a', 'a']],
      [['a'.repeat(65)], many(65, (index) => `s${index}`), [''], ['A'], ['*'], ['read'], ['introspect']],
    ],
    [
      'grants',
      PUT_SCOPE,
      'grants',
      [
        [],
        [{ path: '/' }],
        [{ path: `/${'p'.repeat(255)}` }],
        [{ path: '/*', methods: null }],
        [{ path: '/*', methods: many(16, () => 'GET') }],
        many(100, (index) => ({ path: `/${index}` })),
      ],
      [
        [{ path: '' }],
        [{ path: 'a' }],
        [{ path: `/${'p'.repeat(256)}` }],
        [{ path: '/a//b' }],
        [{ path: '/{id}' }],
        [{ path: '/*', methods: [] }],
        [{ path: '/*', methods: ['get'] }],
        [{ path: '/*', methods: many(17, () => 'GET') }],
        many(101, (index) => ({ path: `/${index}` })),
      ],
    ],
    ['names by PATCH', PATCH, 'name', ['n', 'n'.repeat(120)], ['', 'n'.repeat(121)]],
    [
      'scopes',
      CREATE,
      'scopes',
      [
        [],
        ['a'],
        ['a'.repeat(64)],
        ['0'],
        ['a:b:c'],
        ['a_.-:_'],
        many(64, (index) => `s${index}`),
        ['a', 'a'],
      ],
      [
        ['a'.repeat(65)],
        many(65, (index) => `s${index}`),
        [''],
        ['A'],
        [':a'],
        ['a:'],
        ['a::b'],
        ['*'],
        ['a:*'],
        ['-a'],
        ['a b'],
        ['a,b'],
        ['{a}'],
        ['"a"'],
        ['a\\'],
        ['NULL'],
        ['ä'],
      ],
    ],
    [
      'scopes by PATCH',
      PATCH,
      'scopes',
      [[], null, ['a'.repeat(64)], many(64, (index) => `s${index}`)],
      [['a'.repeat(65)], many(65, (index) => `s${index}`), ['*']],
    ],
    [
      'environments',
      CREATE,
      'environment',
      ['live', 'test'],
      ['', 'prod', 'svc', 'Live', 'live ', 'l'.repeat(17), "live'"],
    ],
    [
      'expiry',
      CREATE,
      'expires_at',
      [
        null,
        '2099-01-01T00:00:00Z',
        '9999-12-31T23:59:59.999Z',
        '2099-01-01T00:00:00.123456789Z',
        '2099-01-01T00:00:00+14:00',
        '2099-06-30T23:59:59-23:59',
        `2099-01-01T00:00:00.${'9'.repeat(1_000)}Z`,
      ],
      [
        '',
        '2000-01-01T00:00:00Z',
        '1970-01-01T00:00:00Z',
        '1969-12-31T23:59:59Z',
        '0000-01-01T00:00:00Z',
        '0001-01-01T00:00:00Z',
        '-000001-01-01T00:00:00Z',
        '+010000-01-01T00:00:00Z',
        '10000-01-01T00:00:00Z',
        '9999-12-31T23:59:59.999-00:01',
        '9999-12-31T23:59:60Z',
        '2099-02-29T00:00:00Z',
        '2099-13-01T00:00:00Z',
        '2099-01-01T24:00:00Z',
        '2099-01-01T00:00:60Z',
        '2099-01-01T00:00:00',
        '2099-01-01',
        '2099-01-01 00:00:00Z',
        '2099-01-01T00:00:00+24:00',
        'infinity',
        '-infinity',
        'now',
        'tomorrow',
        '4070908800',
        '294277-01-01T00:00:00Z',
      ],
    ],
    [
      'expiry by PATCH',
      PATCH,
      'expires_at',
      [null, '9999-12-31T23:59:59.999Z'],
      ['0000-01-01T00:00:00Z', 'infinity', '2000-01-01T00:00:00Z'],
    ],
    [
      'rate limits',
      CREATE,
      'rate_limit',
      [null, { limit: 1, window_seconds: 1 }, { limit: 2_147_483_647, window_seconds: 2_678_400 }],
      [
        {},
        { limit: 1 },
        { window_seconds: 1 },
        { limit: 0, window_seconds: 1 },
        { limit: 2_147_483_648, window_seconds: 1 },
        { limit: 1, window_seconds: 0 },
        { limit: 1, window_seconds: 2_678_401 },
        { limit: -1, window_seconds: 1 },
        { limit: 1, window_seconds: 1, burst: 1 },
        { limit: null, window_seconds: 1 },
      ],
    ],
    [
      'rate limits by PATCH',
      PATCH,
      'rate_limit',
      [null, { limit: 5 }, { window_seconds: 5 }, {}, { limit: 2_147_483_647, window_seconds: 2_678_400 }],
      [{ limit: 2_147_483_648 }, { window_seconds: 2_678_401 }, { limit: 0 }, { limit: null }],
    ],
    [
      'metadata',
      CREATE,
      'metadata',
      [
        null,
        {},
        metadataOf(4_096),
        metadataIn2(4_096),
        { a: null },
        { '': '' },
        { a: 9_007_199_254_740_991 },
        { a: -0.1e-300 },
        { constructor: 1, toString: 2, hasOwnProperty: 3 },
        { a: JSON.parse(nested(29, '[', ']')) },
      ],
      [metadataOf(4_097), metadataIn2(4_098)],
    ],
    ['metadata by PATCH', PATCH, 'metadata', [null, {}, metadataOf(4_096), { a: null }], [metadataOf(4_097)]],
    ['creators', CREATE, 'created_by', [null, 'c', 'c'.repeat(200)], ['', 'c'.repeat(201)]],
    [
      'addresses',
      CREATE,
      'restrictions',
      [
        {},
        null,
        { allowed_ips: null },
        { allowed_ips: ['192.0.2.1', '::', '0.0.0.0/0', '::/0', '::ffff:192.0.2.0/120'] },
        { allowed_ips: many(100, (index) => `192.0.2.${index}`) },
      ],
      [
        { allowed_ips: [] },
        { allowed_ips: many(101, (index) => `192.0.2.${index}`) },
        ...[
          '',
          ' ',
          '192.0.2.1/33',
          '192.0.2.1/',
          '192.0.2',
          '1',
          '0x7f.1',
          '192.0.2.1 ',
          '192.0.2.0/-1',
          '::/129',
          'fe80::1%eth0',
          '[::1]',
          'localhost',
          '192.0.2.1:80',
          'x'.repeat(513),
        ].map((entry) => ({ allowed_ips: [entry] })),
      ],
    ],
    [
      'referrers',
      CREATE,
      'restrictions',
      [
        { allowed_referrers: ['https://*.example.com/*'] },
        { allowed_referrers: many(100, (index) => `https://h${index}.example.com/*`) },
      ],
      [
        { allowed_referrers: [] },
        { allowed_referrers: many(101, (index) => `https://h${index}.example.com/*`) },
        ...[
          '',
          '*',
          'https://',
          'example.com',
          'javascript:alert(1)',
          'https://ex*mple.com/',
          'https://example.com:*/',
          `https://example.com/${'x'.repeat(500)}`,
        ].map((entry) => ({ allowed_referrers: [entry] })),
      ],
    ],
    [
      'endpoints',
      CREATE,
      'restrictions',
      [
        { allowed_endpoints: [{ path: '/*' }] },
        { allowed_endpoints: [{ path: '/a/:id', methods: null }] },
        { allowed_endpoints: many(100, (index) => ({ methods: ['GET'], path: `/p${index}` })) },
      ],
      [
        { allowed_endpoints: [] },
        { allowed_endpoints: [{}] },
        { allowed_endpoints: [{ path: '/a', methods: [] }] },
        { allowed_endpoints: [{ path: '/a', methods: ['get'] }] },
        { allowed_endpoints: many(101, (index) => ({ path: `/p${index}` })) },
        ...['', 'a', '/a/*/b', '/a//b', '/../a', '/%2e%2e/a', '/a\\b', `/${'x'.repeat(512)}`].map((path) => ({
          allowed_endpoints: [{ path }],
        })),
      ],
    ],
    ['reasons', REVOKE, 'reason', [null, 'r', 'r'.repeat(200)], ['', 'r'.repeat(201)]],
    ['reasons of DELETE', DELETE, 'reason', [null, 'r', 'r'.repeat(200)], ['', 'r'.repeat(201)]],
    ['reasons in bulk', BULK, 'reason', [null, 'r', 'r'.repeat(200)], ['', 'r'.repeat(201)]],
    ['environments in bulk', BULK, 'environment', ['live', 'nobody'], ['', 'LIVE', 'l'.repeat(17)]],
    [
      'creators in bulk',
      BULK,
      'created_by',
      ['c', 'c'.repeat(200), "' OR 1=1 --", '%'],
      ['', 'c'.repeat(201)],
    ],
    [
      'keys asked about',
      INTROSPECT,
      'key',
      ['', 'x', 'x'.repeat(60_000), '\u{1f511}', '\t', 'ck_live_', '__proto__'],
      [],
    ],
    ['costs', INTROSPECT, 'cost', [0, 1, 10_000], [-1, 10_001, 0.5]],
    [
      'scopes asked for',
      INTROSPECT,
      'scopes',
      [[], ['a'], many(64, (index) => `s${index}`)],
      [many(65, (index) => `s${index}`), ['A'], ['']],
    ],
    [
      'facts',
      INTROSPECT,
      'request',
      [
        {},
        { ip: null, method: null, path: null, referrer: null },
        { ip: '', method: '', path: '', referrer: '' },
        { ip: 'x'.repeat(64), method: 'x'.repeat(32), path: 'x'.repeat(8_192), referrer: 'x'.repeat(8_192) },
        { path: '/%ff/%00/../\\', referrer: 'http://[', ip: '::%' },
      ],
      [
        { ip: 'x'.repeat(65) },
        { method: 'x'.repeat(33) },
        { path: 'x'.repeat(8_193) },
        { referrer: 'x'.repeat(8_193) },
        { host: 'x' },
      ],
    ],
  ];

  test.each(cases)('of %s', async (_what, route, member, inside, outside) => {
    for (const value of inside) {
      key = await app.createKey({ workspace_id: 'ws_hostile' });
      const answer = await send(route, bodyWith(route, [member], value));
      expect(answer.status, `${JSON.stringify(value)?.slice(0, 200)}: ${answer.text}`).toBeLessThan(300);
    }
    for (const value of outside) {
      const answer = await send(route, bodyWith(route, [member], value));
      expect(answer.status, JSON.stringify(value).slice(0, 200)).toBe(400);
      expectFault(answer, new RegExp(`^${member}`));
    }
  });

  test('what is inside comes back as it was sent', async () => {
    const odd = [
      '\u{1f511}é\u0301',
      '\ufffe\uffff\u{10ffff}',
      '\'"\\`$1{},;%_',
      '\t\n\r\u007f\u0080',
      '\u2028\u2029\u202e',
      '{a,b}',
      'NULL',
      '\\x41',
    ];
    for (const text of odd) {
      const metadata = { [text]: text, list: [text, null, 0.1, 1e-300, true, { [text]: [] }] };
      const { id } = await app.createKey({ name: text, created_by: text, metadata });
      const revoked = await app.delete(`/v1/api-keys/${id}`, { reason: text });
      expect(revoked.body.data).toMatchObject({ name: text, created_by: text, revoked_reason: text });
      expect((await app.get(`/v1/api-keys/${id}`)).body.data.metadata).toEqual(metadata);
      for (const filter of ['name', 'created_by']) {
        const listed = await app.get(`/v1/api-keys?${filter}=${encodeURIComponent(text)}`);
        expect(
          listed.body.data.map((found: { id: string }) => found.id),
          `${filter}=${JSON.stringify(text)}`,
        ).toEqual([id]);
      }
    }
  });

  test('of a form of introspection', async () => {
    const form = 'application/x-www-form-urlencoded';
    for (const body of [
      'token=x&frob=y&frob=z',
      'token=%ff%fe',
      'token=%',
      'token=%zz',
      'token=a+b',
      '&&token=x&&',
      'token=x&__proto__=y',
      'token=x&token_type_hint=frob',
    ]) {
      expect((await sendBytes(INTROSPECT, body, form)).text, body).toBe('{"active":false}');
    }
    for (const body of [
      '',
      'key=x',
      'token=x&token=x',
      'token=x&%74oken=y',
      'token=%00',
      'TOKEN=x',
      'token=',
      'token=&x=y',
      '{"token":"x"}',
      'frob',
      '=token',
      '%',
    ]) {
      expectRefusal(await sendBytes(INTROSPECT, body, form), 'invalid_request');
    }
    const answer = await sendBytes(INTROSPECT, `%74oken=${encodeURIComponent(key.token)}&scope=x`, form);
    expect(answer.body).toMatchObject({ active: true, client_id: key.id });
  });

  test('key and token together are refused, and so is neither', async () => {
    for (const body of [{}, { key: 'x', token: 'x' }, { key: '', token: '' }, { scopes: [] }]) {
      expectFault(await send(INTROSPECT, body), /^key$/);
    }
    expect((await send(INTROSPECT, { token: key.token })).body.active).toBe(true);
  });
});

describe('a query', () => {
  const list = (query: string) => app.get(`/v1/api-keys?${query}`);
  const day = '2026-01-01T00:00:00Z';

  test.each([
    'limit=0',
    'limit=101',
    'limit=-1',
    'limit=1.0',
    'limit=01',
    'limit=1e1',
    'limit=',
    'limit=%201',
    'limit=0x10',
    'limit=NaN',
    'limit=9999999999999999999999',
    'limit=1&limit=1',
    'limit[]=1',
    'limit[gt]=1',
    'workspace_id=',
    'workspace_id=.',
    'workspace_id=..',
    `workspace_id=${'w'.repeat(101)}`,
    'workspace_id=a&workspace_id=b',
    'workspace_id=%00',
    'workspace_id=a%0a',
    'environment=',
    'environment=LIVE',
    'environment=%25',
    'status=',
    'status=Active',
    'status=deleted',
    'status=active,revoked',
    'status=active&status=revoked',
    'scope=',
    'scope=*',
    'scope=%7Ba%7D',
    'scope=a%22',
    `scope=${'a'.repeat(65)}`,
    'name=',
    'name=%00',
    'name=a%00b',
    `name=${'n'.repeat(121)}`,
    'created_by=',
    'created_by=%00',
    `created_by=${'c'.repeat(201)}`,
    'expires_before=',
    'expires_before=0000-01-01T00:00:00Z',
    'expires_before=-000001-01-01T00:00:00Z',
    'expires_before=%2B275760-09-13T00:00:00Z',
    'expires_before=infinity',
    'expires_before=1',
    'unused_since=0000-01-01T00:00:00Z',
    'unused_since=1969-12-31T23:59:59.999Z',
    'unused_since=yesterday',
    'unused_since=99999-01-01T00:00:00Z',
    'rotation_due=',
    'rotation_due=false',
    'rotation_due=TRUE',
    'rotation_due=1',
    'cursor=',
    'cursor=x',
    'cursor=%00',
    `cursor=${'A'.repeat(43)}`,
    `cursor=${'A'.repeat(201)}`,
    'cursor=a&cursor=b',
    'frob=1',
    'Limit=1',
    'limit%20=1',
    '__proto__=1',
    '__proto__[admin]=1',
    'constructor=1',
    'constructor.prototype=1',
    'toString=1',
    '=1',
    `${'x'.repeat(5_000)}=1`,
    Array.from({ length: 1_500 }, (_, index) => `a${index}`).join('&'),
  ])('of which a part is wrong is refused: %.60s', async (query) => {
    const answer = await list(query);
    expectRefusal(answer, 'invalid_request');
    expect(answer.body.errors.length).toBeGreaterThan(0);
    expect({}).not.toHaveProperty('admin');
  });

  test.each([
    '',
    'limit=1',
    'limit=100',
    'name=%25',
    'name=_',
    'name=%5C',
    'name=%5C%25',
    `name=${'%5C'.repeat(120)}`,
    "name=' OR 1=1 --".replaceAll(' ', '%20'),
    'name=%',
    'name=%zz',
    'name=%ff',
    'name=%ed%a0%80',
    'name=%F0%9F%94%91',
    'created_by=%5C',
    'created_by=NULL',
    'scope=null',
    'environment=nobody',
    'environment=svc',
    'workspace_id=system',
    'workspace_id=__proto__',
    'expires_before=1970-01-01T00:00:00Z',
    'expires_before=9999-12-31T23:59:59.999Z',
    'unused_since=1970-01-01T00:00:00Z',
    'unused_since=9999-12-31T23:59:59.999Z',
    'rotation_due=true',
    `workspace_id=a&environment=live&status=active&scope=a&name=a&created_by=a&expires_before=${day}&unused_since=${day}&rotation_due=true&limit=5`,
    '&&limit=5&&',
  ])('of which all is right is answered: %.60s', async (query) => {
    const answer = await list(query);
    expect(answer.status, answer.text).toBe(200);
  });

  test('has no wildcards: a name filter is the beginning of a name as it is written', async () => {
    for (const name of ['wild%card', 'wild_card', 'wild\\card', 'wildXcard', 'WILD%CARD'])
      await app.createKey({ name });
    for (const [filter, expected] of [
      ['wild%', ['wild%card']],
      ['wild_', ['wild_card']],
      ['wild\\', ['wild\\card']],
      ['wild', ['wildXcard', 'wild\\card', 'wild_card', 'wild%card']],
      ['%', []],
    ] as const) {
      const answer = await list(`name=${encodeURIComponent(filter)}`);
      expect(answer.body.data.map((found: { name: string }) => found.name)).toEqual(expected);
    }
  });

  test('is not read on routes that have none', async () => {
    for (const query of ['frob=1', '__proto__=1', 'limit=1&limit=2', '%', '%00=%00', '?'.repeat(100)]) {
      expect((await app.get(`/v1/api-keys/${key.id}?${query}`)).status).toBe(200);
      expect((await app.get(`/healthz?${query}`)).status).toBe(200);
    }
  });
});

describe('a cursor', () => {
  let cursor: string;
  const FILTERS = 'workspace_id=ws_cursor&limit=1';

  beforeAll(async () => {
    for (let index = 0; index < 3; index++) await app.createKey({ workspace_id: 'ws_cursor' });
    cursor = (await app.get(`/v1/api-keys?${FILTERS}`)).body.pagination.next_cursor;
    expect(cursor).toMatch(/^[A-Za-z0-9_-]+$/);
  });

  test('is good for the list it is of, with pages of any size', async () => {
    expect((await app.get(`/v1/api-keys?${FILTERS}&cursor=${cursor}`)).body.data).toHaveLength(1);
    expect(
      (await app.get(`/v1/api-keys?limit=100&workspace_id=ws_cursor&cursor=${cursor}`)).body.data,
    ).toHaveLength(2);
  });

  test('of which any character is changed, left out or doubled is refused', async () => {
    for (let index = 0; index < cursor.length; index++) {
      const [before, after] = [cursor.slice(0, index), cursor.slice(index + 1)];
      for (const changed of [
        `${before}${cursor[index] === 'A' ? 'B' : 'A'}${after}`,
        before + after,
        before + (cursor[index] ?? '').repeat(2) + after,
        `${before}%00${after}`,
        `${before}=${after}`,
      ]) {
        if (changed === cursor) continue;
        expectFault(await app.get(`/v1/api-keys?${FILTERS}&cursor=${changed}`), /^cursor$/);
      }
    }
    for (const changed of [
      `${cursor}=`,
      `${cursor}A`,
      `%20${cursor}`,
      `${cursor}.`,
      cursor + cursor,
      Buffer.from(cursor, 'base64url').toString('hex'),
    ]) {
      expectFault(await app.get(`/v1/api-keys?${FILTERS}&cursor=${changed}`), /^cursor$/);
    }
  });

  test.each([
    'workspace_id=ws_hostile',
    'limit=1',
    'workspace_id=ws_cursor&environment=live',
    'workspace_id=ws_cursor&status=active',
    'workspace_id=ws_cursor&name=T',
    'workspace_id=ws_cursor&rotation_due=true',
    'workspace_id=ws_curso',
    'name=ws_cursor',
  ])('of a list with other filters is refused: %s', async (query) => {
    expectFault(await app.get(`/v1/api-keys?${query}&cursor=${cursor}`), /^cursor$/);
  });
});

describe('a token in the wrong place', () => {
  test('is in no answer, no log line and no table', async () => {
    const { id, token } = await app.createKey({ workspace_id: 'ws_planted' });
    const { token: service } = await app.createServiceKey([]);
    for (const secret of [token, service]) {
      const answers: Answer[] = [];
      for (const route of BODY_ROUTES) {
        for (const body of [
          { [secret]: 1 },
          { name: { [secret]: 1 } },
          { request: { [secret]: secret } },
          {
            restrictions: {
              [secret]: [secret],
              allowed_ips: [secret],
              allowed_referrers: [secret],
              allowed_workspaces: [`${secret}!`],
            },
          },
          { restrictions: { allowed_endpoints: [{ path: secret, methods: [secret], [secret]: 1 }] } },
          { rate_limit: { [secret]: secret, limit: secret } },
          {
            workspace_id: `${secret}/`,
            environment: secret,
            scopes: [secret],
            expires_at: secret,
            cost: secret,
          },
          [secret],
          secret,
        ]) {
          answers.push(await send(route, body));
        }
        answers.push(await sendBytes(route, `{"${secret}": ${secret}`));
        answers.push(await sendBytes(route, `{"${secret}":1,"${secret}":2}`));
        answers.push(await sendBytes(route, secret, secret));
        answers.push(await sendBytes(route, secret, `application/${secret}`));
        answers.push(await sendBytes(route, '{', 'application/json', [`Content-Encoding: ${secret}`]));
      }
      for (const route of ROUTES) {
        for (const path of [
          route.path.replace('{id}', `${secret}!`),
          route.path.replace('{id}', encodeURIComponent(`${secret}/${secret}`)),
          `${route.path.replace('{id}', 'x')}/${secret}`,
          `/${secret}${route.path}`,
          `/v1/api-keys?${secret}=1`,
          `/v1/api-keys?cursor=${secret}`,
          `/v1/api-keys?limit=${secret}&environment=${secret}&status=${secret}&scope=${secret}&expires_before=${secret}`,
          `/${secret}/%ff`,
          `/docs/static/${secret}`,
        ]) {
          answers.push(
            await request({
              port,
              line: `GET ${path} HTTP/1.1`,
              headers: [
                `Authorization: Bearer ${app.adminToken}`,
                `X-Request-Id: ${secret}`,
                `${secret}: ${secret}`,
                `Referer: https://${secret}/`,
                `User-Agent: ${secret}`,
                `Cookie: ${secret}=${secret}`,
                `X-Forwarded-For: ${secret}`,
                `Accept: ${secret}`,
              ],
            }),
          );
        }
      }
      for (const headers of [
        { authorization: `Basic ${secret}` },
        { authorization: secret },
        { authorization: `Bearer ${secret} ${secret}` },
        { 'x-api-key': `${secret}x` },
        { authorization: `Bearer ${secret}`, 'x-api-key': `${secret}x` },
      ]) {
        answers.push(await app.get('/v1/api-keys', { as: null, headers }));
      }
      expect(answers.length).toBeGreaterThan(100);
      for (const answer of answers) {
        if (answer.status !== 200) expectRefusal(answer);
        expectSilentOn(answer, secret);
      }
      const log = app.logLines.join('\n');
      expect(piecesOf(secret).filter((piece) => log.includes(piece))).toEqual([]);
    }
    expect((await app.get(`/v1/api-keys/${id}`)).status).toBe(200);
    const tables = await app.database.query<{ name: string }>(
      "SELECT quote_ident(table_name) AS name FROM information_schema.tables WHERE table_schema = 'public'",
    );
    expect(tables.length).toBeGreaterThan(3);
    for (const { name } of tables) {
      const rows = await app.database.query<{ text: string }>(`SELECT row::text AS text FROM ${name} AS row`);
      const text = rows.map((row) => row.text).join('\n');
      for (const secret of [token, service]) {
        expect(
          piecesOf(secret).filter((piece) => text.includes(piece)),
          name,
        ).toEqual([]);
      }
    }
  });
});

describe('arbitrary input', () => {
  const anything = fc.jsonValue({ maxDepth: 4, stringUnit: 'binary' });
  const membersOf = (route: Route) => MEMBERS.filter((member) => member.route === route);
  const expectAnswered = (answer: Answer) => {
    if (answer.status >= 300) expectRefusal(answer);
  };

  test.each(BODY_ROUTES.map((route) => ({ route, label: `${route.method} ${route.path}` })))(
    'as a body never leads to a fault: $label',
    async ({ route }) => {
      await fc.assert(
        fc.asyncProperty(anything, async (body) => {
          expectAnswered(await send(route, body));
        }),
        { numRuns: 100 },
      );
    },
  );

  const routesWithMembers = BODY_ROUTES.filter((route) => membersOf(route).length > 0);
  test.each(routesWithMembers.map((route) => ({ route, label: `${route.method} ${route.path}` })))(
    'as a known member never leads to a fault: $label',
    async ({ route }) => {
      const times = fc.date({ noInvalidDate: true }).map((date) => date.toISOString());
      const value = fc.oneof(
        anything,
        times,
        fc.double(),
        fc.constantFrom(
          'live',
          'system',
          'ws_hostile',
          'read',
          '192.0.2.0/24',
          'https://*.example.com/*',
          '/a/:b/*',
          0,
          -0,
          2 ** 31,
          2 ** 53,
        ),
        fc.string({ unit: 'binary', maxLength: 200 }),
      );
      await fc.assert(
        fc.asyncProperty(
          fc.array(fc.tuple(fc.constantFrom(...membersOf(route)), value), { minLength: 1, maxLength: 3 }),
          async (chosen) => {
            const bodies = chosen.map(([{ at }, given]) => bodyWith(route, at, given));
            expectAnswered(await send(route, Object.assign({}, ...bodies)));
          },
        ),
        { numRuns: 150 },
      );
    },
  );

  test('as bytes never leads to a fault', async () => {
    const text = fc
      .array(
        fc.constantFrom(
          '{',
          '}',
          '[',
          ']',
          '"',
          ':',
          ',',
          '\\',
          '\\u0000',
          '\\ud800',
          '1',
          'e',
          '-',
          '.',
          'null',
          '"name"',
          '"key"',
          '"x"',
          ' ',
          '\ufeff',
          '\0',
          '__proto__',
        ),
      )
      .map((parts) => Buffer.from(parts.join('')));
    const bytes = fc.oneof(
      fc.uint8Array({ maxLength: 200 }).map((array) => Buffer.from(array)),
      text,
    );
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(...BODY_ROUTES), bytes, async (route, body) => {
        expectAnswered(await sendBytes(route, body));
      }),
      { numRuns: 300 },
    );
  });

  test('as a query never leads to a fault', async () => {
    const names = [
      'workspace_id',
      'environment',
      'status',
      'scope',
      'name',
      'created_by',
      'expires_before',
      'unused_since',
      'rotation_due',
      'limit',
      'cursor',
      'frob',
    ];
    const value = fc.oneof(
      fc.string({ unit: 'binary', maxLength: 50 }).map(encodeUnpaired),
      fc.string({ unit: 'binary-ascii' }).map((text) => text.replaceAll(/[\s\0#]/g, '')),
      fc.date({ noInvalidDate: true }).map((date) => encodeURIComponent(date.toISOString())),
    );
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.constantFrom(...names), value), { maxLength: 4 }),
        async (pairs) => {
          const query = pairs.map(([name, text]) => `${name}=${text}`).join('&');
          expectAnswered(await app.get(`/v1/api-keys?${query}`));
        },
      ),
      { numRuns: 300 },
    );
  });
});

/** Percent-encodes what is a string, and what is none (an unpaired surrogate) as the bytes that it would have. */
function encodeUnpaired(text: string): string {
  return [...text]
    .map((character) =>
      character.isWellFormed()
        ? encodeURIComponent(character)
        : `%ED%A0%${(0x80 | (character.charCodeAt(0) & 0x3f)).toString(16)}`,
    )
    .join('');
}
