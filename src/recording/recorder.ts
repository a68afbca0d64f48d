import type { Caller } from '../domain/caller.ts';
import type { Decision } from '../domain/decision.ts';
import type { KeyId } from '../domain/key-id.ts';
import type { RequestFacts } from '../domain/restriction.ts';
import type { Database, Executor } from '../storage/database.ts';

/** The request to Claviger that asked. Fastify's own request is one, so that to name it costs nothing. */
export interface Asking {
  /** The request id. */
  readonly id: string;
  readonly caller: Caller | null;
}

/** What an API says of one of its own requests and responses (contract §8, `POST /v1/usage-reports`). */
export interface UsageReport {
  readonly keyId: KeyId;
  readonly workspaceId: string;
  /** Milliseconds since the epoch. */
  readonly at: number;
  readonly status: number;
  readonly durationMs: number;
  readonly method: string | null;
  readonly path: string | null;
}

/**
 * Keeps one kind of what happened: usage, request logs. What it is told of introspections it gathers in memory, in
 * a few plain operations, without waiting and without throwing; it writes in its own time, off the hot path.
 */
export interface Keeper {
  /**
   * An introspection has reached its verdict. `decision.record` is the key, unless the verdict is `invalid`;
   * `decision.nowMs` is the database time that it was judged by.
   *
   * @param facts what the API told of its own client's request, unchecked; `undefined` where it told nothing.
   */
  introspected(decision: Decision, facts: RequestFacts | undefined, asking: Asking): void;
  /** A service key was let in, from `address`, which is worked out only when it is asked for. */
  readonly called?: (caller: Caller, address: () => string) => void;
  /** Somebody at this address was not let in: what was shown, if anything, is no service key. */
  readonly refused?: (address: string) => void;
  /** Writes reports, in the transaction that they are all written in or none. */
  reported(executor: Executor, reports: readonly UsageReport[], asking: Asking): Promise<void>;
  /** Writes what it still has. Gives up after `withinMs`: then what it has is lost, and reported as such. */
  close(withinMs: number): Promise<void>;
}

/** The one door for what happened (docs/architecture.md). */
export interface Recorder extends Required<Pick<Keeper, 'introspected' | 'called' | 'refused' | 'close'>> {
  /** Writes reports; resolves once they are committed, all of them. */
  report(reports: readonly UsageReport[], asking: Asking): Promise<void>;
}

export interface RecorderOptions {
  readonly database: Database;
  readonly keepers: readonly Keeper[];
  /** `false`: introspections and calls leave no trace. Reports do: somebody asked for that. */
  readonly isOn: boolean;
}

/** Passes what happened on to all keepers. */
export function createRecorder({ database, keepers, isOn }: RecorderOptions): Recorder {
  const told = isOn ? keepers : [];
  const ofCalls = told.flatMap(({ called }) => called ?? []);
  const ofRefusals = told.flatMap(({ refused }) => refused ?? []);
  return {
    introspected(decision, facts, asking) {
      for (const keeper of told) keeper.introspected(decision, facts, asking);
    },
    called(caller, address) {
      for (const tell of ofCalls) tell(caller, address);
    },
    refused(address) {
      for (const tell of ofRefusals) tell(address);
    },
    report: (reports, asking) =>
      database.transaction(async (executor) => {
        for (const keeper of keepers) await keeper.reported(executor, reports, asking);
      }, asking.id),
    async close(withinMs) {
      await Promise.all(keepers.map((keeper) => keeper.close(withinMs)));
    },
  };
}
