import { setTimeout as sleep } from 'node:timers/promises';
import { formatAddress, parseAddress } from '../domain/address.ts';
import type { BurstThreshold } from '../domain/signal.ts';
import type { Database, Executor } from '../storage/database.ts';
import {
  type AddressFailures,
  addFailures,
  type Forgotten,
  forgetExpiredKeys,
  forgetFailures,
  forgetGrowths,
} from '../storage/signal-sources.ts';
import type { Keeper } from './recorder.ts';

/*
 * Failed authentications by address, of which bursts are made. An address is written about once a second, from when
 * on it came up to a share of a burst; what came to less within a window is forgotten: so one typing error costs no
 * write, and a flood from everywhere costs memory up to a bound.
 *
 *   counted in memory ── up to the share ──> written, and written again with each failure more
 *     └── the window is over ──> forgotten
 *
 * What could not be written is added to what comes. A write whose answer was lost counts twice: this is a signal, and
 * exact counts are those of usage.
 */

export interface FailureOptions {
  readonly database: Database;
  readonly threshold: BurstThreshold;
  /** A monotonic clock, in milliseconds, that windows are told by. */
  readonly clock?: () => number;
}

export interface FailureKeeper extends Keeper {
  readonly refused: NonNullable<Keeper['refused']>;
  /** Addresses that memory counts within this window. */
  readonly addresses: number;
}

interface Tally {
  introspections: number;
  calls: number;
  /** Whether it came up to the share in this window. */
  isWatched: boolean;
}

const FLUSH_EVERY_MS = 1_000;
const CLOSING_RETRY_MS = 100;
/** Addresses that memory counts within a window, about 150 bytes each. */
const MAX_ADDRESSES = 50_000;
/** An address is written when one instance alone has seen this share of a burst: twenty of them miss none. */
const WATCHED_SHARE = 1 / 20;

export function createFailureKeeper({
  database,
  threshold,
  clock = () => performance.now(),
}: FailureOptions): FailureKeeper {
  const watchedFrom = Math.max(1, Math.ceil(threshold.failures * WATCHED_SHARE));
  const windowMs = threshold.windowMinutes * 60_000;
  let tallies = new Map<string, Tally>();
  let changed = new Set<string>();
  let windowEnd = clock() + windowMs;
  let timer: NodeJS.Timeout | undefined;
  let flushing: Promise<boolean> | undefined;
  let isClosed = false;

  /** @param text as it was told, which may be no address. Each address comes up to the share by itself. */
  function count(text: string, of: 'introspections' | 'calls'): void {
    if (clock() >= windowEnd) turnWindow();
    let tally = tallies.get(text);
    if (tally === undefined) {
      if (tallies.size >= MAX_ADDRESSES) return;
      tally = { introspections: 0, calls: 0, isWatched: false };
      tallies.set(text, tally);
    }
    tally[of]++;
    if (!tally.isWatched && tally.introspections + tally.calls < watchedFrom) return;
    tally.isWatched = true;
    changed.add(text);
    schedule();
  }

  function turnWindow(): void {
    windowEnd = clock() + windowMs;
    const kept = [...changed].flatMap((text) => {
      const tally = tallies.get(text);
      return tally === undefined ? [] : [[text, tally] as const];
    });
    tallies = new Map(kept);
  }

  function schedule(): void {
    if (timer !== undefined || flushing !== undefined || isClosed) return;
    timer = setTimeout(() => {
      timer = undefined;
      void flush().then(() => {
        if (changed.size > 0) schedule();
      });
    }, FLUSH_EVERY_MS);
  }

  function flush(): Promise<boolean> {
    flushing ??= write().finally(() => {
      flushing = undefined;
    });
    return flushing;
  }

  /** Writes what there is by now; answers whether it did. */
  async function write(): Promise<boolean> {
    const taken = new Map<string, AddressFailures>();
    for (const text of changed) {
      const tally = tallies.get(text);
      const ip = blockOf(text);
      if (tally === undefined) continue;
      if (ip !== undefined) taken.set(text, { ip, introspections: tally.introspections, calls: tally.calls });
      tally.introspections = tally.calls = 0;
    }
    changed = new Set();
    try {
      await database.read((executor) => addFailures(executor, [...taken.values()], threshold));
      return true;
    } catch {
      // Everybody else tells of a database that is away.
      for (const [text, { introspections, calls }] of taken) {
        const tally = tallies.get(text) ?? { introspections: 0, calls: 0, isWatched: true };
        tally.introspections += introspections;
        tally.calls += calls;
        tallies.set(text, tally);
        changed.add(text);
      }
      return false;
    }
  }

  return {
    introspected(decision, facts) {
      if (decision.active || decision.code !== 'invalid' || facts?.ip == null) return;
      count(facts.ip, 'introspections');
    },
    refused: (address) => count(address, 'calls'),
    get addresses() {
      return tallies.size;
    },
    reported: async () => undefined,
    async close(withinMs) {
      isClosed = true;
      clearTimeout(timer);
      const deadline = performance.now() + withinMs;
      const over = new AbortController();
      const written = (async () => {
        while (flushing !== undefined || changed.size > 0) {
          if (!(await flush())) await sleep(CLOSING_RETRY_MS);
          if (performance.now() >= deadline) return;
        }
      })();
      await Promise.race([
        written,
        sleep(withinMs, undefined, { signal: over.signal }).catch(() => undefined),
      ]);
      over.abort();
    },
  };
}

/** The address, or its /64 for IPv6, since a client there has all of it to choose from; `undefined` for what is none. */
function blockOf(text: string): string | undefined {
  const address = parseAddress(text);
  if (address === undefined) return undefined;
  if (address.family === 4) return formatAddress(address);
  return `${formatAddress({ ...address, word2: 0, word3: 0 })}/64`;
}

const DAY_MS = 86_400_000;
const FORGET_ENTRIES = 5_000;
const FORGET_ROUNDS = 20;

/** For upkeep: takes out what signals are no longer read from, some at each run. */
export function createSignalSweep({ recentDays }: { recentDays: number }) {
  return async (executor: Executor, nowMs: number): Promise<void> => {
    const recentSince = nowMs - recentDays * DAY_MS;
    await forgetAll((stretch) => forgetExpiredKeys(executor, stretch), nowMs);
    await forgetAll((stretch) => forgetGrowths(executor, stretch), recentSince);
    await forgetAll((stretch) => forgetFailures(executor, stretch), recentSince);
  };
}

async function forgetAll(forget: (stretch: Forgotten) => Promise<number>, beforeMs: number): Promise<void> {
  let forgotten = FORGET_ENTRIES;
  for (let round = 0; round < FORGET_ROUNDS && forgotten === FORGET_ENTRIES; round++) {
    forgotten = await forget({ beforeMs, limit: FORGET_ENTRIES });
  }
}
