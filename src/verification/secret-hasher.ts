import argon2 from 'argon2';
import { Failure } from '../domain/errors.ts';
import { type EngineObserver, UNOBSERVED } from './observer.ts';

/** Cost parameters of argon2id (RFC 9106 §3.1). */
export interface Argon2Parameters {
  readonly memoryKib: number;
  readonly timeCost: number;
  readonly parallelism: number;
}

export interface SecretHasher {
  /** The argon2id PHC string of a token, with a salt of its own. */
  hash(token: string): Promise<string>;
  /** Whether the token is the one that was hashed. */
  verify(token: string, hash: string): Promise<boolean>;
  /** Whether the hash was made with weaker parameters than are wanted now. */
  isWeak(hash: string): boolean;
  /** Whether one more would be refused now. */
  isFull(): boolean;
  /** How many computations run and wait now, of how many that may. */
  load(): {
    readonly running: number;
    readonly slots: number;
    readonly waiting: number;
    readonly queueLength: number;
  };
}

export interface SecretHasherOptions {
  readonly parameters: Argon2Parameters;
  /** How many hashes are computed at once; each takes a core for its whole time. */
  readonly slots: number;
  /** How many more may wait. Beyond it: `overloaded`, since an answer would come too late to be of use. */
  readonly queueLength: number;
  readonly observer?: Pick<EngineObserver, 'hashed' | 'overloaded'>;
}

const RETRY_AFTER_SECONDS = 1;

/**
 * argon2id in a bounded pool.
 * @throws Failure `overloaded` when all slots are taken and the queue is full; nothing was decided then.
 */
export function createSecretHasher({
  parameters,
  slots,
  queueLength,
  observer = UNOBSERVED,
}: SecretHasherOptions): SecretHasher {
  const wanted = {
    memoryCost: parameters.memoryKib,
    timeCost: parameters.timeCost,
    parallelism: parameters.parallelism,
  };
  const waiting: (() => void)[] = [];
  let running = 0;

  async function inSlot<T>(work: () => Promise<T>): Promise<T> {
    const askedAt = performance.now();
    if (running < slots) {
      running++;
    } else {
      if (waiting.length >= queueLength) {
        observer.overloaded();
        throw overloaded();
      }
      // The slot is handed over: `running` stays as it is.
      await new Promise<void>((resolve) => waiting.push(resolve));
    }
    const startedAt = performance.now();
    try {
      return await work();
    } finally {
      observer.hashed({ waitedMs: startedAt - askedAt, tookMs: performance.now() - startedAt });
      const next = waiting.shift();
      if (next === undefined) running--;
      else next();
    }
  }

  return {
    hash: (token) => inSlot(() => argon2.hash(token, { type: argon2.argon2id, ...wanted })),
    verify: (token, hash) => inSlot(() => argon2.verify(hash, token)),
    isWeak: (hash) => costOf(hash) < wanted.memoryCost * wanted.timeCost,
    isFull: () => running >= slots && waiting.length >= queueLength,
    load: () => ({ running, slots, waiting: waiting.length, queueLength }),
  };
}

/** Nothing was decided: the pool has no room. */
export function overloaded(): Failure {
  return new Failure(
    'overloaded',
    'Too many keys are being verified for the first time; nothing was decided.',
    { retryAfterSeconds: RETRY_AFTER_SECONDS },
  );
}

/**
 * Memory × passes: one number, so that of two instances with different settings only one ever finds the other's
 * hashes weak. A string that is no PHC string costs nothing and is weak.
 */
function costOf(hash: string): number {
  const [, memory, time] = /^\$argon2id\$v=19\$m=(\d+),t=(\d+),p=\d+\$/.exec(hash) ?? [];
  return Number(memory ?? 0) * Number(time ?? 0);
}
