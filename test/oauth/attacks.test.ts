import { randomBytes } from 'node:crypto';
import { beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import { keySecret } from '../../src/domain/key-secret.ts';
import { createTokenMint } from '../../src/domain/token.ts';
import { createTestApp, TEST_KEY_SECRET, type TestApp } from '../support/app.ts';
import { accessToken, expectOAuthError, postForm, requestToken } from './requests.ts';

/*
 * The token endpoint is open to everybody. What strangers send costs neither argon2 nor the database, and it shuts
 * nobody else out.
 */

let app: TestApp;

beforeEach(async () => {
  app = await createTestApp({ FAILED_AUTH_RATE_LIMIT: 'off' });
  onTestFinished(() => app.close());
});

/** How many argon2 computations there were. */
async function hashes(): Promise<number> {
  const { text } = await app.get('/metrics', { as: null });
  return Number(/^claviger_argon2_seconds_count(?:\{[^}]*\})? (\d+)$/m.exec(text)?.[1]);
}

/** What this deployment could have minted for a key, and did not. */
function counterfeit(id: string): string {
  return createTokenMint([keySecret(TEST_KEY_SECRET).derive('mint')], randomBytes).mint({
    prefix: 'ck',
    environment: 'live',
    id,
  });
}

describe('a flood of', () => {
  test('bogus secrets costs no argon2 and no read of a key', async () => {
    const key = await app.createKey();
    const other = await app.createKey();
    const before = await hashes();
    const reads = await keyReads();
    for (let count = 0; count < 200; count++) {
      const token = `${key.token.slice(0, -20)}${randomBytes(15).toString('base64url').replaceAll(/[-_]/g, '0')}`;
      expectOAuthError(await requestToken(app, { id: key.id, token }), 401, 'invalid_client');
      // Genuine, of another key: what the id says is looked at first.
      expectOAuthError(await requestToken(app, { id: key.id, token: other.token }), 401, 'invalid_client');
    }
    expect(await hashes()).toBe(before);
    expect(await keyReads()).toBe(reads);
  });

  test('secrets with a right tag and a wrong hash costs one slot of the pool each, and keeps nobody out who is known', async () => {
    const key = await app.createKey();
    await accessToken(app, key);
    const before = await hashes();
    const wrong = Array.from({ length: 40 }, () => ({ id: key.id, token: counterfeit(key.id) }));
    const flood = Promise.all(wrong.map((client) => requestToken(app, client)));
    for (let count = 0; count < 10; count++) expect((await requestToken(app, key)).status).toBe(200);
    for (const answer of await flood) expectOAuthError(answer, 401, 'invalid_client');
    expect((await hashes()) - before).toBe(40);
  });

  test('one such secret is computed once for all who send it meanwhile', async () => {
    const key = await app.createKey();
    const wrong = { id: key.id, token: counterfeit(key.id) };
    const before = await hashes();
    for (const answer of await Promise.all(Array.from({ length: 100 }, () => requestToken(app, wrong))))
      expectOAuthError(answer, 401, 'invalid_client');
    expect((await hashes()) - before).toBeLessThan(50);
  });

  test('genuine requests costs one argon2 for all of them', async () => {
    const key = await app.createKey();
    await accessToken(app, key);
    const before = await hashes();
    for (let count = 0; count < 50; count++) await accessToken(app, key);
    expect(await hashes()).toBe(before);
  });

  test('forged access tokens costs no read of a key', async () => {
    const key = await app.createKey();
    const [header, payload] = (await accessToken(app, key)).split('.');
    const reads = await keyReads();
    for (let count = 0; count < 100; count++) {
      const forged = `${header}.${payload}.${randomBytes(64).toString('base64url')}`;
      expect((await app.introspect(forged)).body.reason.code).toBe('invalid');
    }
    expect(await keyReads()).toBe(reads);
  });
});

describe('limits', () => {
  test('are for failures alone: who shows a genuine key is let in from an address that has failed too often', async () => {
    const limited = await createTestApp({ FAILED_AUTH_RATE_LIMIT: '5' });
    onTestFinished(() => limited.close());
    const key = await limited.createKey();
    const wrong = { id: key.id, token: 'wrong' };
    for (let count = 0; count < 5; count++)
      expectOAuthError(await requestToken(limited, wrong), 401, 'invalid_client');
    for (let count = 0; count < 3; count++) {
      const answer = await requestToken(limited, wrong);
      expectOAuthError(answer, 429, 'temporarily_unavailable');
      expect(Number(answer.headers['retry-after'])).toBeGreaterThanOrEqual(1);
      expect((await requestToken(limited, key)).status).toBe(200);
    }
    // What is malformed is no failure to authenticate, and costs nothing.
    expectOAuthError(await postForm(limited, '/oauth/token', {}), 400, 'invalid_request');
  });
});

/** How often the verifier went to the database. */
async function keyReads(): Promise<number> {
  const { text } = await app.get('/metrics', { as: null });
  return Number(/^claviger_lookups_total\{way="database"\} (\d+)$/m.exec(text)?.[1] ?? 0);
}
