import { createLocalJWKSet, jwtVerify } from 'jose';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { appOfTest, createTestApp, type TestApp } from '../support/app.ts';
import { basic, claimsOf, expectOAuthError, headerOf, postForm, requestToken } from './requests.ts';

const ISSUER = 'https://keys.example.com';
const GRANT = { grant_type: 'client_credentials' };
const BASIC_CHALLENGE = 'Basic realm="claviger", charset="UTF-8"';

let app: TestApp;
let key: { id: string; token: string };

beforeAll(async () => {
  app = await createTestApp({ ISSUER, FAILED_AUTH_RATE_LIMIT: 'off' });
  key = await app.createKey({ scopes: ['read', 'write'] });
});
afterAll(() => app.close());

const post = (parameters: Parameters<typeof postForm>[2], headers?: Record<string, string>) =>
  postForm(app, '/oauth/token', parameters, headers);

describe('an access token', () => {
  test('is a JWT of RFC 9068 that the published keys verify', async () => {
    const { status, headers, body } = await requestToken(app, key);
    expect(status).toBe(200);
    expect(body).toEqual({
      access_token: expect.stringMatching(/^eyJ/),
      token_type: 'Bearer',
      expires_in: 3600,
      scope: 'read write',
    });
    expect(headers).toMatchObject({
      'content-type': 'application/json; charset=utf-8',
      'cache-control': 'no-store',
      pragma: 'no-cache',
    });
    const keys = createLocalJWKSet((await app.get('/.well-known/jwks.json', { as: null })).body);
    const { payload, protectedHeader } = await jwtVerify(body.access_token, keys, {
      issuer: ISSUER,
      audience: ISSUER,
      typ: 'at+jwt',
      algorithms: ['ES256'],
      requiredClaims: ['iss', 'exp', 'aud', 'sub', 'client_id', 'iat', 'jti'],
    });
    expect(protectedHeader).toEqual({ alg: 'ES256', typ: 'at+jwt', kid: expect.any(String) });
    expect(payload).toEqual({
      iss: ISSUER,
      aud: ISSUER,
      sub: key.id,
      client_id: key.id,
      workspace_id: 'ws_acme',
      environment: 'live',
      scope: 'read write',
      jti: expect.stringMatching(/^[0-9a-f-]{36}$/),
      iat: expect.any(Number),
      exp: Number(payload.iat) + 3600,
    });
    expect(Math.abs(Number(payload.iat) - Date.now() / 1000)).toBeLessThan(60);
  });

  test('has an id of its own each time', async () => {
    const issued = await Promise.all([requestToken(app, key), requestToken(app, key)]);
    const [one, other] = issued.map(({ body }) => claimsOf(body.access_token).jti);
    expect(one).not.toBe(other);
  });

  test('never outlives its key, and a key with less than a second left has expired', async () => {
    const expiresAt = Math.ceil(Date.now() / 1000) + 120;
    const short = await app.createKey({ expires_at: new Date(expiresAt * 1000 + 900).toISOString() });
    const { body } = await requestToken(app, short);
    expect(claimsOf(body.access_token).exp).toBe(expiresAt);
    expect(body.expires_in).toBe(expiresAt - Number(claimsOf(body.access_token).iat));

    const ending = await app.createKey();
    await app.database.query(
      "UPDATE api_keys SET expires_at = date_trunc('second', clock_timestamp()) + interval '999 ms' WHERE id = (SELECT max(id::text)::uuid FROM api_keys)",
    );
    expectOAuthError(await requestToken(app, ending), 401, 'invalid_client');
  });

  test('of a key without scopes has no scope', async () => {
    const { status, body } = await requestToken(app, await app.createKey());
    expect(status).toBe(200);
    expect(body).not.toHaveProperty('scope');
    expect(claimsOf(body.access_token)).not.toHaveProperty('scope');
  });

  test('lives as long as OAUTH_TOKEN_SECONDS says', async () => {
    const brief = await appOfTest({ OAUTH_TOKEN_SECONDS: '60' });
    const { body } = await requestToken(brief, await brief.createKey());
    expect(body.expires_in).toBe(60);
    expect(Number(claimsOf(body.access_token).exp) - Number(claimsOf(body.access_token).iat)).toBe(60);
  });

  test('is of the issuer that is configured, or of http://HOST:PORT, whatever the Host header says', async () => {
    const plain = await appOfTest({ PORT: '8123' });
    const { body } = await plain.send('POST', '/oauth/token', {
      as: null,
      body: 'grant_type=client_credentials',
      headers: {
        host: 'evil.example',
        'x-forwarded-host': 'evil.example',
        'content-type': 'application/x-www-form-urlencoded',
        authorization: basic(await plain.createKey()),
      },
    });
    expect(claimsOf(body.access_token)).toMatchObject({
      iss: 'http://127.0.0.1:8123',
      aud: 'http://127.0.0.1:8123',
    });
  });

  test('names the key that signed it', async () => {
    const { body } = await requestToken(app, key);
    const { keys } = (await app.get('/.well-known/jwks.json', { as: null })).body;
    expect(keys).toEqual([
      {
        kty: 'EC',
        crv: 'P-256',
        x: expect.any(String),
        y: expect.any(String),
        kid: headerOf(body.access_token).kid,
        alg: 'ES256',
        use: 'sig',
      },
    ]);
  });
});

