import { type Caller, reaches } from '../domain/caller.ts';
import { Failure, invalidInput } from '../domain/errors.ts';
import { type JsonObject, type Key, statusOf } from '../domain/key.ts';
import type { KeyId } from '../domain/key-id.ts';
import { applyPatch, completeRestrictions, type KeyPatch } from '../domain/key-patch.ts';
import type { RateLimit } from '../domain/rate-limit.ts';
import type { RestrictionsInput } from '../domain/restriction.ts';
import { isoTime } from '../domain/time.ts';
import { SERVICE_ENVIRONMENT, SYSTEM_WORKSPACE } from '../domain/workspace.ts';
import { appendAuditEvent, OPERATOR } from '../storage/audit.ts';
import type { Database } from '../storage/database.ts';
import { hasServiceKeys, readDatabaseTime, revokeKeys, updateKey } from '../storage/keys.ts';
import { lockOrMakeWorkspace, lockWorkspace } from '../storage/workspaces.ts';
import type { Changed, Membership, Propagation } from '../verification/membership.ts';
import { actorOf, changedMembers, keyShown, type Origin } from './audit.ts';
import { type CreatedKey, createKeyMaker, type KeyMakerOptions } from './key-maker.ts';
import {
  environmentFaults,
  foreignWorkspace,
  keepAnAdmin,
  keepChangeToPlan,
  keepToPlan,
  lockVisible,
  prolongationFaults,
  refuseExcess,
  settingFaults,
} from './key-rules.ts';
import { type Around, createRotation, type Rotation } from './rotation.ts';
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

/** A key after a change that holds on every instance by now. */
export interface ChangedKey {
  readonly key: Key;
  readonly propagation: Propagation;
}

/** The one door for changes of keys. Each is authorized, written with its audit event in one transaction, and checked under a lock. */
export interface KeyLifecycle extends Pick<Rotation, 'rotate'> {
  create(caller: Caller, origin: Origin, newKey: NewKey, around?: Around): Promise<CreatedKey>;
  /** Throws where the caller may not be shown such a key, also where one like it was made when it still might. */
  mayCreate(caller: Caller, newKey: NewKey): void;
  /** Merges a patch into an active key. */
  update(caller: Caller, origin: Origin, id: KeyId, patch: KeyPatch): Promise<ChangedKey>;
  /** Idempotent: the first revocation's time and reason stay. */
  revoke(caller: Caller, origin: Origin, id: KeyId, reason: string | null): Promise<ChangedKey>;
  confirmRotation: Rotation['confirm'];
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

export interface KeyLifecycleOptions extends KeyMakerOptions {
  readonly database: Database;
  readonly membership: Pick<Membership, 'change'>;
  /** The environments that keys may be made in, each with the limit of a key that is given none. */
  readonly environments: ReadonlyMap<string, RateLimit | null>;
}

const DEFAULT_ENVIRONMENT = 'live';
const MAX_NAME_LENGTH = 120;

export function createKeyLifecycle(options: KeyLifecycleOptions): KeyLifecycle {
  const { database, membership, environments } = options;
  const maker = createKeyMaker(options);
  const rotation = createRotation({ database, membership, maker });

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
      const made = await maker.make(caller.now, settle(caller, newKey));
      return database.transaction(async (executor) => {
        await around?.before(executor);
        const { limits } = await lockOrMakeWorkspace(executor, made.key.workspaceId);
        await refuseUnknownScopes(executor, made.key, newKey.scopes);
        const key = await keepToPlan(executor, limits, made.key);
        const created = await maker.insert(executor, actorOf(caller, origin), { ...made, key });
        await around?.after(executor, created);
        return created;
      }, origin.requestId);
    },

    mayCreate(caller, newKey) {
      if (!reaches(caller, newKey.workspaceId)) throw foreignWorkspace(newKey.workspaceId);
      refuseExcess(caller, complete(newKey));
    },

