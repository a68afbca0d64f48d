import { and, eq, gte, inArray, lt, type SQL, type SQLWrapper, sql } from 'drizzle-orm';
import type { DurationBucket } from '../domain/duration-histogram.ts';
import { type KeyId, keyIdFromUuid, keyIdToUuid } from '../domain/key-id.ts';
import type { DurationEntry, Granularity, Span, UsageEntry } from '../domain/usage.ts';
import { float8Array, textArray, uuidArray } from './arrays.ts';
import type { Executor } from './database.ts';
import { keyUses, usageDurations, usageFlushes } from './schema.ts';

/** In place of a key's id, and before all of those: all keys of the workspace together, whose usage then is as cheap to read as one key's. */
const EVERY_KEY = '00000000-0000-0000-0000-000000000000';

/**
 * What keys came to, a column for each member: so many introspections of a key had this outcome within the hour that
 * begins at `hoursMs`; and at `usedMs`, within that hour, it was used last, by a client at this address, in its one
 * spelling: only where the outcome is `active`. A count of 0 adds nothing, nor does a use at 0.
 */
export interface UsageBatch {
  readonly workspaceIds: readonly string[];
  /** Their bytes, one behind the other (`writeKeyId`). */
  readonly keyIds: Uint8Array;
  readonly hoursMs: ArrayLike<number>;
  readonly codes: readonly string[];
  readonly counts: ArrayLike<number>;
  readonly usedMs: ArrayLike<number>;
  readonly ips: readonly (string | null)[];
}

/** So many reported durations of a key fell into this bucket within the hour. */
export interface DurationCount extends DurationBucket {
  readonly workspaceId: string;
  readonly keyId: KeyId;
  readonly hourMs: number;
}

/** An hour in which a key was asked about often, that may be a sudden growth. */
export interface BusyHour {
  readonly workspaceId: string;
  readonly keyId: KeyId;
  readonly hourMs: number;
}

/** When a key was used last, and the client's address then, in its one spelling, where it was told. */
export interface KeyUse {
  readonly at: number;
  readonly ip: string | null;
}

/**
 * Takes note that this batch is being written. Answers `false` for one that was committed before, which then must
 * not be written again. Comes first in its transaction: one that still runs, sent over a connection that was lost,
 * is waited for here.
 */
export async function beginFlush(
  executor: Executor,
  { recorder, sequence }: { recorder: string; sequence: number },
): Promise<boolean> {
  const rows = await executor
    .insert(usageFlushes)
    .values({ recorder, sequence })
    .onConflictDoUpdate({
      target: usageFlushes.recorder,
      set: { sequence, at: sql`now()` },
      setWhere: lt(usageFlushes.sequence, sequence),
    })
    .returning({ recorder: usageFlushes.recorder });
  return rows.length > 0;
}

/** Forgets a recorder whose last batch is known to be committed. */
export async function forgetRecorder(executor: Executor, recorder: string): Promise<void> {
  await executor.delete(usageFlushes).where(eq(usageFlushes.recorder, recorder));
}

/** Forgets recorders that were killed: none has waited this long for the answer to a batch. */
export async function forgetOldRecorders(executor: Executor, olderThanDays: number): Promise<void> {
  await executor
    .delete(usageFlushes)
    .where(lt(usageFlushes.at, sql`now() - make_interval(days => ${olderThanDays})`));
}

/** A busy hour is looked at again whenever one of its counts has grown by this. */
const BUSIER = 1.25;
/** And first when one of its counts is this share of what makes it busy, since other outcomes may have the rest. */
const BUSY_SHARE = 0.25;

/**
 * Adds counts, to those of the key and to those of its workspace, and notes uses, the latest of each key.
 *
 * What was allowed within the hour of a key's last use is counted in the row that tells of that use, so that a use
 * writes one row and no index:
 *
 *   use ──> key_uses, in the hour that it is of ── the hour is over ──> usage
 *     └──> usage, of the workspace
 *
 * All else is added to `usage` at once: refusals, and uses of an hour before the one that the row counts. What the write
 * of a row moves to `usage` stands in that row until the next write; nothing else tells an upsert's statement what was
 * there before. Whoever reads counts adds up both (`countsOf`).
 *
 * The rows of workspaces, which every instance writes, come last, so that they are locked for the shortest time; and all
 * come in one order, so that no two instances wait for each other. For signals the day of a use is enough, and it is
 * looked at with the first use of an hour. A row of theirs that somebody else is at is left to the next hour: whoever
 * revokes many keys locks their rows in another order.
 *
 * Answers the hours that are worth a look: those in which some outcome's count passed `busyFrom` times a power of
 * `BUSIER`. That is a handful of times for a busy key, whatever it is used for, and never for others.
 */
