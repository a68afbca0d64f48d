import { type Caller, excessOver, reaches } from '../domain/caller.ts';
import { Failure, type InputFault, invalidInput } from '../domain/errors.ts';
import { type JsonObject, type Key, statusOf } from '../domain/key.ts';
import { type KeyId, newKeyId } from '../domain/key-id.ts';
import {
  applyPatch,
  completeRestrictions,
  type KeyPatch,
  type KeySettings,
  metadataFault,
} from '../domain/key-patch.ts';
import {
  expiryWithin,
  latestExpiry,
  noMoreKeys,
  refuseScopesBeyond,
  refuseWithoutKeys,
} from '../domain/plan.ts';
import type { RateLimit } from '../domain/rate-limit.ts';
import { addressesWithin, type RestrictionsInput, restrictionFaults } from '../domain/restriction.ts';
import { isPermission, PERMISSIONS } from '../domain/scope.ts';
import { isoTime } from '../domain/time.ts';
import { HINT_LENGTH, type TokenMint } from '../domain/token.ts';
import { NO_LIMITS, type PlanLimits, SERVICE_ENVIRONMENT, SYSTEM_WORKSPACE } from '../domain/workspace.ts';
import { type Actor, appendAuditEvent, OPERATOR } from '../storage/audit.ts';
import type { Database, Executor } from '../storage/database.ts';
import {
  countActiveKeys,
  countAdmins,
  findKey,
  hasServiceKeys,
  insertKey,
  lockKey,
  readDatabaseTime,
  revokeKey,
  updateKey,
} from '../storage/keys.ts';
import { lockOrMakeWorkspace, lockWorkspace } from '../storage/workspaces.ts';
import type { Changed, Membership, Propagation } from '../verification/membership.ts';
import type { SecretHasher } from '../verification/secret-hasher.ts';
import { actorOf, changedMembers, keyShown, type Origin } from './audit.ts';
import { refuseUnknownScopes } from './scopes.ts';

/** What a caller says of a new key; what it leaves out is `undefined`. */
export interface NewKey {
  readonly workspaceId: string;
  readonly environment: string | undefined;
  readonly name: string;
  readonly scopes: readonly string[];
  readonly expiresAt: number | null;
  readonly restrictions: RestrictionsInput | null;
  /** `undefined`: the environment's default; `null`: none. */
  readonly rateLimit: RateLimit | null | undefined;
  readonly metadata: JsonObject | null;
  readonly createdBy: string | null;
}

/** A key with its token, which is shown this once and then gone. */
export interface CreatedKey {
  readonly key: Key;
  readonly token: string;
}

/** A key after a change that holds on every instance by now. */
export interface ChangedKey {
  readonly key: Key;
  readonly propagation: Propagation;
}

/** What the transaction that makes a key does besides: `before` all else, and `after` all of it. */
export interface Around {
  before(executor: Executor): Promise<void>;
  after(executor: Executor, created: CreatedKey): Promise<void>;
}

/** The one door for changes of keys. Each is authorized, written with its audit event in one transaction, and checked under a lock. */
export interface KeyLifecycle {
  create(caller: Caller, origin: Origin, newKey: NewKey, around?: Around): Promise<CreatedKey>;
  /** Throws where the caller may not be shown such a key, also where one like it was made when it still might. */
  mayCreate(caller: Caller, newKey: NewKey): void;
  /** Merges a patch into an active key. */
  update(caller: Caller, origin: Origin, id: KeyId, patch: KeyPatch): Promise<ChangedKey>;
  /** Idempotent: the first revocation's time and reason stay. */
  revoke(caller: Caller, origin: Origin, id: KeyId, reason: string | null): Promise<ChangedKey>;
  /** Makes an admin key for the operator at the command line. */
  createAdmin(name: string): Promise<CreatedKey>;
  /**
   * Makes the first admin key, unless this database ever had a service key. `deliver` gets it before the commit:
   * where it cannot be delivered, there is none.
   */
  createFirstAdmin(deliver: (created: CreatedKey) => Promise<void>): Promise<boolean>;
  /** Whether this database ever had a service key. */
  hasServiceKey(): Promise<boolean>;
}

export interface KeyLifecycleOptions {
  readonly database: Database;
  readonly membership: Pick<Membership, 'change'>;
  readonly hasher: SecretHasher;
  readonly mint: TokenMint;
  /** The row of the secret that mints (storage/key-secrets.ts). */
  readonly secretId: number;
  readonly prefix: string;
  /** The environments that keys may be made in, each with the limit of a key that is given none. */
  readonly environments: ReadonlyMap<string, RateLimit | null>;
}

