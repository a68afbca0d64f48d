import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { keyIdToUuid } from '../../src/domain/key-id.ts';
import { keySecret } from '../../src/domain/key-secret.ts';
import { createTokenMint } from '../../src/domain/token.ts';
import { appOfTest, createTestApp, TEST_KEY_SECRET, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';
import { databaseOfTest, type TestDatabase } from '../support/database.ts';

const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

/** Tokens with a genuine tag and another secret: what only the hash can tell from the real one. */
const forger = createTokenMint([keySecret(TEST_KEY_SECRET).derive('mint')], randomBytes);

let app: TestApp;
beforeAll(async () => {
  app = await createTestApp();
});
afterAll(() => app.close());

function forge(id: string): string {
  return forger.mint({ prefix: 'ck', environment: 'live', id });
}

function sendForm(body: string, on = app): Promise<Answer> {
  return on.post('/v1/introspect', body, {
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
  });
}

async function codeOf(token: string, question: Record<string, unknown> = {}, as?: string): Promise<string> {
  const { status, body, text } = await app.introspect(token, question, as === undefined ? {} : { as });
  expect(status, text).toBe(200);
  return body.active ? 'active' : body.reason.code;
}

/** Changes a row behind the service's back: only for keys that it has not yet been asked about. */
async function alterKey(id: string, assignment: string, on: TestDatabase = app.database): Promise<void> {
  await on.query(`UPDATE api_keys SET ${assignment} WHERE id = $1`, [keyIdToUuid(id)]);
}

async function hashOf(id: string, on: TestDatabase = app.database): Promise<string> {
  const [row] = await on.query<{ hash: string }>('SELECT hash FROM api_keys WHERE id = $1', [
    keyIdToUuid(id),
  ]);
  return row?.hash ?? '';
}

describe('an introspection in JSON', () => {
  test('of a key that may do it answers with the members of the contract', async () => {
    const settings = {
      name: 'Production',
      scopes: ['read', 'write'],
      expires_at: '2999-01-01T00:00:00.000Z',
      metadata: { team: 'data', deep: { list: [1, null] } },
    };
    const { id, token, data } = await app.createKey(settings);
    const answer = await app.introspect(token, { scopes: ['read'] });
    expect(answer.status).toBe(200);
    expect(answer.body).toEqual({
      active: true,
      key_id: id,
      workspace_id: 'ws_acme',
      environment: 'live',
      created_at: data.created_at,
      rate_limit: { limit: 1000, remaining: 999, reset: expect.any(Number), window_seconds: 3600 },
      ...settings,
    });
    expect(answer.body.created_at).toMatch(TIME);
    expect(answer.headers['cache-control']).toBe('no-store');
  });

  test('shows what a key has not as null, and all of its scopes whatever was asked for', async () => {
    const { token } = await app.createKey({ scopes: ['write', 'read'], rate_limit: null });
    const { body } = await app.introspect(token);
    expect(body).toMatchObject({
      active: true,
      expires_at: null,
      metadata: null,
      rate_limit: null,
      scopes: ['write', 'read'],
    });
  });

  test('of a refused key answers with the reason alone', async () => {
    const { id, token } = await app.createKey();
    await app.delete(`/v1/api-keys/${id}`, { reason: 'a secret reason' });
    const { status, body } = await app.introspect(token);
    expect(status).toBe(200);
    expect(body).toEqual({
      active: false,
      reason: {
        code: 'revoked',
        status: 401,
        detail: `The key was revoked on ${new Date().toISOString().slice(0, 10)}.`,
      },
    });
  });

  test('takes the token as `key` or as `token`, and not as both', async () => {
    const { token } = await app.createKey();
    expect((await app.post('/v1/introspect', { token })).body.active).toBe(true);
    expect((await app.post('/v1/introspect', { key: token })).body.active).toBe(true);
    for (const body of [{ key: token, token }, { key: token, token: 'x' }, {}, { scopes: [] }]) {
      const answer = await app.post('/v1/introspect', body);
      expect(answer.status).toBe(400);
      expect(answer.body.code).toBe('invalid_request');
      expect(answer.body.errors).toMatchObject([{ path: 'key' }]);
      expect(answer.text).not.toContain(token);
    }
  });

  test('reaches a verdict on any string', async () => {
    for (const text of ['', ' ', 'x', 'é'.repeat(100), '\n', 'Bearer x', 'x'.repeat(60_000), '{}']) {
      expect(await codeOf(text)).toBe('invalid');
    }
  });

  test('names each member that it does not know or cannot use', async () => {
    for (const [question, path] of [
      [{ scope: 'read' }, 'scope'],
      [{ scopes: 'read' }, 'scopes'],
      [{ scopes: ['READ'] }, 'scopes.0'],
      [{ scopes: Array.from({ length: 65 }, (_, index) => `s${index}`) }, 'scopes'],
      [{ workspace_id: '' }, 'workspace_id'],
      [{ environment: 'LIVE' }, 'environment'],
      [{ request: [] }, 'request'],
      [{ request: { address: '::1' } }, 'request.address'],
      [{ request: { ip: 5 } }, 'request.ip'],
      [{ request: { ip: 'x'.repeat(65) } }, 'request.ip'],
      [{ request: { method: 'x'.repeat(33) } }, 'request.method'],
      [{ request: { path: 'x'.repeat(8_193) } }, 'request.path'],
      [{ request: { referrer: 'x'.repeat(8_193) } }, 'request.referrer'],
    ] as const) {
      const answer = await app.introspect('x', question);
      expect(answer.status, path).toBe(400);
      expect(answer.body.errors).toMatchObject([{ path }]);
    }
    const wrong = await app.post('/v1/introspect', { key: 5 });
    expect(wrong.body.errors).toMatchObject([{ path: 'key' }]);
  });

  test('takes a cost of 0 to 10,000 uses', async () => {
    const { token } = await app.createKey({ rate_limit: null });
    for (const cost of [0, 1, 10_000]) expect(await codeOf(token, { cost })).toBe('active');
    for (const cost of [-1, 10_001, 0.5, '1', null]) {
      const answer = await app.introspect(token, { cost });
      expect(answer.status).toBe(400);
      expect(answer.body.errors[0].path).toBe('cost');
    }
  });

  test('needs a body, of a media type that it knows', async () => {
    const { token } = await app.createKey();
    const body = JSON.stringify({ key: token });
    const statusOf = async (text: string | undefined, type?: string) =>
      (
        await app.post(
          '/v1/introspect',
          text,
          type === undefined ? {} : { headers: { 'content-type': type } },
        )
      ).status;
    expect(await statusOf(body, 'Application/JSON; charset=utf-8')).toBe(200);
    for (const text of [undefined, '', 'null', '[]', '"x"', '{']) expect(await statusOf(text)).toBe(400);
    expect(await statusOf(undefined, 'application/json')).toBe(400);
    for (const type of ['application/merge-patch+json', 'text/plain', 'application/jsonp']) {
      expect(await statusOf(body, type), type).toBe(415);
      expect(await statusOf('{"key":5}', type), type).toBe(415);
    }
  });
});

describe('an introspection by form (RFC 7662)', () => {
  test('answers with the standard members', async () => {
    const expires_at = '2999-01-01T00:00:00.900Z';
    const { id, token, data } = await app.createKey({ scopes: ['read', 'write'], expires_at });
    const answer = await sendForm(`token=${token}`);
    expect(answer.status).toBe(200);
    expect(answer.headers['content-type']).toMatch(/^application\/json/);
    expect(answer.body).toEqual({
      active: true,
      scope: 'read write',
      client_id: id,
      sub: 'ws_acme',
      token_type: 'Bearer',
      exp: Math.floor(Date.parse(expires_at) / 1000),
      iat: Math.floor(Date.parse(data.created_at) / 1000),
    });
  });

  test('leaves out what the key has not: no expiry, no scope', async () => {
    const { id, token } = await app.createKey();
    const { body } = await sendForm(`token=${token}`);
    expect(body).toEqual({
      active: true,
      client_id: id,
      sub: 'ws_acme',
      token_type: 'Bearer',
      iat: expect.any(Number),
    });
  });

  test('of an inactive token answers exactly that, whatever the reason', async () => {
    const revoked = await app.createKey();
    await app.delete(`/v1/api-keys/${revoked.id}`);
    const expired = await app.createKey();
    await alterKey(expired.id, "expires_at = now() - interval '1 second'");
    const restricted = await app.createKey({ restrictions: { allowed_ips: ['10.0.0.1'] } });
    for (const token of [
      revoked.token,
      expired.token,
      restricted.token,
      forge(restricted.id),
      app.adminToken,
      'x',
    ]) {
      const answer = await sendForm(`token=${token}`);
      expect(answer.status).toBe(200);
      expect(answer.text).toBe('{"active":false}');
    }
  });

  test('ignores parameters that it does not know, and decodes the one that it does', async () => {
    const { token } = await app.createKey();
    const escaped = [...token].map((character) => `%${character.charCodeAt(0).toString(16)}`).join('');
    for (const form of [
      `token=${token}&token_type_hint=access_token`,
      `foo=bar&foo=baz&token=${token}&key=x&cost=99999&%00=%ff`,
      `token=${escaped}`,
      `&&token=${token}&`,
    ]) {
      expect((await sendForm(form)).body.active, form).toBe(true);
    }
  });

  test('takes the token once, and with a value', async () => {
    const { token } = await app.createKey();
    for (const form of [
      '',
      'key=x',
      'token',
      'token=',
      `token=${token}&token=${token}`,
      `token=${token}&token=`,
      `TOKEN=${token}`,
      'token=%00',
    ]) {
      const answer = await sendForm(form);
      expect(answer.status, form).toBe(400);
      expect(answer.body.code).toBe('invalid_request');
      expect(answer.text).not.toContain(token);
    }
  });

  test('takes the media type in any case and with parameters', async () => {
    const { token } = await app.createKey();
    for (const type of [
      'Application/X-WWW-Form-Urlencoded',
      'application/x-www-form-urlencoded; charset=UTF-8',
    ]) {
      const headers = { 'content-type': type };
      expect((await app.post('/v1/introspect', `token=${token}`, { headers })).body.active).toBe(true);
    }
    const headers = { 'content-type': 'application/x-www-form-urlencodedx' };
    expect((await app.post('/v1/introspect', `token=${token}`, { headers })).status).toBe(415);
  });
});

describe('the reason of a refusal', () => {
  test('is `invalid`, word for word, for whatever must not be told apart', async () => {
    const { id, token } = await app.createKey();
    const [foreign, foreignRevoked] = [
      await app.createKey({ workspace_id: 'ws_other' }),
      await app.createKey({ workspace_id: 'ws_other' }),
    ];
    await app.delete(`/v1/api-keys/${foreignRevoked.id}`);
    const service = await app.createServiceKey(['introspect']);
    const narrow = await app.createServiceKey(['introspect'], {
      restrictions: { allowed_workspaces: ['ws_acme'] },
    });
    const revokedService = await app.createServiceKey(['introspect']);
    await app.delete(`/v1/api-keys/${revokedService.id}`);

    const invalid = { active: false, reason: { code: 'invalid', status: 401, detail: expect.any(String) } };
    const details = new Set<string>();
    for (const text of [
      'nonsense',
      `${token.slice(0, -1)}${token.endsWith('0') ? '1' : '0'}`,
      ` ${token}`,
      forge(id),
      forge('key_01h455vb4pex5vsknk084sn02q'),
      forge('key_00000000000000000000000001'),
      foreign.token,
      foreignRevoked.token,
      service.token,
      narrow.token,
      revokedService.token,
      app.adminToken,
    ]) {
      const { body } = await app.introspect(text, {}, { as: narrow.token });
      expect(body).toEqual(invalid);
      details.add(body.reason.detail);
    }
    expect(details.size).toBe(1);
    expect(await codeOf(token, {}, narrow.token)).toBe('active');
    // Neither is a service key shown to an admin.
    for (const text of [service.token, app.adminToken, revokedService.token]) {
      expect(await codeOf(text)).toBe('invalid');
    }
  });

  test('is `revoked` or `expired` for a token whose tag holds, without asking its hash', async () => {
    const [revoked, expired, both, control] = [
      await app.createKey(),
      await app.createKey(),
      await app.createKey(),
      await app.createKey(),
    ];
    await alterKey(expired.id, "expires_at = now() - interval '1 millisecond'");
    await alterKey(both.id, "expires_at = now() - interval '1 millisecond'");
    for (const { id } of [revoked, both]) await app.delete(`/v1/api-keys/${id}`);
    // argon2 fails on a hash of no passes: where an answer comes, argon2 was not asked.
    for (const { id } of [revoked, expired, both, control])
      await alterKey(id, "hash = replace(hash, 't=1', 't=0')");
    expect((await app.introspect(control.token)).status).toBe(503);

    expect(await codeOf(revoked.token)).toBe('revoked');
    expect(await codeOf(expired.token)).toBe('expired');
    expect(await codeOf(both.token)).toBe('revoked');
    expect(await codeOf(forge(revoked.id))).toBe('revoked');
    expect(await codeOf(forge(expired.id))).toBe('expired');
  });

  test('is the first in the order of the contract, when several hold', async () => {
    const { id, token } = await app.createKey({
      restrictions: {
        allowed_ips: ['10.0.0.1'],
        allowed_referrers: ['https://app.example.com/*'],
        allowed_endpoints: [{ methods: ['GET'], path: '/contacts/:id' }],
      },
    });
    const question = {
      workspace_id: 'ws_other',
      environment: 'test',
      scopes: ['read'],
      request: { ip: '10.0.0.2', method: 'POST', path: '/contacts/17', referrer: 'https://evil.org/' },
    };
    const elsewhere = await app.createServiceKey(['introspect'], {
      restrictions: { allowed_workspaces: ['ws_other'] },
    });
    expect(await codeOf(token, question, elsewhere.token)).toBe('invalid');
    expect(await codeOf(token, question)).toBe('wrong_workspace');
    question.workspace_id = 'ws_acme';
    expect(await codeOf(token, question)).toBe('wrong_environment');
    question.environment = 'live';
    expect(await codeOf(token, question)).toBe('ip_not_allowed');
    question.request.ip = '10.0.0.1';
    expect(await codeOf(token, question)).toBe('referrer_not_allowed');
    question.request.referrer = 'https://app.example.com/';
    expect(await codeOf(token, question)).toBe('endpoint_not_allowed');
    question.request.method = 'GET';
    expect(await codeOf(token, question)).toBe('insufficient_scope');
    question.scopes = [];
    expect(await codeOf(token, question)).toBe('active');

    question.workspace_id = 'ws_other';
    await app.delete(`/v1/api-keys/${id}`);
    expect(await codeOf(token, question)).toBe('revoked');
    expect(await codeOf(token, question, elsewhere.token)).toBe('invalid');
  });

  test('has the status that the asking service should answer its own client', async () => {
    const { token } = await app.createKey({ restrictions: { allowed_ips: ['10.0.0.1'] } });
    const statusOf = async (question: object) =>
      (await app.introspect(token, { ...question })).body.reason.status;
    expect(await statusOf({ workspace_id: 'ws_other' })).toBe(403);
    expect(await statusOf({ environment: 'test' })).toBe(403);
    expect(await statusOf({})).toBe(403);
    expect(await statusOf({ request: { ip: '10.0.0.1' }, scopes: ['read'] })).toBe(403);
    expect((await app.introspect('x')).body.reason.status).toBe(401);
  });

  test('is no verdict when the caller names a workspace that is not its own', async () => {
    const { token } = await app.createKey();
    const narrow = await app.createServiceKey(['introspect'], {
      restrictions: { allowed_workspaces: ['ws_acme'] },
    });
    const answer = await app.introspect(token, { workspace_id: 'ws_other' }, { as: narrow.token });
    expect(answer.status).toBe(403);
    expect(answer.body.code).toBe('forbidden');
    expect(await codeOf(token, { workspace_id: 'ws_acme' }, narrow.token)).toBe('active');
  });
});

describe('restrictions hold', () => {
  test('addresses: one of the list, in either family, an IPv4-mapped one as its IPv4', async () => {
    const { token } = await app.createKey({
      restrictions: { allowed_ips: ['203.0.113.0/24', '2001:db8::/32'] },
    });
    const ask = (request?: object) => codeOf(token, request === undefined ? {} : { request });
    for (const ip of [
      '203.0.113.0',
      '203.0.113.255',
      '::ffff:203.0.113.9',
      '2001:db8::1',
      '2001:0DB8:ffff::',
    ]) {
      expect(await ask({ ip }), ip).toBe('active');
    }
    for (const ip of [
      '203.0.112.255',
      '203.0.114.0',
      '2001:db9::',
      '::1',
      '',
      'localhost',
      '203.0.113.9, 10.0.0.1',
    ]) {
      expect(await ask({ ip }), ip).toBe('ip_not_allowed');
    }
    for (const request of [undefined, {}, { ip: null }]) expect(await ask(request)).toBe('ip_not_allowed');
  });

  test('referrers: parsed, never compared as text', async () => {
    const { token } = await app.createKey({
      restrictions: { allowed_referrers: ['https://*.example.com/app/*'] },
    });
    const ask = (request?: object) => codeOf(token, request === undefined ? {} : { request });
    for (const referrer of [
      'https://a.example.com/app/',
      'https://a.b.example.com/app/x?y#z',
      'HTTPS://A.EXAMPLE.COM/app/x',
    ]) {
      expect(await ask({ referrer }), referrer).toBe('active');
    }
    for (const referrer of [
      'https://example.com/app/',
      'http://a.example.com/app/',
      'https://a.example.com.evil.org/app/',
      'https://evil.org/?https://a.example.com/app/',
      'https://a.example.com@evil.org/app/',
      'https://a.example.com:8443/app/',
      'https://a.example.com/',
      'a.example.com/app/',
      '',
    ]) {
      expect(await ask({ referrer }), referrer).toBe('referrer_not_allowed');
    }
    for (const request of [undefined, {}, { referrer: null }])
      expect(await ask(request)).toBe('referrer_not_allowed');
  });

  test('endpoints: a method and a path of the list, GET with HEAD', async () => {
    const { token } = await app.createKey({
      restrictions: {
        allowed_endpoints: [{ methods: ['GET'], path: '/contacts/:id' }, { path: '/files/*' }],
      },
    });
    const ask = (method?: string, path?: string) => codeOf(token, { request: { method, path } });
    for (const [method, path] of [
      ['GET', '/contacts/17'],
      ['HEAD', '/contacts/17/'],
      ['GET', '/contacts/17?x=/../y'],
      ['GET', '/%63ontacts/17'],
      ['DELETE', '/files'],
      ['PATCH', '/files/a/b'],
      [undefined, '/files/a'],
    ] as const) {
      expect(await ask(method, path), `${method} ${path}`).toBe('active');
    }
    for (const [method, path] of [
      ['POST', '/contacts/17'],
      ['get', '/contacts/17'],
      [undefined, '/contacts/17'],
      ['GET', '/contacts'],
      ['GET', '/contacts/17/notes'],
      ['GET', '/contacts/a%2Fb'],
      ['GET', '/files/../contacts'],
      ['GET', '/files//a'],
      ['GET', '/files/%2e%2e/a'],
      ['GET', '/files/a\\b'],
      ['GET', 'https://api.example.com/files/a'],
      ['GET', ''],
      ['GET', undefined],
    ] as const) {
      expect(await ask(method, path), `${method} ${path}`).toBe('endpoint_not_allowed');
    }
  });

  test('and the detail says when the input that one needs was not sent', async () => {
    const detailOf = async (restrictions: object, question = {}) => {
      const { token } = await app.createKey({ restrictions });
      return (await app.introspect(token, question)).body.reason.detail;
    };
    expect(await detailOf({ allowed_ips: ['10.0.0.1'] })).toContain('request.ip');
    expect(await detailOf({ allowed_referrers: ['https://a.example/*'] })).toContain('request.referrer');
    expect(await detailOf({ allowed_endpoints: [{ path: '/a' }] })).toContain('request.path');
    const withPath = { request: { path: '/a' } };
    expect(await detailOf({ allowed_endpoints: [{ methods: ['GET'], path: '/a' }] }, withPath)).toContain(
      'request.method',
    );
  });

  test('for the form too, which tells nothing of the request', async () => {
    const restrictions = { allowed_endpoints: [{ path: '/a' }] };
    const { token } = await app.createKey({ restrictions });
    expect(await codeOf(token, { request: { path: '/a' } })).toBe('active');
    expect((await sendForm(`token=${token}&request.path=/a`)).body).toEqual({ active: false });
  });
});

describe('tokens live on', () => {
  test('when their prefix and environment are no longer configured', async () => {
    const database = await databaseOfTest();
    const before = await createTestApp({ KEY_PREFIX: 'old', KEY_ENVIRONMENTS: 'stage,live' }, database);
    const { token } = await before.createKey({ environment: 'stage', scopes: ['read'] });
    await before.close();
    const after = await createTestApp({}, database);
    try {
      expect(token).toMatch(/^old_stage_/);
      expect((await after.introspect(token)).body).toMatchObject({ active: true, environment: 'stage' });
      expect((await after.get('/v1/me', { as: before.adminToken })).status).toBe(200);
    } finally {
      await after.close();
    }
  });

  test('when KEY_SECRET is rotated: old tokens with the new secret in front, new ones beside the old', async () => {
    const database = await databaseOfTest();
    const [former, newer] = [TEST_KEY_SECRET, 'another-secret-for-tests-of-42-characters!'];
    const one = await createTestApp({ KEY_SECRET: former }, database);
    const old = await one.createKey();
    await one.close();
    const two = await createTestApp({ KEY_SECRET: `${newer},${former}` }, database);
    const fresh = await two.createKey();
    expect((await two.introspect(old.token)).body.active).toBe(true);
    expect((await two.introspect(fresh.token)).body.active).toBe(true);
    await two.close();
    const three = await createTestApp({ KEY_SECRET: `${former},${newer}` }, database);
    try {
      expect((await three.introspect(old.token)).body.active).toBe(true);
      expect((await three.introspect(fresh.token)).body.active).toBe(true);
    } finally {
      await three.close();
    }
  });

  test('and another deployment refuses them', async () => {
    const other = await appOfTest({ KEY_SECRET: 'the-secret-of-another-deployment-altogether' });
    const { token } = await app.createKey();
    expect((await other.introspect(token)).body.reason.code).toBe('invalid');
    expect((await other.get('/v1/me', { as: app.adminToken })).status).toBe(401);
  });
});

describe('the hash of a key', () => {
  test('with weaker parameters is replaced when its token is next verified, and the token stays good', async () => {
    const database = await databaseOfTest();
    const weak = await createTestApp({ ARGON2_TIME_COST: '1' }, database);
    const { id, token } = await weak.createKey();
    const before = await hashOf(id, database);
    await weak.close();
    const strong = await createTestApp({ ARGON2_TIME_COST: '3' }, database);
    try {
      expect(before).toContain('m=1024,t=1,p=1');
      expect((await strong.introspect(forge(id))).body.reason.code).toBe('invalid');
      expect(await hashOf(id, database)).toBe(before);
      expect((await strong.introspect(token)).body.active).toBe(true);
      await vi.waitFor(async () => expect(await hashOf(id, database)).toContain('m=1024,t=3,p=1'));
      const replaced = await hashOf(id, database);
      expect((await strong.introspect(token)).body.active).toBe(true);
      expect((await strong.introspect(forge(id))).body.reason.code).toBe('invalid');
      expect(await hashOf(id, database)).toBe(replaced);
    } finally {
      await strong.close();
    }
    // Proved by the new hash, since a new process remembers nothing and the memo went with the old one.
    const again = await createTestApp({ ARGON2_TIME_COST: '3' }, database);
    try {
      await database.query('TRUNCATE verified_secrets');
      expect((await again.introspect(token)).body.active).toBe(true);
    } finally {
      await again.close();
    }
  });

  test('with stronger parameters is kept', async () => {
    const database = await databaseOfTest();
    const strong = await createTestApp({ ARGON2_TIME_COST: '3' }, database);
    const { id, token } = await strong.createKey();
    const before = await hashOf(id, database);
    await strong.close();
    const weak = await createTestApp({ ARGON2_TIME_COST: '1' }, database);
    try {
      for (let count = 0; count < 2; count++) expect((await weak.introspect(token)).body.active).toBe(true);
    } finally {
      await weak.close();
    }
    expect(before).toContain('t=3');
    expect(await hashOf(id, database)).toBe(before);
  });
});

describe('when more tokens are to be proved than the queue holds', () => {
  test('the rest get 503 overloaded and when to come again, and then all is well', async () => {
    // One token's proof takes so long on this machine that the others arrive meanwhile, however many slots it has.
    const { argon2Slots } = app.config;
    const slow = await appOfTest({
      ARGON2_TIME_COST: String(Math.min(1000, 12 * argon2Slots)),
      DATABASE_POOL_SIZE: '10',
    });
    const { id, token } = await slow.createKey({ scopes: ['read'] });
    const ended = await slow.createKey();
    await slow.delete(`/v1/api-keys/${ended.id}`);

    // Each has a genuine tag and another secret, so that each needs an argon2 of its own.
    const tokens = Array.from({ length: 600 + argon2Slots }, () => forge(id));
    const flood = Promise.all(tokens.map((forged) => slow.introspect(forged)));
    const unproved = await Promise.all(
      [ended.token, forge(ended.id), 'x'].map((text) => slow.introspect(text)),
    );
    const answers = await flood;
    const refused = answers.filter(({ status }) => status === 503);
    const decided = answers.filter(({ status }) => status === 200);
    expect(refused.length).toBeGreaterThan(0);
    expect(decided.length).toBeGreaterThanOrEqual(256 + argon2Slots);
    expect(refused.length + decided.length).toBe(tokens.length);
    for (const { body, headers } of refused) {
      expect(headers['content-type']).toMatch(/^application\/problem\+json/);
      expect(body).toMatchObject({ success: false, status: 503, code: 'overloaded' });
      expect(Number(headers['retry-after'])).toBeGreaterThanOrEqual(1);
    }
    for (const { body } of decided) expect(body.reason.code).toBe('invalid');
    // What needs no proof was answered all the same.
    expect(unproved.map(({ body }) => body.reason?.code)).toEqual(['revoked', 'revoked', 'invalid']);

    expect((await slow.introspect(token, { scopes: ['read'] })).body.active).toBe(true);
  });
});