export async function addUsage(
  executor: Executor,
  added: UsageBatch,
  busyFrom = Number.MAX_SAFE_INTEGER,
): Promise<BusyHour[]> {
  if (added.keyIds.length === 0) return [];
  const columns = sql.join(
    [
      sql`${textArray(added.workspaceIds)}::text[]`,
      sql`${uuidArray(added.keyIds)}::uuid[]`,
      sql`${float8Array(added.hoursMs)}::float8[]`,
      sql`${textArray(added.codes)}::text[]`,
      sql`${float8Array(added.counts)}::float8[]`,
      sql`${float8Array(added.usedMs)}::float8[]`,
      sql`${textArray(added.ips)}::text[]`,
    ],
    sql`, `,
  );
  const step = (count: SQL) =>
    sql`floor(ln((${count})::float8 / ${busyFrom}::float8) / ln(${BUSIER}::float8))`;
  // `place < 2` and not `= 1`: the planner then knows that this is most of the rows.
  const { rows } = await executor.execute<{ w: string; k: string; h: number }>(sql`
    WITH told AS (SELECT * FROM unnest(${columns}) AS each(w, k, h, c, n, t, ip)),
    uses AS (
      SELECT w, k, to_timestamp(h / 1000)::timestamptz(3) AS h, c, n::bigint AS n,
        to_timestamp(t / 1000)::timestamptz(3) AS at, ip, row_number() OVER (PARTITION BY k ORDER BY t DESC) AS place
      FROM told WHERE t > 0
    ),
    noted AS (
      INSERT INTO key_uses AS known (key_id, idle_since, last_used, last_used_ip, used_hour, hour_count)
      SELECT k, at, at, ip, h, n FROM uses WHERE place < 2 ORDER BY k
      ON CONFLICT (key_id) DO UPDATE SET
        idle_since = greatest(known.idle_since, excluded.idle_since),
        last_used = greatest(known.last_used, excluded.last_used),
        last_used_ip = CASE WHEN known.last_used > excluded.last_used THEN known.last_used_ip ELSE excluded.last_used_ip END,
        used_hour = greatest(known.used_hour, excluded.used_hour),
        hour_count = CASE WHEN known.used_hour > excluded.used_hour THEN known.hour_count
          WHEN known.used_hour = excluded.used_hour THEN known.hour_count + excluded.hour_count
          ELSE excluded.hour_count END,
        moved_hour = CASE WHEN known.used_hour <> excluded.used_hour THEN least(known.used_hour, excluded.used_hour) END,
        moved_count = CASE WHEN known.used_hour < excluded.used_hour THEN known.hour_count
          WHEN known.used_hour > excluded.used_hour THEN excluded.hour_count END
      RETURNING key_id, last_used, used_hour, hour_count, moved_hour, moved_count
    ),
    watched AS (
      UPDATE watched_keys AS watched SET idle_day = first.day
      FROM (SELECT key_id, date_trunc('day', last_used, 'UTC') AS day FROM noted JOIN watched_keys USING (key_id)
        WHERE moved_hour IS NOT NULL AND idle_day < date_trunc('day', last_used, 'UTC')
        FOR UPDATE OF watched_keys SKIP LOCKED) AS first
      WHERE watched.key_id = first.key_id
    ),
    counted AS (
      SELECT w, k, h, c, n FROM uses WHERE place > 1 AND n > 0
      UNION ALL SELECT w, k, to_timestamp(h / 1000), c, n::bigint FROM told WHERE t = 0 AND n > 0
    ),
    written AS (
      INSERT INTO usage AS known (workspace_id, key_id, hour, code, count)
      SELECT w, k, h, c, sum(n) FROM (
        SELECT w, k, h, c, n FROM counted
        UNION ALL SELECT w, k, moved_hour, 'active', moved_count FROM noted JOIN uses ON k = key_id
          WHERE place < 2 AND moved_count > 0
        UNION ALL SELECT w, ${EVERY_KEY}::uuid, to_timestamp(h / 1000), c, sum(n)::bigint FROM told
          WHERE n > 0 GROUP BY w, h, c
      ) AS rows(w, k, h, c, n)
      GROUP BY w, k, h, c ORDER BY k DESC, w, h, c
      ON CONFLICT (workspace_id, key_id, hour, code) DO UPDATE SET count = known.count + excluded.count
      RETURNING key_id, hour, code, count
    )
    SELECT DISTINCT w, k, (extract(epoch FROM h) * 1000)::float8 AS h FROM (
      SELECT w, k, h, n, hour_count FROM noted JOIN uses ON k = key_id AND h = used_hour WHERE place < 2
      UNION ALL SELECT w, k, h, n, count FROM written JOIN counted ON (key_id, hour, code) = (k, h, c)
    ) AS grown(w, k, h, n, count)
    WHERE count >= ${Math.ceil(busyFrom * BUSY_SHARE)}
      AND ${step(sql`count`)} > ${step(sql`greatest(count - n, 0.5)`)}`);
  return rows.map(({ w, k, h }) => ({ workspaceId: w, keyId: keyIdFromUuid(k), hourMs: h }));
}

