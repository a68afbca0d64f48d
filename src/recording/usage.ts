import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { spellAddress } from '../domain/address.ts';
import type { KeyRecord, Outcome } from '../domain/decision.ts';
import { bucketOf } from '../domain/duration-histogram.ts';
import type { KeyId } from '../domain/key-id.ts';
import type { GrowthThreshold } from '../domain/signal.ts';
import { startOf } from '../domain/usage.ts';
import { SYSTEM_WORKSPACE } from '../domain/workspace.ts';
import type { Database } from '../storage/database.ts';
import { noteGrowths } from '../storage/signal-sources.ts';
import {
  addDurations,
  addUsage,
  beginFlush,
  forgetOldRecorders,
  forgetRecorder,
  type KeyUse,
  type UsageBatch,
} from '../storage/usage.ts';
import { UNOBSERVED_RECORDING, type UsageObserver } from './observer.ts';
import type { Keeper } from './recorder.ts';
import { createTallies, type TallyBatch } from './tallies.ts';

/*
 * How often keys were used, with what outcome, and when last (docs/watching.md).
 *
 * A tally is how often one key came to one outcome within one hour, since it was last written. Tallies gather in memory; a
 * flush takes all of them out, and writes them a batch at a time. A batch has a number and is written in one transaction, which
 * says so:
 *
 *   gathering ──> taken ──> in flight ── committed ──> gone
 *                              │  ^
 *                              └──┘ failed, or its answer was lost: the same batch under the same number again
 *
 * At most one batch is in flight. The transaction of a number that was committed before writes nothing, so that each
 * count is written exactly once, however often its batch is sent. What happens meanwhile is added to the tallies
 * that gather: an outage costs memory by keys and hours, not by requests.
 */

export interface UsageOptions {
  readonly database: Database;
  readonly observer?: UsageObserver;
  /** Told of what an operator should know: counts that wait, and counts that are lost. */
  report(event: { readonly message: string; readonly cause?: unknown }): void;
  /** When an hour's requests of a key are a sudden growth; absent: nobody looks. */
  readonly growth?: GrowthThreshold;
  /** For tests: tallies that memory may hold. */
  readonly maxTallies?: number;
}

export interface UsageKeeper extends Keeper {
  /** Tallies in memory, those in flight among them. */
  pending(): number;
  /** For how long the oldest of them has waited, in milliseconds; 0 where there are none. */
  lagMs(): number;
}

/** With the time of the flush itself, what a kill loses is less than a second old. */
const FLUSH_EVERY_MS = 600;
/**
 * The bound of memory while the database is away: less than 200 bytes each. There is one for each key, hour and
 * outcome, and another whenever memory has read the key anew.
 */
const MAX_TALLIES = 1_000_000;
/** Service keys whose use is noted with one flush. */
const MAX_CALLERS = 5_000;
const CLOSING_RETRY_MS = 100;
/** Recorders that were killed leave a row; no batch waits for its answer that long. */
const FORGET_AFTER_DAYS = 7;
const FORGET_EVERY_MS = 3_600_000;

interface Batch {
  readonly sequence: number;
  readonly tallies: TallyBatch;
  readonly usage: UsageBatch;
}

