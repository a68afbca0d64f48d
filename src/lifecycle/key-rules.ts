import { type Caller, excessOver, reaches } from '../domain/caller.ts';
import { Failure, type InputFault } from '../domain/errors.ts';
import { type Key, statusOf } from '../domain/key.ts';
import type { KeyId } from '../domain/key-id.ts';
import { type KeyPatch, type KeySettings, metadataFault } from '../domain/key-patch.ts';
import {
  expiryWithin,
  latestExpiry,
  noMoreKeys,
  refuseScopesBeyond,
  refuseWithoutKeys,
} from '../domain/plan.ts';
import { addressesWithin, restrictionFaults } from '../domain/restriction.ts';
import { isPermission, PERMISSIONS } from '../domain/scope.ts';
import { NO_LIMITS, type PlanLimits, SERVICE_ENVIRONMENT, SYSTEM_WORKSPACE } from '../domain/workspace.ts';
import type { Executor } from '../storage/database.ts';
import {
  countActiveKeys,
  countAdmins,
  findKey,
  lockKey,
  lockTenantKey,
  readDatabaseTime,
} from '../storage/keys.ts';
import { lockWorkspace } from '../storage/workspaces.ts';

/*
 * What a key may be, and who may make it so. The order of locks is the workspace, then the key.
 */

/**
 * Finds and locks a key that the caller may see; `nowMs` is the database's time once it is locked. Its workspace is
 * locked before it where its plan is asked for, and for a service key always, so that admins are counted one change at
 * a time.
 */
export async function lockVisible(
  executor: Executor,
  caller: Caller,
  id: KeyId,
  { underPlan = false } = {},
): Promise<{ key: Key; limits: PlanLimits; nowMs: number }> {
  if (!underPlan) {
    const [key, nowMs] = await Promise.all([lockTenantKey(executor, id), readDatabaseTime(executor)]);
    if (key !== undefined && !reaches(caller, key.workspaceId)) throw noSuchKey();
    if (key !== undefined) return { key, limits: NO_LIMITS, nowMs };
  }
  const found = await findKey(executor, id);
  if (found === undefined || !reaches(caller, found.workspaceId)) throw noSuchKey();
  const workspace = await lockWorkspace(executor, found.workspaceId);
  const [key, nowMs] = await Promise.all([lockKey(executor, id), readDatabaseTime(executor)]);
  if (key === undefined) throw noSuchKey();
  return { key, limits: workspace?.limits ?? NO_LIMITS, nowMs };
}

/** Also for one that this caller may not see. */
export function noSuchKey(): Failure {
  return new Failure('not_found', 'There is no such key.');
}

/** A `workspace_id` in the request that the caller may not use. */
export function foreignWorkspace(workspaceId: string): Failure {
  return workspaceId === SYSTEM_WORKSPACE
    ? new Failure(
        'forbidden',
        'Only an admin key that is not bound to workspaces may use the workspace "system".',
        {
          missingPermission: 'admin',
        },
      )
    : new Failure('forbidden', 'This service key is bound to other workspaces than the one named.');
}

export function environmentFaults(
  { workspaceId, environment }: Pick<Key, 'workspaceId' | 'environment'>,
  environments: ReadonlyMap<string, unknown>,
): InputFault[] {
  const allowed = workspaceId === SYSTEM_WORKSPACE ? [SERVICE_ENVIRONMENT] : [...environments.keys()];
  return allowed.includes(environment)
    ? []
    : [{ path: 'environment', message: `must be one of: ${allowed.join(', ')}` }];
}

/**
 * What is wrong with a key's settings. `given` is what the request said: a rule that time or a past release
 * made stricter does not stand in the way of changing something else.
 */
