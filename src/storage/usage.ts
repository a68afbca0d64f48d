import { and, asc, eq, gte, inArray, lt, type SQL, sql } from 'drizzle-orm';
import type { DurationBucket } from '../domain/duration-histogram.ts';
import { type KeyId, keyIdFromUuid, keyIdToUuid } from '../domain/key-id.ts';
import type { DurationEntry, Granularity, Span, UsageEntry } from '../domain/usage.ts';
import { float8Array, textArray, uuidArray } from './arrays.ts';
import type { Executor } from './database.ts';
import { keyUses, usage, usageDurations, usageFlushes } from './schema.ts';

/** In place of a key's id, and before all of those: all keys of the workspace together, whose usage then is as cheap to read as one key's. */
const EVERY_KEY = '00000000-0000-0000-0000-000000000000';

/**
 * What keys came to, a column for each member: so many introspections of a key had this outcome within the hour that
 * begins at `hoursMs`; and at `usedMs` it was used last, by a client at this address, in its one spelling. A count of 0
 * adds nothing, nor does a use at 0.
 */
export interface UsageBatch {
  readonly workspaceIds: readonly string[];
  readonly keyIds: readonly KeyId[];
  readonly hoursMs: readonly number[];
  readonly codes: readonly string[];
  readonly counts: readonly number[];
  readonly usedMs: readonly number[];
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
 * Adds counts, to those of the key and to those of its workspace. The rows of workspaces, which every instance
 * writes, come last, so that they are locked for the shortest time; and all come in one order, so that no two
 * instances wait for each other.
 *
 * Notes uses, the latest of each key. One that is older than what is known changes nothing. For signals the day is
 * enough, and it is looked at with the first use of an hour. A row of theirs that somebody else is at is left to the
 * next hour: whoever revokes many keys locks their rows in another order.
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
  const { rows } = await executor.execute<{ w: string; k: string; h: number }>(sql`
    WITH told AS (SELECT * FROM unnest(${columns}) AS each(w, k, h, c, n, t, ip)),
    added AS (
      SELECT w, k, to_timestamp(h / 1000) AS h, c, sum(n)::bigint AS n
      FROM told WHERE n > 0 GROUP BY w, k, told.h, c
    ),
    written AS (
      INSERT INTO usage AS known (workspace_id, key_id, hour, code, count)
      SELECT * FROM (
        SELECT w, k, h, c, n FROM added
        UNION ALL SELECT w, ${EVERY_KEY}::uuid, h, c, sum(n) FROM added GROUP BY w, h, c
      ) AS rows(w, k, h, c, n)
      ORDER BY k DESC, w, h, c
      ON CONFLICT (workspace_id, key_id, hour, code) DO UPDATE SET count = known.count + excluded.count
      RETURNING key_id, hour, code, count
    ),
    last AS (SELECT DISTINCT ON (k) k, to_timestamp(t / 1000)::timestamptz(3) AS at, ip FROM told WHERE t > 0 ORDER BY k, t DESC),
    held AS (
      SELECT k, at, ip, idle_since, idle_hour FROM key_uses JOIN last ON key_id = k
      WHERE last_used IS NULL OR last_used <= at ORDER BY k FOR UPDATE OF key_uses
    ),
    used AS (
      UPDATE key_uses SET idle_since = greatest(held.idle_since, at), last_used = at, last_used_ip = ip
      FROM held WHERE key_id = k
    ),
    watched AS (
      UPDATE watched_keys AS watched SET idle_day = first.day
      FROM (SELECT key_id, date_trunc('day', at, 'UTC') AS day FROM held JOIN watched_keys ON key_id = k
        WHERE idle_hour < date_trunc('hour', at, 'UTC') AND idle_day < date_trunc('day', at, 'UTC')
        FOR UPDATE OF watched_keys SKIP LOCKED) AS first
      WHERE watched.key_id = first.key_id
    )
    SELECT DISTINCT w, k, (extract(epoch FROM h) * 1000)::float8 AS h
    FROM written JOIN added ON (key_id, hour, code) = (k, h, c)
    WHERE count >= ${Math.ceil(busyFrom * BUSY_SHARE)}
      AND ${step(sql`count`)} > ${step(sql`greatest(count - n, 0.5)`)}`);
  return rows.map(({ w, k, h }) => ({ workspaceId: w, keyId: keyIdFromUuid(k), hourMs: h }));
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
  const start = startOf(usage.hour, span.granularity);
  return executor
    .select({ startMs: start, code: usage.code, count: sql<number>`sum(${usage.count})::float8` })
    .from(usage)
    .where(
      and(
        eq(usage.workspaceId, span.workspaceId),
        eq(usage.keyId, span.keyId === undefined ? EVERY_KEY : keyIdToUuid(span.keyId)),
        gte(usage.hour, new Date(span.fromMs)),
        lt(usage.hour, new Date(span.toMs)),
      ),
    )
    .groupBy(sql`1`, usage.code)
    .orderBy(asc(sql`1`), asc(usage.code));
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

function startOf(hour: typeof usage.hour | typeof usageDurations.hour, granularity: Granularity) {
  // The granularity as text of ours: as a parameter it would be another one in GROUP BY.
  return sql<number>`(extract(epoch FROM date_trunc(${sql.raw(`'${granularity}'`)}, ${hour}, 'UTC')) * 1000)::float8`;
}
