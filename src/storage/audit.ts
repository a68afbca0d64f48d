import { v7 as uuidv7 } from 'uuid';
import type { JsonObject } from '../domain/key.ts';
import { type KeyId, keyIdToUuid } from '../domain/key-id.ts';
import type { Executor } from './database.ts';
import { auditEvents } from './schema.ts';

export type AuditAction =
  | 'key.created'
  | 'key.updated'
  | 'key.revoked'
  | 'workspace.updated'
  | 'workspace.keys_revoked';

/** Who acts, from where, in which request. An operator at the command line has none of these. */
export interface Actor {
  readonly keyId: KeyId | null;
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
  await executor.insert(auditEvents).values({
    id: uuidv7({ msecs: Math.floor(nowMs) }),
    at: new Date(nowMs),
    action: event.action,
    actorKeyId: event.actor.keyId === null ? null : keyIdToUuid(event.actor.keyId),
    workspaceId: event.workspaceId,
    keyId: event.keyId === null ? null : keyIdToUuid(event.keyId),
    target: event.target ?? null,
    before: event.before,
    after: event.after,
    address: event.actor.address,
    requestId: event.actor.requestId,
  });
}