    async update(caller, origin, id, patch) {
      const { result: key, propagation } = await membership.change(async (executor) => {
        // With its workspace, so that no key that a creation has counted as expired comes to life beside it.
        const underPlan = patch.scopes !== undefined || patch.expiresAt !== undefined;
        const { key: before, limits, nowMs } = await lockVisible(executor, caller, id, { underPlan });
        const status = statusOf(before, nowMs);
        if (status !== 'active') {
          throw new Failure('key_not_active', `The key is ${status}; only active keys can be changed.`);
        }
        const patched = { ...before, ...applyPatch(before, patch) };
        const faults = [...settingFaults(patched, patch, nowMs), ...prolongationFaults(before, patched)];
        if (faults.length > 0) throw invalidInput(...faults);
        const after = keepChangeToPlan(limits, before, patched);
        refuseExcess(caller, after);
        await refuseUnknownScopes(executor, after, patch.scopes ?? []);
        await keepAnAdmin(executor, before, after, nowMs);
        const changes = changedMembers(keyShown(before), keyShown(after));
        if (changes === undefined) return keyChanged(before, { repeated: true });
        const event = {
          action: 'key.updated',
          actor: actorOf(caller, origin),
          workspaceId: after.workspaceId,
          keyId: id,
          ...changes,
        } as const;
        const writes = [updateKey(executor, after), appendAuditEvent(executor, event, nowMs)];
        return keyChanged(after, { writes });
      }, origin.requestId);
      return { key, propagation };
    },

    async revoke(caller, origin, id, reason) {
      const { result: key, propagation } = await membership.change(async (executor) => {
        const { key: before, nowMs } = await lockVisible(executor, caller, id);
        if (before.revokedAt !== null) return keyChanged(before, { repeated: true });
        await keepAnAdmin(executor, before, undefined, caller.now);
        const revokedAt = Math.floor(nowMs);
        const event = {
          action: 'key.revoked',
          actor: actorOf(caller, origin),
          workspaceId: before.workspaceId,
          keyId: id,
          before: { revoked_at: null, revoked_reason: null },
          after: { revoked_at: isoTime(revokedAt), revoked_reason: reason },
        } as const;
        const writes = [
          revokeKeys(executor, [id], { at: revokedAt, reason }),
          appendAuditEvent(executor, event, revokedAt),
        ];
        return keyChanged({ ...before, revokedAt, revokedReason: reason }, { writes });
      }, origin.requestId);
      return { key, propagation };
    },

    rotate: rotation.rotate,
    confirmRotation: rotation.confirm,

    async createAdmin(name) {
      refuseBadName(name);
      const made = await maker.make(await database.read(readDatabaseTime), adminSettings(name));
      return database.transaction((executor) => maker.insert(executor, OPERATOR, made));
    },

    async createFirstAdmin(deliver) {
      // Looked at without the lock first: it is so at every start but the first.
      if (await database.read(hasServiceKeys)) return false;
      const made = await maker.make(await database.read(readDatabaseTime), adminSettings('First admin key'));
      return database.transaction(async (executor) => {
        await lockWorkspace(executor, SYSTEM_WORKSPACE);
        if (await hasServiceKeys(executor)) return false;
        await deliver(await maker.insert(executor, OPERATOR, made));
        return true;
      });
    },

    hasServiceKey: () => database.read(hasServiceKeys),
  };
}

function keyChanged(key: Key, rest: Partial<Pick<Changed<Key>, 'repeated' | 'writes'>> = {}): Changed<Key> {
  return { result: key, subject: { kind: 'key', id: key.id }, repeated: false, ...rest };
}

function refuseBadName(name: string): void {
  if (name.length >= 1 && name.length <= MAX_NAME_LENGTH && name.isWellFormed() && !name.includes('\0'))
    return;
  throw new Failure('invalid_request', `The name of a key has 1 to ${MAX_NAME_LENGTH} characters.`);
}
