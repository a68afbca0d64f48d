import { type SQL, sql } from 'drizzle-orm';
import { type KeyId, keyIdFromUuid, uuidFloor, uuidTime } from '../domain/key-id.ts';
import { SIGNAL_RULES, type SignalRule, type SignalThresholds } from '../domain/signal.ts';
import { SYSTEM_WORKSPACE } from '../domain/workspace.ts';
import type { Executor } from './database.ts';
import type { LogCode } from './request-logs.ts';
import { countsOf } from './usage.ts';

/*
 * What deserves a look. Each rule is a list of its own, newest first, read in its order from an index that holds
 * nothing but what the rule is about; a page is the newest of all of them. So it costs the same however many keys
 * there are, and however many of them are worth a look.
 */

/** A place in the list: signals are in the order of time, then of rules, then of a text of the rule's own. */
export interface SignalPlace {
  /** Milliseconds since the epoch. */
  readonly sinceMs: number;
  readonly rule: SignalRule;
  /** The UUID of a key or of a log entry, or an address. */
  readonly tie: string;
}

interface Place<Rule extends SignalRule> extends SignalPlace {
  readonly rule: Rule;
}

interface OfKey {
  readonly keyId: KeyId;
  readonly workspaceId: string;
}

export type StoredSignal =
  | (Place<'unused'> & OfKey & { readonly createdAt: number; readonly lastUsed: number | null })
  | (Place<'rotation_due'> & OfKey & { readonly createdAt: number; readonly lastUsed: number | null })
  | (Place<'expiring'> & OfKey & { readonly expiresAt: number; readonly lastUsed: number | null })
  | (Place<'growth'> & OfKey & { readonly requests: number; readonly busiest: number })
  | (Place<'new_address'> & OfKey & { readonly ip: string; readonly logId: string; readonly code: LogCode })
  | (Place<'failed_authentication'> & {
      readonly ip: string;
      readonly introspections: number;
      readonly calls: number;
    });

export interface SignalPage {
  readonly rules: readonly SignalRule[];
  /** Whose signals; `null`: those of all workspaces, and of none. */
  readonly workspaceIds: readonly string[] | null;
  readonly includeSystem: boolean;
  readonly thresholds: SignalThresholds;
  readonly after: SignalPlace | undefined;
  readonly limit: number;
  /** The database's time, in milliseconds. */
  readonly nowMs: number;
}

const DAY_MS = 86_400_000;

/** One page of signals, newest first. */
export async function listSignals(executor: Executor, page: SignalPage): Promise<StoredSignal[]> {
  const found: StoredSignal[] = [];
  for (const rule of page.rules) found.push(...(await LISTS[rule](executor, page)));
  // Stable: those of one rule are in their order, and the rules in theirs.
  return found.sort((left, right) => right.sinceMs - left.sinceMs).slice(0, page.limit);
}

type List = (executor: Executor, page: SignalPage) => Promise<StoredSignal[]>;

