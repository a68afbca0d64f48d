import { randomFillSync } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { LRUCache } from 'lru-cache';
import { v7 as uuidv7 } from 'uuid';
import { formatAddress, parseAddress } from '../domain/address.ts';
import { type Decision, REFUSALS } from '../domain/decision.ts';
import { Failure } from '../domain/errors.ts';
import { loggedMethod, loggedPath } from '../domain/logged-path.ts';
import type { Database, Executor } from '../storage/database.ts';
import { appendRequestLogs, forgetAddresses, type NewLogEntry } from '../storage/request-logs.ts';
import { type RequestLogObserver, UNOBSERVED_RECORDING } from './observer.ts';
import type { Keeper } from './recorder.ts';

/*
 * The request log: every refusal, a sample of what was allowed, and the first use of a key from an address.
 *
 * An entry waits in a queue, is written with others in one statement, and is gone:
 *
 *   told ── sampled out, or over the rate ──> nothing
 *     └──> waiting (bounded) ──> in flight ──> written
 *                                  │  ^
 *                                  └──┘ the database is away: the same batch again
 *
 * An entry's id is made once, so that a batch that was committed though its answer was lost is not there twice. What
 * is over a bound is dropped and counted, never waited for.
 */

export interface RequestLogOptions {
  readonly database: Database;
  /** The share of allowed introspections that is logged, 0 to 1. Refusals are logged whatever it is. */
  readonly sample: number;
  /** Entries a second, of this instance. */
  readonly perSecond: number;
  readonly observer?: RequestLogObserver;
  report(event: { readonly message: string; readonly cause?: unknown }): void;
  /** Told of the newest time of each batch that was written. */
  wrote?(timeMs: number): void;
  /** Draws from 0 to 1, for the sample. */
  readonly draw?: () => number;
  /** A monotonic clock, in milliseconds, that seconds are told by. */
  readonly clock?: () => number;
  /** For tests: entries that may wait. */
  readonly maxWaiting?: number;
}

export interface RequestLogKeeper extends Keeper {
  /** Entries in memory, those in flight among them. */
  waiting(): number;
  /** Pairs of key and address that memory knows to be noted. */
  readonly knownAddresses: number;
}

const DAY_MS = 86_400_000;
const FLUSH_EVERY_MS = 1_000;
const BATCH_ENTRIES = 1_000;
/** About a kilobyte each at most: what memory holds while the database is away. */
const MAX_WAITING = 20_000;
/** Pairs of key and address that are known to be noted today, about 200 bytes each. */
const KNOWN_ADDRESSES = 100_000;
/**
 * Of the entries a second, these shares at most; the rest is for other refusals. A busy API, a flood of strings that
 * are no keys, or a client that does not heed its limit must not hide that a genuine key was refused.
 */
const SHARES = { allowed: 0.4, invalid: 0.2, rate_limited: 0.2, refused: 1 } as const;
/** A batch that the database refuses, rather than cannot take, is given up in the end: others wait behind it. */
const MAX_REFUSALS = 3;
const CLOSING_RETRY_MS = 100;
/** An address that a key was not used from for so long is new again. */
const ADDRESS_RETENTION_DAYS = 400;
const FORGET_ENTRIES = 5_000;
/** What a UUID is made of. */
const RANDOM_BYTES = 16;
const DRAWN_IDS = 256;

/** The classes that entries a second are counted in. */
type Class = keyof typeof SHARES;