const DEFAULT_ENVIRONMENT = 'live';
const MAX_NAME_LENGTH = 120;

export function createKeyLifecycle(options: KeyLifecycleOptions): KeyLifecycle {
  const { database, membership, hasher, mint, secretId, prefix, environments } = options;

  /** Mints and hashes outside any transaction, since that takes a core for a while. */
  async function make(
    nowMs: number,
    settings: KeySettings & Pick<Key, 'workspaceId' | 'environment' | 'createdBy'>,
  ) {
    const id = newKeyId(nowMs);
    const token = mint.mint({ prefix, environment: settings.environment, id });
    const key: Key = {
      ...settings,
      id,
      prefix: `${prefix}_${settings.environment}_`,
      lastCharacters: token.slice(-HINT_LENGTH),
      createdAt: Math.floor(nowMs),
      revokedAt: null,
      revokedReason: null,
    };
    return { key, token, hash: await hasher.hash(token), secretId };
  }

  async function insert(
    executor: Executor,
    actor: Actor,
    made: Awaited<ReturnType<typeof make>>,
  ): Promise<CreatedKey> {
    const { key, token } = made;
    await insertKey(executor, made);
    await appendAuditEvent(
      executor,
      {
        action: 'key.created',
        actor,
        workspaceId: key.workspaceId,
        keyId: key.id,
        before: null,
        after: keyShown(key),
      },
      key.createdAt,
    );
    return { key, token };
  }

  const adminSettings = (name: string) => ({
    workspaceId: SYSTEM_WORKSPACE,
    environment: SERVICE_ENVIRONMENT,
    name,
    scopes: ['admin'],
    restrictions: null,
    rateLimit: null,
    metadata: null,
    createdBy: null,
    expiresAt: null,
  });

  function complete(newKey: NewKey) {
    const environment =
      newKey.environment ??
      (newKey.workspaceId === SYSTEM_WORKSPACE ? SERVICE_ENVIRONMENT : DEFAULT_ENVIRONMENT);
    return {
      workspaceId: newKey.workspaceId,
      environment,
      name: newKey.name,
      scopes: [...new Set(newKey.scopes)],
      expiresAt: newKey.expiresAt,
      restrictions: completeRestrictions(newKey.restrictions),
      rateLimit: newKey.rateLimit === undefined ? (environments.get(environment) ?? null) : newKey.rateLimit,
      metadata: newKey.metadata,
      createdBy: newKey.createdBy,
    };
  }

  function settle(caller: Caller, newKey: NewKey) {
    const settings = complete(newKey);
    const faults = [
      ...environmentFaults(settings, environments),
      ...settingFaults(settings, newKey, caller.now),
    ];
    if (faults.length > 0) throw invalidInput(...faults);
    refuseExcess(caller, settings);
    return settings;
  }

  return {
    async create(caller, origin, newKey, around) {
      if (!reaches(caller, newKey.workspaceId)) throw foreignWorkspace(newKey.workspaceId);
      const made = await make(caller.now, settle(caller, newKey));
      return database.transaction(async (executor) => {
        await around?.before(executor);
        const { limits } = await lockOrMakeWorkspace(executor, made.key.workspaceId);
        if (made.key.workspaceId !== SYSTEM_WORKSPACE) await refuseUnknownScopes(executor, newKey.scopes);
        const key = await keepToPlan(executor, limits, made.key);
        const created = await insert(executor, actorOf(caller, origin), { ...made, key });
        await around?.after(executor, created);
        return created;
      });
    },

    mayCreate(caller, newKey) {
      if (!reaches(caller, newKey.workspaceId)) throw foreignWorkspace(newKey.workspaceId);
      refuseExcess(caller, complete(newKey));
    },

    async update(caller, origin, id, patch) {
      const { result: key, propagation } = await membership.change(async (executor) => {
        // With its workspace, so that no key that a creation has counted as expired comes to life beside it.
        const underPlan = patch.scopes !== undefined || patch.expiresAt !== undefined;
        const { key: before, limits } = await lockVisible(executor, caller, id, { underPlan });
        const nowMs = await readDatabaseTime(executor);
        const status = statusOf(before, nowMs);
        if (status !== 'active') {
          throw new Failure('key_not_active', `The key is ${status}; only active keys can be changed.`);
        }
        const patched = { ...before, ...applyPatch(before, patch) };
        const faults = settingFaults(patched, patch, nowMs);
        if (faults.length > 0) throw invalidInput(...faults);
        const after = keepChangeToPlan(limits, before, patched);
        refuseExcess(caller, after);
        if (after.workspaceId !== SYSTEM_WORKSPACE) await refuseUnknownScopes(executor, patch.scopes ?? []);
        await keepAnAdmin(executor, before, after, nowMs);
        const changes = changedMembers(keyShown(before), keyShown(after));
        if (changes === undefined) return keyChanged(before, { repeated: true });
        await updateKey(executor, after);
        await appendAuditEvent(
          executor,
          {
            action: 'key.updated',
            actor: actorOf(caller, origin),
            workspaceId: after.workspaceId,
            keyId: id,
            ...changes,
          },
          nowMs,
        );
        return keyChanged(after);
      });
      return { key, propagation };
    },

    async revoke(caller, origin, id, reason) {
      const { result: key, propagation } = await membership.change(async (executor) => {
        const { key: before } = await lockVisible(executor, caller, id);
        if (before.revokedAt !== null) return keyChanged(before, { repeated: true });
        await keepAnAdmin(executor, before, undefined, caller.now);
        const revokedAt = Math.floor(await readDatabaseTime(executor));
        await revokeKey(executor, id, { at: revokedAt, reason });
        await appendAuditEvent(
          executor,
          {
            action: 'key.revoked',
            actor: actorOf(caller, origin),
            workspaceId: before.workspaceId,
            keyId: id,
            before: { revoked_at: null, revoked_reason: null },
            after: { revoked_at: isoTime(revokedAt), revoked_reason: reason },
          },
          revokedAt,
        );
        return keyChanged({ ...before, revokedAt, revokedReason: reason });
      });
      return { key, propagation };
    },

    async createAdmin(name) {
      refuseBadName(name);
      const made = await make(await database.read(readDatabaseTime), adminSettings(name));
      return database.transaction((executor) => insert(executor, OPERATOR, made));
    },

    async createFirstAdmin(deliver) {
      // Looked at without the lock first: it is so at every start but the first.
      if (await database.read(hasServiceKeys)) return false;
      const made = await make(await database.read(readDatabaseTime), adminSettings('First admin key'));
      return database.transaction(async (executor) => {
        await lockWorkspace(executor, SYSTEM_WORKSPACE);
        if (await hasServiceKeys(executor)) return false;
        await deliver(await insert(executor, OPERATOR, made));
        return true;
      });
    },

    hasServiceKey: () => database.read(hasServiceKeys),
  };
}

