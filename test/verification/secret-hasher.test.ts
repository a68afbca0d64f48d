import { describe, expect, test } from 'vitest';
import { Failure } from '../../src/domain/errors.ts';
import { createSecretHasher, type SecretHasherOptions } from '../../src/verification/secret-hasher.ts';

const CHEAP = { memoryKib: 1024, timeCost: 1, parallelism: 1 };
const TOKEN = 'ck_live_what-a-token-looks-like-does-not-matter-here';

function hasherOf(options: Partial<SecretHasherOptions> = {}) {
  return createSecretHasher({ parameters: CHEAP, slots: 1, queueLength: 256, ...options });
}

async function failureOf(promise: Promise<unknown>): Promise<Failure | undefined> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof Failure) return error;
    throw error;
  }
  return undefined;
}

describe('a hash', () => {
  test('is an argon2id PHC string with the parameters that are wanted', async () => {
    const hash = await hasherOf({ parameters: { memoryKib: 2048, timeCost: 3, parallelism: 2 } }).hash(TOKEN);
    expect(hash).toMatch(/^\$argon2id\$v=19\$m=2048,t=3,p=2\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+$/);
  });

  test('has a salt of its own', async () => {
    const hasher = hasherOf();
    expect(await hasher.hash(TOKEN)).not.toBe(await hasher.hash(TOKEN));
  });

  test('is matched by the whole token and by nothing else', async () => {
    const hasher = hasherOf();
    const hash = await hasher.hash(TOKEN);
    expect(await hasher.verify(TOKEN, hash)).toBe(true);
    for (const other of [
      `${TOKEN} `,
      TOKEN.slice(0, -1),
      TOKEN.toUpperCase(),
      '',
      `${TOKEN.slice(0, -1)}E`,
    ]) {
      expect(await hasher.verify(other, hash)).toBe(false);
    }
  });

  test('is matched whatever parameters it was made with', async () => {
    const hash = await hasherOf({ parameters: { memoryKib: 2048, timeCost: 2, parallelism: 2 } }).hash(TOKEN);
    expect(await hasherOf().verify(TOKEN, hash)).toBe(true);
  });
});

describe('a hash is weak', () => {
  const wanted = hasherOf({ parameters: { memoryKib: 2048, timeCost: 2, parallelism: 1 } });
  const hashWith = (memoryKib: number, timeCost: number, parallelism = 1) =>
    hasherOf({ parameters: { memoryKib, timeCost, parallelism } }).hash(TOKEN);

  test('when it took less memory or fewer passes than are wanted', async () => {
    expect(wanted.isWeak(await hashWith(2047, 2))).toBe(true);
    expect(wanted.isWeak(await hashWith(2048, 1))).toBe(true);
    expect(wanted.isWeak(await hashWith(1024, 1))).toBe(true);
  });

  test('and not when it took as much or more', async () => {
    expect(wanted.isWeak(await hashWith(2048, 2))).toBe(false);
    expect(wanted.isWeak(await hashWith(2049, 2))).toBe(false);
    expect(wanted.isWeak(await hashWith(2048, 3))).toBe(false);
    expect(wanted.isWeak(await hashWith(2048, 2, 2))).toBe(false);
  });

  test('on at most one side of any two settings, so that two instances never undo each other', async () => {
    const settings = [
      { memoryKib: 1024, timeCost: 4, parallelism: 1 },
      { memoryKib: 4096, timeCost: 1, parallelism: 1 },
      { memoryKib: 2048, timeCost: 3, parallelism: 2 },
      CHEAP,
    ];
    for (const mine of settings) {
      for (const theirs of settings) {
        const [me, them] = [hasherOf({ parameters: mine }), hasherOf({ parameters: theirs })];
        expect(me.isWeak(await them.hash(TOKEN)) && them.isWeak(await me.hash(TOKEN))).toBe(false);
      }
    }
  });

  test('when it cannot be read', () => {
    for (const text of [
      '',
      'x',
      '$argon2i$v=19$m=65536,t=9,p=1$c2FsdHNhbHQ$aGFzaA',
      '$argon2id$v=16$m=65536,t=9,p=1$a$b',
    ]) {
      expect(wanted.isWeak(text)).toBe(true);
    }
  });
});

describe('the pool', () => {
  test('refuses what neither a slot nor the queue has room for, at once and with a time to come again', async () => {
    const hasher = hasherOf({ slots: 1, queueLength: 2 });
    const admitted = [hasher.hash(TOKEN), hasher.hash(TOKEN), hasher.hash(TOKEN)];
    let finished = 0;
    for (const one of admitted) one.then(() => finished++);

    const refusal = await failureOf(hasher.hash(TOKEN));
    expect(finished).toBe(0);
    expect(refusal?.code).toBe('overloaded');
    expect(refusal?.options.retryAfterSeconds).toBeGreaterThanOrEqual(1);
    expect(refusal?.message).not.toContain(TOKEN);
    expect(await Promise.all(admitted)).toHaveLength(3);
  });

  test('takes as many as slots and queue hold together, and not one more', async () => {
    for (const [slots, queueLength] of [
      [1, 0],
      [1, 1],
      [2, 3],
    ] as const) {
      const hasher = hasherOf({ slots, queueLength });
      const results = await Promise.allSettled(
        Array.from({ length: slots + queueLength + 2 }, () => hasher.hash(TOKEN)),
      );
      expect(results.map((result) => result.status)).toEqual([
        ...Array(slots + queueLength).fill('fulfilled'),
        'rejected',
        'rejected',
      ]);
    }
  });

  test('holds verification to the same bound as hashing', async () => {
    const hasher = hasherOf({ slots: 1, queueLength: 0 });
    const hash = await hasher.hash(TOKEN);
    const first = hasher.verify(TOKEN, hash);
    expect((await failureOf(hasher.verify(TOKEN, hash)))?.code).toBe('overloaded');
    expect((await failureOf(hasher.hash(TOKEN)))?.code).toBe('overloaded');
    expect(await first).toBe(true);
  });

  test('serves those that wait in the order they came', async () => {
    const hasher = hasherOf({ slots: 1, queueLength: 8 });
    const order: number[] = [];
    await Promise.all([0, 1, 2, 3, 4].map((place) => hasher.hash(TOKEN).then(() => order.push(place))));
    expect(order).toEqual([0, 1, 2, 3, 4]);
  });

  test('has all its room again after it was full', async () => {
    const hasher = hasherOf({ slots: 1, queueLength: 1 });
    for (let round = 0; round < 3; round++) {
      const results = await Promise.allSettled([hasher.hash(TOKEN), hasher.hash(TOKEN), hasher.hash(TOKEN)]);
      expect(results.map((result) => result.status)).toEqual(['fulfilled', 'fulfilled', 'rejected']);
    }
  });

  test('gets a slot back from a computation that failed', async () => {
    const hasher = hasherOf({ slots: 1, queueLength: 1 });
    for (let round = 0; round < 3; round++) {
      const results = await Promise.allSettled([
        hasher.verify(TOKEN, 'this is no hash'),
        hasher.verify(TOKEN, '$argon2id$neither'),
      ]);
      expect(results.map((result) => result.status)).toEqual(['rejected', 'rejected']);
    }
    expect(await hasher.hash(TOKEN)).toMatch(/^\$argon2id\$/);
  });
});
