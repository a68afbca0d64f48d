import { asc, sql } from 'drizzle-orm';
import type { Executor } from './database.ts';
import { rateWindows } from './schema.ts';

/** Which counter: of a key or of a workspace, and of windows of which length. */
export interface Counter {
  /** `key_…`, or `workspace:` and its id. */
  readonly subject: string;
  readonly windowSeconds: number;
}

/** What an instance asks of one counter, and what it tells of what it holds. */
export interface Ask extends Counter {
  readonly limit: number;
  /** So many uses wait, of this cost each. They are granted whole. */
  readonly uses: number;
  readonly cost: number;
  /** Whether what is granted to them counts as stock at first: another limit may refuse them still. Else it is spent. */
  readonly holds: boolean;
  /** How much more to take into stock, where enough is left. */
  readonly stock: number;
  /** The window that the next two belong to; in any other they say nothing. */
  readonly windowStart: number;
  /** How much of what was leased comes back unspent. */
  readonly handedIn: number;
  /** How much less this instance holds than the database believes; negative where it is more. */
  readonly unstocked: number;
  /** Whether to call others' stocks back where it falls short, though somebody has before. */
  readonly callAgain: boolean;
}

export interface Grant extends Counter {
  readonly windowStart: number;
  /** Until the window ends, from some moment after the statement was sent. */
  readonly msLeft: number;
  readonly uses: number;
  readonly stock: number;
  /** What nobody has leased. */
  readonly left: number;
  /** What all instances hold in stock, as they last told. */
  readonly stocked: number;
  readonly wanted: boolean;
}

/** How a counter stands in the window that the database's clock is in. */
export interface WindowState {
  readonly windowStart: number;
  readonly leased: number;
  readonly stocked: number;
}

/** What instances tell each other about quota; the subject comes last, since it is the caller's own string. */
export const QUOTA_CHANNEL = 'claviger_quota';

/** `call`: bring back your stock. `returned`: there may be more than you were told. */
export interface QuotaNotice extends Counter {
  readonly kind: 'call' | 'returned';
}

export function readQuotaNotice(payload: string): QuotaNotice | undefined {
  const [kind, windowSeconds, subject] = payload.split(' ');
  if ((kind !== 'call' && kind !== 'returned') || subject === undefined) return undefined;
  return { kind, windowSeconds: Number(windowSeconds), subject };
}

/** Makes counters that do not exist yet; none of them has granted anything then. */
export async function openCounters(executor: Executor, counters: readonly Counter[]): Promise<void> {
  await executor.execute(sql`
    INSERT INTO ${rateWindows} (subject, window_seconds, window_start, leased, stocked, wanted)
    SELECT subject, window_seconds, 0, 0, 0, false
      FROM unnest(${column(counters, 'subject')}::text[], ${column(counters, 'windowSeconds')}::int[])
           AS counter (subject, window_seconds)
     ORDER BY subject, window_seconds
    ON CONFLICT DO NOTHING`);
}

/**
 * Takes back, and grants: for all counters asked about in one statement, each named once. `leased` never passes the
 * limit. A counter that does not exist has no answer.
 *
 * Rows are locked in one order, so that no two statements lock each other out. The window is that of the database's
 * clock, read under the lock. A row that is one window ahead of that stays where it is: the statement waited for the
 * lock while the window turned, or the clock was set back a little. Nothing is forgotten by a commit that was
 * answered, whatever the server's setting is.
 */