/** Counts introspections, and notes last uses. */
export function createUsageKeeper(options: UsageOptions): UsageKeeper {
  const { database, observer = UNOBSERVED_RECORDING, report, growth, maxTallies = MAX_TALLIES } = options;
  const recorder = randomUUID();
  const gathering = createTallies();
  /** Those that are being written, and how many tallies that is. */
  let taken: TallyBatch[] = [];
  let takenSize = 0;
  const callers = new Map<KeyId, KeyUse>();
  let inFlight: Batch | undefined;
  let sequence = 0;
  /** Since when tallies gather, and since when those that are being written did; monotonic. */
  let gatheringSince: number | undefined;
  let takenSince: number | undefined;
  let timer: NodeJS.Timeout | undefined;
  let flushing: Promise<boolean> | undefined;
  let failing = false;
  let closed = false;
  let lastForgotten = Number.NEGATIVE_INFINITY;

  /** The tally of an outcome of a key within an hour; `undefined` where there is no more room. */
  function slotOf(record: KeyRecord, hourMs: number, outcome: Outcome): number | undefined {
    const known = gathering.find(record, hourMs, outcome);
    if (known !== undefined) return known;
    if (pending() >= maxTallies) {
      observer.usageDropped(1);
      return undefined;
    }
    gatheringSince ??= performance.now();
    schedule(FLUSH_EVERY_MS);
    return gathering.open(record, hourMs, outcome);
  }

  function schedule(inMs: number): void {
    if (timer !== undefined || flushing !== undefined || closed) return;
    timer = setTimeout(() => {
      timer = undefined;
      const startedAt = performance.now();
      void flush().then((done) => {
        const spent = done ? performance.now() - startedAt : 0;
        if (isPending()) schedule(Math.max(0, FLUSH_EVERY_MS - spent));
      });
    }, inMs);
  }

  const pending = () => gathering.size() + takenSize;
  const isPending = () => pending() > 0 || callers.size > 0 || inFlight !== undefined;

  /** Writes what there is at this time; answers whether it did. One flush at a time. */
  function flush(): Promise<boolean> {
    flushing ??= writeAll().finally(() => {
      flushing = undefined;
    });
    return flushing;
  }

  async function writeAll(): Promise<boolean> {
    // What comes in meanwhile waits for its own flush, or this one might never end.
    if (taken.length === 0) takeAll();
    try {
      for (let [tallies] = taken; tallies !== undefined; [tallies] = taken) {
        inFlight ??= { sequence: ++sequence, tallies, usage: tallies.usage() };
        await write(inFlight);
        inFlight = undefined;
        takenSize -= tallies.size;
        taken.shift();
        tallies.release();
      }
    } catch (cause) {
      observer.usageFlushFailed();
      if (!failing) report({ message: 'usage could not be written; it is kept and tried again', cause });
      failing = true;
      return false;
    }
    takenSince = undefined;
    if (failing) report({ message: 'usage is written again' });
    failing = false;
    return true;
  }

  function takeAll(): void {
    for (const [id, use] of callers) gathering.note({ id, workspaceId: SYSTEM_WORKSPACE }, use);
    callers.clear();
    takenSize = gathering.size();
    taken = gathering.take();
    takenSince ??= gatheringSince;
    gatheringSince = undefined;
  }

  async function write(batch: Batch): Promise<void> {
    const startedAt = performance.now();
    await database.transaction(async (executor) => {
      if (!(await beginFlush(executor, { recorder, sequence: batch.sequence }))) return;
      const busy = await addUsage(executor, batch.usage, growth?.minimum);
      if (growth !== undefined) await noteGrowths(executor, busy, growth);
    });
    observer.usageFlushed({ keys: batch.tallies.size, tookMs: performance.now() - startedAt });
    if (startedAt - lastForgotten < FORGET_EVERY_MS) return;
    lastForgotten = startedAt;
    // Nobody waits for it, and the next hour brings another.
    database.read((executor) => forgetOldRecorders(executor, FORGET_AFTER_DAYS)).catch(() => undefined);
  }

  /** Writes the rest, again and again until it is written or the time is over. */
  async function finish(deadline: number): Promise<void> {
    while (isPending() || flushing !== undefined) {
      if (!(await flush())) await sleep(CLOSING_RETRY_MS);
      if (performance.now() >= deadline) return;
    }
    if (sequence > 0) await database.read((executor) => forgetRecorder(executor, recorder));
  }

  return {
    introspected(decision, facts) {
      const outcome = decision.active ? 'active' : decision.code;
      observer.introspected(outcome);
      const { record, nowMs } = decision;
      if (record === undefined || nowMs === undefined) return;
      const slot = slotOf(record, startOf('hour', nowMs), outcome);
      if (slot === undefined) return;
      gathering.count(slot);
      if (decision.active) gathering.use(slot, nowMs, facts?.ip);
    },

    called(caller, address) {
      // Once a flush: a service key is used with each request there is.
      if (callers.has(caller.keyId) || callers.size >= MAX_CALLERS) return;
      callers.set(caller.keyId, { at: caller.now, ip: spellAddress(address()) });
      schedule(FLUSH_EVERY_MS);
    },

    reported: (executor, reports) =>
      addDurations(
        executor,
        reports.map(({ keyId, workspaceId, at, durationMs }) => ({
          keyId,
          workspaceId,
          hourMs: startOf('hour', at),
          bucket: bucketOf(durationMs),
          count: 1,
          sumUs: Math.round(durationMs * 1000),
        })),
      ),

    pending,

    lagMs() {
      const since = takenSince ?? gatheringSince;
      return since === undefined ? 0 : performance.now() - since;
    },

    async close(withinMs) {
      closed = true;
      clearTimeout(timer);
      const over = new AbortController();
      const deadline = performance.now() + withinMs;
      const written = finish(deadline).catch(() => undefined);
      await Promise.race([
        written,
        sleep(withinMs, undefined, { signal: over.signal }).catch(() => undefined),
      ]);
      over.abort();
      const lost = taken.reduce((sum, tallies) => sum + tallies.sum(), gathering.sum());
      if (lost === 0) return;
      observer.usageDropped(lost);
      report({ message: `${lost} introspections could not be counted: the database was away to the end` });
    },
  };
}