describe('scope', () => {
  test('narrows the token to what it names, each once, in its order', async () => {
    const { body } = await requestToken(app, key, { scope: 'write read write' });
    expect(body.scope).toBe('write read');
    expect(claimsOf(body.access_token).scope).toBe('write read');
    expect((await requestToken(app, key, { scope: 'read' })).body.scope).toBe('read');
  });

  test('that is empty counts as left out', async () => {
    expect((await requestToken(app, key, { scope: '' })).body.scope).toBe('read write');
  });

  test('may name what the catalogue says is implied, and nothing else that the key lacks', async () => {
    const other = await appOfTest();
    await other.put('/v1/scopes/write', { implies: ['read'] });
    const writer = await other.createKey({ scopes: ['write'] });
    expect((await requestToken(other, writer, { scope: 'read' })).body.scope).toBe('read');
    for (const scope of ['admin', 'write admin', 'keys:read'])
      expectOAuthError(await requestToken(other, writer, { scope }), 400, 'invalid_scope');
  });

  test.each([
    'read  write',
    ' read',
    'read ',
    'read\twrite',
    'r"ead',
    'r\\ead',
    'r\u00e9ad',
    'a '.repeat(65).trim(),
  ])('that is malformed is refused: %j', async (scope) => {
    const many = scope.startsWith('a a')
      ? Array.from({ length: 65 }, (_, index) => `s${index}`).join(' ')
      : scope;
    expectOAuthError(await requestToken(app, key, { scope: many }), 400, 'invalid_scope');
  });
});

