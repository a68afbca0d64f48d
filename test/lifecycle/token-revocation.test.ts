import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Failure } from '../../src/domain/errors.ts';
import { type KeyId, keyIdToUuid, newKeyId } from '../../src/domain/key-id.ts';
import { keySecret } from '../../src/domain/key-secret.ts';
import { createTokenMint } from '../../src/domain/token.ts';
import { createTokenRevocation, type Showing } from '../../src/lifecycle/token-revocation.ts';
import { TEST_KEY_SECRET } from '../support/app.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { type Engine, joinedEngine } from '../verification/engine.ts';

const SHOWING: Showing = {
  source: 'leak_report',
  reason: 'leaked',
  origin: { address: '198.51.100.7', requestId: 'req_leak' },
};
const mint = createTokenMint([keySecret(TEST_KEY_SECRET).derive('mint')], randomBytes);

let database: TestDatabase;
beforeAll(async () => {
  database = await createTestDatabase();
});
afterAll(() => database.drop());

function revokeTokens(engine: Engine, tokens: readonly string[], showing: Partial<Showing> = {}) {
  return createTokenRevocation(engine).revokeTokens(tokens, { ...SHOWING, ...showing });
}

/** A string with a good tag that names this key, and another secret than its token has. */
function forge(id: KeyId, environment = 'live'): string {
  return mint.mint({ prefix: 'ck', environment, id });
}

interface StoredKey extends Record<string, unknown> {
  readonly revoked_at: Date | null;
  readonly revoked_reason: string | null;
}

async function stored(id: KeyId): Promise<StoredKey | undefined> {
  const [row] = await database.query<StoredKey>(
    'SELECT revoked_at, revoked_reason FROM api_keys WHERE id = $1',
    [keyIdToUuid(id)],
  );
  return row;
}

function revocationsOf(id: KeyId) {
  return database.query<Record<string, unknown>>(
    "SELECT * FROM audit_events WHERE key_id = $1 AND action = 'key.revoked'",
    [keyIdToUuid(id)],
  );
}

async function expire(id: KeyId): Promise<void> {
  await database.query("UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE id = $1", [
    keyIdToUuid(id),
  ]);
}

describe('whoever shows the tokens of keys', () => {
  test('ends them, on every instance, with an audit event that says by which door', async () => {
    const [here, there] = [await joinedEngine(database), await joinedEngine(database)];
    const keys = [
      await here.createKey({ workspaceId: 'ws_a' }),
      await here.createKey({ workspaceId: 'ws_b' }),
      await here.createKey({ workspaceId: 'ws_a' }),
    ];
    for (const { token } of keys) expect(await there.verdict(token)).toBe('active');
    const other = await here.createKey();

    const tokens = keys.map(({ token }) => token);
    const found = await revokeTokens(here, ['not a token', ...tokens, tokens[0] ?? '', '']);
    expect([...found].sort()).toEqual([...tokens].sort());
    // From memory, which knew them as active: nothing but the change has told it.
    const reads = there.count('lookedUp unminted');
    for (const { key, token } of keys) {
      expect(await there.verdict(token)).toBe('revoked');
      expect(await here.verdict(token)).toBe('revoked');
      const row = await stored(key.id);
      expect(row).toEqual({ revoked_at: expect.any(Date), revoked_reason: 'leaked' });
      expect(await revocationsOf(key.id)).toMatchObject([
        {
          actor_key_id: null,
          source: 'leak_report',
          workspace_id: key.workspaceId,
          address: '198.51.100.7',
          request_id: 'req_leak',
          before: { revoked_at: null, revoked_reason: null },
          after: { revoked_at: row?.revoked_at?.toISOString(), revoked_reason: 'leaked' },
        },
      ]);
    }
    expect(there.count('lookedUp unminted')).toBe(reads);
    expect(await here.verdict(other.token)).toBe('active');
    // One change for all of them.
    expect(here.count('confirmed')).toBe(1);
  });

  test('ends the last admin key too: an operator makes another at the command line', async () => {
    const engine = await joinedEngine(database);
    const admins = [
      await engine.lifecycle.createAdmin('One'),
      await engine.lifecycle.createAdmin('The other'),
    ];
    const tokens = admins.map(({ token }) => token);
    expect(await revokeTokens(engine, tokens, { source: 'oauth_revoke', reason: 'gone' })).toEqual(
      new Set(tokens),
    );
    for (const { key, token } of admins) {
      expect(await engine.verifier.authenticate(token, () => '127.0.0.1')).toMatchObject({
        authenticated: false,
      });
      expect(await stored(key.id)).toMatchObject({ revoked_reason: 'gone' });
      expect(await revocationsOf(key.id)).toMatchObject([{ source: 'oauth_revoke', workspace_id: 'system' }]);
    }
  });

  test('ends an expired key, which no list should show as merely expired', async () => {
    const engine = await joinedEngine(database);
    const { key, token } = await engine.createKey();
    await expire(key.id);
    expect(await engine.verdict(token)).toBe('expired');
    expect(await revokeTokens(engine, [token])).toEqual(new Set([token]));
    expect(await stored(key.id)).toMatchObject({ revoked_reason: 'leaked' });
  });

  test('leaves the successor of a rotated key alone, and its predecessor', async () => {
    const engine = await joinedEngine(database);
    const first = await engine.createKey();
    const second = await engine.rotate(first.key.id);
    const third = await engine.rotate(second.key.id);
    await revokeTokens(engine, [second.token]);
    expect(await engine.verdict(first.token)).toBe('active');
    expect(await engine.verdict(second.token)).toBe('revoked');
    expect(await engine.verdict(third.token)).toBe('active');
  });
});

