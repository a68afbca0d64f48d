import {
  type AnyColumn,
  and,
  count,
  desc,
  eq,
  getTableColumns,
  gt,
  inArray,
  isNotNull,
  isNull,
  like,
  lt,
  lte,
  ne,
  or,
  type SQL,
  sql,
} from 'drizzle-orm';
import { type AnyPgColumn, alias } from 'drizzle-orm/pg-core';
import type { Key, KeyStatus } from '../domain/key.ts';
import {
  KEY_ID_PATTERN,
  type KeyId,
  keyIdFromUuid,
  keyIdToUuid,
  uuidFloor,
  uuidTime,
} from '../domain/key-id.ts';
import { SYSTEM_WORKSPACE, type WorkspaceState } from '../domain/workspace.ts';
import { type Executor, once, UNNAMED } from './database.ts';
import { rateLimitColumnsOf, rateLimitOf } from './rate-limit.ts';
import { apiKeys, keyUses, verifiedSecrets, workspaces } from './schema.ts';
import { workspaceStateColumns, workspaceStateOf } from './workspaces.ts';

/** All of a key but its hash, which goes to verification/ and to nobody else. */
const { hash: hashColumn, secretId: _, ...keyColumns } = getTableColumns(apiKeys);
type KeyRow = Omit<typeof apiKeys.$inferSelect, 'hash' | 'secretId'>;

/** A key with the hash that its token is proved by. */
export interface HashedKey {
  readonly key: Key;
  readonly hash: string;
}

/** What verification loads: the key with its workspace, its hash and memo, and the database's time of reading them, in milliseconds. */
export interface LoadedKey extends HashedKey {
  readonly workspace: WorkspaceState;
  readonly memo: Buffer | null;
  readonly nowMs: number;
}

/** By its primary key, in a query that is built once. */
const isKey = eq(apiKeys.id, sql.placeholder('id'));

const databaseTime = sql<number>`(extract(epoch FROM clock_timestamp()) * 1000)::float8`;

/** Database time in milliseconds since the epoch. */
export async function readDatabaseTime(executor: Executor): Promise<number> {
  const { rows } = await executor.execute<{ now: number }>(sql`SELECT ${databaseTime} AS now`);
  return rows[0]?.now ?? Number.NaN;
}

const loadedKeys = once((executor) =>
  executor
    .select({
      ...keyColumns,
      hash: hashColumn,
      memo: verifiedSecrets.mac,
      nowMs: databaseTime,
      workspace: workspaceStateColumns,
    })
    .from(apiKeys)
    .innerJoin(workspaces, eq(workspaces.id, apiKeys.workspaceId))
    .leftJoin(verifiedSecrets, eq(verifiedSecrets.keyId, apiKeys.id))
    .where(sql`${apiKeys.id} = ANY(${sql.placeholder('ids')}::uuid[])`)
    .prepare(UNNAMED),
);

/** Loads keys for verification, those that exist, in any order: by primary key, in one query. */
export async function loadKeys(executor: Executor, ids: readonly KeyId[]): Promise<LoadedKey[]> {
  const rows = await loadedKeys(executor).execute({ ids: ids.map(keyIdToUuid) });
  return rows.map((row) => ({
    key: keyOf(row),
    workspace: workspaceStateOf(row.workspace),
    hash: row.hash,
    memo: row.memo,
    nowMs: row.nowMs,
  }));
}

/** Remembers that a token was proved, as a MAC of it (verification/memo.ts). */
export async function storeMemo(executor: Executor, id: KeyId, mac: Buffer): Promise<void> {
  await executor
    .insert(verifiedSecrets)
    .values({ keyId: keyIdToUuid(id), mac })
    .onConflictDoUpdate({ target: verifiedSecrets.keyId, set: { mac } });
}

export async function findKey(executor: Executor, id: KeyId): Promise<Key | undefined> {
  const [row] = await executor
    .select(keyColumns)
    .from(apiKeys)
    .where(eq(apiKeys.id, keyIdToUuid(id)));
  return row && keyOf(row);
}

/** The workspaces of these keys; what is no id of a key has none. */
export async function findWorkspacesOf(
  executor: Executor,
  ids: readonly KeyId[],
): Promise<Map<KeyId, string>> {
  const uuids = ids.filter((id) => KEY_ID_PATTERN.test(id)).map(keyIdToUuid);
  if (uuids.length === 0) return new Map();
  const rows = await executor
    .select({ id: apiKeys.id, workspaceId: apiKeys.workspaceId })
    .from(apiKeys)
    .where(inArray(apiKeys.id, uuids));
  return new Map(rows.map((row) => [keyIdFromUuid(row.id), row.workspaceId]));
}