export function settingFaults(
  key: KeySettings & Pick<Key, 'workspaceId'>,
  given: Pick<KeyPatch, 'restrictions' | 'expiresAt'>,
  nowMs: number,
): InputFault[] {
  const service = key.workspaceId === SYSTEM_WORKSPACE;
  const faults: InputFault[] = restrictionFaults(given.restrictions ?? {}).map(({ path, message }) => ({
    path: ['restrictions', ...path].join('.'),
    message,
  }));
  const foreign = service
    ? (['allowed_referrers', 'allowed_endpoints'] as const)
    : (['allowed_workspaces'] as const);
  for (const member of foreign) {
    if (key.restrictions?.[member] == null) continue;
    faults.push({
      path: `restrictions.${member}`,
      message: `is not for ${service ? 'service keys' : 'keys outside the workspace "system"'}`,
    });
  }
  if (key.restrictions?.allowed_workspaces?.includes(SYSTEM_WORKSPACE)) {
    faults.push({
      path: 'restrictions.allowed_workspaces',
      message: `must not name "${SYSTEM_WORKSPACE}": that takes an admin key bound to no workspace`,
    });
  }
  key.scopes.forEach((scope, index) => {
    if (!service || isPermission(scope)) return;
    faults.push({
      path: `scopes.${index}`,
      message: `a service key takes permissions: ${PERMISSIONS.join(', ')}`,
    });
  });
  if (given.expiresAt != null && given.expiresAt <= nowMs) {
    faults.push({ path: 'expires_at', message: 'must be in the future' });
  }
  const metadata = metadataFault(key.metadata);
  return metadata === undefined ? faults : [...faults, metadata];
}

/**
 * A new key as the plan of its workspace, which is locked, lets it be.
 * @throws Failure `limit_reached`
 */
export async function keepToPlan(executor: Executor, limits: PlanLimits, key: Key): Promise<Key> {
  refuseWithoutKeys(limits);
  refuseScopesBeyond(limits, key.scopes);
  const expiresAt = key.expiresAt === null ? latestExpiry(limits, key.createdAt) : expiryWithin(limits, key);
  const { maxActiveKeys } = limits;
  if (maxActiveKeys !== null) {
    const active = await countActiveKeys(executor, { workspaceId: key.workspaceId, upTo: maxActiveKeys });
    if (active >= maxActiveKeys) throw noMoreKeys(maxActiveKeys);
  }
  return { ...key, expiresAt };
}

/**
 * A changed key as the plan lets it be. What the key has it keeps, also where the plan was narrowed since: only what
 * it would gain is held against the plan.
 * @throws Failure `limit_reached`
 */
export function keepChangeToPlan(limits: PlanLimits, before: Key, after: Key): Key {
  refuseScopesBeyond(
    limits,
    after.scopes.filter((scope) => !before.scopes.includes(scope)),
  );
  return after.expiresAt === before.expiresAt ? after : { ...after, expiresAt: expiryWithin(limits, after) };
}

/** A rotated key ends when its rotation said: it does not count against the plan, and its successor is there. */
export function prolongationFaults(before: Key, after: Key): InputFault[] {
  if (before.rotatedTo === null || before.expiresAt === null || before.expiresAt === after.expiresAt)
    return [];
  return after.expiresAt !== null && after.expiresAt < before.expiresAt
    ? []
    : [{ path: 'expires_at', message: 'must not be later than it is: the key was rotated' }];
}

export function refuseExcess(caller: Caller, key: KeySettings & Pick<Key, 'workspaceId'>): void {
  const excess = key.workspaceId === SYSTEM_WORKSPACE ? excessOver(caller, key) : undefined;
  if (excess !== undefined) throw new Failure('forbidden', excess);
}

/** Refuses what would leave nobody to administer Claviger. `after` is `undefined` for a revocation. */
export async function keepAnAdmin(
  executor: Executor,
  before: Key,
  after: Key | undefined,
  nowMs: number,
): Promise<void> {
  if (!isAdmin(before) || statusOf(before, nowMs) !== 'active') return;
  if (after !== undefined && isAdmin(after) && !isNarrower(after, before)) return;
  if ((await countAdmins(executor, { except: before.id, nowMs })) > 0) return;
  throw new Failure('last_admin', 'This is the last active admin key. Make another one first.');
}

function isAdmin(key: Key): boolean {
  return (
    key.workspaceId === SYSTEM_WORKSPACE &&
    key.scopes.includes('admin') &&
    !key.restrictions?.allowed_workspaces
  );
}

function isNarrower(after: Key, before: Key): boolean {
  const endsEarlier =
    after.expiresAt !== null && (before.expiresAt === null || after.expiresAt < before.expiresAt);
  const fewerAddresses = !addressesWithin(
    before.restrictions?.allowed_ips ?? null,
    after.restrictions?.allowed_ips ?? null,
  );
  return endsEarlier || fewerAddresses;
}