/** Keeps single introspections, and reports. */
export function createRequestLog(options: RequestLogOptions): RequestLogKeeper {
  const { database, sample, observer = UNOBSERVED_RECORDING, report, wrote } = options;
  const { draw = Math.random, clock = () => performance.now(), maxWaiting = MAX_WAITING } = options;
  const rate = createRate(options.perSecond, clock);
  const known = new LRUCache<string, number>({ max: KNOWN_ADDRESSES });
  const drawId = createIdDraw();
  let waiting: NewLogEntry[] = [];
  let inFlight: readonly NewLogEntry[] | undefined;
  let refusals = 0;
  let serial = 0;
  let timer: NodeJS.Timeout | undefined;
  let flushing: Promise<boolean> | undefined;
  let isFailing = false;
  let isClosed = false;

  const newId = (atMs: number) => {
    // In the order of arrival within a millisecond.
    serial = (serial + 1) % 0x7fffffff;
    return uuidv7({ msecs: Math.floor(atMs), seq: serial, random: drawId() });
  };

  function schedule(inMs: number): void {
    if (timer !== undefined || flushing !== undefined || isClosed) return;
    timer = setTimeout(() => {
      timer = undefined;
      void flush().then(() => {
        if (waiting.length > 0 || inFlight !== undefined) schedule(FLUSH_EVERY_MS);
      });
    }, inMs);
  }

  function flush(): Promise<boolean> {
    flushing ??= writeAll().finally(() => {
      flushing = undefined;
    });
    return flushing;
  }

  /** Writes what waits by now; answers whether nothing of it is left. */
  async function writeAll(): Promise<boolean> {
    for (let left = waiting.length; inFlight !== undefined || left > 0; left -= BATCH_ENTRIES) {
      inFlight ??= takeBatch(Math.min(left, BATCH_ENTRIES));
      if (!(await write(inFlight))) return false;
      inFlight = undefined;
    }
    return true;
  }

  function takeBatch(size: number): NewLogEntry[] {
    const batch = waiting.slice(0, size);
    waiting = waiting.slice(size);
    // Where memory forgot an address meanwhile, it is asked for twice; one statement cannot take that.
    const asked = new Set<string>();
    return batch.map((entry) => {
      if (!entry.isLookedUp) return entry;
      const pair = pairOf(entry.keyId, entry.ip);
      if (asked.has(pair)) return { ...entry, isLookedUp: false };
      asked.add(pair);
      return entry;
    });
  }

  /** Answers whether the batch is dealt with: written, or given up. */
  async function write(batch: readonly NewLogEntry[]): Promise<boolean> {
    try {
      observer.requestsLogged(await database.read((executor) => appendRequestLogs(executor, batch)));
    } catch (cause) {
      const isOutage = cause instanceof Failure;
      if (!isFailing) report({ message: 'request logs could not be written; this is tried again', cause });
      isFailing = true;
      if (isOutage || ++refusals < MAX_REFUSALS) return false;
      lose(batch);
      refusals = 0;
      return true;
    }
    if (isFailing) report({ message: 'request logs are written again' });
    isFailing = false;
    refusals = 0;
    wrote?.(Math.max(...batch.map(({ at }) => at)));
    return true;
  }

  function lose(entries: readonly NewLogEntry[]): void {
    observer.requestLogsDropped('lost', entries.filter(({ isLogged }) => isLogged).length);
    // Its next use is the first that anybody gets to see.
    for (const { isLookedUp, keyId, ip } of entries) if (isLookedUp) known.delete(pairOf(keyId, ip));
  }

  return {
    introspected(decision, facts, asking) {
      const isLogged = !decision.active || sample === 1 || (sample > 0 && draw() < sample);
      const kind = classOf(decision);
      // First of all: at full load nearly every introspection comes to this.
      if (rate.isSpent(kind)) {
        if (isLogged) observer.requestLogsDropped('rate', 1);
        return;
      }
      const { record, nowMs } = decision;
      const at = nowMs ?? asking.caller?.now ?? Date.now();
      const keyId = record?.key.id ?? null;
      const told = facts?.ip;
      const pair = keyId === null || told == null ? undefined : pairOf(keyId, told);
      const isUnknown = pair !== undefined && known.get(pair) !== Math.floor(at / DAY_MS);
      if (!isLogged && !isUnknown) return;

      rate.take(kind);
      if (waiting.length >= maxWaiting) {
        if (isLogged) observer.requestLogsDropped('full', 1);
        return;
      }
      const address = told == null ? undefined : parseAddress(told);
      if (isUnknown) known.set(pair, Math.floor(at / DAY_MS));
      const isLookedUp = isUnknown && address !== undefined;
      if (!isLogged && !isLookedUp) return;
      waiting.push({
        id: newId(at),
        at,
        keyId,
        workspaceId: record?.key.workspaceId ?? null,
        code: decision.active ? 'active' : decision.code,
        status: decision.active ? null : REFUSALS[decision.code],
        durationMs: null,
        ip: address === undefined ? null : formatAddress(address),
        method: loggedMethod(facts?.method),
        path: loggedPath(facts?.path),
        callerKeyId: asking.caller?.keyId ?? null,
        requestId: asking.id,
        isLogged,
        isLookedUp,
      });
      schedule(FLUSH_EVERY_MS);
    },

    async reported(executor, reports, asking) {
      const entries = reports.map(
        ({ at, keyId, workspaceId, status, durationMs, method, path }): NewLogEntry => ({
          id: newId(at),
          at,
          keyId,
          workspaceId,
          code: 'reported',
          status,
          durationMs,
          ip: null,
          method: loggedMethod(method),
          path: loggedPath(path),
          callerKeyId: asking.caller?.keyId ?? null,
          requestId: asking.id,
          isLogged: true,
          isLookedUp: false,
        }),
      );
      observer.requestsLogged(await appendRequestLogs(executor, entries));
    },

    waiting: () => waiting.length + (inFlight?.length ?? 0),
    get knownAddresses() {
      return known.size;
    },

    async close(withinMs) {
      isClosed = true;
      clearTimeout(timer);
      const deadline = performance.now() + withinMs;
      const over = new AbortController();
      const written = (async () => {
        while (flushing !== undefined || waiting.length > 0 || inFlight !== undefined) {
          if (!(await flush())) await sleep(CLOSING_RETRY_MS);
          if (performance.now() >= deadline) return;
        }
      })();
      await Promise.race([
        written,
        sleep(withinMs, undefined, { signal: over.signal }).catch(() => undefined),
      ]);
      over.abort();
      const left = [...(inFlight ?? []), ...waiting];
      if (left.length === 0) return;
      lose(left);
      report({
        message: `${left.length} entries of the request log are lost: the database was away to the end`,
      });
    },
  };
}

