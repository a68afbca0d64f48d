import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createDatabase } from '../../src/storage/database.ts';
import { forgetExpiredTokens } from '../../src/storage/revoked-tokens.ts';
import { appOfTest, createTestApp, type TestApp } from '../support/app.ts';
import { signAsService } from './keys.ts';
import { accessToken, basic, claimsOf, expectOAuthError, postForm } from './requests.ts';

let app: TestApp;
let key: { id: string; token: string };

beforeAll(async () => {
  app = await createTestApp({ FAILED_AUTH_RATE_LIMIT: 'off' });
  key = await app.createKey({ scopes: ['read'] });
});
afterAll(() => app.close());

const revoke = (token: string, headers?: Record<string, string>) =>
  postForm(app, '/oauth/revoke', { token }, headers);
const isActive = async (token: string) => (await app.introspect(token)).body.active;

describe('revoking an access token', () => {
  test('ends that one alone: not its key, and no other token of it', async () => {
    const [one, other] = [await accessToken(app, key), await accessToken(app, key)];
    for (const token of [one, other]) expect(await isActive(token)).toBe(true);
    const { status, headers, body } = await revoke(one);
    expect([status, body]).toEqual([200, {}]);
    expect(headers).toMatchObject({ 'cache-control': 'no-store', pragma: 'no-cache' });
    expect((await app.introspect(one)).body.reason).toEqual({
      code: 'revoked',
      status: 401,
      detail: 'The access token was revoked.',
    });
    expect(await isActive(other)).toBe(true);
    expect(await isActive(key.token)).toBe(true);
    expect(await isActive(await accessToken(app, key))).toBe(true);
  });

  test('also ends it in another spelling of the same signature', async () => {
    const token = await accessToken(app, key);
    // The last character of 64 bytes in base64url has four bits that mean nothing.
    const last = token.at(-1) ?? '';
    const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
    const respelt = token.slice(0, -1) + alphabet[alphabet.indexOf(last) ^ 1];
    await revoke(respelt);
    await revoke(token);
    expect(await isActive(respelt)).toBe(false);
    expect(await isActive(token)).toBe(false);
  });

  test('is told once, by an audit event that names the token and the key, and waits again where it is repeated', async () => {
    const token = await accessToken(app, key);
    for (let attempt = 0; attempt < 3; attempt++) expect((await revoke(token)).status).toBe(200);
    const { body } = await app.get('/v1/audit-events?action=token.revoked&limit=100');
    const events = body.data.filter(
      ({ target }: { target: { id: string } }) => target.id === claimsOf(token).jti,
    );
    expect(events).toEqual([
      expect.objectContaining({
        action: 'token.revoked',
        actor: 'oauth_revoke',
        target: { type: 'token', id: claimsOf(token).jti },
        workspace_id: 'ws_acme',
        key_id: key.id,
        address: '127.0.0.1',
        before: null,
        after: { expires_at: new Date(Number(claimsOf(token).exp) * 1000).toISOString() },
      }),
    ]);
  });

  test('leaves nothing behind where it has expired', async () => {
    const now = Math.floor(Date.now() / 1000);
    const expired = await signAsService(app.database, {
      ...claimsOf(await accessToken(app, key)),
      iat: now - 100,
      exp: now - 1,
    });
    expect((await revoke(expired)).status).toBe(200);
    expect(
      await app.database.query('SELECT FROM revoked_tokens WHERE jti = $1', [claimsOf(expired).jti]),
    ).toEqual([]);
  });
});

describe("revoking a key's token", () => {
  test('revokes the key, and with it all access tokens', async () => {
    const leaked = await app.createKey();
    const token = await accessToken(app, leaked);
    expect((await revoke(leaked.token)).status).toBe(200);
    const { body } = await app.get(`/v1/api-keys/${leaked.id}`);
    expect(body.data).toMatchObject({ status: 'revoked', revoked_reason: 'revoked by its holder' });
    expect((await app.introspect(token)).body.reason.code).toBe('revoked');
    const events = await app.get(`/v1/audit-events?key_id=${leaked.id}&action=key.revoked`);
    expect(events.body.data).toMatchObject([{ actor: 'oauth_revoke', address: '127.0.0.1' }]);
  });

  test('ends a service key too', async () => {
    const service = await app.createServiceKey(['keys:read']);
    await revoke(service.token);
    expect((await app.get('/v1/me', { as: service.token })).status).toBe(401);
  });
});

