import { and, desc, eq, lt, type SQL, sql } from 'drizzle-orm';
import { OUTCOMES, type Outcome } from '../domain/decision.ts';
import { type KeyId, keyIdFromUuid, keyIdToUuid, uuidTime } from '../domain/key-id.ts';
import type { Executor } from './database.ts';
import { newestById, newestByTime, type Stretch } from './newest-first.ts';
import { apiKeys, keyAddresses, requestLogs } from './schema.ts';

/** What an entry may come to: the outcome of an introspection, or that an API reported a request of its own. */
export type LogCode = Outcome | 'reported';
export const LOG_CODES: readonly LogCode[] = [...OUTCOMES, 'reported'];

/** One introspection, or one reported request. */
export interface LogEntry {
  /** A UUIDv7 of `at`, made once: an entry that is written twice is there once. */
  readonly id: string;
  /** Milliseconds since the epoch. */
  readonly at: number;
  readonly keyId: KeyId | null;
  readonly workspaceId: string | null;
  readonly code: LogCode;
  readonly status: number | null;
  readonly durationMs: number | null;
  readonly ip: string | null;
  readonly method: string | null;
  readonly path: string | null;
  readonly callerKeyId: KeyId | null;
  readonly requestId: string | null;
}

/** An entry that waits to be written. */
export interface NewLogEntry extends LogEntry {
  /** `false`: only if its address turns out to be new for its key. */
  readonly isLogged: boolean;
  /** Whether to look if its address is new. At most one entry of a batch says so for one key and address. */
  readonly isLookedUp: boolean;
}

export interface StoredLogEntry extends LogEntry {
  readonly ipFirstSeen: boolean;
}

/**
 * Writes a batch in one statement, and answers how many entries there are of it in the log. Addresses are noted in
 * the same breath, so that of several instances that see a new one at the same time just one calls it new; in one
 * order, so that no two of them wait for each other.
 */
export async function appendRequestLogs(
  executor: Executor,
  entries: readonly NewLogEntry[],
): Promise<number> {
  if (entries.length === 0) return 0;
  const column = <T>(type: string, read: (entry: NewLogEntry) => T) =>
    sql`${sql.param(entries.map(read))}::${sql.raw(type)}[]`;
  const uuidOf = (id: KeyId | null) => (id === null ? null : keyIdToUuid(id));
  const { rows } = await executor.execute<{ written: number }>(sql`
    WITH entry AS (
      SELECT * FROM unnest(
        ${column('uuid', ({ id }) => id)},
        ${column('timestamptz', ({ at }) => new Date(at).toISOString())},
        ${column('uuid', ({ keyId }) => uuidOf(keyId))},
        ${column('text', ({ workspaceId }) => workspaceId)},
        ${column('text', ({ code }) => code)},
        ${column('smallint', ({ status }) => status)},
        ${column('double precision', ({ durationMs }) => durationMs)},
        ${column('text', ({ ip }) => ip)},
        ${column('text', ({ method }) => method)},
        ${column('text', ({ path }) => path)},
        ${column('uuid', ({ callerKeyId }) => uuidOf(callerKeyId))},
        ${column('text', ({ requestId }) => requestId)},
        ${column('boolean', ({ isLogged }) => isLogged)},
        ${column('boolean', ({ isLookedUp }) => isLookedUp)}
      ) AS e (id, at, key_id, workspace_id, code, status, duration_ms, ip, method, path, caller_key_id, request_id,
        is_logged, is_looked_up)
    ), seen AS (
      INSERT INTO key_addresses AS known (key_id, ip, first_seen_at, seen_on)
      SELECT key_id, ip, at, (at AT TIME ZONE 'UTC')::date FROM entry WHERE is_looked_up ORDER BY key_id, ip
      ON CONFLICT (key_id, ip) DO UPDATE SET seen_on = excluded.seen_on WHERE known.seen_on < excluded.seen_on
      -- No transaction has deleted or replaced a row that was just made.
      RETURNING key_id, ip, known.xmax = 0 AS is_new
    ), written AS (
      INSERT INTO request_logs (id, at, key_id, workspace_id, code, status, duration_ms, ip, ip_first_seen,
        ip_is_further, method, path, caller_key_id, request_id)
      SELECT e.id, e.at, e.key_id, e.workspace_id, e.code, e.status, e.duration_ms, e.ip,
        coalesce(seen.is_new, false),
        -- Looked up key by key, as the table was before this statement.
        coalesce(seen.is_new, false) AND (SELECT true FROM key_addresses a WHERE a.key_id = e.key_id LIMIT 1) IS TRUE,
        e.method, e.path, e.caller_key_id, e.request_id
      FROM entry e LEFT JOIN seen ON e.is_looked_up AND seen.key_id = e.key_id AND seen.ip = e.ip
      WHERE e.is_logged OR seen.is_new
      ON CONFLICT (id) DO NOTHING
      RETURNING 1
    )
    SELECT count(*)::int AS written FROM written`);
  return rows[0]?.written ?? 0;
}

