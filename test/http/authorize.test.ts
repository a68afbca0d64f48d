import { parseList } from 'structured-headers';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { RefusalCode } from '../../src/domain/decision.ts';
import type { ErrorCode } from '../../src/domain/errors.ts';
import { PROBLEMS } from '../../src/http/problem.ts';
import { appOfTest, createTestApp, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';
import { databaseOfTest } from '../support/database.ts';
import { expectSilentOn } from './problem.ts';

/*
 * The forward authentication of gateways: what is decided, of what, and how it is told. test/http/authorize-wire.test.ts
 * has what comes over a socket, test/gateways/ the real gateways.
 */

let app: TestApp;
let gateway: { id: string; token: string };

beforeAll(async () => {
  app = await createTestApp({ FAILED_AUTH_RATE_LIMIT: 'off', CALLER_RATE_LIMIT: 'off' });
  gateway = await app.createServiceKey(['introspect']);
});
afterAll(() => app.close());

interface Asking {
  /** The service key of the gateway; `null`: none. */
  readonly as?: string | null;
  readonly headers?: Readonly<Record<string, string>>;
  readonly query?: string;
  readonly method?: string;
  readonly on?: TestApp;
}

/** Asks as a gateway would whose client shows `token`. */
function authorize(token: string | null, asking: Asking = {}): Promise<Answer> {
  const { as = gateway.token, headers = {}, query = '', method = 'GET', on = app } = asking;
  return on.send(method, `/v1/authorize${query}`, {
    as: token,
    headers: { ...(as === null ? {} : { 'x-claviger-service-key': as }), ...headers },
  });
}

function expectDenial(answer: Answer, code: RefusalCode | ErrorCode, status = PROBLEMS[code].status): void {
  expect(answer.body.code, answer.text).toBe(code);
  expect(answer.status).toBe(status);
  expect(answer.body).toMatchObject({ type: `urn:claviger:error:${code}`, status, success: false });
  expect(answer.headers['content-type']).toBe('application/problem+json; charset=utf-8');
  for (const name of IDENTITY) expect(answer.headers).not.toHaveProperty(name);
}

const IDENTITY = [
  'x-claviger-key-id',
  'x-claviger-workspace-id',
  'x-claviger-environment',
  'x-claviger-scopes',
  'x-claviger-key-name',
];
const told = (method: string, path: string, ip = '203.0.113.9') => ({
  'x-forwarded-method': method,
  'x-forwarded-uri': path,
  'x-forwarded-for': ip,
});

describe('a request that may pass', () => {
  test('is 200 with an empty body, and headers that say whose it is', async () => {
    const { id, token } = await app.createKey({
      workspace_id: 'ws.a_b:c-d',
      name: 'Warehouse',
      scopes: ['read', 'validate:offers'],
      rate_limit: null,
    });
    for (const method of ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'PROPFIND', 'TRACE']) {
      const answer = await authorize(token, { method });
      expect(answer.status, answer.text).toBe(200);
      expect(answer.text).toBe('');
      expect(answer.headers).toMatchObject({
        'x-claviger-key-id': id,
        'x-claviger-workspace-id': 'ws.a_b:c-d',
        'x-claviger-environment': 'live',
        'x-claviger-scopes': 'read validate:offers',
        'x-claviger-key-name': 'Warehouse',
        'cache-control': 'no-store',
      });
      for (const name of ['x-ratelimit-limit', 'ratelimit', 'ratelimit-policy']) {
        expect(answer.headers).not.toHaveProperty(name);
      }
      expectSilentOn(answer, token);
    }
  });

  test('may show its key as X-Api-Key, and the same key in both headers', async () => {
    const { token } = await app.createKey();
    expect((await authorize(null, { headers: { 'x-api-key': token } })).status).toBe(200);
    expect((await authorize(token, { headers: { 'x-api-key': token } })).status).toBe(200);
  });

  test.each([
    ['spaces', 'a name'],
    ['line breaks that would begin a header', 'a\r\nX-Claviger-Key-Id: key_forged\r\n\r\nbody'],
    ['quotes, commas and percent signs', '"a", b;c=1 %41'],
    ['letters of every script', 'Lagerhaus Größe 倉庫 🏬 ‮evil'],
    ['control characters', 'a\u0001\u007f\u0085\u2028b'],
  ])('has the name of its key escaped, whatever it holds: %s', async (_what, name) => {
    const { token } = await app.createKey({ name });
    const { status, headers } = await authorize(token);
    expect(status).toBe(200);
    const value = headers['x-claviger-key-name'] ?? '';
    expect(value).toMatch(/^[!-~]+$/);
    expect(decodeURIComponent(value)).toBe(name);
  });

  test('has an empty header where the key has no scopes, so that a client’s own is overwritten', async () => {
    const { token } = await app.createKey();
    expect((await authorize(token)).headers['x-claviger-scopes']).toBe('');
  });

  test('is told the limits of its key and its workspace, in both spellings', async () => {
    await app.put('/v1/workspaces/ws_limited', { rate_limit: { limit: 5_000, window_seconds: 86_400 } });
    const { token } = await app.createKey({
      workspace_id: 'ws_limited',
      rate_limit: { limit: 10, window_seconds: 3_600 },
    });
    for (const remaining of [9, 8]) {
      const { headers } = await authorize(token);
      expect(headers['x-ratelimit-limit']).toBe('10');
      expect(headers['x-ratelimit-remaining']).toBe(String(remaining));
      const reset = Number(headers['x-ratelimit-reset']);
      expect(reset % 3_600).toBe(0);
      expect(parseList(headers['ratelimit-policy'] ?? '')).toEqual([
        [
          'key',
          new Map([
            ['q', 10],
            ['w', 3_600],
          ]),
        ],
        [
          'workspace',
          new Map([
            ['q', 5_000],
            ['w', 86_400],
          ]),
        ],
      ]);
      const [[name, parameters] = [], ...more] = parseList(headers.ratelimit ?? '');
      expect(more).toEqual([]);
      expect(name).toBe('key');
      expect(parameters?.get('r')).toBe(remaining);
      const left = Number(parameters?.get('t'));
      expect(Math.abs(left - (reset - Date.now() / 1_000))).toBeLessThan(5);
    }
  });

  test('is told the limit of its workspace where that is the tighter one', async () => {
    await app.put('/v1/workspaces/ws_tight', { rate_limit: { limit: 3, window_seconds: 60 } });
    const { token } = await app.createKey({ workspace_id: 'ws_tight', rate_limit: null });
    const { headers } = await authorize(token);
    expect(headers['x-ratelimit-limit']).toBe('3');
    expect(headers['ratelimit-policy']).toBe('"workspace";q=3;w=60');
    expect(headers.ratelimit).toMatch(/^"workspace";r=2;t=\d+$/);
  });
});