describe('a client shows itself', () => {
  test('by Basic or in the form', async () => {
    expect((await post(GRANT, { authorization: basic(key) })).status).toBe(200);
    expect((await post({ ...GRANT, client_id: key.id, client_secret: key.token })).status).toBe(200);
  });

  test('by Basic with both halves encoded as in a form', async () => {
    const encode = (text: string) =>
      [...text].map((character) => `%${character.charCodeAt(0).toString(16)}`).join('');
    const pair = `${encode(key.id)}:${encode(key.token)}`;
    expect(
      (await post(GRANT, { authorization: `basic ${Buffer.from(pair).toString('base64')}` })).status,
    ).toBe(200);
  });

  test('by Basic, and may name itself in the form too, but as no other', async () => {
    const headers = { authorization: basic(key) };
    expect((await post({ ...GRANT, client_id: key.id }, headers)).status).toBe(200);
    const other = await app.createKey();
    expectOAuthError(await post({ ...GRANT, client_id: other.id }, headers), 400, 'invalid_request');
  });

  test('in one way alone', async () => {
    const headers = { authorization: basic(key) };
    const answer = await post({ ...GRANT, client_id: key.id, client_secret: key.token }, headers);
    expectOAuthError(answer, 400, 'invalid_request');
    expectOAuthError(await post({ ...GRANT, client_secret: key.token }), 400, 'invalid_request');
  });

  test('or is refused with 401 and the challenge for Basic', async () => {
    const other = await app.createKey();
    const wrong: [string, Record<string, string>, Record<string, string>][] = [
      ['nothing', {}, {}],
      ['an id alone', { client_id: key.id }, {}],
      ['another secret', { client_id: key.id, client_secret: other.token }, {}],
      ['another secret', {}, { authorization: basic({ id: key.id, token: other.token }) }],
      ['no key', {}, { authorization: basic({ id: 'key_01jzzzzzzzzzzzzzzzzzzzzzzz', token: key.token }) }],
      ['no id', {}, { authorization: basic({ id: '', token: key.token }) }],
      ['nonsense', {}, { authorization: 'Basic ???' }],
      ['no colon', {}, { authorization: `Basic ${Buffer.from(key.id).toString('base64')}` }],
      ['a bad escape', {}, { authorization: `Basic ${Buffer.from(`${key.id}:%zz`).toString('base64')}` }],
      ['bytes', {}, { authorization: `Basic ${Buffer.from([0xff, 0x3a, 0xfe]).toString('base64')}` }],
      ['its token as Bearer', {}, { authorization: `Bearer ${key.token}` }],
      ['its token as X-Api-Key', {}, { 'x-api-key': key.token }],
    ];
    for (const [what, parameters, headers] of wrong) {
      const answer = await post({ ...GRANT, ...parameters }, headers);
      expect([answer.status, answer.body.error], what).toEqual([401, 'invalid_client']);
      expectOAuthError(answer, 401, 'invalid_client');
      expect(answer.headers['www-authenticate']).toBe(BASIC_CHALLENGE);
    }
  });

  test('no more once its key is revoked or has expired', async () => {
    const revoked = await app.createKey();
    await requestToken(app, revoked);
    await app.delete(`/v1/api-keys/${revoked.id}`);
    expectOAuthError(await requestToken(app, revoked), 401, 'invalid_client');
  });

  test('and is refused where its key may not be used: in a disabled workspace, from another address', async () => {
    const disabled = await app.createKey({ workspace_id: 'ws_disabled' });
    await app.put('/v1/workspaces/ws_disabled', { disabled: true });
    expectOAuthError(await requestToken(app, disabled), 400, 'unauthorized_client');
    const elsewhere = await app.createKey({ restrictions: { allowed_ips: ['192.0.2.1'] } });
    expectOAuthError(await requestToken(app, elsewhere), 400, 'unauthorized_client');
    const here = await app.createKey({
      restrictions: { allowed_ips: ['127.0.0.1'], allowed_endpoints: [{ path: '/contacts' }] },
    });
    expect((await requestToken(app, here)).status).toBe(200);
  });

  test('as no service key: not even an admin is issued an access token', async () => {
    const service = await app.createServiceKey(['introspect']);
    expectOAuthError(await requestToken(app, service), 401, 'invalid_client');
  });

  test('with its own token, not with an access token of it', async () => {
    const { access_token: token } = (await requestToken(app, key)).body;
    expectOAuthError(await requestToken(app, { id: key.id, token }), 401, 'invalid_client');
  });
});

