import { setTimeout as sleep } from 'node:timers/promises';
import type { Database, Executor } from '../storage/database.ts';
import { readDatabaseTime } from '../storage/keys.ts';
import {
  beginUpkeep,
  coveredAround,
  dropPartitions,
  emptyCatchAll,
  makePartitions,
  type PartitionedTable,
} from '../storage/partitions.ts';
import { UNOBSERVED_RECORDING, type UpkeepObserver } from './observer.ts';

/*
 * Keeps what grows with time: makes partitions ahead, and drops what is older than is kept. Every instance does it,
 * one at a time under an advisory lock. Each step is a short transaction of its own, which gives up a lock that is
 * not to be had at once. Nothing waits for it: a step that fails is told and tried again later, and until then new
 * rows go to the catch-all and old ones stay.
 *
 * idle → running → waiting (an hour; after a failure a minute, and longer each time) → running … → closed
 */

export interface KeptTable {
  readonly table: PartitionedTable;
  /** `null`: for ever. */
  readonly retentionDays: number | null;
}

/** Something else that is forgotten in time, in transactions of its own, told the database's time. */
export type Chore = (executor: Executor, nowMs: number) => Promise<void>;

export interface Upkeep {
  /** Runs now, and again and again. */
  start(): void;
  /** One run, or the one under way; answers whether everything was done, here or by another instance. */
  run(): Promise<boolean>;
  /** Rows of this time were written, in milliseconds: where upkeep made no partition for it, it is due. */
  wrote(timeMs: number): void;
  close(): Promise<void>;
}

export interface UpkeepOptions {
  readonly database: Database;
  readonly tables: readonly KeptTable[];
  readonly chores?: readonly Chore[];
  readonly observer?: UpkeepObserver;
  report(event: { readonly message: string; readonly cause?: unknown }): void;
  /** This process's own clock, in milliseconds. */
  readonly now?: () => number;
  /** For tests: how soon a run follows one that failed, or one that foresaw less than there was. */
  readonly retryMs?: number;
}

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const RETRY_MS = 60_000;
const CLOSING_MS = 500;

export function createUpkeep(options: UpkeepOptions): Upkeep {
  const { database, tables, chores = [], observer = UNOBSERVED_RECORDING, report } = options;
  const { now = Date.now, retryMs = RETRY_MS } = options;
  let timer: NodeJS.Timeout | undefined;
  let running: Promise<boolean> | undefined;
  let isStarted = false;
  let isClosed = false;
  let failures = 0;
  let lastRunAt = Number.NEGATIVE_INFINITY;
  /** Rows of these times have a partition, in each table. */
  let covered = { from: Number.NEGATIVE_INFINITY, to: Number.POSITIVE_INFINITY };

  async function step(failure: string, work: (executor: Executor) => Promise<void>): Promise<boolean> {
    if (isClosed) return false;
    try {
      await database.transaction(async (executor) => {
        // Where another instance is at it, that one does what there is to do.
        if (await beginUpkeep(executor)) await work(executor);
      });
      return true;
    } catch (cause) {
      observer.upkeepFailed();
      report({ message: `${failure}; this is tried again`, cause });
      return false;
    }
  }

  async function keep({ table, retentionDays }: KeptTable, nowMs: number): Promise<boolean> {
    const emptied = await step(`the catch-all of ${table.name} was not emptied`, async (executor) => {
      await emptyCatchAll(executor, table);
    });
    // By the earlier of two clocks: one that leaps ahead must not cost what was to be kept.
    const beforeMs =
      retentionDays === null ? Number.NEGATIVE_INFINITY : Math.min(nowMs, now()) - retentionDays * DAY_MS;
    const made = await step(`no partitions of ${table.name} were made`, async (executor) => {
      observer.partitionsMade((await makePartitions(executor, table, nowMs, beforeMs)).length);
    });
    if (retentionDays === null) return emptied && made;
    const dropped = await step(`old partitions of ${table.name} were not dropped`, async (executor) => {
      observer.partitionsDropped((await dropPartitions(executor, table, beforeMs)).length);
    });
    return emptied && made && dropped;
  }

  async function runOnce(): Promise<boolean> {
    lastRunAt = performance.now();
    const nowMs = await database.read(readDatabaseTime).catch(() => undefined);
    // A database that is away is told of by everybody else.
    if (nowMs === undefined) return false;
    let isDone = true;
    for (const kept of tables) isDone = (await keep(kept, nowMs)) && isDone;
    for (const chore of chores) {
      isDone = (await step('old rows were not forgotten', (executor) => chore(executor, nowMs))) && isDone;
    }
    const spans = tables.map(({ table }) => coveredAround(table, nowMs));
    covered = {
      from: Math.max(...spans.map(({ from }) => from)),
      to: Math.min(...spans.map(({ to }) => to)),
    };
    if (isDone) observer.upkeepDone();
    return isDone;
  }

  async function run(): Promise<boolean> {
    running ??= runOnce().finally(() => {
      running = undefined;
    });
    return running;
  }

  async function runAndWait(): Promise<void> {
    clearTimeout(timer);
    failures = (await run()) ? 0 : failures + 1;
    if (isClosed) return;
    const waitMs = failures === 0 ? HOUR_MS : Math.min(HOUR_MS, retryMs * 2 ** (failures - 1));
    clearTimeout(timer);
    timer = setTimeout(() => void runAndWait(), waitMs).unref();
  }

  return {
    start() {
      isStarted = true;
      void runAndWait();
    },
    run,
    wrote(timeMs) {
      if (timeMs >= covered.from && timeMs < covered.to) return;
      if (!isStarted || isClosed || performance.now() - lastRunAt < retryMs) return;
      void runAndWait();
    },
    async close() {
      isClosed = true;
      clearTimeout(timer);
      // A step that waits for a database that is away must not cost others the time that they have at the end.
      const over = new AbortController();
      const patience = sleep(CLOSING_MS, undefined, { signal: over.signal }).catch(() => undefined);
      await Promise.race([running, patience]);
      over.abort();
    },
  };
}