describe('RFC 7009', () => {
  test('answers 200 to what is no token, or none any more', async () => {
    const gone = await app.createKey();
    await app.delete(`/v1/api-keys/${gone.id}`);
    for (const token of ['nothing', 'eyJ', gone.token, `${key.token}x`, 'ck_live_x'])
      expect((await revoke(token)).status).toBe(200);
    expect(await isActive(key.token)).toBe(true);
  });

  test('a hint is no more than that', async () => {
    const token = await accessToken(app, key);
    const answer = await postForm(app, '/oauth/revoke', { token, token_type_hint: 'refresh_token' });
    expect(answer.status).toBe(200);
    expect(await isActive(token)).toBe(false);
  });

  test('a form without a token or with two is refused', async () => {
    for (const form of ['', 'token=', 'token=a&token=b', 'token_type_hint=access_token'])
      expectOAuthError(await postForm(app, '/oauth/revoke', form), 400, 'invalid_request');
    expectOAuthError(await app.get('/oauth/revoke'), 405, 'invalid_request');
  });

  test('a client that shows itself revokes what is its own, also when its key is revoked already', async () => {
    const client = await app.createKey();
    const token = await accessToken(app, client);
    expect((await revoke(token, { authorization: basic(client) })).status).toBe(200);
    expect(await isActive(token)).toBe(false);
    const inForm = { token: client.token, client_id: client.id, client_secret: client.token };
    for (let attempt = 0; attempt < 2; attempt++)
      expect((await postForm(app, '/oauth/revoke', inForm)).status).toBe(200);
    expect(await isActive(client.token)).toBe(false);
  });

  test('and nothing of another client', async () => {
    const [client, other] = [await app.createKey(), await app.createKey()];
    const token = await accessToken(app, other);
    for (const foreign of [token, other.token])
      expectOAuthError(await revoke(foreign, { authorization: basic(client) }), 400, 'unauthorized_client');
    expect(await isActive(token)).toBe(true);
  });

  test('credentials that are sent have to be right', async () => {
    const client = await app.createKey();
    const token = await accessToken(app, client);
    for (const authorization of [
      basic({ id: client.id, token: 'wrong' }),
      basic({ id: key.id, token: client.token }),
      basic({ id: client.id, token }),
      'Bearer wrong',
      `Bearer ${token}`,
      'Basic ???',
    ])
      expectOAuthError(await revoke(token, { authorization }), 401, 'invalid_client');
    expect(await isActive(token)).toBe(true);
  });

  test('a service key revokes what it was shown', async () => {
    const service = await app.createServiceKey(['introspect']);
    for (const authorization of [basic(service), `Bearer ${service.token}`]) {
      const token = await accessToken(app, key);
      expect((await revoke(token, { authorization })).status).toBe(200);
      expect(await isActive(token)).toBe(false);
    }
  });
});

test('is 503 while the database is away, and the token stays as it was', async () => {
  const cut = await appOfTest({ LEASE_SECONDS: '300' });
  const own = await cut.createKey();
  const token = await accessToken(cut, own);
  const name = new URL(cut.database.url).pathname.slice(1);
  await app.database.query(`ALTER DATABASE ${name} WITH ALLOW_CONNECTIONS false`);
  await app.database.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1', [
    name,
  ]);
  for (const one of [token, own.token]) {
    const answer = await postForm(cut, '/oauth/revoke', { token: one });
    expectOAuthError(answer, 503, 'temporarily_unavailable');
    expect(answer.headers['retry-after']).toBe('1');
  }
  await app.database.query(`ALTER DATABASE ${name} WITH ALLOW_CONNECTIONS true`);
  expect((await cut.introspect(token)).body.active).toBe(true);
});

test('what is revoked is remembered until it has expired', async () => {
  const own = await appOfTest();
  const token = await accessToken(own, await own.createKey());
  await postForm(own, '/oauth/revoke', { token });
  const database = createDatabase({
    url: own.database.url,
    poolSize: 2,
    applicationName: 'a test',
    onConnectionLost: () => undefined,
  });
  const left = async (nowMs: number) => {
    await database.read((executor) => forgetExpiredTokens(executor, nowMs));
    return (await own.database.query('SELECT FROM revoked_tokens')).length;
  };
  const endMs = Number(claimsOf(token).exp) * 1000;
  expect(await left(endMs + 60_000)).toBe(1);
  expect(await left(endMs + 60_001)).toBe(0);
  await database.close();
});

test('each address may send so many, and a service key as many as it wants', async () => {
  const limited = await appOfTest({ FAILED_AUTH_RATE_LIMIT: '3' });
  const own = await limited.createKey();
  const token = await accessToken(limited, own);
  const send = (headers?: Record<string, string>) =>
    postForm(limited, '/oauth/revoke', { token: 'nothing' }, headers);
  for (let count = 0; count < 3; count++) expect((await send()).status).toBe(200);
  const answer = await send();
  expectOAuthError(answer, 429, 'temporarily_unavailable');
  expect(Number(answer.headers['retry-after'])).toBeGreaterThanOrEqual(1);
  expect((await send({ authorization: `Bearer ${limited.adminToken}` })).status).toBe(200);
  expect((await limited.introspect(token)).body.active).toBe(true);
});