describe('a request that may not', () => {
  const day = 86_400_000;

  test('of a key that is none, or a service key, is invalid', async () => {
    for (const token of ['nonsense', `${(await app.createKey()).token}x`, gateway.token, app.adminToken]) {
      const answer = await authorize(token);
      expectDenial(answer, 'invalid');
      expect(answer.headers['www-authenticate']).toBe('Bearer realm="claviger", error="invalid_token"');
      expectSilentOn(answer, token.slice(-40));
    }
  });

  test('without a key, or with two of them, is invalid', async () => {
    const none = await authorize(null);
    expectDenial(none, 'invalid');
    expect(none.headers['www-authenticate']).toBe('Bearer realm="claviger"');
    const { token } = await app.createKey();
    const two = await authorize(token, { headers: { 'x-api-key': 'another' } });
    expectDenial(two, 'invalid');
    expect(two.headers['www-authenticate']).toBe('Bearer realm="claviger", error="invalid_token"');
    expectDenial(await authorize(null, { headers: { authorization: 'Basic dXNlcjpwYXNz' } }), 'invalid');
    expectDenial(await authorize(null, { headers: { authorization: '' } }), 'invalid');
  });

  test('of a revoked, expired or disabled key says so', async () => {
    const revoked = await app.createKey();
    await app.delete(`/v1/api-keys/${revoked.id}`);
    expectDenial(await authorize(revoked.token), 'revoked');

    const expired = await app.createKey({ expires_at: new Date(Date.now() + day).toISOString() });
    await app.database.query("UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE name = $1", [
      expired.data.name,
    ]);
    expectDenial(await authorize(expired.token), 'expired');

    const disabled = await app.createKey({ workspace_id: 'ws_disabled' });
    await app.put('/v1/workspaces/ws_disabled', { disabled: true });
    expectDenial(await authorize(disabled.token), 'workspace_disabled');
  });

  test('of another workspace, environment or scope than the gateway’s options name', async () => {
    const { token } = await app.createKey({ workspace_id: 'ws_options', scopes: ['read'] });
    const ask = (query: string) => authorize(token, { query });
    expect((await ask('?workspace_id=ws_options&environment=live&scope=read')).status).toBe(200);
    expectDenial(await ask('?workspace_id=ws_other'), 'wrong_workspace');
    expectDenial(await ask('?environment=test'), 'wrong_environment');
    const lacking = await ask('?scope=read&scope=write');
    expectDenial(lacking, 'insufficient_scope');
    expect(lacking.headers['www-authenticate']).toBe(
      'Bearer realm="claviger", error="insufficient_scope", scope="read write"',
    );
  });

  test('from an address, page or to an endpoint that its key is not for', async () => {
    const { token } = await app.createKey({
      restrictions: {
        allowed_ips: ['203.0.113.0/24'],
        allowed_referrers: ['https://app.example.com/*'],
        allowed_endpoints: [{ methods: ['GET'], path: '/contacts/:id' }],
      },
    });
    const right = { ...told('GET', '/contacts/17?a=b'), referer: 'https://app.example.com/x' };
    const ask = (headers: Record<string, string>) => authorize(token, { headers: { ...right, ...headers } });
    expect((await ask({})).status).toBe(200);
    expect((await ask({ 'x-forwarded-method': 'HEAD' })).status).toBe(200);
    expectDenial(await ask({ 'x-forwarded-for': '198.51.100.1' }), 'ip_not_allowed');
    expectDenial(await ask({ 'x-forwarded-for': 'unknown' }), 'ip_not_allowed');
    expectDenial(await ask({ referer: 'https://evil.example.com/' }), 'referrer_not_allowed');
    for (const wrong of [
      { 'x-forwarded-method': 'DELETE' },
      { 'x-forwarded-method': 'get' },
      { 'x-forwarded-uri': '/contacts' },
      { 'x-forwarded-uri': '/contacts/../admin' },
      { 'x-forwarded-uri': '/contacts/%2e%2e' },
      { 'x-forwarded-uri': '/contacts/17%zz' },
      { 'x-forwarded-uri': '//contacts/17' },
    ]) {
      expectDenial(await ask(wrong), 'endpoint_not_allowed');
    }
  });

  test('since its limit is spent is 429, or 403 for a gateway that knows no 429', async () => {
    const { token } = await app.createKey({ rate_limit: { limit: 1, window_seconds: 2_678_400 } });
    expect((await authorize(token)).status).toBe(200);
    const spent = await authorize(token);
    expectDenial(spent, 'rate_limited');
    expect(spent.headers['x-ratelimit-remaining']).toBe('0');
    expect(spent.headers.ratelimit).toMatch(/^"key";r=0;t=\d+$/);
    expect(spent.headers['retry-after']).toMatch(/^[1-9]\d*$/);
    // The document has the code with its own status alone, so that this is asked past its check.
    const forbidden = await app.app.inject({
      url: '/v1/authorize?rate_limited_status=403',
      headers: { authorization: `Bearer ${token}`, 'x-claviger-service-key': gateway.token },
    });
    expect(forbidden.statusCode).toBe(403);
    expect(forbidden.json()).toMatchObject({ code: 'rate_limited', status: 403 });
    expect(forbidden.headers['retry-after']).toBeDefined();
  });
});

