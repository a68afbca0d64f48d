import type { KeyId } from '../domain/key-id.ts';
import type { Database } from '../storage/database.ts';
import { type LoadedKey, loadKeys } from '../storage/keys.ts';

/**
 * Reads keys for verification. After a restart, or when many keys are new, reads come faster than one statement after
 * the other could serve them: those that wait go together.
 *
 * A read is sent after it was asked for, never before, so that it sees what was committed by then.
 */
export interface KeyReader {
  read(id: KeyId): Promise<LoadedKey | undefined>;
  /** Reads that are not sent yet. */
  waiting(): number;
}

interface Waiting {
  readonly id: KeyId;
  resolve(key: LoadedKey | undefined): void;
  reject(cause: unknown): void;
}

/** Fewer than the pool has: a slow read leaves connections for changes. */
const MOST_STATEMENTS_UNDER_WAY = 4;
const MOST_KEYS_PER_STATEMENT = 200;

export function createKeyReader(database: Pick<Database, 'read'>): KeyReader {
  let waiting: Waiting[] = [];
  let underWay = 0;
  let scheduled = false;

  /** What one turn of the event loop brought goes together. */
  function schedule(): void {
    if (scheduled || underWay >= MOST_STATEMENTS_UNDER_WAY || waiting.length === 0) return;
    scheduled = true;
    setImmediate(() => {
      scheduled = false;
      const batch = waiting.slice(0, MOST_KEYS_PER_STATEMENT);
      waiting = waiting.slice(MOST_KEYS_PER_STATEMENT);
      underWay++;
      void send(batch).finally(() => {
        underWay--;
        schedule();
      });
      schedule();
    });
  }

  async function send(batch: readonly Waiting[]): Promise<void> {
    try {
      const ids = batch.map(({ id }) => id);
      const loaded = await database.read((executor) => loadKeys(executor, ids));
      const byId = new Map(loaded.map((one) => [one.key.id, one]));
      for (const { id, resolve } of batch) resolve(byId.get(id));
    } catch (cause) {
      for (const { reject } of batch) reject(cause);
    }
  }

  return {
    read: (id) =>
      new Promise((resolve, reject) => {
        waiting.push({ id, resolve, reject });
        schedule();
      }),
    waiting: () => waiting.length,
  };
}
