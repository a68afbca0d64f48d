import { and, desc, eq, inArray, isNull, or, type SQL, sql } from 'drizzle-orm';
import { v7 as uuidv7 } from 'uuid';
import type { JsonObject } from '../domain/key.ts';
import { type KeyId, keyIdFromUuid, keyIdToUuid } from '../domain/key-id.ts';
import { SYSTEM_WORKSPACE } from '../domain/workspace.ts';
import type { Executor } from './database.ts';
import { newestById, newestByTime, type Stretch } from './newest-first.ts';
import { auditEvents } from './schema.ts';

export type AuditAction =
  | 'key.created'
  | 'key.updated'
  | 'key.revoked'
  | 'key.rotated'
  | 'token.revoked'
  | 'workspace.updated'
  | 'workspace.keys_revoked'
  | 'scope.created'
  | 'scope.updated'
  | 'scope.deleted';

/** By which door a key came to be revoked for its token: whoever showed that is no service key. */
export const TOKEN_SOURCES = ['leak_report', 'github', 'oauth_revoke'] as const;
export type TokenSource = (typeof TOKEN_SOURCES)[number];

/** Who acts, from where, in which request. An operator at the command line has none of these. */
export interface Actor {
  readonly keyId: KeyId | null;
  /** In place of a service key, where somebody acted by holding a token. */
  readonly source?: TokenSource;
  readonly address: string | null;
  readonly requestId: string | null;
}

export const OPERATOR: Actor = { keyId: null, address: null, requestId: null };

export interface AuditEvent {
  readonly action: AuditAction;
  readonly actor: Actor;
  /** `null` where what was changed belongs to no workspace. */
  readonly workspaceId: string | null;
  readonly keyId: KeyId | null;
  /** The name of what was changed, where it is neither a key nor a workspace: that of a scope. */
  readonly target?: string;
  /** The members that changed, as the API shows them, before and after. Nothing secret is among them. */
  readonly before: JsonObject | null;
  readonly after: JsonObject | null;
}

/** Appends an event, in the transaction of the change that it tells of. */
export async function appendAuditEvent(executor: Executor, event: AuditEvent, nowMs: number): Promise<void> {
  await appendAuditEvents(executor, [event], nowMs);
}

/** The same for several at once; one at least. */
export async function appendAuditEvents(
  executor: Executor,
  events: readonly AuditEvent[],
  nowMs: number,
): Promise<void> {
  await executor.insert(auditEvents).values(
    events.map(({ action, actor, workspaceId, keyId, target = null, before, after }) => ({
      id: uuidv7({ msecs: Math.floor(nowMs) }),
      at: new Date(nowMs),
      action,
      actorKeyId: actor.keyId === null ? null : keyIdToUuid(actor.keyId),
      source: actor.source ?? null,
      workspaceId,
      keyId: keyId === null ? null : keyIdToUuid(keyId),
      target,
      before,
      after,
      address: actor.address,
      requestId: actor.requestId,
    })),
  );
}

/** An event as it was appended. */
export interface StoredAuditEvent extends Omit<AuditEvent, 'action' | 'actor' | 'target'> {
  /** A UUIDv7 of `at`. */
  readonly id: string;
  /** Milliseconds since the epoch. */
  readonly at: number;
  readonly action: string;
  readonly actor: Omit<Actor, 'source'> & { readonly source: string | null };
  readonly target: string | null;
}

export interface AuditFilters {
  readonly workspaceId?: string | undefined;
  readonly keyId?: KeyId | undefined;
  readonly action?: string | undefined;
  /** The service key that acted; `null`: an operator. */
  readonly actor?: KeyId | null | undefined;
  /** The door by which somebody came who is neither. */
  readonly source?: TokenSource | undefined;
}

export interface AuditPage {
  readonly filters: AuditFilters;
  readonly stretch: Stretch;
  /** The workspaces that the caller may see; `null` is all of them, but for `system`, and what belongs to none. */
  readonly visibleWorkspaces: readonly string[] | null;
  readonly includeSystem: boolean;
  readonly limit: number;
}

/** One page of audit events, newest first. */
export async function listAuditEvents(executor: Executor, page: AuditPage): Promise<StoredAuditEvent[]> {
  const { filters, stretch, visibleWorkspaces, includeSystem, limit } = page;
  const isFiltered = Object.values(filters).some((filter) => filter !== undefined);
  if (visibleWorkspaces === null || filters.workspaceId !== undefined || filters.keyId !== undefined) {
    const newest = isFiltered ? newestByTime(auditEvents) : newestById(auditEvents);
    const rows = await executor
      .select()
      .from(auditEvents)
      .where(
        and(
          matches(filters),
          newest.within(stretch),
          visibleWorkspaces === null ? undefined : inArray(auditEvents.workspaceId, [...visibleWorkspaces]),
          includeSystem || visibleWorkspaces !== null ? undefined : isNotOfSystem,
        ),
      )
      .orderBy(...newest.order)
      .limit(limit);
    return rows.map(eventOf);
  }
  // The newest of each visible workspace, then the newest of those (see listKeys).
  const byTime = newestByTime(auditEvents);
  const newest = executor
    .select()
    .from(auditEvents)
    .where(and(eq(auditEvents.workspaceId, sql`visible.id`), matches(filters), byTime.within(stretch)))
    .orderBy(...byTime.order)
    .limit(sql`(SELECT ${limit}::bigint)` as unknown as number)
    .as('newest');
  const rows = await executor
    .select(newest._.selectedFields)
    .from(sql`unnest(${sql.param([...new Set(visibleWorkspaces)])}::text[]) AS visible(id)`)
    .crossJoinLateral(newest)
    .orderBy(desc(newest.at), desc(newest.id))
    .limit(limit);
  return rows.map(eventOf);
}

const isNotOfSystem = or(
  isNull(auditEvents.workspaceId),
  sql`${auditEvents.workspaceId} <> ${SYSTEM_WORKSPACE}`,
);

function matches({ workspaceId, keyId, action, actor, source }: AuditFilters): SQL | undefined {
  return and(
    workspaceId === undefined ? undefined : eq(auditEvents.workspaceId, workspaceId),
    keyId === undefined ? undefined : eq(auditEvents.keyId, keyIdToUuid(keyId)),
    action === undefined ? undefined : eq(auditEvents.action, action),
    actor === undefined
      ? undefined
      : actor === null
        ? and(isNull(auditEvents.actorKeyId), isNull(auditEvents.source))
        : eq(auditEvents.actorKeyId, keyIdToUuid(actor)),
    source === undefined ? undefined : eq(auditEvents.source, source),
  );
}

function eventOf(row: typeof auditEvents.$inferSelect): StoredAuditEvent {
  return {
    id: row.id,
    at: row.at.getTime(),
    action: row.action,
    actor: {
      keyId: row.actorKeyId === null ? null : keyIdFromUuid(row.actorKeyId),
      source: row.source,
      address: row.address,
      requestId: row.requestId,
    },
    workspaceId: row.workspaceId,
    keyId: row.keyId === null ? null : keyIdFromUuid(row.keyId),
    target: row.target,
    before: row.before,
    after: row.after,
  };
}