/** Forgets addresses that were not seen for long: some at each upkeep. */
export async function forgetOldAddresses(executor: Executor, nowMs: number): Promise<void> {
  const beforeMs = nowMs - ADDRESS_RETENTION_DAYS * DAY_MS;
  let forgotten = FORGET_ENTRIES;
  // A transaction's worth; what is left waits for the next hour.
  for (let round = 0; round < 10 && forgotten === FORGET_ENTRIES; round++) {
    forgotten = await forgetAddresses(executor, { beforeMs, limit: FORGET_ENTRIES });
  }
}

function pairOf(keyId: string | null, ip: string | null): string {
  return `${keyId} ${ip}`;
}

function classOf(decision: Decision): Class {
  if (decision.active) return 'allowed';
  return decision.code === 'invalid' || decision.code === 'rate_limited' ? decision.code : 'refused';
}

/** The random part of an id. Many are drawn at once: each draw by itself costs as much as all the rest of a request. */
function createIdDraw(): () => Uint8Array {
  const drawn = new Uint8Array(DRAWN_IDS * RANDOM_BYTES);
  let at = drawn.length;
  return () => {
    if (at === drawn.length) {
      randomFillSync(drawn);
      at = 0;
    }
    at += RANDOM_BYTES;
    return drawn.subarray(at - RANDOM_BYTES, at);
  };
}

/** Lets so many entries pass within each second, and of each class no more than its share. */
function createRate(
  perSecond: number,
  clock: () => number,
): { isSpent(kind: Class): boolean; take(kind: Class): void } {
  const most = (kind: Class) => Math.max(1, Math.floor(perSecond * SHARES[kind]));
  const mostOf = {
    allowed: most('allowed'),
    invalid: most('invalid'),
    rate_limited: most('rate_limited'),
    refused: most('refused'),
  };
  let endsAt = Number.NEGATIVE_INFINITY;
  let taken = 0;
  const takenOf: Record<Class, number> = { allowed: 0, invalid: 0, rate_limited: 0, refused: 0 };
  return {
    isSpent(kind) {
      const now = clock();
      if (now >= endsAt) {
        endsAt = (Math.floor(now / 1000) + 1) * 1000;
        taken = 0;
        takenOf.allowed = takenOf.invalid = takenOf.rate_limited = takenOf.refused = 0;
      }
      return taken >= perSecond || takenOf[kind] >= mostOf[kind];
    },
    take(kind) {
      taken++;
      takenOf[kind]++;
    },
  };
}
