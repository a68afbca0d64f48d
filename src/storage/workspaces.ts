import { eq, inArray } from 'drizzle-orm';
import {
  DEFAULT_WORKSPACE,
  type Workspace,
  type WorkspaceSettings,
  type WorkspaceState,
} from '../domain/workspace.ts';
import type { Executor } from './database.ts';
import { type RateLimitColumns, rateLimitColumnsOf, rateLimitOf } from './rate-limit.ts';
import { workspaces } from './schema.ts';

/** What a key is loaded with, of the row of its workspace (storage/keys.ts). */
export const workspaceStateColumns = {
  disabled: workspaces.disabled,
  rateLimit: workspaces.rateLimit,
  rateLimitWindowSeconds: workspaces.rateLimitWindowSeconds,
};

/** Most workspaces have nothing to tell: all their keys in memory share the one object that says so. */
export function workspaceStateOf(row: RateLimitColumns & { readonly disabled: boolean }): WorkspaceState {
  if (!row.disabled && row.rateLimit === null) return DEFAULT_WORKSPACE;
  return { disabled: row.disabled, rateLimit: rateLimitOf(row) };
}

/** `undefined`: it never had a key and was never put. */
export async function findWorkspace(executor: Executor, id: string): Promise<Workspace | undefined> {
  const [row] = await executor.select().from(workspaces).where(eq(workspaces.id, id));
  return row && workspaceOf(row);
}

/**
 * Holds the row of a workspace until the transaction ends: creations, rotations and bulk revocations of one workspace
 * thereby happen one after the other, and none beside a change of its plan. `undefined`: there is no such row, since a
 * workspace gets its own with its first key.
 */
export async function lockWorkspace(executor: Executor, id: string): Promise<Workspace | undefined> {
  const [row] = await executor.select().from(workspaces).where(eq(workspaces.id, id)).for('no key update');
  return row && workspaceOf(row);
}

/** The same of several workspaces, in the order of their ids, so that none waits for another in a ring. */
export async function lockWorkspaces(executor: Executor, ids: readonly string[]): Promise<void> {
  await executor
    .select({ id: workspaces.id })
    .from(workspaces)
    .where(inArray(workspaces.id, [...ids]))
    .orderBy(workspaces.id)
    .for('no key update');
}

/** The same of one, making its row where it has none. */
export async function lockOrMakeWorkspace(executor: Executor, id: string): Promise<Workspace> {
  for (;;) {
    const locked = await lockWorkspace(executor, id);
    if (locked !== undefined) return locked;
    await executor.insert(workspaces).values({ id }).onConflictDoNothing();
  }
}

/** Writes all that PUT replaces. */
export async function updateWorkspace(executor: Executor, workspace: Workspace): Promise<void> {
  const { id, name, limits, rateLimit, disabled, createdAt, updatedAt } = workspace;
  await executor
    .update(workspaces)
    .set({
      name,
      maxActiveKeys: limits.maxActiveKeys,
      allowedScopes: limits.allowedScopes === null ? null : [...limits.allowedScopes],
      maxKeyLifetimeDays: limits.maxKeyLifetimeDays,
      ...rateLimitColumnsOf(rateLimit),
      disabled,
      createdAt: dateOf(createdAt),
      updatedAt: dateOf(updatedAt),
    })
    .where(eq(workspaces.id, id));
}

function workspaceOf(row: typeof workspaces.$inferSelect): Workspace {
  const settings: WorkspaceSettings = {
    name: row.name,
    limits: {
      maxActiveKeys: row.maxActiveKeys,
      allowedScopes: row.allowedScopes,
      maxKeyLifetimeDays: row.maxKeyLifetimeDays,
    },
    rateLimit: rateLimitOf(row),
    disabled: row.disabled,
  };
  return {
    ...settings,
    id: row.id,
    createdAt: row.createdAt?.getTime() ?? null,
    updatedAt: row.updatedAt?.getTime() ?? null,
  };
}

function dateOf(timeMs: number | null): Date | null {
  return timeMs === null ? null : new Date(timeMs);
}