describe('what is not told', () => {
  test('is refused where a restriction needs it', async () => {
    const byIp = await app.createKey({ restrictions: { allowed_ips: ['203.0.113.0/24'] } });
    const byPath = await app.createKey({ restrictions: { allowed_endpoints: [{ path: '/*' }] } });
    expectDenial(await authorize(byIp.token), 'ip_not_allowed');
    expectDenial(await authorize(byPath.token), 'endpoint_not_allowed');
    expect((await authorize((await app.createKey()).token)).status).toBe(200);
  });

  test('is refused once the catalogue grants routes, also where what no scope grants is allowed', async () => {
    for (const CATALOGUE_UNMATCHED of ['refuse', 'allow']) {
      const own = await appOfTest({ CATALOGUE_UNMATCHED });
      await own.put('/v1/scopes/contacts', { grants: [{ methods: ['GET'], path: '/contacts/*' }] });
      const { token } = await own.createKey({ scopes: ['contacts'] });
      const ask = (headers: Record<string, string>) =>
        authorize(token, { as: own.adminToken, on: own, headers });
      expect((await ask(told('GET', '/contacts/1'))).status).toBe(200);
      for (const headers of [
        {},
        { 'x-forwarded-method': 'GET' },
        { 'x-forwarded-uri': '/contacts/1' },
        { 'x-forwarded-method': 'GET, POST', 'x-forwarded-uri': '/contacts/1' },
        { 'x-forwarded-method': '', 'x-forwarded-uri': '/contacts/1' },
        { 'x-forwarded-method': 'GET', 'x-forwarded-uri': '' },
      ]) {
        expectDenial(await ask(headers), 'insufficient_scope');
      }
    }
  });
});