const LISTS: Readonly<Record<SignalRule, List>> = {
  async unused(executor, page) {
    const { unusedDays } = page.thresholds;
    if (unusedDays === null) return [];
    // For so many whole days, whenever on its day the last use was.
    const shiftMs = (unusedDays + 1) * DAY_MS;
    const { rows } = await executor.execute<KeyRow & { since: number; last_used: number | null }>(
      statementOf(page, {
        select: sql`${ms(sql`idle_day`)} AS since, key_id AS tie, key_id, workspace_id, ${LAST_USED} AS last_used`,
        from: sql`watched_keys`,
        where: sql`${after(page, 'unused', { column: sql`idle_day`, tie: sql`key_id`, tieType: 'uuid', shiftMs })}
        AND idle_day <= ${time(page.nowMs - shiftMs)} AND ${isUnexpired(page.nowMs)}
        -- What the day says is true, unless an instance of a former release was told of a use.
        AND (SELECT idle_since FROM key_uses WHERE key_uses.key_id = listed.key_id) < idle_day + interval '24 hours'`,
        order: ['idle_day', 'key_id'],
      }),
    );
    return rows.map((row) => ({
      rule: 'unused',
      sinceMs: row.since + shiftMs,
      ...ofKey(row),
      createdAt: uuidTime(row.key_id),
      lastUsed: row.last_used,
    }));
  },

  async rotation_due(executor, page) {
    const shiftMs = page.thresholds.rotationDueDays * DAY_MS;
    const { rows } = await executor.execute<KeyRow & { last_used: number | null }>(
      statementOf(page, {
        select: sql`key_id AS tie, key_id, workspace_id, ${LAST_USED} AS last_used`,
        from: sql`watched_keys`,
        where: sql`${afterKey(page, 'rotation_due', shiftMs)}
        AND key_id < ${uuidFloor(page.nowMs - shiftMs + 1)}::uuid AND ${isUnexpired(page.nowMs)}`,
        order: ['key_id'],
      }),
    );
    return rows.map((row) => ({
      rule: 'rotation_due',
      sinceMs: uuidTime(row.key_id) + shiftMs,
      ...ofKey(row),
      createdAt: uuidTime(row.key_id),
      lastUsed: row.last_used,
    }));
  },

  async expiring(executor, page) {
    const shiftMs = -page.thresholds.expiringDays * DAY_MS;
    const { rows } = await executor.execute<KeyRow & { expires: number; last_used: number | null }>(
      statementOf(page, {
        select: sql`${ms(sql`expires_at`)} AS expires, key_id AS tie, key_id, workspace_id, ${LAST_USED} AS last_used`,
        from: sql`watched_keys`,
        where: sql`${after(page, 'expiring', { column: sql`expires_at`, tie: sql`key_id`, tieType: 'uuid', shiftMs })}
        AND expires_at > ${time(page.nowMs)} AND expires_at <= ${time(page.nowMs - shiftMs)}`,
        order: ['expires_at', 'key_id'],
      }),
    );
    return rows.map((row) => ({
      rule: 'expiring',
      sinceMs: row.expires + shiftMs,
      ...ofKey(row),
      expiresAt: row.expires,
      lastUsed: row.last_used,
    }));
  },

  async growth(executor, page) {
    const { rows } = await executor.execute<KeyRow & { since: number; requests: number; busiest: number }>(
      statementOf(page, {
        select: sql`${ms(sql`hour`)} AS since, key_id AS tie, key_id, workspace_id, busiest::float8 AS busiest,
        (SELECT coalesce(sum(count), 0)
          FROM ${countsOf({ workspaceId: sql`listed.workspace_id`, keyId: sql`listed.key_id` })} AS counts
          WHERE counts.hour = listed.hour)::float8 AS requests`,
        from: sql`key_growths`,
        where: sql`${after(page, 'growth', { column: sql`hour`, tie: sql`key_id`, tieType: 'uuid' })}
        AND hour >= ${time(recentSince(page))}`,
        order: ['hour', 'key_id'],
      }),
    );
    return rows.map((row) => ({
      rule: 'growth',
      sinceMs: row.since,
      ...ofKey(row),
      requests: row.requests,
      busiest: row.busiest,
    }));
  },

  async new_address(executor, page) {
    const { rows } = await executor.execute<
      KeyRow & { since: number; tie: string; ip: string; code: LogCode }
    >(
      statementOf(page, {
        select: sql`${ms(sql`at`)} AS since, id AS tie, key_id, workspace_id, ip, code`,
        from: sql`request_logs`,
        where: sql`${after(page, 'new_address', { column: sql`at`, tie: sql`id`, tieType: 'uuid' })}
        AND ip_is_further AND at >= ${time(recentSince(page))} AND id >= ${uuidFloor(recentSince(page))}::uuid`,
        order: ['at', 'id'],
      }),
    );
    return rows.map((row) => ({
      rule: 'new_address',
      sinceMs: row.since,
      ...ofKey(row),
      tie: row.tie,
      ip: row.ip,
      logId: row.tie,
      code: row.code,
    }));
  },

  async failed_authentication(executor, page) {
    // What is no key is of no workspace.
    if (page.workspaceIds !== null) return [];
    const { rows } = await executor.execute<{
      since: number;
      tie: string;
      introspections: number;
      calls: number;
    }>(
      statementOf(
        { ...page, includeSystem: true },
        {
          select: sql`${ms(sql`window_start`)} AS since, ip AS tie, introspections::float8 AS introspections,
          calls::float8 AS calls`,
          from: sql`failed_authentications`,
          where: sql`${after(page, 'failed_authentication', { column: sql`window_start`, tie: sql`ip`, tieType: 'text' })}
          AND is_burst AND window_start >= ${time(recentSince(page))}`,
          order: ['window_start', 'ip'],
        },
      ),
    );
    return rows.map((row) => ({
      rule: 'failed_authentication',
      sinceMs: row.since,
      tie: row.tie,
      ip: row.tie,
      introspections: row.introspections,
      calls: row.calls,
    }));
  },
};

