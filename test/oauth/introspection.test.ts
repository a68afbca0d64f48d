import { createHmac, generateKeyPairSync } from 'node:crypto';
import { SignJWT } from 'jose';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { appOfTest, createTestApp, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';
import { signAsService } from './keys.ts';
import { accessToken, basic, claimsOf, expectOAuthError, headerOf, postForm } from './requests.ts';

let app: TestApp;
let key: { id: string; token: string };
let service: { id: string; token: string };
let jwt: string;

beforeAll(async () => {
  app = await createTestApp({ FAILED_AUTH_RATE_LIMIT: 'off' });
  key = await app.createKey({ scopes: ['read', 'write'], metadata: { team: 'data' } });
  service = await app.createServiceKey(['introspect']);
  jwt = await accessToken(app, key, { scope: 'read' });
});
afterAll(() => app.close());

const standard = (token: string, headers: Record<string, string> = { authorization: basic(service) }) =>
  postForm(app, '/oauth/introspect', { token }, headers);
const reasonOf = async (answer: Answer | Promise<Answer>) => (await answer).body.reason?.code;

describe('an access token at /v1/introspect', () => {
  test('is answered as its key is, with its own scopes and its own end', async () => {
    const { body } = await app.introspect(jwt, { scopes: ['read'], workspace_id: 'ws_acme' });
    expect(body).toEqual({
      active: true,
      key_id: key.id,
      workspace_id: 'ws_acme',
      name: 'Test key',
      environment: 'live',
      scopes: ['read'],
      created_at: expect.any(String),
      expires_at: new Date(Number(claimsOf(jwt).exp) * 1000).toISOString(),
      metadata: { team: 'data' },
      rate_limit: expect.objectContaining({ limit: 1000 }),
    });
    expect(await reasonOf(app.introspect(jwt, { scopes: ['write'] }))).toBe('insufficient_scope');
    expect(await reasonOf(app.introspect(jwt, { workspace_id: 'ws_other' }))).toBe('wrong_workspace');
  });

  test('has the scopes of both, its own and those that its key has by now', async () => {
    const changing = await app.createKey({ scopes: ['read', 'write'] });
    const both = await accessToken(app, changing);
    await app.patch(`/v1/api-keys/${changing.id}`, { scopes: ['write', 'delete'] });
    expect((await app.introspect(both)).body.scopes).toEqual(['write']);
    await app.patch(`/v1/api-keys/${changing.id}`, { scopes: ['read', 'write'] });
    expect((await app.introspect(both)).body.scopes).toEqual(['read', 'write']);
  });

  test('keeps an implied scope as long as its key holds what implies it', async () => {
    const other = await appOfTest();
    await other.put('/v1/scopes/write', { implies: ['read'] });
    await other.put('/v1/scopes/list', {});
    const writer = await other.createKey({ scopes: ['write'] });
    const token = await accessToken(other, writer, { scope: 'read' });
    expect((await other.introspect(token, { scopes: ['read'] })).body.scopes).toEqual(['read']);
    await other.put('/v1/scopes/write', { implies: [] });
    expect((await other.introspect(token)).body.scopes).toEqual([]);
  });

  test('is bound by the restrictions and the rate limit of its key', async () => {
    const bound = await app.createKey({
      restrictions: { allowed_ips: ['127.0.0.1', '203.0.113.0/24'] },
      rate_limit: { limit: 2, window_seconds: 2_678_400 },
    });
    const token = await accessToken(app, bound);
    expect(await reasonOf(app.introspect(token, { request: { ip: '192.0.2.1' } }))).toBe('ip_not_allowed');
    const request = { ip: '203.0.113.9' };
    expect((await app.introspect(token, { request })).body.rate_limit.remaining).toBe(1);
    expect((await app.introspect(bound.token, { request })).body.rate_limit.remaining).toBe(0);
    expect(await reasonOf(app.introspect(token, { request }))).toBe('rate_limited');
  });

  test('ends with its key, with its workspace, and comes back with that alone', async () => {
    const ending = await app.createKey({ workspace_id: 'ws_ending' });
    const token = await accessToken(app, ending);
    expect((await app.introspect(token)).body.active).toBe(true);
    await app.put('/v1/workspaces/ws_ending', { disabled: true });
    expect(await reasonOf(app.introspect(token))).toBe('workspace_disabled');
    await app.put('/v1/workspaces/ws_ending', { disabled: false });
    expect((await app.introspect(token)).body.active).toBe(true);
    await app.post(`/v1/api-keys/${ending.id}/rotate`, { grace_period_seconds: 0 });
    expect(await reasonOf(app.introspect(token))).toBe('revoked');
  });

  test('expires', async () => {
    const now = Math.floor(Date.now() / 1000);
    const until = (exp: number) => signAsService(app.database, { ...claimsOf(jwt), iat: now - 3_600, exp });
    expect((await app.introspect(await until(now + 30))).body.active).toBe(true);
    expect((await app.introspect(await until(now - 1))).body.reason).toEqual({
      code: 'expired',
      status: 401,
      detail: expect.stringMatching(/^The access token expired on \d{4}-\d\d-\d\d\.$/),
    });
  });

  test('is no token to a service that may not see its workspace', async () => {
    const narrowed = await app.createServiceKey(['introspect'], {
      restrictions: { allowed_workspaces: ['ws_other'] },
    });
    expect(await reasonOf(app.introspect(jwt, {}, { as: narrowed.token }))).toBe('invalid');
  });

  test('counts as a use of its key', async () => {
    const counted = await app.createKey();
    const token = await accessToken(app, counted);
    for (let use = 0; use < 3; use++) await app.introspect(token);
    await expect
      .poll(async () => (await app.get(`/v1/api-keys/${counted.id}/usage`)).body.data.totals, {
        timeout: 5_000,
      })
      .toEqual({ active: 3 });
  });
});

describe('what is no access token of ours', () => {
  test('is invalid, and so costs neither a read of a key nor a hash', async () => {
    const [header = '', payload = '', signature = ''] = jwt.split('.');
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const claims = claimsOf(jwt);
    const kid = String(headerOf(jwt).kid);
    const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const forged = (protectedHeader: { alg: string; typ?: string; kid?: string }) =>
      new SignJWT(claims).setProtectedHeader(protectedHeader).sign(privateKey);
    const publicKey = (await app.get('/.well-known/jwks.json', { as: null })).body.keys[0];
    const hmacHeader = encode({ alg: 'HS256', typ: 'at+jwt', kid });
    const hmac = createHmac('sha256', JSON.stringify(publicKey))
      .update(`${hmacHeader}.${payload}`)
      .digest('base64url');
    const forgeries = {
      'signed by another key under our kid': await forged({ alg: 'ES256', typ: 'at+jwt', kid }),
      'signed by another key under its own kid': await forged({
        alg: 'ES256',
        typ: 'at+jwt',
        kid: 'x'.repeat(43),
      }),
      'without a kid': await forged({ alg: 'ES256', typ: 'at+jwt' }),
      'with alg none': `${encode({ alg: 'none', typ: 'at+jwt', kid })}.${payload}.`,
      'with the public key as an HMAC key': `${hmacHeader}.${payload}.${hmac}`,
      'with other claims': `${header}.${encode({ ...claims, scope: 'admin' })}.${signature}`,
      'with a signature that was changed': `${header}.${payload}.${signature.startsWith('A') ? 'B' : 'A'}${signature.slice(1)}`,
      'cut off': jwt.slice(0, -5),
      'with more behind': `${jwt}.x`,
      'with a space': `${jwt} `,
      'a header alone': header,
      'too long': `${header}.${payload.repeat(100)}.${signature}`,
      'with its own key in the header': `${encode({ alg: 'ES256', typ: 'at+jwt', kid, jwk: publicKey })}.${payload}.${signature}`,
      'with an extension that must be understood': `${encode({ alg: 'ES256', typ: 'at+jwt', kid, crit: ['b64'], b64: false })}.${payload}.${signature}`,
    };
    for (const [what, forgery] of Object.entries(forgeries)) {
      expect(await reasonOf(app.introspect(forgery)), what).toBe('invalid');
      expect((await standard(forgery)).body, what).toEqual({ active: false });
    }
  });

  test('is invalid also where our own key signed it for something else', async () => {
    const claims = claimsOf(jwt);
    const signed = (more: object, options?: { typ: string }) =>
      signAsService(app.database, { ...claims, ...more }, options);
    expect((await app.introspect(await signed({}))).body.active).toBe(true);
    for (const other of [
      await signed({}, { typ: 'JWT' }),
      await signed({ client_id: 'key_01jzzzzzzzzzzzzzzzzzzzzzzz' }),
      await signed({ client_id: 17 }),
      await signed({ exp: undefined }),
      await signed({ jti: 'none' }),
    ])
      expect(await reasonOf(app.introspect(other))).toBe('invalid');
  });

  test('an access token is no credential of a caller anywhere', async () => {
    for (const path of ['/v1/me', '/v1/api-keys']) {
      expect((await app.get(path, { as: jwt })).status).toBe(401);
      expect((await app.get(path, { as: null, headers: { 'x-api-key': jwt } })).status).toBe(401);
    }
    expect((await app.introspect(key.token, {}, { as: jwt })).status).toBe(401);
    expectOAuthError(await standard(jwt, { authorization: `Bearer ${jwt}` }), 401, 'invalid_token');
    expectOAuthError(
      await standard(jwt, { authorization: basic({ id: key.id, token: jwt }) }),
      401,
      'invalid_client',
    );
  });
});

describe('/oauth/introspect', () => {
  test('tells of an access token what RFC 7662 names', async () => {
    const { status, headers, body } = await standard(jwt);
    expect(status).toBe(200);
    expect(headers).toMatchObject({ 'cache-control': 'no-store', pragma: 'no-cache' });
    expect(headers['content-type']).toBe('application/json; charset=utf-8');
    const { iat, exp, jti } = claimsOf(jwt);
    expect(body).toEqual({
      active: true,
      scope: 'read',
      client_id: key.id,
      sub: 'ws_acme',
      token_type: 'Bearer',
      iat,
      exp,
      jti,
    });
    const form = await app.send('POST', '/v1/introspect', {
      body: `token=${jwt}`,
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
    });
    expect(form.body).toEqual(body);
  });

  test("tells the same of a key's own token, without what it does not have", async () => {
    expect((await standard(key.token)).body).toEqual({
      active: true,
      scope: 'read write',
      client_id: key.id,
      sub: 'ws_acme',
      token_type: 'Bearer',
      iat: expect.any(Number),
    });
  });

  test('tells of an inactive token nothing but that: unknown, revoked, of a service key', async () => {
    const revoked = await app.createKey();
    const token = await accessToken(app, revoked);
    await app.delete(`/v1/api-keys/${revoked.id}`);
    for (const one of ['nothing', token, revoked.token, service.token])
      expect((await standard(one)).text).toBe('{"active":false}');
  });

  test('lets a service key show itself by Basic, by Bearer, by X-Api-Key', async () => {
    for (const headers of [
      { authorization: basic(service) },
      { authorization: `Bearer ${service.token}` },
      { 'x-api-key': service.token },
    ]) {
      const answer = await standard(jwt, headers as Record<string, string>);
      expect([answer.status, answer.body.active]).toEqual([200, true]);
    }
  });

  test('refuses others in the way that they came', async () => {
    const other = await app.createServiceKey(['introspect']);
    const byBasic = [
      {},
      { authorization: basic(key) },
      { authorization: basic({ id: other.id, token: service.token }) },
      { authorization: basic({ id: service.id, token: 'wrong' }) },
      { authorization: 'Basic ???' },
    ];
    for (const headers of byBasic) {
      const answer = await standard(jwt, headers as Record<string, string>);
      expectOAuthError(answer, 401, 'invalid_client');
      expect(answer.headers['www-authenticate']).toMatch(/^Basic realm=/);
    }
    const answer = await standard(jwt, { authorization: 'Bearer wrong' });
    expectOAuthError(answer, 401, 'invalid_token');
    expect(answer.headers['www-authenticate']).toBe('Bearer realm="claviger", error="invalid_token"');
  });

  test('refuses a service key without the permission, and one at another address', async () => {
    const reader = await app.createServiceKey(['keys:read']);
    const answer = await standard(jwt, { authorization: `Bearer ${reader.token}` });
    expectOAuthError(answer, 403, 'insufficient_scope');
    expect(answer.headers['www-authenticate']).toBe(
      'Bearer realm="claviger", error="insufficient_scope", scope="introspect"',
    );
    expectOAuthError(await standard(jwt, { authorization: basic(reader) }), 403, 'insufficient_scope');
    const elsewhere = await app.createServiceKey(['introspect'], {
      restrictions: { allowed_ips: ['192.0.2.1'] },
    });
    expectOAuthError(await standard(jwt, { authorization: basic(elsewhere) }), 403, 'unauthorized_client');
  });

  test('refuses a form without a token or with two, and takes any hint', async () => {
    const headers = { authorization: basic(service) };
    for (const form of ['', 'token=', `token=${jwt}&token=${jwt}`, 'token_type_hint=access_token'])
      expectOAuthError(await postForm(app, '/oauth/introspect', form, headers), 400, 'invalid_request');
    const hinted = await postForm(
      app,
      '/oauth/introspect',
      { token: jwt, token_type_hint: 'no_such' },
      headers,
    );
    expect(hinted.body.active).toBe(true);
    expectOAuthError(await app.get('/oauth/introspect'), 405, 'invalid_request');
  });
});
