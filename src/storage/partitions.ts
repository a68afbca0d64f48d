import { sql } from 'drizzle-orm';
import { uuidFloor, uuidTime } from '../domain/key-id.ts';
import type { Executor } from './database.ts';

/*
 * Tables that grow with time are partitioned by it, so that old rows go by dropping a table.
 *
 * Each has a catch-all (a DEFAULT partition), which takes what no other partition takes: an insert never fails for
 * want of a partition, whatever a clock does and however long upkeep was missed. It is empty as a rule, and so it
 * costs nothing to look through it when a partition is attached. What fell into it is moved by the next upkeep.
 *
 * Partitions stand in a schema of their own; `public` has the tables that are spoken of.
 */

/** A table that is partitioned by time. Its migration makes it, with its catch-all; upkeep does the rest. */
export interface PartitionedTable {
  readonly name: string;
  /** The column of the partition key: a time, or a UUIDv7, whose first 48 bits are one (RFC 9562 §5.7). */
  readonly by: { readonly column: string; readonly type: 'time' | 'uuid' };
  readonly period: 'day' | 'month';
  /** How many periods before this one, and after it, have a partition. */
  readonly behind: number;
  readonly ahead: number;
  /** Percent of a page that inserts fill; default: all. What is left takes new versions of its rows. */
  readonly fillfactor?: number;
  /** Its partitions refuse TRUNCATE; what refuses UPDATE and DELETE is a trigger of rows, which they inherit. */
  readonly appendOnly?: true;
}

/** All there are. */
export const PARTITIONED_TABLES = {
  audit_events: {
    name: 'audit_events',
    by: { column: 'id', type: 'uuid' },
    period: 'month',
    behind: 0,
    ahead: 3,
    appendOnly: true,
  },
  // The week before too: reports may be that old.
  request_logs: {
    name: 'request_logs',
    by: { column: 'id', type: 'uuid' },
    period: 'day',
    behind: 7,
    ahead: 7,
  },
  usage: {
    name: 'usage',
    by: { column: 'hour', type: 'time' },
    period: 'month',
    behind: 0,
    ahead: 3,
    // The counts of an hour are written again and again: on the same page that takes a third less time.
    fillfactor: 50,
  },
  // The month before too: reports may be a week old.
  usage_durations: {
    name: 'usage_durations',
    by: { column: 'hour', type: 'time' },
    period: 'month',
    behind: 1,
    ahead: 3,
  },
} as const satisfies Record<string, PartitionedTable>;

export interface Partition {
  readonly name: string;
  /** Milliseconds since the epoch; infinite where it has no bound. The catch-all has none at either end. */
  readonly from: number;
  readonly to: number;
  readonly isCatchAll: boolean;
}

/** From a time on, before another one, in milliseconds. */
export interface Period {
  readonly from: number;
  readonly to: number;
}

/** An arbitrary number that this service alone uses: one instance at a time keeps partitions. */
const UPKEEP_LOCK = 7_165_218_352;
/** Whoever writes waits behind a lock that is waited for, so that is not for long; upkeep tries again later. */
const LOCK_TIMEOUT_MS = 500;
const SCHEMA = 'partitions';

/**
 * Begins upkeep in this transaction; `false` where another instance is at it. Times of bounds are shown in UTC, and
 * no lock is waited for so long that a request would feel it.
 */
export async function beginUpkeep(executor: Executor): Promise<boolean> {
  const { rows } = await executor.execute<{ locked: boolean }>(sql`
    SELECT pg_try_advisory_xact_lock(${UPKEEP_LOCK}) AS locked,
      set_config('lock_timeout', ${String(LOCK_TIMEOUT_MS)}, true),
      set_config('timezone', 'UTC', true),
      set_config('datestyle', 'ISO', true)`);
  return rows[0]?.locked === true;
}