describe('a string that is no token', () => {
  test('costs neither argon2 nor the database', async () => {
    const engine = await joinedEngine(database);
    const { token } = await engine.createKey();
    const swap = (text: string) => `${text.slice(0, 30)}${text[30] === 'a' ? 'b' : 'a'}${text.slice(31)}`;
    const hashed = engine.count('hashed');
    const strings = [
      '',
      'ck_live_',
      swap(token),
      token.slice(1),
      ` ${token}`,
      `${token} `,
      '\0',
      'x'.repeat(4096),
    ];
    expect(await revokeTokens(engine, strings)).toEqual(new Set());
    expect(engine.count('lookedUp unminted')).toBe(strings.length);
    expect(engine.count('lookedUp database')).toBe(0);
    expect(engine.count('hashed')).toBe(hashed);
    expect(engine.count('changeHeard')).toBe(0);
    expect(await engine.verdict(token)).toBe('active');
  });

  test.each([
    ['an active key', async () => undefined],
    ['an expired key', (id: KeyId) => expire(id)],
  ])('with the good tag of %s but another secret ends nothing', async (_, prepare) => {
    const engine = await joinedEngine(database);
    const { key, token } = await engine.createKey();
    await prepare(key.id);
    expect(await revokeTokens(engine, [forge(key.id)])).toEqual(new Set());
    expect(await stored(key.id)).toMatchObject({ revoked_at: null });
    expect(await revocationsOf(key.id)).toEqual([]);
    expect(engine.count('changeHeard')).toBe(0);
    expect(await revokeTokens(engine, [token])).toEqual(new Set([token]));
  });

  test('with a good tag that names no key ends nothing, and costs no argon2', async () => {
    const engine = await joinedEngine(database);
    expect(await revokeTokens(engine, [forge(newKeyId(Date.now()))])).toEqual(new Set());
    expect(engine.count('hashed')).toBe(0);
  });
});

describe('the token of a revoked key', () => {
  test('changes nothing, and is waited for all the same: who came first may have died half-way', async () => {
    const engine = await joinedEngine(database);
    const { key, token } = await engine.createKey();
    await engine.revoke(key.id);
    const before = await stored(key.id);
    const [changes, hashed] = [engine.count('confirmed'), engine.count('hashed')];
    expect(await revokeTokens(engine, [token])).toEqual(new Set([token]));
    expect(await stored(key.id)).toEqual(before);
    expect(await revocationsOf(key.id)).toHaveLength(1);
    expect(engine.count('confirmed')).toBe(changes + 1);
    expect(engine.count('hashed')).toBe(hashed);
  });
});