/** Finds the key and holds its row until the transaction ends. */
export async function lockKey(executor: Executor, id: KeyId): Promise<Key | undefined> {
  const [row] = await lockedKey(executor).execute({ id: keyIdToUuid(id) });
  return row && keyOf(row);
}

/** The same of several keys, of those that there are: in the order of their ids, so that none waits for another in a ring. */
export async function lockKeys(executor: Executor, ids: readonly KeyId[]): Promise<Key[]> {
  const rows = await executor
    .select(keyColumns)
    .from(apiKeys)
    .where(inArray(apiKeys.id, ids.map(keyIdToUuid)))
    .orderBy(apiKeys.id)
    .for('no key update');
  return rows.map(keyOf);
}

/** The same, but for service keys, which this does not find: their workspace has to be locked before them. */
export async function lockTenantKey(executor: Executor, id: KeyId): Promise<Key | undefined> {
  const [row] = await lockedTenantKey(executor).execute({ id: keyIdToUuid(id) });
  return row && keyOf(row);
}

const lockedKey = once((executor) => lockingRead(executor, isKey).prepare(UNNAMED));
const lockedTenantKey = once((executor) =>
  lockingRead(executor, and(isKey, ne(apiKeys.workspaceId, SYSTEM_WORKSPACE))).prepare(UNNAMED),
);

function lockingRead(executor: Executor, condition: SQL | undefined) {
  return executor.select(keyColumns).from(apiKeys).where(condition).for('no key update');
}

export async function insertKey(
  executor: Executor,
  { key, hash, secretId }: HashedKey & { secretId: number },
): Promise<void> {
  await executor.insert(apiKeys).values({
    id: keyIdToUuid(key.id),
    workspaceId: key.workspaceId,
    environment: key.environment,
    prefix: key.prefix,
    lastCharacters: key.lastCharacters,
    hash,
    secretId,
    createdBy: key.createdBy,
    createdAt: new Date(key.createdAt),
    rotatedFrom: uuidOf(key.rotatedFrom),
    ...settingsOf(key),
  });
}

/** Writes what PATCH may change. */
export async function updateKey(executor: Executor, key: Key): Promise<void> {
  await executor
    .update(apiKeys)
    .set(settingsOf(key))
    .where(eq(apiKeys.id, keyIdToUuid(key.id)));
}

/** Writes what a rotation does to the key itself: its successor, and its end. The successor is stored already. */
export async function storeRotation(executor: Executor, key: Key): Promise<void> {
  await executor
    .update(apiKeys)
    .set({
      rotatedTo: uuidOf(key.rotatedTo),
      expiresAt: dateOf(key.expiresAt),
      revokedAt: dateOf(key.revokedAt),
      revokedReason: key.revokedReason,
    })
    .where(eq(apiKeys.id, keyIdToUuid(key.id)));
}

/** Replaces a hash by one with stronger parameters, unless it was replaced meanwhile; answers whether it did. */
export async function replaceHash(
  executor: Executor,
  id: KeyId,
  { from, to }: { from: string; to: string },
): Promise<boolean> {
  const { rowCount } = await executor
    .update(apiKeys)
    .set({ hash: to })
    .where(and(eq(apiKeys.id, keyIdToUuid(id)), eq(apiKeys.hash, from)));
  return rowCount === 1;
}

export interface Revocation {
  readonly at: number;
  readonly reason: string | null;
}

/** Of keys that are not revoked yet. */
export async function revokeKeys(
  executor: Executor,
  ids: readonly KeyId[],
  { at, reason }: Revocation,
): Promise<void> {
  await executor
    .update(apiKeys)
    .set({ revokedAt: new Date(at), revokedReason: reason })
    .where(inArray(apiKeys.id, ids.map(keyIdToUuid)));
}

/** Revokes all keys of a workspace that are not revoked yet and fit the filters; answers how many. */
export async function revokeWorkspaceKeys(
  executor: Executor,
  filters: {
    readonly workspaceId: string;
    readonly environment?: string | undefined;
    readonly createdBy?: string | undefined;
  },
  { at, reason }: Revocation,
): Promise<number> {
  const { rowCount } = await executor
    .update(apiKeys)
    .set({ revokedAt: new Date(at), revokedReason: reason })
    .where(
      and(
        eq(apiKeys.workspaceId, filters.workspaceId),
        isNull(apiKeys.revokedAt),
        filters.environment === undefined ? undefined : eq(apiKeys.environment, filters.environment),
        filters.createdBy === undefined ? undefined : eq(apiKeys.createdBy, filters.createdBy),
      ),
    );
  return rowCount ?? 0;
}