/** What a key came to: rows of `hour`, `code` and `count`, of which some may be of the same hour and outcome. */
export function countsOf({ workspaceId, keyId }: { workspaceId: SQL; keyId: SQL }): SQL {
  return sql`(SELECT hour, code, count FROM usage WHERE workspace_id = ${workspaceId} AND key_id = ${keyId}
    UNION ALL SELECT used_hour, 'active', hour_count FROM key_uses WHERE key_id = ${keyId} AND hour_count > 0)`;
}

/** Adds reported durations, in the same way. */
export async function addDurations(executor: Executor, counts: readonly DurationCount[]): Promise<void> {
  if (counts.length === 0) return;
  const added = JSON.stringify(
    counts.map(({ workspaceId, keyId, hourMs, bucket, count, sumUs }) => ({
      w: workspaceId,
      k: keyIdToUuid(keyId),
      h: hourMs,
      b: bucket,
      n: count,
      s: sumUs,
    })),
  );
  await executor.execute(sql`
    WITH added AS (SELECT w, k, to_timestamp(h / 1000) AS h, b, n, s
      FROM json_to_recordset(${added}::json) AS entry(w text, k uuid, h float8, b smallint, n bigint, s bigint))
    INSERT INTO usage_durations AS known (workspace_id, key_id, hour, bucket, count, sum_us)
    SELECT * FROM (
      SELECT w, k, h, b, sum(n), sum(s) FROM added GROUP BY w, k, h, b
      UNION ALL SELECT w, ${EVERY_KEY}::uuid, h, b, sum(n), sum(s) FROM added GROUP BY w, h, b
    ) AS rows(w, k, h, b, n, s)
    ORDER BY k = ${EVERY_KEY}::uuid, w, k, h, b
    ON CONFLICT (workspace_id, key_id, hour, bucket)
      DO UPDATE SET count = known.count + excluded.count, sum_us = known.sum_us + excluded.sum_us`);
}

/** The last use of each of these keys that was ever used. */
export async function findUses(executor: Executor, ids: readonly KeyId[]): Promise<Map<KeyId, KeyUse>> {
  if (ids.length === 0) return new Map();
  const rows = await executor
    .select({ keyId: keyUses.keyId, at: keyUses.lastUsed, ip: keyUses.lastUsedIp })
    .from(keyUses)
    .where(inArray(keyUses.keyId, ids.map(keyIdToUuid)));
  const uses = new Map<KeyId, KeyUse>();
  for (const { keyId, at, ip } of rows) {
    if (at !== null) uses.set(keyIdFromUuid(keyId), { at: at.getTime(), ip });
  }
  return uses;
}

export interface UsageSpan extends Span {
  readonly workspaceId: string;
  /** `undefined`: all keys of the workspace. */
  readonly keyId: KeyId | undefined;
  readonly granularity: Granularity;
}

/** The counts of a span, by outcome and by the beginning of the hour or UTC day that they are of. */
export async function readUsage(executor: Executor, span: UsageSpan): Promise<UsageEntry[]> {
  const { workspaceId, keyId, granularity, fromMs, toMs } = span;
  const ofKey = keyId === undefined ? EVERY_KEY : keyIdToUuid(keyId);
  const { rows } = await executor.execute<UsageEntry & Record<string, unknown>>(sql`
    SELECT ${startOf(sql`hour`, granularity)} AS "startMs", code, sum(count)::float8 AS count
    FROM ${countsOf({ workspaceId: sql`${workspaceId}`, keyId: sql`${ofKey}::uuid` })} AS counts
    WHERE hour >= ${new Date(fromMs).toISOString()}::timestamptz AND hour < ${new Date(toMs).toISOString()}::timestamptz
    GROUP BY 1, 2 ORDER BY 1, 2`);
  return rows;
}

/** The durations of a span, by bucket of the histogram and by the beginning of the hour or UTC day. */
export async function readDurations(executor: Executor, span: UsageSpan): Promise<DurationEntry[]> {
  const start = startOf(usageDurations.hour, span.granularity);
  return executor
    .select({
      startMs: start,
      bucket: usageDurations.bucket,
      count: sql<number>`sum(${usageDurations.count})::float8`,
      sumUs: sql<number>`sum(${usageDurations.sumUs})::float8`,
    })
    .from(usageDurations)
    .where(
      and(
        eq(usageDurations.workspaceId, span.workspaceId),
        eq(usageDurations.keyId, span.keyId === undefined ? EVERY_KEY : keyIdToUuid(span.keyId)),
        gte(usageDurations.hour, new Date(span.fromMs)),
        lt(usageDurations.hour, new Date(span.toMs)),
      ),
    )
    .groupBy(sql`1`, usageDurations.bucket);
}

function startOf(hour: SQLWrapper, granularity: Granularity) {
  // The granularity as text of ours: as a parameter it would be another one in GROUP BY.
  return sql<number>`(extract(epoch FROM date_trunc(${sql.raw(`'${granularity}'`)}, ${hour}, 'UTC')) * 1000)::float8`;
}