describe('the gateway', () => {
  test('has to show a service key with `introspect`, in its own header', async () => {
    const { token } = await app.createKey();
    for (const as of [null, '', 'nonsense', token, `${gateway.token}, ${gateway.token}`]) {
      const answer = await authorize(token, { as });
      expectDenial(answer, 'unauthorized');
      expect(answer.headers['www-authenticate']).toMatch(/^Bearer realm="claviger"/);
    }
    expectDenial(await authorize(gateway.token, { as: null }), 'unauthorized');
    const reader = await app.createServiceKey(['keys:read']);
    const lacking = await authorize(token, { as: reader.token });
    expectDenial(lacking, 'forbidden');
    expect(lacking.headers['www-authenticate']).toContain('scope="introspect"');
    expect((await authorize(token, { as: app.adminToken })).status).toBe(200);
  });

  test.each(['', '127.0.0.1'])(
    'is held to the addresses of its service key by its own, not by its client’s, with trusted proxies "%s"',
    async (TRUSTED_PROXY_CIDRS) => {
      const on = await appOfTest({ TRUSTED_PROXY_CIDRS });
      const { token } = await on.createKey();
      const bound = (ip: string) =>
        on.createServiceKey(['introspect'], { restrictions: { allowed_ips: [ip] } });
      const here = await bound('127.0.0.1');
      const away = await bound('203.0.113.9');
      const headers = told('GET', '/', '203.0.113.9');
      expect((await authorize(token, { on, as: here.token, headers })).status).toBe(200);
      expectDenial(await authorize(token, { on, as: away.token, headers }), 'forbidden');
    },
  );

  test('that is bound to workspaces knows no key of others, and may not name them', async () => {
    const bound = await app.createServiceKey(['introspect'], {
      restrictions: { allowed_workspaces: ['ws_bound'] },
    });
    const own = await app.createKey({ workspace_id: 'ws_bound' });
    const foreign = await app.createKey({ workspace_id: 'ws_elsewhere' });
    expect((await authorize(own.token, { as: bound.token })).status).toBe(200);
    expectDenial(await authorize(foreign.token, { as: bound.token }), 'invalid');
    const naming = { as: bound.token, query: '?workspace_id=ws_elsewhere' };
    expectDenial(await authorize(own.token, naming), 'forbidden');
  });

  test('is limited as any caller, and told so by the status that it knows', async () => {
    const own = await appOfTest({ INTROSPECT_RATE_LIMIT: '1' });
    const { token } = await own.createKey();
    const asking = { as: own.adminToken, on: own };
    const first = await authorize(token, asking);
    expect(first.status).toBe(200);
    // What is left of its own limit is no news to the client; the key's is.
    expect(first.headers['x-ratelimit-limit']).toBe('1000');
    const second = await authorize(token, asking);
    expectDenial(second, 'rate_limited');
    expect(second.headers['retry-after']).toMatch(/^[1-9]\d*$/);
    const third = await own.app.inject({
      url: '/v1/authorize?rate_limited_status=403',
      headers: { authorization: `Bearer ${token}`, 'x-claviger-service-key': own.adminToken },
    });
    expect([third.statusCode, third.json().code]).toEqual([403, 'rate_limited']);
  });

  test('that is limited itself shows its client no limit of its own', async () => {
    const limited = await app.createServiceKey(['introspect'], {
      rate_limit: { limit: 1_000, window_seconds: 3_600 },
    });
    const { token } = await app.createKey({ rate_limit: null });
    for (const key of [token, 'nonsense']) {
      const { headers } = await authorize(key, { as: limited.token });
      expect(Object.keys(headers).filter((name) => /ratelimit/.test(name))).toEqual([]);
    }
  });

  test('at a trusted address needs no service key, and none that its client sends is looked at', async () => {
    const trusting = await appOfTest({ AUTHORIZE_TRUSTED_CIDRS: '192.0.2.1, ::ffff:127.0.0.0/104' });
    const { token } = await trusting.createKey();
    const bound = await trusting.createServiceKey(['introspect'], {
      restrictions: { allowed_workspaces: ['ws_nobody'] },
    });
    for (const as of [null, 'nonsense', bound.token]) {
      expect((await authorize(token, { as, on: trusting })).status).toBe(200);
    }
    expectDenial(await authorize('nonsense', { as: null, on: trusting }), 'invalid');
    // Only here: elsewhere the address shows nothing.
    const me = await trusting.get('/v1/me', { as: null });
    expect(me.status).toBe(401);

    const other = await appOfTest({
      AUTHORIZE_TRUSTED_CIDRS: '192.0.2.0/24, ::1',
      TRUSTED_PROXY_CIDRS: '127.0.0.1',
    });
    const forged = { 'x-forwarded-for': '192.0.2.7' };
    expectDenial(await authorize(token, { as: null, on: other, headers: forged }), 'unauthorized');
  });
});