export async function exchangeQuota(executor: Executor, asks: readonly Ask[]): Promise<Grant[]> {
  const { rows } = await executor.execute<Pick<Grant, keyof Grant>>(sql`
    WITH asked AS MATERIALIZED (
      SELECT ask.*, set_config('synchronous_commit', 'on', true)
        FROM unnest(${column(asks, 'subject')}::text[], ${column(asks, 'windowSeconds')}::int[],
                    ${column(asks, 'limit')}::bigint[], ${column(asks, 'uses')}::bigint[],
                    ${column(asks, 'cost')}::bigint[], ${column(asks, 'stock')}::bigint[],
                    ${column(asks, 'windowStart')}::bigint[], ${column(asks, 'handedIn')}::bigint[],
                    ${column(asks, 'unstocked')}::bigint[], ${column(asks, 'holds')}::boolean[],
                    ${column(asks, 'callAgain')}::boolean[])
             AS ask (subject, window_seconds, quota, uses, cost, stock, of_window, handed_in, unstocked, holds,
                     call_again)
    ), locked AS MATERIALIZED (
      SELECT ordered.*, held.window_start, held.leased, held.stocked, held.wanted
        FROM (SELECT * FROM asked ORDER BY subject, window_seconds) AS ordered
       CROSS JOIN LATERAL (
         SELECT * FROM rate_windows AS counter
          WHERE counter.subject = ordered.subject AND counter.window_seconds = ordered.window_seconds
            FOR NO KEY UPDATE
       ) AS held
    ), timed AS MATERIALIZED (
      SELECT locked.*, extract(epoch FROM clock_timestamp()) AS now FROM locked
    ), placed AS (
      SELECT timed.*, floor(now / window_seconds)::bigint * window_seconds AS by_clock FROM timed
    ), current AS (
      SELECT placed.*,
             CASE WHEN window_start IN (by_clock, by_clock + window_seconds) THEN window_start ELSE by_clock END AS start
        FROM placed
    ), settled AS (
      SELECT current.*,
             CASE WHEN window_start <> start THEN 0
                  ELSE greatest(0, leased - CASE WHEN of_window = start THEN handed_in ELSE 0 END) END AS before,
             CASE WHEN window_start <> start THEN 0
                  ELSE greatest(0, stocked - CASE WHEN of_window = start THEN unstocked ELSE 0 END) END AS in_stock,
             window_start = start AND wanted AS was_wanted,
             window_start = start AND of_window = start AND (handed_in > 0 OR unstocked > 0) AS has_returned
        FROM current
    ), served AS (
      SELECT settled.*, least(uses, greatest(0, quota - before) / cost) AS served FROM settled
    ), filled AS (
      SELECT served.*, was_wanted OR (served < uses AND cost <= quota) AS is_wanted,
             served < uses AND cost <= quota AND in_stock > 0 AND (call_again OR NOT was_wanted) AS calls
        FROM served
    ), topped AS (
      SELECT filled.*,
             CASE WHEN is_wanted THEN 0 ELSE least(stock, greatest(0, quota - before - served * cost) / 4) END AS taken
        FROM filled
    ), granted AS MATERIALIZED (
      SELECT topped.*, before + served * cost + taken AS now_leased,
             in_stock + taken + CASE WHEN holds THEN served * cost ELSE 0 END AS now_stocked
        FROM topped
    ), written AS (
      UPDATE rate_windows AS counter
         SET window_start = granted.start, leased = granted.now_leased, stocked = granted.now_stocked,
             wanted = granted.is_wanted
        FROM granted
       WHERE counter.subject = granted.subject AND counter.window_seconds = granted.window_seconds
         AND (counter.window_start, counter.leased, counter.stocked, counter.wanted) IS DISTINCT FROM
             (granted.start, granted.now_leased, granted.now_stocked, granted.is_wanted)
    )
    SELECT subject, window_seconds AS "windowSeconds", start::float8 AS "windowStart",
           ((start + window_seconds - now) * 1000)::float8 AS "msLeft", served::float8 AS uses, taken::float8 AS stock,
           greatest(0, quota - now_leased)::float8 AS left, now_stocked::float8 AS stocked, is_wanted AS wanted,
           CASE WHEN calls THEN pg_notify(${QUOTA_CHANNEL}, concat_ws(' ', 'call', window_seconds, subject)) END,
           CASE WHEN was_wanted AND has_returned
                THEN pg_notify(${QUOTA_CHANNEL}, concat_ws(' ', 'returned', window_seconds, subject)) END
      FROM granted`);
  return rows;
}

/** How a counter stands; nothing is spent. */
export async function readCounter(executor: Executor, counter: Counter): Promise<WindowState> {
  const { rows } = await executor.execute<Pick<WindowState, keyof WindowState>>(sql`
    WITH asked AS (
      SELECT ${counter.windowSeconds}::int AS seconds,
             floor(extract(epoch FROM clock_timestamp()) / ${counter.windowSeconds}::int)::bigint
               * ${counter.windowSeconds}::int AS by_clock
    )
    SELECT coalesce(window_start, by_clock)::float8 AS "windowStart", coalesce(leased, 0)::float8 AS leased,
           coalesce(stocked, 0)::float8 AS stocked
      FROM asked
      LEFT JOIN rate_windows
        ON subject = ${counter.subject} AND window_seconds = seconds AND window_start IN (by_clock, by_clock + seconds)`);
  return rows[0] ?? { windowStart: Number.NaN, leased: Number.NaN, stocked: 0 };
}

/** Asks all instances for their stock of a counter. */
export async function callStock(executor: Executor, { subject, windowSeconds }: Counter): Promise<void> {
  await executor.execute(sql`SELECT pg_notify(${QUOTA_CHANNEL}, ${`call ${windowSeconds} ${subject}`})`);
}

/**
 * Deletes counters whose window ended long ago, of one page in the order of the primary key. A counter that is in use
 * is passed over: it is not old.
 *
 * @returns the last counter of the page, for the next one to begin behind; `undefined` after the last page.
 */
export async function forgetCounters(
  executor: Executor,
  {
    after,
    pageSize,
    olderThanSeconds,
  }: { after: Counter | undefined; pageSize: number; olderThanSeconds: number },
): Promise<{ deleted: number; last: Counter | undefined }> {
  const page = await executor
    .select({ subject: rateWindows.subject, windowSeconds: rateWindows.windowSeconds })
    .from(rateWindows)
    .where(
      after &&
        sql`(${rateWindows.subject}, ${rateWindows.windowSeconds}) > (${after.subject}, ${after.windowSeconds}::int)`,
    )
    .orderBy(asc(rateWindows.subject), asc(rateWindows.windowSeconds))
    .limit(pageSize);
  const last = page.at(-1);
  if (last === undefined) return { deleted: 0, last };
  const isOld = sql`window_start + window_seconds < extract(epoch FROM clock_timestamp()) - ${olderThanSeconds}`;
  const { rowCount } = await executor.execute(sql`
    DELETE FROM rate_windows WHERE (subject, window_seconds) IN (
      SELECT subject, window_seconds FROM rate_windows
       WHERE (subject, window_seconds) > (${after?.subject ?? ''}, ${after?.windowSeconds ?? 0}::int)
         AND (subject, window_seconds) <= (${last.subject}, ${last.windowSeconds}::int) AND ${isOld}
       ORDER BY subject, window_seconds FOR UPDATE SKIP LOCKED
    ) AND ${isOld}`);
  return { deleted: rowCount ?? 0, last };
}

function column<Row, Name extends keyof Row>(rows: readonly Row[], name: Name) {
  return sql.param(rows.map((row) => row[name]));
}