/** Whether `system` ever had a key, revoked ones too: the first admin key is made once. */
export async function hasServiceKeys(executor: Executor): Promise<boolean> {
  const rows = await executor
    .select({ id: apiKeys.id })
    .from(apiKeys)
    .where(eq(apiKeys.workspaceId, SYSTEM_WORKSPACE))
    .limit(1);
  return rows.length > 0;
}

/** How many active admin keys there are that are not bound to workspaces, `except` aside. */
export async function countAdmins(
  executor: Executor,
  { except, nowMs }: { except: KeyId; nowMs: number },
): Promise<number> {
  const [row] = await executor
    .select({ admins: count() })
    .from(apiKeys)
    .where(
      and(
        eq(apiKeys.workspaceId, SYSTEM_WORKSPACE),
        ne(apiKeys.id, keyIdToUuid(except)),
        sql`${apiKeys.scopes} @> '{admin}'`,
        sql`${apiKeys.restrictions} ->> 'allowed_workspaces' IS NULL`,
        hasStatus('active', nowMs),
      ),
    );
  return row?.admins ?? 0;
}

/**
 * How many active keys a workspace has, by the database's clock. A rotated key does not count beside an active
 * successor. `upTo` at most, since more are of no interest: of a workspace of any size it reads no more than these,
 * and the rotated ones among them.
 */
export async function countActiveKeys(
  executor: Executor,
  { workspaceId, upTo }: { workspaceId: string; upTo: number },
): Promise<number> {
  const successor = alias(apiKeys, 'successor');
  const successorIsActive = executor
    .select({ active: sql`${isActiveNow(successor)}` })
    .from(successor)
    .where(eq(successor.id, apiKeys.rotatedTo));
  const active = executor
    .select({ one: sql`1`.as('one') })
    .from(apiKeys)
    .where(
      and(
        eq(apiKeys.workspaceId, workspaceId),
        isActiveNow(apiKeys),
        // Not NOT EXISTS: the planner may read all active keys there are for that, to look each successor up among them.
        or(isNull(apiKeys.rotatedTo), sql`(${successorIsActive}) IS NOT TRUE`),
      ),
    )
    // The order of the index, so that it is the one that is taken, and left at the last that counts.
    .orderBy(sql`${expiryOf(apiKeys)} DESC`)
    .limit(upTo)
    .as('active');
  const [row] = await executor.select({ keys: count() }).from(active);
  return row?.keys ?? 0;
}

const expiryOf = (table: { expiresAt: AnyPgColumn }) => sql`coalesce(${table.expiresAt}, 'infinity')`;

/** At the time of the statement, which comes after the locks of its transaction. */
function isActiveNow(table: { expiresAt: AnyPgColumn; revokedAt: AnyPgColumn }): SQL | undefined {
  return and(isNull(table.revokedAt), sql`${expiryOf(table)} > statement_timestamp()`);
}

export interface KeyFilters {
  readonly workspaceId?: string | undefined;
  readonly environment?: string | undefined;
  readonly status?: KeyStatus | undefined;
  readonly scope?: string | undefined;
  readonly namePrefix?: string | undefined;
  readonly createdBy?: string | undefined;
  readonly expiresBefore?: number | undefined;
  readonly unusedSince?: number | undefined;
  /** Only keys made before this time, which are therefore due, that are still active and were not rotated. */
  readonly createdBefore?: number | undefined;
}

export interface KeyPage {
  readonly filters: KeyFilters;
  /** The workspaces that the caller may see; `null` is all of them, but for `system`. */
  readonly visibleWorkspaces: readonly string[] | null;
  readonly includeSystem: boolean;
  /** The last key of the page before. */
  readonly after: KeyId | undefined;
  readonly limit: number;
  readonly nowMs: number;
}

/** So many keys are looked at in the order of creation for ones that are unused, before those are asked for by their uses. */
const NEAR_KEYS = 2_000;
/** So many unused keys can be asked for by name. */
const MAX_IDLE_KEYS = 10_000;

/**
 * One page of keys, newest first. Lists with a filter of equality are in the order of creation time, which their
 * indexes have and the primary key has not: the planner would else walk that past keys of other workspaces, on the
 * assumption that a workspace's keys are spread evenly over time. The list of all keys is in the order of ids; the
 * two orders are the same (`api_keys_created_at_of_id`).
 *
 * Which keys are unused is known to another table. Where many are, a page of them is near; where few are, their own
 * index names them. The planner could not tell: when a key was made and when it was used have much to do with each
 * other, and it takes them for unrelated.
 */