describe('options that are none', () => {
  test.each([
    ['an unknown one', '?scopes=read', 'scopes'],
    ['no scope', '?scope=', 'scope.0'],
    ['a list of scopes', '?scope=read,write', 'scope.0'],
    ['scopes as OAuth writes them', '?scope=read+write', 'scope.0'],
    ['a malformed escape', '?scope=%zz', 'scope.0'],
    ['65 scopes', `?${Array.from({ length: 65 }, (_, index) => `scope=s${index}`).join('&')}`, 'scope'],
    ['a workspace that cannot be', '?workspace_id=a/b', 'workspace_id'],
    ['two workspaces', '?workspace_id=a&workspace_id=b', 'workspace_id'],
    ['an environment that cannot be', '?environment=Live', 'environment'],
    ['another status', '?rate_limited_status=200', 'rate_limited_status'],
    ['a name of the language', '?__proto__=1', '__proto__'],
    ['half of one', '?%ff=1', '(unnamed)'],
  ])('refuse every client and are named: %s', async (_what, query, path) => {
    const { token } = await app.createKey({ scopes: ['read'] });
    const answer = await authorize(token, { query });
    expectDenial(answer, 'forbidden');
    expect(answer.body.errors.map((fault: { path: string }) => fault.path)).toEqual([path]);
    // Strangers learn nothing of them.
    expectDenial(await authorize(token, { query, as: null }), 'unauthorized');
  });

  test('of no value at all are none', async () => {
    const { token } = await app.createKey();
    for (const query of ['?', '?&&']) expect((await authorize(token, { query })).status).toBe(200);
  });
});

