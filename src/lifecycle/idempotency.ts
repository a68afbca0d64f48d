import { hash, randomBytes, randomUUID } from 'node:crypto';
import { canonicalJson } from '../domain/canonical-json.ts';
import { Failure } from '../domain/errors.ts';
import type { KeyId } from '../domain/key-id.ts';
import { lookupMac, openAnswer, sealAnswer } from '../domain/sealed-answer.ts';
import type { Database, Executor } from '../storage/database.ts';
import {
  deleteOldAnswers,
  findSealedAnswer,
  type SealedAnswer,
  storeSealedAnswer,
  tryLockAnswer,
} from '../storage/idempotency.ts';

/*
 * Requests that are done once for each Idempotency-Key of a calling service key (docs/idempotency.md).
 *
 *   unknown    no answer is kept: the first attempt takes the key's place in this process, and computes
 *     │ its transaction takes the lock that all instances know, and looks again
 *     │ its transaction commits: what was made, its audit event and the sealed answer, together
 *   answered   every retry is given that answer, by any instance
 *     │ 24 h by the database's clock
 *   unknown    and deleted within a minute or so
 *
 * Nothing marks an attempt in the database before it commits. So one that dies leaves nothing to wait for: its lock
 * goes with its transaction, its place with its process.
 */

/** A request that is to be done once. */
export interface IdempotentRequest {
  readonly callerId: KeyId;
  /** The calling service key's token, which the answer is sealed with. It is kept nowhere. */
  readonly callerToken: string;
  readonly idempotencyKey: string;
  /** Method, path and body, as JSON: what has to be the same in a retry. */
  readonly content: unknown;
}

/** What the transaction of the first attempt does besides its own work. */
export interface Attempt {
  /**
   * Before all else, so that no two instances do the same.
   * @throws Failure `idempotency_in_flight` where another attempt was quicker.
   */
  claim(executor: Executor): Promise<void>;
  /** After all else: keeps the answer, sealed, with what it tells of. */
  keep(executor: Executor, answer: string): Promise<void>;
}

export interface Idempotency {
  /**
   * Does `first`, or, where an answer is kept, `again` with it.
   * @throws Failure `idempotency_in_flight` while the same is being done.
   * @throws Failure `idempotency_mismatch` where the key was used for another request.
   */
  once<T>(
    request: IdempotentRequest,
    work: { first(attempt: Attempt): Promise<T>; again(answer: string): Promise<T> },
  ): Promise<T>;
  /** Deletes answers older than 24 h now and every minute, until `stop`. */
  start(): void;
  /** Begins nothing more; what is under way ends with the database's pool. */
  stop(): void;
  /** Requests with a key that this instance is at work on. */
  working(): number;
}

/** What became of requests with an Idempotency-Key that were not refused; metrics are made of it. */
export interface IdempotencyObserver {
  /** It was done, or an answer was kept and given again. */
  settled(as: 'done' | 'replayed'): void;
}

/** For whom nobody watches. */
export const UNOBSERVED_IDEMPOTENCY: IdempotencyObserver = { settled: () => undefined };

export interface IdempotencyOptions {
  readonly database: Database;
  /** Keys derived from each value of `KEY_SECRET`, newest first: the first seals, all open. */
  readonly secrets: readonly [AnswerSecret, ...AnswerSecret[]];
  readonly observer?: IdempotencyObserver;
}

export interface AnswerSecret {
  readonly lookup: Uint8Array;
  readonly seal: Uint8Array;
}

const RETRY_AFTER_SECONDS = 1;
const DELETE_EVERY_MS = 60_000;
const DELETED_PER_STATEMENT = 500;
/** SHA-256 as base64url: what an answer begins with is the digest of its request. */
const DIGEST_LENGTH = 43;

export function createIdempotency({
  database,
  secrets,
  observer = UNOBSERVED_IDEMPOTENCY,
}: IdempotencyOptions): Idempotency {
  const [newest] = secrets;
  /** What this process is at work on, by the newest MAC. Bounded by how many requests are under way. */
  const working = new Set<string>();
  let timer: NodeJS.Timeout | undefined;

  function openKept(request: IdempotentRequest, { id, mac, sealed }: SealedAnswer): string {
    const { callerToken, idempotencyKey } = request;
    const secret = secrets.find(({ lookup }) => lookupMac(lookup, request).equals(mac));
    if (secret === undefined) throw new TypeError('an answer was found that was not asked for');
    const opened = openAnswer(sealed, { secret: secret.seal, callerToken, idempotencyKey, rowId: id });
    if (opened.slice(0, DIGEST_LENGTH) !== digestOf(request)) {
      throw new Failure(
        'idempotency_mismatch',
        'This Idempotency-Key was used for another request: with another body, method or path.',
      );
    }
    return opened.slice(DIGEST_LENGTH);
  }

  function attemptAt(request: IdempotentRequest, macs: readonly [Buffer, ...Buffer[]]): Attempt {
    const { callerToken, idempotencyKey } = request;
    return {
      async claim(executor) {
        if (!(await tryLockAnswer(executor, macs))) throw inFlight();
        // In a statement of its own: one that began before the lock was free would not see what its holder committed.
        if ((await findSealedAnswer(executor, macs)) !== undefined) throw inFlight();
      },
      async keep(executor, answer) {
        const id = randomUUID();
        const sealed = sealAnswer(
          digestOf(request) + answer,
          { secret: newest.seal, callerToken, idempotencyKey, rowId: id },
          randomBytes,
        );
        await storeSealedAnswer(executor, { id, mac: macs[0], sealed });
      },
    };
  }

  async function deleteOld(): Promise<void> {
    // A failure is no news: what is old is not served, and the next round deletes it.
    const deleteSome = () =>
      database.read((executor) => deleteOldAnswers(executor, DELETED_PER_STATEMENT)).catch(() => 0);
    while (timer !== undefined && (await deleteSome()) === DELETED_PER_STATEMENT);
  }

  return {
    async once(request, { first, again }) {
      const [latest, ...former] = secrets;
      const macs = [
        lookupMac(latest.lookup, request),
        ...former.map(({ lookup }) => lookupMac(lookup, request)),
      ] as const;
      const kept = await database.read((executor) => findSealedAnswer(executor, macs));
      if (kept !== undefined) {
        const repeated = await again(openKept(request, kept));
        observer.settled('replayed');
        return repeated;
      }
      const name = macs[0].toString('base64url');
      if (working.has(name)) throw inFlight();
      working.add(name);
      try {
        const done = await first(attemptAt(request, macs));
        observer.settled('done');
        return done;
      } finally {
        working.delete(name);
      }
    },

    start() {
      // Rounds may overlap, as those of several instances do.
      timer = setInterval(() => void deleteOld(), DELETE_EVERY_MS).unref();
      void deleteOld();
    },

    stop() {
      clearInterval(timer);
      timer = undefined;
    },

    working: () => working.size,
  };
}

function inFlight(): Failure {
  return new Failure(
    'idempotency_in_flight',
    'A request with this Idempotency-Key is being worked on; see Retry-After.',
    { retryAfterSeconds: RETRY_AFTER_SECONDS },
  );
}

function digestOf({ content }: IdempotentRequest): string {
  return hash('sha256', canonicalJson(content), 'base64url');
}