/** Forgets addresses that no key was used from since then, some at a time; answers how many. */
export async function forgetAddresses(
  executor: Executor,
  { beforeMs, limit }: { beforeMs: number; limit: number },
): Promise<number> {
  const over = executor
    .select({ keyId: keyAddresses.keyId, ip: keyAddresses.ip })
    .from(keyAddresses)
    .where(lt(keyAddresses.seenOn, new Date(beforeMs).toISOString().slice(0, 10)))
    .limit(limit);
  const { rowCount } = await executor
    .delete(keyAddresses)
    .where(sql`(${keyAddresses.keyId}, ${keyAddresses.ip}) IN ${over}`);
  return rowCount ?? 0;
}

/** The workspace of a key. */
export async function findWorkspaceOf(executor: Executor, id: KeyId): Promise<string | undefined> {
  const [row] = await executor
    .select({ workspaceId: apiKeys.workspaceId })
    .from(apiKeys)
    .where(eq(apiKeys.id, keyIdToUuid(id)));
  return row?.workspaceId;
}

export interface LogFilters {
  /** Of a key, or of these workspaces; `null`: of all of them, and of none. */
  readonly of: { readonly keyId: KeyId } | { readonly workspaceIds: readonly string[] } | null;
  readonly code?: LogCode | undefined;
  readonly ip?: string | undefined;
}

export interface LogPage {
  readonly filters: LogFilters;
  readonly stretch: Stretch;
  readonly limit: number;
  /** The database's time, in milliseconds. */
  readonly nowMs: number;
}

const DAY_MS = 86_400_000;

/**
 * One page of the request log, newest first. Each list that it is put together from is read in its order from an
 * index that has all of its filters, and no further than the page is long: so the cost of a page does not grow with
 * the log, however rare what it asks for is. There is one such list for each workspace where there are several, and
 * one for each outcome where an address is asked for without one.
 *
 * Most pages are filled by the last two days, and to plan a query takes the longer the more days it is about: so the
 * days before are asked only for what is missing.
 */
export async function listRequestLogs(executor: Executor, page: LogPage): Promise<StoredLogEntry[]> {
  const { stretch, limit } = page;
  const end = Math.min(
    stretch.to ?? Infinity,
    stretch.after === undefined ? Infinity : uuidTime(stretch.after),
  );
  const from = Math.floor(Math.min(end, page.nowMs) / DAY_MS - 1) * DAY_MS;
  if (stretch.from !== undefined && stretch.from >= from) return listStretch(executor, page);
  const recent = await listStretch(executor, { ...page, stretch: { ...stretch, from } });
  if (recent.length === limit) return recent;
  const before = { from: stretch.from, to: from, after: stretch.after };
  return [
    ...recent,
    ...(await listStretch(executor, { ...page, stretch: before, limit: limit - recent.length })),
  ];
}

async function listStretch(
  executor: Executor,
  { filters, stretch, limit }: LogPage,
): Promise<StoredLogEntry[]> {
  const { of, code, ip } = filters;
  const conditions: (SQL | undefined)[] = [ip === undefined ? undefined : eq(requestLogs.ip, ip)];
  const lists: SQL[] = [];
  if (of !== null && 'keyId' in of) conditions.push(eq(requestLogs.keyId, keyIdToUuid(of.keyId)));
  const [workspaceId, ...others] = of !== null && 'workspaceIds' in of ? new Set(of.workspaceIds) : [];
  if (others.length > 0) {
    lists.push(sql`unnest(${sql.param([workspaceId, ...others])}::text[]) AS visible(id)`);
    conditions.push(eq(requestLogs.workspaceId, sql`visible.id`));
  } else if (workspaceId !== undefined) conditions.push(eq(requestLogs.workspaceId, workspaceId));
  if (code !== undefined) conditions.push(eq(requestLogs.code, code));
  else if (ip !== undefined) {
    lists.push(sql`unnest(${sql.param([...LOG_CODES])}::text[]) AS outcome(code)`);
    conditions.push(eq(requestLogs.code, sql`outcome.code`));
  }
  const isFiltered = of !== null || code !== undefined || ip !== undefined;
  const newest = isFiltered ? newestByTime(requestLogs) : newestById(requestLogs);
  const one = executor
    .select()
    .from(requestLogs)
    .where(and(...conditions, newest.within(stretch)))
    .orderBy(...newest.order)
    // In a subquery the planner cannot see the number, and takes the ordered index for a list of any size. Where it
    // sees one that is as large as what it expects of a list, it reads all of that and sorts it; and what it expects
    // is of yesterday, while a key may be busy since this morning.
    .limit(sql`(SELECT ${limit}::bigint)` as unknown as number);
  if (lists.length === 0) return (await one).map(entryOf);
  const ofList = one.as('newest');
  const rows = await executor
    .select(ofList._.selectedFields)
    .from(sql.join(lists, sql` CROSS JOIN `))
    .crossJoinLateral(ofList)
    .orderBy(desc(ofList.at), desc(ofList.id))
    .limit(limit);
  return rows.map(entryOf);
}

function entryOf(row: typeof requestLogs.$inferSelect): StoredLogEntry {
  const { id, at, keyId, code, callerKeyId, ...rest } = row;
  return {
    ...rest,
    id,
    at: at.getTime(),
    keyId: keyId === null ? null : keyIdFromUuid(keyId),
    code: code as LogCode,
    callerKeyId: callerKeyId === null ? null : keyIdFromUuid(callerKeyId),
  };
}