describe('AUTHORIZE_SOURCE', () => {
  const FORWARDED = { 'x-forwarded-method': 'GET', 'x-forwarded-uri': '/forwarded' };
  const ORIGINAL = { 'x-original-method': 'GET', 'x-original-uri': '/original' };

  /** An app of that source, with a key for each place that the path may be taken from. */
  async function appOf(AUTHORIZE_SOURCE: string) {
    const on = await appOfTest({ AUTHORIZE_SOURCE });
    const keyFor = async (path: string, methods = ['GET']) =>
      (await on.createKey({ restrictions: { allowed_endpoints: [{ methods, path }] } })).token;
    const ask = (token: string, query: string, headers: Record<string, string> = {}, method = 'GET') =>
      authorize(token, { on, as: on.adminToken, query, headers, method });
    return { on, keyFor, ask };
  }

  test.each([
    ['forwarded', '/forwarded'],
    ['original', '/original'],
  ])('%s: method and path come from its pair of headers, and from nowhere else', async (source, own) => {
    const { keyFor, ask } = await appOf(source);
    for (const path of ['/forwarded', '/original', '/v1/authorize', '/path']) {
      const token = await keyFor(path);
      const answer = await ask(token, '', { ...FORWARDED, ...ORIGINAL }, 'POST');
      if (path === own) expect(answer.status).toBe(200);
      else expectDenial(answer, 'endpoint_not_allowed');
      const below = await ask(token, '/path', { ...FORWARDED, ...ORIGINAL });
      expect(below.status).toBe(path === own ? 200 : 403);
      const other = source === 'forwarded' ? ORIGINAL : FORWARDED;
      expectDenial(await ask(token, '', other), 'endpoint_not_allowed');
    }
  });

  test('path: they are the request’s own, the query is the client’s, and the options are headers', async () => {
    const { on, keyFor, ask } = await appOf('path');
    const token = await keyFor('/contacts/:id');
    for (const query of [
      '/contacts/17',
      '/contacts/17?scope=admin&workspace_id=x&y=%zz',
      '/contacts/%31%37/',
    ]) {
      expect((await ask(token, query, { ...FORWARDED, ...ORIGINAL })).status, query).toBe(200);
    }
    for (const query of [
      '',
      '/',
      '?/contacts/17',
      '/contacts/17/18',
      '/contacts/%zz',
      '/contacts/%ff',
      '/contacts/..',
      '//contacts/17',
      '/CONTACTS/17',
    ]) {
      expectDenial(await ask(token, query, FORWARDED), 'endpoint_not_allowed');
    }
    expectDenial(await ask(token, '/contacts/17', FORWARDED, 'DELETE'), 'endpoint_not_allowed');
    const root = await keyFor('/', ['GET', 'PROPFIND']);
    for (const query of ['', '/', '?a=b', '/?a=b']) expect((await ask(root, query)).status, query).toBe(200);
    expect((await ask(root, '/', {}, 'PROPFIND')).status).toBe(200);

    const respelled = await on.app.inject({
      url: '/v1/%61uthorize',
      headers: { authorization: `Bearer ${root}`, 'x-claviger-service-key': on.adminToken },
    });
    expect([respelled.statusCode, respelled.json().code]).toEqual([403, 'forbidden']);

    const scoped = await on.createKey({ scopes: ['read', 'write'], workspace_id: 'ws_path' });
    const options = (headers: Record<string, string>) => ask(scoped.token, '/x', headers);
    for (const scope of ['read', 'read write', 'read, write', 'write,read']) {
      expect((await options({ 'x-claviger-scope': scope })).status, scope).toBe(200);
    }
    expectDenial(await options({ 'x-claviger-scope': 'read, admin' }), 'insufficient_scope');
    expectDenial(await options({ 'x-claviger-scope': 'READ' }), 'forbidden');
    expect((await options({ 'x-claviger-workspace': 'ws_path' })).status).toBe(200);
    expectDenial(await options({ 'x-claviger-workspace': 'ws_other' }), 'wrong_workspace');
    expectDenial(await options({ 'x-claviger-workspace': 'ws_path, ws_path' }), 'forbidden');
    expectDenial(await options({ 'x-claviger-environment-expected': 'test' }), 'wrong_environment');
  });

  test('forwarded and original: headers are no options', async () => {
    const { token } = await app.createKey();
    const headers = {
      'x-claviger-scope': 'admin',
      'x-claviger-workspace': 'x',
      'x-claviger-environment-expected': 'x',
    };
    expect((await authorize(token, { headers })).status).toBe(200);
  });

  test('a path that is written in UTF-8 is the one that is meant', async () => {
    const { keyFor, ask } = await appOf('forwarded');
    const token = await keyFor('/größe');
    const uri = Buffer.from('/größe', 'utf8').toString('latin1');
    expect((await ask(token, '', { 'x-forwarded-method': 'GET', 'x-forwarded-uri': uri })).status).toBe(200);
  });
});

