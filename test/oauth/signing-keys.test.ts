import { createRemoteJWKSet, jwtVerify } from 'jose';
import { expect, onTestFinished, test } from 'vitest';
import { keySecret } from '../../src/domain/key-secret.ts';
import { LEAD_MS } from '../../src/domain/signing-schedule.ts';
import { listen } from '../http/listen.ts';
import { createTestApp, type TestApp } from '../support/app.ts';
import { databaseOfTest, type TestDatabase } from '../support/database.ts';
import { signingKeysOf } from './keys.ts';
import { accessToken, claimsOf, headerOf } from './requests.ts';

const DAY_MS = 86_400_000;
const OLD_SECRET = 'the-former-secret-of-40-characters-alone';
const NEW_SECRET = 'the-present-secret-of-40-characters-only';

const kidsIn = async (database: TestDatabase) =>
  (await database.query<{ kid: string }>('SELECT kid FROM signing_keys ORDER BY signs_from')).map(
    ({ kid }) => kid,
  );
const kidsOf = (keys: { publicKeys(): readonly { kid: string }[] }) =>
  keys.publicKeys().map(({ kid }) => kid);

/**
 * As if that much time had passed for the keys, where the clock cannot be set; a moment more, since tokens are issued by
 * whole seconds.
 */
const age = (database: TestDatabase, days: number) =>
  database.query('UPDATE signing_keys SET signs_from = signs_from - make_interval(days => $1, secs => 1)', [
    days,
  ]);

/** An instance looks for keys that it meets, once a second. */
const LOOKED = { timeout: 3_000 };

async function instanceOn(database: TestDatabase, settings: Record<string, string> = {}): Promise<TestApp> {
  const app = await createTestApp(settings, database);
  onTestFinished(() => app.close());
  return app;
}

test('instances that start at once make one key, and all of them know it', async () => {
  const database = await databaseOfTest();
  const instances = await Promise.all(Array.from({ length: 4 }, () => signingKeysOf(database)));
  await Promise.all(instances.map((keys) => keys.refresh()));
  const [kid] = await kidsIn(database);
  for (const keys of instances) expect(kidsOf(keys)).toEqual([kid]);
});

test('a rotation is known to all before its first use: one key more a day before, its turn at its time, the old one gone later', async () => {
  const database = await databaseOfTest();
  const start = Date.now();
  let now = start;
  const one = await signingKeysOf(database, { now: () => now });
  const other = await signingKeysOf(database, { now: () => now });
  const everyone = async () => {
    await Promise.all([one.refresh(), other.refresh()]);
    expect(kidsOf(one)).toEqual(kidsOf(other));
    return kidsOf(one);
  };
  const key = { id: 'key_01jzzzzzzzzzzzzzzzzzzzzzzz', workspaceId: 'ws_acme', environment: 'live' };
  const signerOf = async (keys: typeof one, atMs: number) => {
    const issuedAt = Math.floor(atMs / 1000);
    const jwt = await keys.sign(key as Parameters<typeof one.sign>[0], {
      jti: '3f0c9a52-6a0e-4d53-9f5e-6f1d7a0c2b11',
      scopes: [],
      issuedAt,
      expiresAt: issuedAt + 60,
      issuer: 'https://keys.example.com',
    });
    // Whoever signed it, the other one takes it.
    expect((await other.verify(jwt))?.token.keyId).toBe(key.id);
    return headerOf(jwt).kid;
  };

  const [first] = await everyone();
  now = start + 30 * DAY_MS - LEAD_MS - 60_000;
  expect(await everyone()).toEqual([first]);
  now = start + 30 * DAY_MS - LEAD_MS;
  const [, second] = await everyone();
  expect(await kidsIn(database)).toEqual([first, second]);
  expect(await signerOf(one, start + 30 * DAY_MS - 1_000)).toBe(first);
  expect(await signerOf(one, start + 30 * DAY_MS + 1_000)).toBe(second);
  now = start + 31 * DAY_MS;
  expect(await everyone()).toEqual([first, second]);
  now = start + 31 * DAY_MS + 3_600_000;
  expect(await everyone()).toEqual([second]);
});