test('the token of a revoked key, shown over and over, costs a change now and then', async () => {
  const engine = await joinedEngine(database);
  const keys = [await engine.createKey(), await engine.createKey()];
  for (const { key } of keys) await engine.revoke(key.id);
  const revocation = createTokenRevocation(engine);
  const changes = engine.count('confirmed');
  const show = (count: number) =>
    Promise.all(
      Array.from({ length: count }, (_, index) =>
        revocation.revokeTokens([keys[index % 2]?.token ?? ''], SHOWING),
      ),
    );
  const [first] = await Promise.all([show(1), show(200)]);
  expect(first).toEqual([new Set([keys[0]?.token])]);
  expect(engine.count('confirmed') - changes).toBeLessThanOrEqual(10);
  // Each waits for a change that begins after it was shown.
  await show(1);
  await show(1);
  expect(engine.count('confirmed') - changes).toBeGreaterThanOrEqual(3);
});

describe('many tokens at once', () => {
  test('take one change, and no argon2 where memory or the memo has the proof', async () => {
    const [here, there] = [await joinedEngine(database), await joinedEngine(database)];
    const keys = await Promise.all(Array.from({ length: 100 }, () => here.createKey()));
    const tokens = keys.map(({ token }) => token);
    for (const token of tokens.slice(0, 50)) await here.verdict(token);
    for (const token of tokens.slice(50)) await there.verdict(token);
    const proofs = () =>
      database.query('SELECT FROM verified_secrets WHERE key_id = ANY($1)', [
        keys.map(({ key }) => keyIdToUuid(key.id)),
      ]);
    await expect.poll(proofs).toHaveLength(100);

    const hashed = here.count('hashed');
    // Each of them three times: once is enough.
    expect(await revokeTokens(here, [...tokens, ...tokens, ...tokens])).toHaveProperty('size', 100);
    expect(here.count('hashed')).toBe(hashed);
    expect(here.count('proved memo')).toBe(50);
    expect(here.count('confirmed')).toBe(1);
    for (const token of tokens) expect(await there.verdict(token)).toBe('revoked');
  });

  test('of more keys than one change can name take several', async () => {
    const engine = await joinedEngine(database);
    const keys = await Promise.all(Array.from({ length: 201 }, () => engine.createKey()));
    const tokens = keys.map(({ token }) => token);
    expect(await revokeTokens(engine, tokens)).toEqual(new Set(tokens));
    expect(engine.count('confirmed')).toBe(2);
    for (const token of tokens) expect(await engine.verdict(token)).toBe('revoked');
  });

  test('of which one cannot be proved end the others, and then fail', async () => {
    const overloaded = new Failure('overloaded', 'Too much.');
    let refused = '';
    const engine = await joinedEngine(database, {
      wrapHasher: (hasher) => ({
        ...hasher,
        verify: (token, hash) =>
          token === refused ? Promise.reject(overloaded) : hasher.verify(token, hash),
      }),
    });
    const [one, other] = [await engine.createKey(), await engine.createKey()];
    refused = other.token;
    await expect(revokeTokens(engine, [one.token, other.token])).rejects.toBe(overloaded);
    expect(await engine.verdict(one.token)).toBe('revoked');
    expect(await stored(other.key.id)).toMatchObject({ revoked_at: null });
  });

  test('and the revocation of their workspaces at the same time do not lock each other out', async () => {
    const engine = await joinedEngine(database);
    const keys = await Promise.all(
      Array.from({ length: 40 }, (_, index) => engine.createKey({ workspaceId: `ws_ring_${index % 2}` })),
    );
    const tokens = keys.map(({ token }) => token);
    await Promise.all([
      revokeTokens(engine, tokens),
      engine.revokeWorkspace('ws_ring_1'),
      revokeTokens(engine, [...tokens].reverse()),
      engine.revokeWorkspace('ws_ring_0'),
    ]);
    for (const { key } of keys)
      expect(await revocationsOf(key.id)).toSatisfy((events: unknown[]) => events.length <= 1);
    for (const token of tokens) expect(await engine.verdict(token)).toBe('revoked');
  });
});
