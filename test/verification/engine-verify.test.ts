import { describe, expect, test, vi } from 'vitest';
import type { TestDatabase } from '../support/database.ts';
import { databaseOfTest } from '../support/database.ts';
import { CHEAP, createGate, joinedEngine, openEngine } from './engine.ts';

const memosOf = (test: TestDatabase) => test.query('SELECT FROM verified_secrets');

/** Nobody waits for a memo to be stored, but for a test. */
async function memoStored(test: TestDatabase): Promise<void> {
  await vi.waitFor(async () => expect(await memosOf(test)).toHaveLength(1));
}

describe('a token', () => {
  test('is hashed once, however many requests bring it at once and later', async () => {
    const engine = await joinedEngine(await databaseOfTest());
    const { token } = await engine.createKey();
    const verdicts = await Promise.all(Array.from({ length: 50 }, () => engine.verdict(token)));
    expect(new Set(verdicts)).toEqual(new Set(['active']));
    expect(await engine.verdict(token)).toBe('active');
    expect(engine.count('proved argon2')).toBe(1);
    expect(engine.count('lookedUp database')).toBe(1);
  });

  test('is answered without a promise once it is known, also when it is over', async () => {
    const engine = await joinedEngine(await databaseOfTest());
    const [active, revoked] = [await engine.createKey(), await engine.createKey()];
    await engine.revoke(revoked.key.id);
    for (const { token } of [active, revoked]) {
      expect(engine.verify(token)).toBeInstanceOf(Promise);
      await engine.verify(token);
    }
    expect(engine.verify(active.token)).toMatchObject({ active: true });
    expect(engine.verify(revoked.token)).toMatchObject({ active: false, code: 'revoked' });
    expect(engine.verify('ck_live_nothing')).toMatchObject({ active: false, code: 'invalid' });
  });

  test('keeps its proof when its key changes: that costs a read, and no argon2', async () => {
    const test = await databaseOfTest();
    const engine = await joinedEngine(test, { memo: false });
    const { key, token } = await engine.createKey();
    await engine.verdict(token);
    await engine.touch({ kind: 'key', id: key.id });
    expect(engine.verify(token)).toBeInstanceOf(Promise);
    expect(await engine.verdict(token)).toBe('active');
    expect(engine.count('lookedUp database')).toBe(2);
    expect(engine.count('proved memory')).toBe(1);
    expect(engine.count('proved argon2')).toBe(1);
  });

  test('loses its proof with the hash it matched', async () => {
    const test = await databaseOfTest();
    const engine = await joinedEngine(test);
    const { key, token } = await engine.createKey();
    await engine.verdict(token);
    await memoStored(test);
    await test.query('UPDATE api_keys SET hash = $1', [await engine.hasher.hash('another token')]);
    await engine.touch({ kind: 'key', id: key.id });
    expect(await engine.verdict(token)).toBe('invalid');
    await test.query('UPDATE api_keys SET hash = $1', [await engine.hasher.hash(token)]);
    expect(await engine.verdict(token)).toBe('active');
    expect(engine.count('proved argon2')).toBe(2);
  });
});