/** The partitions of a table, oldest first. */
export async function listPartitions(executor: Executor, { name }: PartitionedTable): Promise<Partition[]> {
  const { rows } = await executor.execute<{ name: string; bound: string }>(sql`
    SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bound
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = ${`public.${name}`}::regclass`);
  return rows
    .map((row): Partition => {
      const isCatchAll = row.bound === 'DEFAULT';
      const [, from, to] = /^FOR VALUES FROM \((.+)\) TO \((.+)\)$/.exec(row.bound) ?? [];
      return { name: row.name, from: boundTime(from, -Infinity), to: boundTime(to, Infinity), isCatchAll };
    })
    .sort((left, right) => left.from - right.from);
}

/**
 * Makes the partitions that are missing around `nowMs`, but none that would hold nothing from `sinceMs` on, which
 * would be dropped again; answers their names. In a transaction of `beginUpkeep`.
 *
 * A partition is made apart and then attached: that lets others read the table meanwhile, which CREATE TABLE …
 * PARTITION OF does not. Whoever writes waits these few milliseconds: a row that was on its way to the catch-all
 * would else find, when it gets there, that it belongs to a partition that was not there when it set out, and fail.
 */
export async function makePartitions(
  executor: Executor,
  table: PartitionedTable,
  nowMs: number,
  sinceMs = Number.NEGATIVE_INFINITY,
): Promise<string[]> {
  const present = await listPartitions(executor, table);
  const missing = periodsAround(table, nowMs).filter(
    (period) => period.to > sinceMs && !isCovered(period, present),
  );
  const made: string[] = [];
  if (missing.length > 0) {
    await executor.execute(sql`LOCK TABLE ${sql.raw(`public.${table.name}`)} IN SHARE ROW EXCLUSIVE MODE`);
  }
  for (const period of missing) made.push(await attachPartition(executor, table, period));
  return made;
}

/**
 * Moves what fell into the catch-all to partitions of its own; answers whether there was anything. Nobody writes or
 * reads the table meanwhile. No row is deleted for it, since a table may refuse that: the catch-all is taken off,
 * its rows are inserted anew, and it is dropped.
 */
export async function emptyCatchAll(executor: Executor, table: PartitionedTable): Promise<boolean> {
  const catchAll = sql.raw(`${SCHEMA}.${table.name}_default`);
  const { rows: found } = await executor.execute(sql`SELECT FROM ${catchAll} LIMIT 1`);
  if (found.length === 0) return false;

  const parent = sql.raw(`public.${table.name}`);
  const spilled = sql.raw(`${table.name}_spilled`);
  await executor.execute(sql`ALTER TABLE ${parent} DETACH PARTITION ${catchAll}`);
  await executor.execute(sql`ALTER TABLE ${catchAll} RENAME TO ${spilled}`);
  const { rows } = await executor.execute<{ at: number }>(sql`
    SELECT DISTINCT (extract(epoch FROM date_trunc(${table.period}, ${timeOf(table)}, 'UTC')) * 1000)::float8 AS at
    FROM ${sql.raw(`${SCHEMA}.`)}${spilled}`);
  for (const { at } of rows) {
    const period = periodOf(table, at);
    if (!isCovered(period, await listPartitions(executor, table))) {
      await attachPartition(executor, table, period);
    }
  }
  await makeCatchAll(executor, table);
  await executor.execute(sql`INSERT INTO ${parent} SELECT * FROM ${sql.raw(`${SCHEMA}.`)}${spilled}`);
  await executor.execute(sql`DROP TABLE ${sql.raw(`${SCHEMA}.`)}${spilled}`);
  return true;
}

/** Drops the partitions that hold nothing from `before` on or later; answers their names. */
export async function dropPartitions(
  executor: Executor,
  table: PartitionedTable,
  beforeMs: number,
): Promise<string[]> {
  const over = (await listPartitions(executor, table)).filter(({ to }) => to <= beforeMs);
  for (const { name } of over) await executor.execute(sql`DROP TABLE ${sql.raw(`${SCHEMA}."${name}"`)}`);
  return over.map(({ name }) => name);
}

