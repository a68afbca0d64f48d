import type { z } from 'zod';
import { type Key, statusOf } from '../domain/key.ts';
import { hintOf } from '../domain/token.ts';
import { SYSTEM_WORKSPACE } from '../domain/workspace.ts';
import type { KeyUse } from '../storage/usage.ts';
import { endpointsView, fromTime, type keyOutput, type restrictionsOutput } from './schemas.ts';

const DAY_MS = 86_400_000;

/** A key as the API shows it; without a `use` it was never used. */
export function viewOf(
  key: Key,
  { nowMs, rotationDueDays, use }: { nowMs: number; rotationDueDays: number; use?: KeyUse | undefined },
): z.input<typeof keyOutput> {
  return {
    id: key.id,
    prefix: key.prefix,
    hint: hintOf(key.prefix, key.lastCharacters),
    workspace_id: key.workspaceId,
    name: key.name,
    environment: key.environment,
    scopes: [...key.scopes],
    status: statusOf(key, nowMs),
    restrictions: restrictionsView(key),
    rate_limit: key.rateLimit,
    metadata: key.metadata === null ? null : { ...key.metadata },
    created_by: key.createdBy,
    created_at: fromTime(key.createdAt),
    expires_at: fromTime(key.expiresAt),
    revoked_at: fromTime(key.revokedAt),
    revoked_reason: key.revokedReason,
    rotated_from: key.rotatedFrom,
    rotated_to: key.rotatedTo,
    rotation_due_at: fromTime(key.createdAt + rotationDueDays * DAY_MS),
    last_used: fromTime(use?.at ?? null),
    last_used_ip: use?.ip ?? null,
  };
}

/** The restrictions that this kind of key can have, each present: `null` where it does not restrict. */
export function restrictionsView(
  key: Pick<Key, 'workspaceId' | 'restrictions'>,
): z.input<typeof restrictionsOutput> | null {
  const { restrictions } = key;
  if (restrictions === null) return null;
  const allowed_ips = copy(restrictions.allowed_ips);
  return key.workspaceId === SYSTEM_WORKSPACE
    ? { allowed_ips, allowed_workspaces: copy(restrictions.allowed_workspaces) }
    : {
        allowed_ips,
        allowed_referrers: copy(restrictions.allowed_referrers),
        allowed_endpoints:
          restrictions.allowed_endpoints === null ? null : endpointsView(restrictions.allowed_endpoints),
      };
}

function copy(list: readonly string[] | null): string[] | null {
  return list === null ? null : [...list];
}
