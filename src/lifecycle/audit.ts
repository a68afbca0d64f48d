import { isDeepStrictEqual } from 'node:util';
import type { Caller } from '../domain/caller.ts';
import type { JsonObject, Key } from '../domain/key.ts';
import type { RouteRuleText } from '../domain/route-pattern.ts';
import type { ScopeEntry } from '../domain/scope-catalogue.ts';
import { isoTime } from '../domain/time.ts';
import type { WorkspaceSettings } from '../domain/workspace.ts';
import type { Actor } from '../storage/audit.ts';

/** Where and in which request the caller acts. */
export interface Origin {
  readonly address: string;
  readonly requestId: string;
}

export function actorOf(caller: Caller, origin: Origin): Actor {
  return { keyId: caller.keyId, address: origin.address, requestId: origin.requestId };
}

/** A key as an audit event shows it. */
export function keyShown(key: Key): JsonObject {
  return {
    name: key.name,
    environment: key.environment,
    scopes: [...key.scopes],
    restrictions:
      key.restrictions === null
        ? null
        : {
            ...key.restrictions,
            allowed_endpoints:
              key.restrictions.allowed_endpoints && routesShown(key.restrictions.allowed_endpoints),
          },
    rate_limit: key.rateLimit === null ? null : { ...key.rateLimit },
    metadata: key.metadata,
    created_by: key.createdBy,
    expires_at: timeShown(key.expiresAt),
  };
}

/** How a key ends, and what comes after it, as an audit event shows it. */
export function keyEndShown(key: Key): JsonObject {
  return {
    expires_at: timeShown(key.expiresAt),
    revoked_at: timeShown(key.revokedAt),
    revoked_reason: key.revokedReason,
    rotated_to: key.rotatedTo,
  };
}

/** A workspace's settings as an audit event shows them. */
export function workspaceShown({ name, limits, rateLimit, disabled }: WorkspaceSettings): JsonObject {
  return {
    name,
    limits: {
      max_active_keys: limits.maxActiveKeys,
      allowed_scopes: limits.allowedScopes === null ? null : [...limits.allowedScopes],
      max_key_lifetime_days: limits.maxKeyLifetimeDays,
    },
    rate_limit: rateLimit === null ? null : { ...rateLimit },
    disabled,
  };
}

/** An entry of the scope catalogue as an audit event shows it. */
export function scopeShown({ name, description, implies, grants }: ScopeEntry): JsonObject {
  return { name, description, implies: [...implies], grants: routesShown(grants) };
}

/** Routes with all their members, so that two of them are compared by what they mean. */
function routesShown(routes: readonly RouteRuleText[]): JsonObject[] {
  return routes.map(({ methods, path }) => ({ methods: methods == null ? null : [...methods], path }));
}

/** The members that differ, as they were and as they are; `undefined` where none does. */
export function changedMembers(
  before: JsonObject,
  after: JsonObject,
): { before: JsonObject; after: JsonObject } | undefined {
  // The order of an object's members means nothing, and jsonb does not keep it.
  const changed = Object.keys(after).filter((member) => !isDeepStrictEqual(before[member], after[member]));
  if (changed.length === 0) return undefined;
  const pick = (values: JsonObject): JsonObject =>
    Object.fromEntries(changed.map((member) => [member, values[member] ?? null]));
  return { before: pick(before), after: pick(after) };
}

function timeShown(timeMs: number | null): string | null {
  return timeMs === null ? null : isoTime(timeMs);
}