describe('memory', () => {
  test('holds as many tokens as it may, and forgets the one that was not used for longest', async () => {
    const engine = await joinedEngine(await databaseOfTest(), { capacity: 2 });
    const [a, b, c] = [await engine.createKey(), await engine.createKey(), await engine.createKey()];
    for (const { token } of [a, b, a, c]) await engine.verify(token);
    expect(engine.cache.size).toBe(2);
    expect(engine.verify(a.token)).toMatchObject({ active: true });
    expect(engine.verify(c.token)).toMatchObject({ active: true });
    expect(engine.verify(b.token)).toBeInstanceOf(Promise);
    // What it forgot is invalidated all the same, and what took its place is not touched.
    await engine.touch({ kind: 'key', id: a.key.id });
    expect(await engine.verdict(b.token)).toBe('active');
    expect(engine.cache.size).toBe(2);
  });

  test('forgets all keys of a workspace at once, and no others', async () => {
    const engine = await joinedEngine(await databaseOfTest());
    const own = await Promise.all([1, 2, 3].map(() => engine.createKey({ workspaceId: 'ws_a' })));
    const foreign = await engine.createKey({ workspaceId: 'ws_b' });
    for (const { token } of [...own, foreign]) await engine.verify(token);
    await engine.touch({ kind: 'workspace', id: 'ws_a' });
    for (const { token } of own) expect(engine.verify(token)).toBeInstanceOf(Promise);
    expect(engine.verify(foreign.token)).toMatchObject({ active: true });
    for (const { token } of own) expect(await engine.verdict(token)).toBe('active');
    // Loaded anew, they hang together again.
    for (const { token } of own) expect(engine.verify(token)).toMatchObject({ active: true });
    await engine.touch({ kind: 'workspace', id: 'ws_a' });
    const anew = own.map(({ token }) => engine.verify(token));
    for (const loaded of anew) expect(loaded).toBeInstanceOf(Promise);
    await Promise.all(anew);
    expect(engine.count('proved argon2')).toBe(4);
  });

  test('keeps what it has loaded since its own change when it hears of that change at last', async () => {
    const engine = await joinedEngine(await databaseOfTest());
    const { key, token } = await engine.createKey();
    await engine.verify(token);
    const heard = engine.count('changeHeard');
    await engine.touch({ kind: 'key', id: key.id });
    await engine.verify(token);
    await expect.poll(() => engine.count('changeHeard')).toBe(heard + 1);
    expect(engine.verify(token)).toMatchObject({ active: true });
  });

  test.each(['key', 'workspace'] as const)(
    'keeps nothing that a load read before a change of its %s',
    async (kind) => {
      const test = await databaseOfTest();
      const gate = createGate();
      const engine = await joinedEngine(test, {
        wrapDatabase: (database) => ({
          ...database,
          async read(run) {
            const result = await database.read(run);
            await gate.pass();
            return result;
          },
        }),
      });
      const other = await joinedEngine(test);
      const { key, token } = await engine.createKey();
      gate.shut();
      const before = engine.verdict(token);
      await gate.reached();
      await test.query('UPDATE api_keys SET revoked_at = now()');
      const id = kind === 'key' ? key.id : key.workspaceId;
      expect(await other.touch({ kind, id })).toMatchObject({ confirmed: 2, fenced: 0 });
      const after = engine.verdict(token);
      gate.open();
      expect(await after).toBe('revoked');
      expect(await before).toBe('active');
      expect(engine.verify(token)).toMatchObject({ active: false, code: 'revoked' });
    },
  );

  test('answers nothing once its lease has passed, and answers again when it has joined anew', async () => {
    const test = await databaseOfTest();
    const engine = await joinedEngine(test, { leaseMs: 1_000 });
    const { token } = await engine.createKey();
    await engine.verdict(token);
    await test.query('ALTER TABLE instances RENAME TO instances_away');
    await vi.waitFor(() => expect(engine.membership.isLeased()).toBe(false), {
      timeout: 5_000,
      interval: 10,
    });
    // The listener is no part of it: a request reads the database itself.
    await test.query('UPDATE api_keys SET revoked_at = now()');
    expect(await engine.verdict(token)).toBe('revoked');
    await test.query('ALTER TABLE instances_away RENAME TO instances');
    await vi.waitFor(() => expect(engine.membership.isLeased()).toBe(true), { timeout: 5_000, interval: 10 });
    expect(engine.verify(token)).toBeInstanceOf(Promise);
    expect(await engine.verdict(token)).toBe('revoked');
  });

  test('ends with a fence, and begins again under another id', async () => {
    const test = await databaseOfTest();
    const engine = await joinedEngine(test, { leaseMs: 1_000 });
    const { token } = await engine.createKey();
    await engine.verdict(token);
    const [before] = await test.query<{ id: string }>('UPDATE instances SET fenced = true RETURNING id');
    await vi.waitFor(() => expect(engine.count('left fenced')).toBe(1), { timeout: 5_000 });
    await vi.waitFor(() => expect(engine.membership.isLeased()).toBe(true), { timeout: 5_000 });
    expect(engine.verify(token)).toBeInstanceOf(Promise);
    await vi.waitFor(async () => {
      const rows = await test.query<{ id: string; fenced: boolean }>('SELECT id, fenced FROM instances');
      expect(rows).toEqual([{ id: expect.not.stringMatching(before?.id ?? ''), fenced: false }]);
    });
  });
});

describe('without a lease', () => {
  test('every request reads the database for itself', async () => {
    const test = await databaseOfTest();
    const engine = await openEngine(test);
    const { token } = await engine.createKey();
    await engine.verdict(token);
    const verdicts = await Promise.all(Array.from({ length: 5 }, () => engine.verdict(token)));
    expect(new Set(verdicts)).toEqual(new Set(['active']));
    expect(engine.count('lookedUp database')).toBe(6);
    expect(engine.count('lookedUp memory')).toBe(0);
    // The proof is as good as ever.
    expect(engine.count('proved argon2')).toBe(1);
    expect(engine.count('proved memory')).toBe(5);
    await test.query('UPDATE api_keys SET revoked_at = now()');
    expect(await engine.verdict(token)).toBe('revoked');
  });

  test('a string that was not minted here reads nothing', async () => {
    const test = await databaseOfTest();
    const [engine, stranger] = [
      await openEngine(test),
      await openEngine(test, { secret: 'another-secret-that-is-40-characters-long' }),
    ];
    const { token } = await stranger.createKey();
    expect(engine.verify(token)).toMatchObject({ active: false, code: 'invalid' });
    expect(engine.count('lookedUp database')).toBe(0);
  });
});