interface KeyRow extends Record<string, unknown> {
  readonly key_id: string;
  readonly workspace_id: string;
}

function ofKey(row: KeyRow): OfKey & { tie: string } {
  return { keyId: keyIdFromUuid(row.key_id), workspaceId: row.workspace_id, tie: row.key_id };
}

interface RuleQuery {
  /** Of `listed`, the rows of the page: what is looked up besides is looked up for those alone. */
  readonly select: SQL;
  readonly from: SQL;
  /** Of `listed`, the table. */
  readonly where: SQL;
  /** The columns of its index, which the list is read backwards by. */
  readonly order: readonly string[];
}

/** One rule's part of a page: the newest of all workspaces, or the newest of each and then of those. */
function statementOf(
  { workspaceIds, includeSystem, limit }: Pick<SignalPage, 'workspaceIds' | 'includeSystem' | 'limit'>,
  { select, from, where, order }: RuleQuery,
): SQL {
  const newestFirst = sql.raw(order.map((column) => `${column} DESC`).join(', '));
  if (workspaceIds === null) {
    const isShown = includeSystem ? sql`true` : sql`workspace_id <> ${SYSTEM_WORKSPACE}`;
    return sql`
      SELECT ${select} FROM (
        SELECT * FROM ${from} AS listed WHERE ${where} AND ${isShown} ORDER BY ${newestFirst} LIMIT ${limit}) AS listed
      ORDER BY ${newestFirst}`;
  }
  // Where the planner sees the number, it may read all of a workspace and sort that (see listKeys).
  return sql`
    SELECT ${select} FROM (
      SELECT newest.* FROM unnest(${sql.param([...new Set(workspaceIds)])}::text[]) AS visible(id)
      CROSS JOIN LATERAL (
        SELECT * FROM ${from} AS listed WHERE workspace_id = visible.id AND ${where}
        ORDER BY ${newestFirst} LIMIT (SELECT ${limit}::bigint)) AS newest
      ORDER BY ${newestFirst} LIMIT ${limit}) AS listed
    ORDER BY ${newestFirst}`;
}

/** What of a rule comes behind the place where the page begins: of a rule that is named before, the same time is over. */
function after(
  { after: place }: SignalPage,
  rule: SignalRule,
  {
    column,
    tie,
    tieType,
    shiftMs = 0,
  }: { column: SQL; tie: SQL; tieType: 'uuid' | 'text'; shiftMs?: number },
): SQL {
  if (place === undefined) return sql`true`;
  const bound = time(place.sinceMs - shiftMs);
  if (place.rule === rule) {
    return sql`(${column}, ${tie}) < (${bound}, ${place.tie}::${sql.raw(tieType)})`;
  }
  return isBefore(rule, place.rule) ? sql`${column} < ${bound}` : sql`${column} <= ${bound}`;
}

/** The same for a list in the order of keys, whose ids have the time. */
function afterKey({ after: place }: SignalPage, rule: SignalRule, shiftMs: number): SQL {
  if (place === undefined) return sql`true`;
  if (place.rule === rule) return sql`key_id < ${place.tie}::uuid`;
  const endMs = place.sinceMs - shiftMs + (isBefore(rule, place.rule) ? 0 : 1);
  return sql`key_id < ${uuidFloor(endMs)}::uuid`;
}

function isBefore(rule: SignalRule, other: SignalRule): boolean {
  return SIGNAL_RULES.indexOf(rule) < SIGNAL_RULES.indexOf(other);
}

const LAST_USED = sql`(SELECT extract(epoch FROM last_used) * 1000 FROM key_uses WHERE key_uses.key_id = listed.key_id)::float8`;

/** Those that have expired since upkeep came by are few. */
function isUnexpired(nowMs: number): SQL {
  return sql`(expires_at IS NULL OR expires_at > ${time(nowMs)})`;
}

function recentSince({ nowMs, thresholds }: SignalPage): number {
  return nowMs - thresholds.recentDays * DAY_MS;
}

function time(timeMs: number): SQL {
  return sql`${new Date(timeMs).toISOString()}::timestamptz`;
}

function ms(column: SQL): SQL {
  return sql`(extract(epoch FROM ${column}) * 1000)::float8`;
}
