import type { Key } from './key.ts';
import type { KeyId } from './key-id.ts';
import { addressesWithin } from './restriction.ts';
import { type Permission, permits } from './scope.ts';
import { SYSTEM_WORKSPACE } from './workspace.ts';

/** A service key that has shown itself on this request: who acts, and what it may do. */
export interface Caller {
  readonly keyId: KeyId;
  readonly name: string;
  /** Its scopes: names of the closed list of permissions. */
  readonly permissions: readonly string[];
  /** `null`: all workspaces. */
  readonly allowedWorkspaces: readonly string[] | null;
  /** `null`: any address. */
  readonly allowedIps: readonly string[] | null;
  /** Milliseconds since the epoch; `null`: never. */
  readonly expiresAt: number | null;
  /** Database time at which it was checked, in milliseconds: the `now` of this request. */
  readonly now: number;
}

export function callerOf(key: Key, nowMs: number): Caller {
  return {
    keyId: key.id,
    name: key.name,
    permissions: key.scopes,
    allowedWorkspaces: key.restrictions?.allowed_workspaces ?? null,
    allowedIps: key.restrictions?.allowed_ips ?? null,
    expiresAt: key.expiresAt,
    now: nowMs,
  };
}

/**
 * Whether the caller may touch keys of this workspace: `system` takes an admin that is not narrowed, any other
 * one the absence of a narrowing to other workspaces.
 */
export function reaches(caller: Caller, workspaceId: string): boolean {
  if (workspaceId === SYSTEM_WORKSPACE) {
    return permits(caller.permissions, 'admin') && caller.allowedWorkspaces === null;
  }
  return caller.allowedWorkspaces === null || caller.allowedWorkspaces.includes(workspaceId);
}

/**
 * What a service key would hold that its maker does not, as a sentence, or `undefined` where it holds no more:
 * no permission, no address and no lifetime beyond the maker's own. Without the last two, a key that is bound
 * to an address or to a day could free itself by making another.
 */
export function excessOver(
  caller: Caller,
  key: Pick<Key, 'scopes' | 'restrictions' | 'expiresAt'>,
): string | undefined {
  if (!key.scopes.every((scope) => permits(caller.permissions, scope as Permission))) {
    return 'A service key cannot be given a permission that its maker does not hold.';
  }
  if (!addressesWithin(key.restrictions?.allowed_ips ?? null, caller.allowedIps)) {
    return 'A service key cannot be allowed an address that its maker is not allowed.';
  }
  if (caller.expiresAt !== null && (key.expiresAt === null || key.expiresAt > caller.expiresAt)) {
    return 'A service key cannot outlive its maker.';
  }
  return undefined;
}