test('a verifier that keeps the key set verifies before, during and after a rotation', async () => {
  const database = await databaseOfTest();
  const issuer = 'https://keys.example.com';
  const before = await instanceOn(database, { ISSUER: issuer });
  const key = await before.createKey();
  // One that reads the set again for each key that it does not know.
  const keySet = createRemoteJWKSet(
    new URL(`http://127.0.0.1:${await listen(before)}/.well-known/jwks.json`),
    {
      cooldownDuration: 0,
    },
  );
  const verified = async (token: string) => {
    const options = { issuer, audience: issuer, typ: 'at+jwt', algorithms: ['ES256'] };
    return (await jwtVerify(token, keySet, options)).payload.client_id;
  };
  const first = await accessToken(before, key);
  expect(await verified(first)).toBe(key.id);

  // A day before the turn of the next key: an instance publishes it, and the first one still signs.
  await age(database, 29);
  const during = await instanceOn(database, { ISSUER: issuer });
  const second = await accessToken(during, key);
  expect(await kidsIn(database)).toHaveLength(2);
  expect(headerOf(second).kid).toBe(headerOf(first).kid);
  expect(await verified(second)).toBe(key.id);
  // The instance that knew one key alone publishes both as soon as it has looked.
  const published = async (app: TestApp) =>
    (await app.get('/.well-known/jwks.json', { as: null })).body.keys.length;
  expect(await published(during)).toBe(2);

  // Its turn has come.
  await age(database, 1);
  const after = await instanceOn(database, { ISSUER: issuer });
  const third = await accessToken(after, key);
  expect(headerOf(third).kid).not.toBe(headerOf(first).kid);
  // The instance of the beginning has heard of nothing, and takes it when it meets it.
  await expect.poll(async () => (await before.introspect(third)).body.active, LOOKED).toBe(true);
  expect(await published(before)).toBe(2);
  for (const token of [first, second, third]) {
    expect(await verified(token)).toBe(key.id);
    for (const app of [before, during, after]) expect((await app.introspect(token)).body.active).toBe(true);
  }
});

test('a private key in the table is sealed: neither it nor a key from elsewhere is of use without KEY_SECRET', async () => {
  const database = await databaseOfTest();
  const app = await instanceOn(database);
  const key = await app.createKey();
  const token = await accessToken(app, key);
  const [row] = await database.query<{ kid: string; sealed: Buffer }>('SELECT kid, sealed FROM signing_keys');
  expect(row?.sealed.toString('latin1')).not.toMatch(/"d"|"kty"|P-256/);

  // Nor under another secret; and sealed for one row it does not open in another.
  const stranger = await signingKeysOf(database, { secrets: [NEW_SECRET] });
  await stranger.refresh();
  expect(kidsOf(stranger)).toEqual([]);
  await database.query('UPDATE signing_keys SET kid = $1', ['x'.repeat(43)]);
  const again = await signingKeysOf(database);
  await again.refresh();
  expect(kidsOf(again)).toEqual([]);
  expect(again.reports).toEqual([expect.stringContaining('does not open with any value of KEY_SECRET')]);
  expect(await again.verify(token)).toBeUndefined();
});

test('a rotation of KEY_SECRET seals the keys anew, and tokens stay good', async () => {
  const database = await databaseOfTest();
  const before = await signingKeysOf(database, { secrets: [OLD_SECRET] });
  await before.refresh();
  const [kid] = await kidsIn(database);
  const both = await signingKeysOf(database, { secrets: [NEW_SECRET, OLD_SECRET] });
  await both.refresh();
  const after = await signingKeysOf(database, { secrets: [NEW_SECRET] });
  await after.refresh();
  for (const keys of [before, both, after]) expect(kidsOf(keys)).toEqual([kid]);
  expect(after.reports).toEqual([]);
  const uncovered = await database.query(
    'SELECT FROM signing_keys JOIN key_secrets ON key_secrets.id = secret_id WHERE fingerprint <> $1',
    [keySecret(NEW_SECRET).fingerprint],
  );
  expect(uncovered).toEqual([]);
});

test('keys that were taken away by hand are made anew, and what they signed is no token any more', async () => {
  const database = await databaseOfTest();
  const [one, other] = [await instanceOn(database), await instanceOn(database)];
  const key = await one.createKey();
  const stolen = await accessToken(one, key);
  expect((await one.introspect(stolen)).body.active).toBe(true);
  await database.query('DELETE FROM signing_keys');
  const restarted = await instanceOn(database);
  const fresh = await accessToken(restarted, key);
  for (const app of [one, other, restarted]) {
    // Met on the way: that is when the others look.
    await expect.poll(async () => (await app.introspect(fresh)).body.active, LOOKED).toBe(true);
    expect((await app.introspect(stolen)).body.reason.code).toBe('invalid');
  }
  expect(claimsOf(fresh).client_id).toBe(key.id);
});

test('what names no key of ours is looked up once a second at most', async () => {
  const database = await databaseOfTest();
  const forged = (kid: string) =>
    `${Buffer.from(JSON.stringify({ alg: 'ES256', typ: 'at+jwt', kid })).toString('base64url')}.e30.${'A'.repeat(86)}`;
  const started = performance.now();
  let looked = 0;
  const watched = await signingKeysOf(database, {
    now: () => {
      looked++;
      return Date.now();
    },
  });
  await watched.refresh();
  looked = 0;
  for (let count = 0; count < 500; count++)
    expect(await watched.verify(forged(`kid${count}`))).toBeUndefined();
  expect(looked).toBeLessThanOrEqual(Math.ceil((performance.now() - started) / 1000));
});