export async function listKeys(executor: Executor, page: KeyPage): Promise<Key[]> {
  const { unusedSince } = page.filters;
  if (unusedSince === undefined) return selectKeys(executor, page);
  if (isOfOneList(page)) {
    const near = await selectNearUnused(executor, page, unusedSince);
    if (near.length === page.limit) return near;
  }
  const idle = await listIdle(executor, unusedSince);
  const isUnused = idle === undefined ? idleBefore(apiKeys.id, unusedSince) : inArray(apiKeys.id, idle);
  return selectKeys(executor, page, isUnused);
}

/** Whether the page is of one workspace or of all, rather than put together from those of several. */
function isOfOneList({ filters, visibleWorkspaces }: KeyPage): boolean {
  return filters.workspaceId !== undefined || visibleWorkspaces === null;
}

async function selectKeys(executor: Executor, page: KeyPage, isUnused?: SQL): Promise<Key[]> {
  if (isOfOneList(page)) {
    const order = orderOf(page.filters);
    const rows = await executor
      .select(keyColumns)
      .from(apiKeys)
      .where(and(isListed(page, order), isUnused))
      .orderBy(...order.newestFirst)
      .limit(page.limit);
    return rows.map(keyOf);
  }
  // The newest of each visible workspace, then the newest of those: bounded, where one IN would read them all.
  const newest = executor
    .select(keyColumns)
    .from(apiKeys)
    .where(and(eq(apiKeys.workspaceId, sql`visible.id`), matches(page, BY_TIME), isUnused))
    .orderBy(...BY_TIME.newestFirst)
    // In a subquery the planner cannot see the number, and takes the ordered index for a workspace of any size.
    // A plain number as large as an average workspace makes it read all of one, then sort.
    .limit(sql`(SELECT ${page.limit}::bigint)` as unknown as number)
    .as('newest');
  const rows = await executor
    .select(newest._.selectedFields)
    .from(sql`unnest(${sql.param([...new Set(page.visibleWorkspaces ?? [])])}::text[]) AS visible(id)`)
    .crossJoinLateral(newest)
    .orderBy(desc(newest.createdAt), desc(newest.id))
    .limit(page.limit);
  return rows.map(keyOf);
}

/** The unused ones among the next `NEAR_KEYS` keys of the list. */
async function selectNearUnused(executor: Executor, page: KeyPage, unusedSince: number): Promise<Key[]> {
  const order = orderOf(page.filters);
  const near = executor
    .select(keyColumns)
    .from(apiKeys)
    .where(isListed(page, order))
    .orderBy(...order.newestFirst)
    .limit(NEAR_KEYS)
    .as('near');
  const rows = await executor
    .select(near._.selectedFields)
    .from(near)
    .where(idleBefore(near.id, unusedSince))
    .orderBy(...(order === BY_ID ? [desc(near.id)] : [desc(near.createdAt), desc(near.id)]))
    .limit(page.limit);
  return rows.map(keyOf);
}

/** All keys that were neither made nor used since, unless they are too many to name. Their index knows the hour alone. */
async function listIdle(executor: Executor, timeMs: number): Promise<string[] | undefined> {
  const rows = await executor
    .select({ id: keyUses.keyId })
    .from(keyUses)
    .where(and(lt(keyUses.idleHour, new Date(timeMs)), lt(keyUses.idleSince, new Date(timeMs))))
    .limit(MAX_IDLE_KEYS + 1);
  return rows.length > MAX_IDLE_KEYS ? undefined : rows.map((row) => row.id);
}

/** As a scalar, which the planner looks up key by key: made a join, it may begin with all uses there are. */
function idleBefore(id: AnyColumn, timeMs: number): SQL {
  return sql`(SELECT ${keyUses.idleSince} FROM ${keyUses} WHERE ${keyUses.keyId} = ${id}) < ${new Date(timeMs).toISOString()}::timestamptz`;
}

/** What a page of one workspace, or of all, is of. */
function isListed(page: KeyPage, order: ListOrder): SQL | undefined {
  const { workspaceId } = page.filters;
  return and(
    // What always holds opens the indexes that are for lists over all workspaces alone (schema.ts).
    workspaceId === undefined ? ne(apiKeys.prefix, sql`''`) : eq(apiKeys.workspaceId, workspaceId),
    page.includeSystem ? undefined : ne(apiKeys.workspaceId, SYSTEM_WORKSPACE),
    matches(page, order),
  );
}

