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

export interface Grant {
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

/**
 * Takes back, and grants: for all counters asked about in one statement, each named once. `leased` never passes the
 * limit. Answers one grant for each ask, in their order; `undefined` where the counter was new: it is there from now
 * on, and has granted nothing.
 *
 * There is no join in it whose plan could differ: each row is found by the primary key, locked, and only then computed
 * from, so that two statements never take the same quota. Rows are locked in the order of their names by code unit,
 * which is the same for every instance, so that no two wait for each other. The window is that of the database's clock,
 * read under the lock. A row that is one window ahead of that stays where it is: the statement waited for the lock
 * while the window turned, or the clock was set back a little. Nothing is forgotten by a commit that was answered,
 * whatever the server's setting is.
 *
 * OFFSET 0 has each step computed once. Without it the planner puts every step into all that follow from it.
 */
export async function exchangeQuota(
  executor: Executor,
  asks: readonly Ask[],
): Promise<(Grant | undefined)[]> {
  const places = asks.map((_, place) => place).sort((one, other) => compareNames(asks[one], asks[other]));
  const ordered = places.flatMap((place) => asks[place] ?? []);
  const { rows } = await executor.execute<Pick<AnsweredRow, keyof AnsweredRow>>(sql`
    INSERT INTO rate_windows AS counter
           (subject, window_seconds, window_start, leased, stocked, wanted, nth)
    SELECT subject, window_seconds, ${NEW_WINDOW_START}::bigint, 0, 0, false, nth
      FROM unnest(${sql.param(ordered.map(({ subject }) => subject))}::text[], ${column(ordered, 'windowSeconds')}::int[])
           WITH ORDINALITY AS named (subject, window_seconds, nth)
     CROSS JOIN (SELECT set_config('synchronous_commit', 'on', true)) AS durable
     ORDER BY nth
    ON CONFLICT (subject, window_seconds) DO UPDATE
    SET (window_start, leased, stocked, wanted, nth, granted_uses, granted_stock, calls, returns) = (
      SELECT start, before + served * cost + taken,
             in_stock + taken + CASE WHEN holds THEN served * cost ELSE 0 END,
             is_wanted, excluded.nth, served, taken,
             is_short AND in_stock > 0 AND (call_again OR NOT was_wanted),
             was_wanted AND has_returned
        FROM (
          SELECT (${column(ordered, 'limit')}::bigint[])[excluded.nth] AS quota,
                 (${column(ordered, 'uses')}::bigint[])[excluded.nth] AS uses,
                 (${column(ordered, 'cost')}::bigint[])[excluded.nth] AS cost,
                 (${column(ordered, 'stock')}::bigint[])[excluded.nth] AS stock,
                 (${column(ordered, 'windowStart')}::bigint[])[excluded.nth] AS of_window,
                 (${column(ordered, 'handedIn')}::bigint[])[excluded.nth] AS handed_in,
                 (${column(ordered, 'unstocked')}::bigint[])[excluded.nth] AS unstocked,
                 (${column(ordered, 'holds')}::boolean[])[excluded.nth] AS holds,
                 (${column(ordered, 'callAgain')}::boolean[])[excluded.nth] AS call_again,
                 floor(date_part('epoch', clock_timestamp()))::bigint / counter.window_seconds
                   * counter.window_seconds AS by_clock
          OFFSET 0
        ) AS asked
       CROSS JOIN LATERAL (
          SELECT CASE WHEN counter.window_start IN (by_clock, by_clock + counter.window_seconds)
                      THEN counter.window_start ELSE by_clock END AS start
          OFFSET 0
        ) AS placed
       CROSS JOIN LATERAL (
          SELECT CASE WHEN counter.window_start <> start THEN 0
                      ELSE greatest(0, counter.leased - CASE WHEN of_window = start THEN handed_in ELSE 0 END)
                 END AS before,
                 CASE WHEN counter.window_start <> start THEN 0
                      ELSE greatest(0, counter.stocked - CASE WHEN of_window = start THEN unstocked ELSE 0 END)
                 END AS in_stock,
                 counter.window_start = start AND counter.wanted AS was_wanted,
                 counter.window_start = start AND of_window = start AND (handed_in > 0 OR unstocked > 0) AS has_returned
          OFFSET 0
        ) AS settled
       CROSS JOIN LATERAL (SELECT least(uses, greatest(0, quota - before) / cost) AS served OFFSET 0) AS served
       CROSS JOIN LATERAL (SELECT served < uses AND cost <= quota AS is_short OFFSET 0) AS filled
       CROSS JOIN LATERAL (SELECT was_wanted OR is_short AS is_wanted OFFSET 0) AS judged
       CROSS JOIN LATERAL (
          SELECT CASE WHEN is_wanted THEN 0 ELSE least(stock, greatest(0, quota - before - served * cost) / 4)
                 END AS taken
          OFFSET 0
        ) AS topped
    )
    RETURNING nth, window_start::float8 AS "windowStart",
              (window_start + window_seconds - date_part('epoch', clock_timestamp())) * 1000 AS "msLeft",
              granted_uses::float8 AS uses, granted_stock::float8 AS stock, leased::float8 AS leased,
              stocked::float8 AS stocked, wanted,
              CASE WHEN calls THEN pg_notify(${QUOTA_CHANNEL}, concat_ws(' ', 'call', window_seconds, subject)) END,
              CASE WHEN returns THEN pg_notify(${QUOTA_CHANNEL}, concat_ws(' ', 'returned', window_seconds, subject)) END`);
  const grants = new Array<Grant | undefined>(asks.length).fill(undefined);
  for (const { nth, leased, windowStart, msLeft, uses, stock, stocked, wanted } of rows) {
    const place = places[nth - 1];
    const ask = ordered[nth - 1];
    if (place === undefined || ask === undefined || windowStart === NEW_WINDOW_START) continue;
    const left = Math.max(0, ask.limit - leased);
    grants[place] = { windowStart, msLeft, uses, stock, left, stocked, wanted };
  }
  return grants;
}

/** A row as an exchange left it. */
interface AnsweredRow extends Omit<Grant, 'left'> {
  readonly nth: number;
  readonly leased: number;
}

/** What a new counter says of its window: one that is long over. */
const NEW_WINDOW_START = 0;

function compareNames(one: Counter | undefined, other: Counter | undefined): number {
  if (one === undefined || other === undefined) return 0;
  if (one.subject !== other.subject) return one.subject < other.subject ? -1 : 1;
  return one.windowSeconds - other.windowSeconds;
}

/** An array of numbers or booleans as PostgreSQL reads it: a tenth of the time that pg takes, which looks for quotes. */
function column(
  asks: readonly Ask[],
  name: { [Name in keyof Ask]: Ask[Name] extends number | boolean ? Name : never }[keyof Ask],
) {
  return `{${asks.map((ask) => ask[name]).join()}}`;
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