async function attachPartition(
  executor: Executor,
  table: PartitionedTable,
  { from, to }: Period,
): Promise<string> {
  const day = new Date(from).toISOString().slice(0, table.period === 'day' ? 10 : 7);
  const name = `${table.name}_${day.replaceAll('-', '')}`;
  const partition = sql.raw(`${SCHEMA}.${name}`);
  const parent = sql.raw(`public.${table.name}`);
  await executor.execute(
    sql`CREATE TABLE ${partition} (LIKE ${parent} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED INCLUDING STORAGE) ${storageOf(table)}`,
  );
  await executor.execute(
    sql`ALTER TABLE ${parent} ATTACH PARTITION ${partition} FOR VALUES FROM (${boundAt(table, from)}) TO (${boundAt(table, to)})`,
  );
  await refuseTruncate(executor, table, name);
  return name;
}

async function makeCatchAll(executor: Executor, table: PartitionedTable): Promise<void> {
  const name = `${table.name}_default`;
  await executor.execute(
    sql`CREATE TABLE ${sql.raw(`${SCHEMA}.${name}`)} PARTITION OF ${sql.raw(`public.${table.name}`)} DEFAULT ${storageOf(table)}`,
  );
  await refuseTruncate(executor, table, name);
}

/** Of each partition, since a partitioned table has no storage of its own. */
function storageOf({ fillfactor = 100 }: PartitionedTable) {
  return sql.raw(`WITH (fillfactor = ${fillfactor})`);
}

/** A trigger of statements, which partitions do not inherit. */
async function refuseTruncate(executor: Executor, table: PartitionedTable, partition: string): Promise<void> {
  if (table.appendOnly !== true) return;
  const trigger = sql.raw(`${table.name}_keep`);
  const name = sql.raw(`${SCHEMA}.${partition}`);
  await executor.execute(
    sql`CREATE TRIGGER ${trigger} BEFORE TRUNCATE ON ${name} FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()`,
  );
  await executor.execute(sql`ALTER TABLE ${name} ENABLE ALWAYS TRIGGER ${trigger}`);
}

/** The time for which `makePartitions` makes partitions. */
export function coveredAround(table: PartitionedTable, nowMs: number): Period {
  return {
    from: periodOf(table, nowMs, -table.behind).from,
    to: periodOf(table, nowMs, table.ahead).to,
  };
}

function periodsAround(table: PartitionedTable, nowMs: number): Period[] {
  const periods: Period[] = [];
  for (let offset = -table.behind; offset <= table.ahead; offset++)
    periods.push(periodOf(table, nowMs, offset));
  return periods;
}

/** The period that holds a time, or one that lies so many periods from it; days and months are those of UTC. */
function periodOf({ period }: PartitionedTable, timeMs: number, offset = 0): Period {
  const time = new Date(timeMs);
  const [year, month] = [time.getUTCFullYear(), time.getUTCMonth()];
  const start = (steps: number) =>
    period === 'day' ? Date.UTC(year, month, time.getUTCDate() + steps) : Date.UTC(year, month + steps, 1);
  return { from: start(offset), to: start(offset + 1) };
}

function isCovered({ from, to }: Period, present: readonly Partition[]): boolean {
  return present.some((partition) => !partition.isCatchAll && partition.from < to && from < partition.to);
}

/** The time of a row, from its partition key. */
function timeOf({ by }: PartitionedTable) {
  const column = sql.raw(`"${by.column}"`);
  return by.type === 'time'
    ? column
    : sql`to_timestamp(('x' || left(replace(${column}::text, '-', ''), 12))::bit(48)::bigint / 1000.0)`;
}

/** DDL takes no parameters; both forms are made here, of digits. */
function boundAt({ by }: PartitionedTable, timeMs: number) {
  return sql.raw(by.type === 'time' ? `'${new Date(timeMs).toISOString()}'` : `'${uuidFloor(timeMs)}'`);
}

function boundTime(bound: string | undefined, unbounded: number): number {
  const literal = /^'(.+)'$/.exec(bound ?? '')?.[1];
  if (literal === undefined) return unbounded;
  if (/^[0-9a-f]{8}-/.test(literal)) return uuidTime(literal);
  return Date.parse(`${literal.replace(' ', 'T')}:00`);
}
