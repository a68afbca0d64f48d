import { lt, lte, type SQL, sql } from 'drizzle-orm';
import type { PgTable } from 'drizzle-orm/pg-core';
import { keyIdToUuid } from '../domain/key-id.ts';
import type { BurstThreshold, GrowthThreshold } from '../domain/signal.ts';
import type { Executor } from './database.ts';
import { failedAuthentications, keyGrowths, watchedKeys } from './schema.ts';
import { type BusyHour, countsOf } from './usage.ts';

/* What signals are read from, beside what is recorded anyway (signals.ts). */

/**
 * Notes which of these busy hours are a sudden growth, in the transaction that counted them: hours with so many
 * requests, of any outcome, as `factor` times the busiest hour of the week before, and `minimum` at least. A key that
 * is younger than that week has none to compare with.
 */
export async function noteGrowths(
  executor: Executor,
  hours: readonly BusyHour[],
  { factor, minimum }: GrowthThreshold,
): Promise<void> {
  if (hours.length === 0) return;
  const looked = JSON.stringify(
    hours.map(({ workspaceId, keyId, hourMs }) => ({ w: workspaceId, k: keyIdToUuid(keyId), h: hourMs })),
  );
  const counts = countsOf({ workspaceId: sql`w`, keyId: sql`k` });
  await executor.execute(sql`
    WITH looked AS (SELECT w, k, to_timestamp(h / 1000) AS h, to_timestamp(h / 1000) - interval '168 hours' AS week
      FROM json_to_recordset(${looked}::json) AS entry(w text, k uuid, h float8))
    INSERT INTO key_growths (hour, key_id, workspace_id, busiest)
    SELECT h, k, w, before.busiest
    FROM looked
      CROSS JOIN LATERAL (SELECT created_at FROM api_keys WHERE id = k OFFSET 0) AS key
      CROSS JOIN LATERAL (SELECT sum(count) AS requests FROM ${counts} AS counts
        WHERE hour = h OFFSET 0) AS present
      CROSS JOIN LATERAL (SELECT coalesce(max(requests), 0) AS busiest FROM (
        SELECT sum(count) AS requests FROM ${counts} AS counts
        WHERE hour >= week AND hour < h GROUP BY hour) AS hours OFFSET 0) AS before
    WHERE key.created_at <= week AND present.requests >= greatest(${minimum}::bigint, ${factor}::bigint * before.busiest)
    ORDER BY h, k
    ON CONFLICT (hour, key_id) DO NOTHING`);
}

/** Failed authentications that came from an address, or a block of them, since it was last told of. */
export interface AddressFailures {
  readonly ip: string;
  /** Introspections of what is no key. */
  readonly introspections: number;
  /** Calls of Claviger's own API with what is no service key. */
  readonly calls: number;
}

/**
 * Adds failures to the present window of their addresses, by the database's clock, and notes which of them are a
 * burst. In one order, so that no two instances wait for each other.
 */
export async function addFailures(
  executor: Executor,
  failures: readonly AddressFailures[],
  { failures: many, windowMinutes }: BurstThreshold,
): Promise<void> {
  if (failures.length === 0) return;
  const windowSeconds = windowMinutes * 60;
  await executor.execute(sql`
    INSERT INTO failed_authentications AS known (window_start, ip, introspections, calls, is_burst)
    SELECT to_timestamp(floor(extract(epoch FROM now()) / ${windowSeconds}::int) * ${windowSeconds}::int),
      ip, sum(introspections), sum(calls), sum(introspections + calls) >= ${many}::int
    FROM json_to_recordset(${JSON.stringify(failures)}::json) AS added(ip text, introspections bigint, calls bigint)
    GROUP BY ip ORDER BY ip
    ON CONFLICT (window_start, ip) DO UPDATE SET
      introspections = known.introspections + excluded.introspections, calls = known.calls + excluded.calls,
      is_burst = known.introspections + excluded.introspections + known.calls + excluded.calls >= ${many}::int`);
}

/** Takes out keys that expired before then, some at a time; answers how many. Nothing prolongs an expired key. */
export function forgetExpiredKeys(executor: Executor, stretch: Forgotten): Promise<number> {
  return forget(
    executor,
    { table: watchedKeys, key: sql`key_id`, isOver: lte(watchedKeys.expiresAt, new Date(stretch.beforeMs)) },
    stretch,
  );
}

/** Forgets growths of hours before then, some at a time; answers how many. */
export function forgetGrowths(executor: Executor, stretch: Forgotten): Promise<number> {
  return forget(
    executor,
    { table: keyGrowths, key: sql`hour, key_id`, isOver: lt(keyGrowths.hour, new Date(stretch.beforeMs)) },
    stretch,
  );
}

/** Forgets failures of windows that began before then, some at a time; answers how many. */
export function forgetFailures(executor: Executor, stretch: Forgotten): Promise<number> {
  return forget(
    executor,
    {
      table: failedAuthentications,
      key: sql`window_start, ip`,
      isOver: lt(failedAuthentications.windowStart, new Date(stretch.beforeMs)),
    },
    stretch,
  );
}

export interface Forgotten {
  readonly beforeMs: number;
  readonly limit: number;
}

async function forget(
  executor: Executor,
  { table, key, isOver }: { table: PgTable; key: SQL; isOver: SQL },
  { limit }: Forgotten,
): Promise<number> {
  // Skipped where somebody is at it: there is another time.
  const { rowCount } = await executor.execute(sql`
    DELETE FROM ${table} WHERE (${key}) IN (
      SELECT ${key} FROM ${table} WHERE ${isOver} LIMIT ${limit} FOR UPDATE SKIP LOCKED)`);
  return rowCount ?? 0;
}
