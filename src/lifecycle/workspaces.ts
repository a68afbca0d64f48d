import { type Caller, reaches } from '../domain/caller.ts';
import { Failure } from '../domain/errors.ts';
import { SYSTEM_WORKSPACE, type Workspace, type WorkspaceSettings } from '../domain/workspace.ts';
import { appendAuditEvent } from '../storage/audit.ts';
import { readDatabaseTime, revokeWorkspaceKeys } from '../storage/keys.ts';
import { lockOrMakeWorkspace, lockWorkspace, updateWorkspace } from '../storage/workspaces.ts';
import type { Membership, Propagation } from '../verification/membership.ts';
import { actorOf, changedMembers, type Origin, workspaceShown } from './audit.ts';

/** The one door for changes of workspaces. */
export interface WorkspaceLifecycle {
  /** Replaces a workspace's settings as a whole. What its keys were allowed before, they keep. */
  put(
    caller: Caller,
    origin: Origin,
    id: string,
    settings: WorkspaceSettings,
  ): Promise<{ readonly workspace: Workspace; readonly propagation: Propagation }>;
  /** Revokes a workspace's keys, by environment and creator where these are given; answers how many. */
  revokeKeys(
    caller: Caller,
    origin: Origin,
    id: string,
    filters: { environment: string | undefined; createdBy: string | undefined; reason: string | null },
  ): Promise<{ readonly revoked: number; readonly propagation: Propagation }>;
}

export function createWorkspaceLifecycle(membership: Pick<Membership, 'change'>): WorkspaceLifecycle {
  return {
    async put(caller, origin, id, settings) {
      if (id === SYSTEM_WORKSPACE) {
        throw new Failure('forbidden', 'The workspace "system" has no plan and cannot be disabled.');
      }
      if (!reaches(caller, id)) throw noSuchWorkspace();
      const { result: workspace, propagation } = await membership.change(async (executor) => {
        const before = await lockOrMakeWorkspace(executor, id);
        const subject = { kind: 'workspace', id } as const;
        const changes = changesOf(before, settings);
        if (changes === undefined) return { result: before, subject, repeated: true };
        const at = Math.floor(await readDatabaseTime(executor));
        const after = { ...settings, id, createdAt: before.createdAt ?? at, updatedAt: at };
        await updateWorkspace(executor, after);
        await appendAuditEvent(
          executor,
          {
            action: 'workspace.updated',
            actor: actorOf(caller, origin),
            workspaceId: id,
            keyId: null,
            ...changes,
          },
          at,
        );
        return { result: after, subject, repeated: false };
      }, origin.requestId);
      return { workspace, propagation };
    },

    async revokeKeys(caller, origin, id, { environment, createdBy, reason }) {
      if (id === SYSTEM_WORKSPACE) {
        throw new Failure('forbidden', 'The keys of the workspace "system" cannot be revoked in bulk.');
      }
      if (!reaches(caller, id)) throw noSuchWorkspace();
      const { result: revoked, propagation } = await membership.change(async (executor) => {
        await lockWorkspace(executor, id);
        const at = Math.floor(await readDatabaseTime(executor));
        const revoked = await revokeWorkspaceKeys(
          executor,
          { workspaceId: id, environment, createdBy },
          { at, reason },
        );
        await appendAuditEvent(
          executor,
          {
            action: 'workspace.keys_revoked',
            actor: actorOf(caller, origin),
            workspaceId: id,
            keyId: null,
            before: null,
            after: { revoked, reason, environment: environment ?? null, created_by: createdBy ?? null },
          },
          at,
        );
        return { result: revoked, subject: { kind: 'workspace', id }, repeated: revoked === 0 };
      }, origin.requestId);
      return { revoked, propagation };
    },
  };
}

export function noSuchWorkspace(): Failure {
  return new Failure('not_found', 'There is no such workspace.');
}

/** What a PUT changes: all of a workspace that was never put before, else the members that differ. */
function changesOf(before: Workspace, after: WorkspaceSettings) {
  if (before.updatedAt === null) return { before: null, after: workspaceShown(after) };
  return changedMembers(workspaceShown(before), workspaceShown(after));
}