describe('the memo', () => {
  test('saves another instance the argon2', async () => {
    const test = await databaseOfTest();
    const [one, two] = [await joinedEngine(test), await joinedEngine(test)];
    const { token } = await one.createKey();
    await one.verdict(token);
    await memoStored(test);
    expect(await two.verdict(token)).toBe('active');
    expect(two.count('proved memo')).toBe(1);
    expect(two.count('proved argon2')).toBe(0);
  });

  test('is neither written nor read where it is off', async () => {
    const test = await databaseOfTest();
    const [off, on] = [await joinedEngine(test, { memo: false }), await joinedEngine(test)];
    const { token } = await off.createKey();
    await off.verdict(token);
    await on.verdict(token);
    expect(on.count('proved argon2')).toBe(1);
    await memoStored(test);
    const offToo = await joinedEngine(test, { memo: false });
    expect(await offToo.verdict(token)).toBe('active');
    expect(offToo.count('proved argon2')).toBe(1);
  });

  test('says nothing under another KEY_SECRET, though that one still knows the token', async () => {
    const test = await databaseOfTest();
    const former = 'the-former-secret-of-40-characters-or-so';
    const one = await joinedEngine(test, { secret: former });
    const { token } = await one.createKey();
    await one.verdict(token);
    await memoStored(test);
    const two = await joinedEngine(test, { formerSecret: former });
    expect(await two.verdict(token)).toBe('active');
    expect(two.count('proved memo')).toBe(0);
    expect(two.count('proved argon2')).toBe(1);
  });

  test('says nothing of another hash', async () => {
    const test = await databaseOfTest();
    const [one, two] = [await joinedEngine(test), await joinedEngine(test)];
    const { token } = await one.createKey();
    await one.verdict(token);
    await memoStored(test);
    await test.query('UPDATE api_keys SET hash = $1', [await one.hasher.hash('another token')]);
    expect(await two.verdict(token)).toBe('invalid');
    expect(two.count('proved memo')).toBe(0);
  });

  test('that is none costs an argon2 and nothing else', async () => {
    const test = await databaseOfTest();
    const [one, two] = [await joinedEngine(test), await joinedEngine(test)];
    const { token } = await one.createKey();
    await one.verdict(token);
    await memoStored(test);
    await test.query(`UPDATE verified_secrets SET mac = '\\x00'`);
    expect(await two.verdict(token)).toBe('active');
    expect(two.count('proved argon2')).toBe(1);
  });

  test('does not keep a weak hash from being replaced', async () => {
    const test = await databaseOfTest();
    const weak = await joinedEngine(test);
    const { token } = await weak.createKey();
    await weak.verdict(token);
    await memoStored(test);
    const strong = await joinedEngine(test, { parameters: { ...CHEAP, timeCost: 2 } });
    expect(await strong.verdict(token)).toBe('active');
    expect(await test.query(`SELECT FROM api_keys WHERE hash LIKE '%,t=2,%'`)).toHaveLength(1);
    // And then the memo is of the stronger one.
    await vi.waitFor(async () => {
      const again = await joinedEngine(test, { parameters: { ...CHEAP, timeCost: 2 } });
      expect(await again.verdict(token)).toBe('active');
      expect(again.count('proved memo')).toBe(1);
    });
  });
});

describe('an expiry', () => {
  test('is judged by the time of the database, and memory sees it pass', async () => {
    const test = await databaseOfTest();
    const engine = await joinedEngine(test);
    const { token } = await engine.createKey({ expiresAt: Date.now() + 1_000 });
    const wallClock = vi.spyOn(Date, 'now');
    wallClock.mockReturnValue(Date.UTC(2099, 0, 1));
    expect(await engine.verdict(token)).toBe('active');
    expect(engine.verify(token)).toMatchObject({ active: true });
    wallClock.mockReturnValue(Date.UTC(1999, 0, 1));
    await vi.waitFor(() => expect(engine.verify(token)).toMatchObject({ active: false, code: 'expired' }), {
      timeout: 5_000,
    });
    const over = await test.query(
      `SELECT FROM api_keys WHERE expires_at < clock_timestamp() + interval '200 ms'`,
    );
    expect(over).toHaveLength(1);
    wallClock.mockRestore();
    expect(engine.count('lookedUp database')).toBe(1);
  });
});