function keyChanged(key: Key, { repeated = false } = {}): Changed<Key> {
  return { result: key, subject: { kind: 'key', id: key.id }, repeated };
}

/**
 * Finds and locks a key that the caller may see. Its workspace is locked before it where its plan is asked for, and
 * for a service key always, so that admins are counted one change at a time.
 */
async function lockVisible(
  executor: Executor,
  caller: Caller,
  id: KeyId,
  { underPlan = false } = {},
): Promise<{ key: Key; limits: PlanLimits }> {
  const found = await findKey(executor, id);
  if (found === undefined || !reaches(caller, found.workspaceId)) throw noSuchKey();
  const { workspaceId } = found;
  const workspace =
    underPlan || workspaceId === SYSTEM_WORKSPACE ? await lockWorkspace(executor, workspaceId) : undefined;
  const key = await lockKey(executor, id);
  if (key === undefined) throw noSuchKey();
  return { key, limits: workspace?.limits ?? NO_LIMITS };
}

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

function environmentFaults(
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
function settingFaults(
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
async function keepToPlan(executor: Executor, limits: PlanLimits, key: Key): Promise<Key> {
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
function keepChangeToPlan(limits: PlanLimits, before: Key, after: Key): Key {
  refuseScopesBeyond(
    limits,
    after.scopes.filter((scope) => !before.scopes.includes(scope)),
  );
  return after.expiresAt === before.expiresAt ? after : { ...after, expiresAt: expiryWithin(limits, after) };
}

function refuseExcess(caller: Caller, key: KeySettings & Pick<Key, 'workspaceId'>): void {
  const excess = key.workspaceId === SYSTEM_WORKSPACE ? excessOver(caller, key) : undefined;
  if (excess !== undefined) throw new Failure('forbidden', excess);
}

/** Refuses what would leave nobody to administer Claviger. `after` is `undefined` for a revocation. */
async function keepAnAdmin(
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

function refuseBadName(name: string): void {
  if (name.length >= 1 && name.length <= MAX_NAME_LENGTH && name.isWellFormed() && !name.includes('\0'))
    return;
  throw new Failure('invalid_request', `The name of a key has 1 to ${MAX_NAME_LENGTH} characters.`);
}