describe('the token endpoint refuses', () => {
  test.each<[string, Parameters<typeof postForm>[2], string]>([
    ['no grant_type', {}, 'invalid_request'],
    ['an empty grant_type', { grant_type: '' }, 'invalid_request'],
    ['another grant_type', { grant_type: 'password' }, 'unsupported_grant_type'],
    ['a grant_type in other letters', { grant_type: 'Client_Credentials' }, 'unsupported_grant_type'],
    ['a parameter twice', 'grant_type=client_credentials&grant_type=client_credentials', 'invalid_request'],
    ['a parameter twice, once empty', 'grant_type=client_credentials&scope=&scope=read', 'invalid_request'],
    ['a malformed escape', 'grant_type=client_credentials&scope=%zz', 'invalid_request'],
    ['bytes that are not UTF-8', 'grant_type=client_credentials&scope=%ff', 'invalid_request'],
    ['NUL', 'grant_type=client_credentials&scope=%00', 'invalid_request'],
    ['no body', '', 'invalid_request'],
  ])('%s, before it asks who the client is', async (_what, parameters, error) => {
    for (const headers of [{}, { authorization: basic(key) }, { authorization: 'Basic eDp5' }])
      expectOAuthError(await post(parameters, headers), 400, error);
  });

  test('nothing for parameters that it does not know, also twice', async () => {
    const parameters = 'grant_type=client_credentials&resource=a&resource=b&audience=x&nonsense';
    expect((await post(parameters, { authorization: basic(key) })).status).toBe(200);
  });

  test('what is in the query: it is ignored', async () => {
    const query = `?grant_type=client_credentials&client_id=${key.id}&client_secret=${key.token}`;
    expectOAuthError(await postForm(app, `/oauth/token${query}`, {}), 400, 'invalid_request');
  });

  test('every method but POST, every body but a form, and one of more than 64 KiB', async () => {
    for (const method of ['GET', 'PUT', 'PATCH', 'DELETE', 'OPTIONS']) {
      const answer = await app.send(method, '/oauth/token', { headers: { 'content-type': 'text/plain' } });
      expectOAuthError(answer, 405, 'invalid_request');
      expect(answer.headers.allow).toBe('POST');
    }
    expect((await app.app.inject({ method: 'HEAD', url: '/oauth/token' })).statusCode).toBe(405);
    for (const type of ['application/json', 'text/plain', 'nonsense', 'multipart/form-data; boundary=x'])
      expectOAuthError(await post('{}', { 'content-type': type }), 415, 'invalid_request');
    expectOAuthError(await post(`scope=${'x'.repeat(70_000)}`), 413, 'invalid_request');
    expectOAuthError(await post(GRANT, { 'content-encoding': 'gzip' }), 415, 'invalid_request');
  });

  test('with 503 and Retry-After where the database is away', async () => {
    const cut = await appOfTest({ LEASE_SECONDS: '300' });
    const warm = await cut.createKey();
    const cold = await cut.createKey();
    await requestToken(cut, warm);
    const name = new URL(cut.database.url).pathname.slice(1);
    await app.database.query(`ALTER DATABASE ${name} WITH ALLOW_CONNECTIONS false`);
    await app.database.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1', [
      name,
    ]);
    const answer = await requestToken(cut, cold);
    expectOAuthError(answer, 503, 'temporarily_unavailable');
    expect(answer.headers['retry-after']).toBe('1');
    expect((await requestToken(cut, warm)).status).toBe(200);
    await app.database.query(`ALTER DATABASE ${name} WITH ALLOW_CONNECTIONS true`);
  });
});

describe('the metadata of RFC 8414', () => {
  test('names what there is, under the issuer', async () => {
    const { status, headers, body } = await app.get('/.well-known/oauth-authorization-server', {
      as: null,
      headers: { host: 'evil.example' },
    });
    expect(status).toBe(200);
    expect(headers['content-type']).toMatch(/^application\/json\b/);
    expect(headers['cache-control']).toBe('public, max-age=300');
    expect(body).toMatchObject({
      issuer: ISSUER,
      token_endpoint: `${ISSUER}/oauth/token`,
      jwks_uri: `${ISSUER}/.well-known/jwks.json`,
      grant_types_supported: ['client_credentials'],
      response_types_supported: [],
      token_endpoint_auth_methods_supported: ['client_secret_basic', 'client_secret_post'],
    });
  });

  test('of an issuer with a path are found with that path behind', async () => {
    const below = await appOfTest({ ISSUER: 'https://example.com/claviger' });
    const at = (path: string) => below.app.inject({ url: `/.well-known/oauth-authorization-server${path}` });
    expect((await at('/claviger')).json().issuer).toBe('https://example.com/claviger');
    for (const path of ['/other', '/claviger/', '/claviger/x', '/'])
      expect((await at(path)).statusCode).toBe(404);
  });

  test('of an issuer without one are found there alone', async () => {
    const { statusCode } = await app.app.inject({ url: '/.well-known/oauth-authorization-server/claviger' });
    expect(statusCode).toBe(404);
  });
});