interface ListOrder {
  readonly newestFirst: readonly SQL[];
  madeBefore(timeMs: number): SQL;
  behind(last: KeyId): SQL;
}

const BY_ID: ListOrder = {
  newestFirst: [desc(apiKeys.id)],
  madeBefore: (timeMs) => lt(apiKeys.id, uuidFloor(timeMs)),
  behind: (last) => lt(apiKeys.id, keyIdToUuid(last)),
};

const BY_TIME: ListOrder = {
  newestFirst: [desc(apiKeys.createdAt), desc(apiKeys.id)],
  madeBefore: (timeMs) => lt(apiKeys.createdAt, new Date(timeMs)),
  behind(last) {
    const uuid = keyIdToUuid(last);
    const time = sql.param(new Date(uuidTime(uuid)), apiKeys.createdAt);
    return sql`(${apiKeys.createdAt}, ${apiKeys.id}) < (${time}, ${sql.param(uuid, apiKeys.id)})`;
  },
};

/** By time where one of the filters has an index in the order of creation. */
function orderOf({ workspaceId, environment, status, createdBy, createdBefore }: KeyFilters): ListOrder {
  const filters = [workspaceId, environment, status, createdBy, createdBefore];
  return filters.some((filter) => filter !== undefined) ? BY_TIME : BY_ID;
}

function matches({ filters, after, nowMs }: KeyPage, order: ListOrder): SQL | undefined {
  const { environment, status, scope, namePrefix, createdBy, expiresBefore, unusedSince, createdBefore } =
    filters;
  return and(
    after === undefined ? undefined : order.behind(after),
    environment === undefined ? undefined : eq(apiKeys.environment, environment),
    status === undefined ? undefined : hasStatus(status, nowMs),
    scope === undefined ? undefined : sql`${apiKeys.scopes} @> ARRAY[${scope}]::text[]`,
    namePrefix === undefined ? undefined : like(apiKeys.name, `${namePrefix.replace(/[\\%_]/g, '\\$&')}%`),
    createdBy === undefined ? undefined : eq(apiKeys.createdBy, createdBy),
    expiresBefore === undefined ? undefined : lt(apiKeys.expiresAt, new Date(expiresBefore)),
    // What was made since is not unused: a walk in the order of creation begins behind it.
    unusedSince === undefined ? undefined : order.madeBefore(unusedSince),
    createdBefore === undefined
      ? undefined
      : and(order.madeBefore(createdBefore), hasStatus('active', nowMs), isNull(apiKeys.rotatedTo)),
  );
}

function hasStatus(status: KeyStatus, nowMs: number): SQL | undefined {
  const now = new Date(nowMs);
  switch (status) {
    case 'revoked':
      return isNotNull(apiKeys.revokedAt);
    case 'expired':
      return and(isNull(apiKeys.revokedAt), lte(apiKeys.expiresAt, now));
    case 'active':
      return and(isNull(apiKeys.revokedAt), or(isNull(apiKeys.expiresAt), gt(apiKeys.expiresAt, now)));
  }
}

function settingsOf(key: Key) {
  return {
    name: key.name,
    scopes: [...key.scopes],
    restrictions: key.restrictions,
    ...rateLimitColumnsOf(key.rateLimit),
    metadata: key.metadata,
    expiresAt: dateOf(key.expiresAt),
  };
}

function keyOf(row: KeyRow): Key {
  return {
    id: keyIdFromUuid(row.id),
    workspaceId: row.workspaceId,
    environment: row.environment,
    name: row.name,
    prefix: row.prefix,
    lastCharacters: row.lastCharacters,
    scopes: row.scopes,
    restrictions: row.restrictions,
    rateLimit: rateLimitOf(row),
    metadata: row.metadata,
    createdBy: row.createdBy,
    createdAt: row.createdAt.getTime(),
    expiresAt: row.expiresAt?.getTime() ?? null,
    revokedAt: row.revokedAt?.getTime() ?? null,
    revokedReason: row.revokedReason,
    rotatedFrom: keyIdOf(row.rotatedFrom),
    rotatedTo: keyIdOf(row.rotatedTo),
  };
}

function uuidOf(id: KeyId | null): string | null {
  return id === null ? null : keyIdToUuid(id);
}

function keyIdOf(uuid: string | null): KeyId | null {
  return uuid === null ? null : keyIdFromUuid(uuid);
}

function dateOf(timeMs: number | null): Date | null {
  return timeMs === null ? null : new Date(timeMs);
}
