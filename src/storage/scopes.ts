import { desc, eq, lt, sql } from 'drizzle-orm';
import type { ScopeEntry } from '../domain/scope-catalogue.ts';
import type { Executor } from './database.ts';
import { scopes } from './schema.ts';

/** An entry as it is stored. Times are milliseconds since the epoch. */
export interface StoredScope extends ScopeEntry {
  /** A UUIDv7 of its first putting. */
  readonly id: string;
  readonly createdAt: number;
  readonly updatedAt: number;
}

type ScopeRow = typeof scopes.$inferSelect;

/** The whole catalogue, by name. It is bounded (domain/scope-catalogue.ts). */
export async function loadCatalogue(executor: Executor): Promise<StoredScope[]> {
  const rows = await executor.select().from(scopes).orderBy(scopes.name);
  return rows.map(scopeOf);
}

/**
 * Holds the catalogue until the transaction ends, so that its changes happen one after the other: two entries that
 * are put at once could else close a circle together. Who reads it does not wait.
 */
export async function lockCatalogue(executor: Executor): Promise<void> {
  await executor.execute(sql`LOCK TABLE ${scopes} IN SHARE ROW EXCLUSIVE MODE`);
}

export async function findScope(executor: Executor, name: string): Promise<StoredScope | undefined> {
  const [row] = await executor.select().from(scopes).where(eq(scopes.name, name));
  return row && scopeOf(row);
}

/** One page of the catalogue, newest first. `after`: the id of the last entry of the page before. */
export async function listScopes(
  executor: Executor,
  { after, limit }: { after: string | undefined; limit: number },
): Promise<StoredScope[]> {
  const rows = await executor
    .select()
    .from(scopes)
    .where(after === undefined ? undefined : lt(scopes.id, after))
    .orderBy(desc(scopes.id))
    .limit(limit);
  return rows.map(scopeOf);
}

/** Adds an entry, or replaces the one of its name, which keeps its id and its time of creation. */
export async function putScope(executor: Executor, entry: StoredScope): Promise<void> {
  const settings = {
    description: entry.description,
    implies: [...entry.implies],
    grants: entry.grants,
    updatedAt: new Date(entry.updatedAt),
  };
  await executor
    .insert(scopes)
    .values({ ...settings, name: entry.name, id: entry.id, createdAt: new Date(entry.createdAt) })
    .onConflictDoUpdate({ target: scopes.name, set: settings });
}

/** Deletes an entry, and answers it as it was; `undefined` where there is none. */
export async function deleteScope(executor: Executor, name: string): Promise<StoredScope | undefined> {
  const [row] = await executor.delete(scopes).where(eq(scopes.name, name)).returning();
  return row && scopeOf(row);
}

/** Which of these the catalogue does not know. While it is empty it knows all. */
export async function listUnknownScopes(executor: Executor, names: readonly string[]): Promise<string[]> {
  const { rows } = await executor.execute<{ name: string }>(sql`
    SELECT asked.name FROM unnest(${sql.param([...names])}::text[]) AS asked(name)
    WHERE EXISTS (SELECT FROM ${scopes}) AND NOT EXISTS (SELECT FROM ${scopes} WHERE ${scopes.name} = asked.name)`);
  return rows.map(({ name }) => name);
}

function scopeOf(row: ScopeRow): StoredScope {
  return { ...row, createdAt: row.createdAt.getTime(), updatedAt: row.updatedAt.getTime() };
}