describe('AUTHORIZE_FORWARDED_FOR_HOPS', () => {
  test.each([
    [
      '1',
      ['203.0.113.9', '198.51.100.1, 203.0.113.9', '198.51.100.1,203.0.113.9', '::ffff:203.0.113.9'],
      [
        '203.0.113.9, 198.51.100.1',
        '203.0.113.9,',
        '203.0.113.9:443',
        '[203.0.113.9]',
        '',
        'x'.repeat(5_000),
      ],
    ],
    [
      '2',
      ['203.0.113.9, 198.51.100.1', 'x, 203.0.113.9 ,y'],
      ['203.0.113.9, 198.51.100.1, 198.51.100.2', '203.0.113.9', ',203.0.113.9', ',', ',,', '203.0.113.9,,'],
    ],
    ['3', ['203.0.113.9, x, y'], ['203.0.113.9, x', ',,,,']],
  ])('%s: the client is at that entry, counted from the right', async (hops, right, wrong) => {
    const on = await appOfTest({ AUTHORIZE_FORWARDED_FOR_HOPS: hops });
    const { token } = await on.createKey({ restrictions: { allowed_ips: ['203.0.113.9'] } });
    const ask = (list: string) =>
      authorize(token, { on, as: on.adminToken, headers: { 'x-forwarded-for': list } });
    for (const list of right) expect((await ask(list)).status, list).toBe(200);
    for (const list of wrong) expectDenial(await ask(list), 'ip_not_allowed');
    expectDenial(await authorize(token, { on, as: on.adminToken }), 'ip_not_allowed');
  });
});

describe('a verdict', () => {
  test('is recorded as that of an introspection is', async () => {
    const workspace_id = 'ws_recorded';
    const { id, token } = await app.createKey({ workspace_id });
    const headers = told('POST', '/orders?secret=1');
    await authorize(token, { headers: { ...headers, 'x-request-id': 'req-authorized' } });
    await authorize(token, { headers, query: '?scope=admin' });
    await expect
      .poll(async () => (await app.get(`/v1/request-logs?workspace_id=${workspace_id}`)).body.data.length, {
        timeout: 10_000,
      })
      .toBe(2);
    const [refused, allowed] = (await app.get(`/v1/request-logs?workspace_id=${workspace_id}`)).body.data;
    const common = { key_id: id, caller: gateway.id, ip: '203.0.113.9', method: 'POST', path: '/orders' };
    expect(allowed).toMatchObject({ ...common, code: 'active', request_id: 'req-authorized' });
    expect(refused).toMatchObject({ ...common, code: 'insufficient_scope', status: 403 });
    await expect
      .poll(async () => (await app.get(`/v1/api-keys/${id}/usage`)).body.data.totals, { timeout: 10_000 })
      .toEqual({ active: 1, insufficient_scope: 1 });
    const { last_used, last_used_ip } = (await app.get(`/v1/api-keys/${id}`)).body.data;
    expect([typeof last_used, last_used_ip]).toEqual(['string', '203.0.113.9']);
  });

  test('that nobody called for is recorded without a caller', async () => {
    const on = await appOfTest({ AUTHORIZE_TRUSTED_CIDRS: '127.0.0.1' });
    await authorize(null, { as: null, on, headers: told('GET', '/open') });
    await expect
      .poll(async () => (await on.get('/v1/request-logs?code=invalid')).body.data, { timeout: 10_000 })
      .toMatchObject([{ caller: null, path: '/open', ip: '203.0.113.9' }]);
  });

  test('stands in no log with the key, or with what the client asked for', async () => {
    const { token } = await app.createKey();
    await authorize(token, { headers: told('GET', '/secret-path') });
    await authorize(null, { query: `/${token}` });
    const log = app.logLines.join('\n');
    expect(log).not.toContain(token.slice(-40));
    expect(log).not.toContain('secret-path');
    expect(log).toContain('"route":"/v1/authorize"');
  });

  test('that cannot be reached is 503, with when to ask again', async () => {
    const cut = await appOfTest();
    const { token } = await cut.createKey();
    const beside = await databaseOfTest();
    const name = new URL(cut.database.url).pathname.slice(1);
    await beside.query(`ALTER DATABASE ${name} WITH ALLOW_CONNECTIONS false`);
    await beside.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1', [name]);
    const answer = await authorize(token, { as: cut.adminToken, on: cut });
    expectDenial(answer, 'unavailable');
    expect(answer.headers['retry-after']).toMatch(/^[1-9]\d*$/);
    await beside.query(`ALTER DATABASE ${name} WITH ALLOW_CONNECTIONS true`);
  });
});
