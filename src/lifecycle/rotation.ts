import { type Caller, reaches } from '../domain/caller.ts';
import { Failure } from '../domain/errors.ts';
import type { Key } from '../domain/key.ts';
import type { KeyId } from '../domain/key-id.ts';
import { refuseScopesBeyond, refuseWithoutKeys } from '../domain/plan.ts';
import { rotatedAway, successorOf, whyNotRotatable } from '../domain/rotation.ts';
import { appendAuditEvent } from '../storage/audit.ts';
import type { Database, Executor } from '../storage/database.ts';
import { findKey, storeRotation } from '../storage/keys.ts';
import type { Membership, Propagation } from '../verification/membership.ts';
import { actorOf, keyEndShown, type Origin } from './audit.ts';
import type { CreatedKey, KeyMaker } from './key-maker.ts';
import { lockVisible, noSuchKey, refuseExcess } from './key-rules.ts';
import { refuseUnknownScopes } from './scopes.ts';

/** What the transaction that makes a key does besides: `before` all else, and `after` all of it. */
export interface Around {
  before(executor: Executor): Promise<void>;
  after(executor: Executor, created: CreatedKey): Promise<void>;
}

/** A successor with its token. By now the end of the old key holds on every instance. */
export interface RotatedKey extends CreatedKey {
  readonly propagation: Propagation;
}

export interface Rotation {
  /**
   * Gives an active key a successor with the same settings. The key itself ends after the grace period.
   * @throws Failure `key_not_active`, also where it has a successor already.
   */
  rotate(
    caller: Caller,
    origin: Origin,
    id: KeyId,
    graceSeconds: number,
    around?: Around,
  ): Promise<RotatedKey>;
  /**
   * Waits once more until the end of a rotated key holds on every instance: whoever rotated it may have died before.
   * @throws Failure where the caller may not be shown its successor, also where it might when that was made.
   */
  confirm(caller: Caller, origin: Origin, id: KeyId): Promise<{ readonly propagation: Propagation }>;
}

/**
 * Rotation (contract §4). It locks the workspace and then the key: two rotations of one key thereby make one
 * successor, and a bulk revocation finds either neither of them or both.
 */
export function createRotation({
  database,
  membership,
  maker,
}: {
  readonly database: Database;
  readonly membership: Pick<Membership, 'change'>;
  readonly maker: KeyMaker;
}): Rotation {
  async function findVisible(executor: Executor, caller: Caller, id: KeyId): Promise<Key> {
    const key = await findKey(executor, id);
    if (key === undefined || !reaches(caller, key.workspaceId)) throw noSuchKey();
    return key;
  }

  return {
    async rotate(caller, origin, id, graceSeconds, around) {
      const found = await database.read((executor) => findVisible(executor, caller, id));
      // Before the work of a hash. Not where `around` has to speak first: an equal request may have rotated the key.
      if (around === undefined) refuseUnrotatable(found, caller.now);
      const made = await maker.make(caller.now, found);
      const { result, propagation } = await membership.change(async (executor) => {
        await around?.before(executor);
        const locked = await lockVisible(executor, caller, id, { underPlan: true });
        const { key: before, limits } = locked;
        const nowMs = Math.floor(locked.nowMs);
        refuseUnrotatable(before, nowMs);
        const successor = successorOf(before, made.key, limits);
        refuseWithoutKeys(limits);
        refuseScopesBeyond(limits, successor.scopes);
        await refuseUnknownScopes(executor, successor, successor.scopes);
        refuseExcess(caller, successor);

        const actor = actorOf(caller, origin);
        const created = await maker.insert(executor, actor, { ...made, key: successor });
        const after = rotatedAway(before, { to: successor.id, graceSeconds, nowMs });
        await storeRotation(executor, after);
        const { workspaceId } = before;
        await appendAuditEvent(
          executor,
          {
            action: 'key.rotated',
            actor,
            workspaceId,
            keyId: id,
            before: keyEndShown(before),
            after: keyEndShown(after),
          },
          nowMs,
        );
        await around?.after(executor, created);
        return { result: created, subject: { kind: 'key', id }, repeated: false };
      }, origin.requestId);
      return { ...result, propagation };
    },

    async confirm(caller, origin, id) {
      const { propagation } = await membership.change(async (executor) => {
        const key = await findVisible(executor, caller, id);
        const successor = key.rotatedTo === null ? undefined : await findKey(executor, key.rotatedTo);
        if (successor === undefined) throw noSuchKey();
        refuseExcess(caller, successor);
        return { result: undefined, subject: { kind: 'key', id }, repeated: true };
      }, origin.requestId);
      return { propagation };
    },
  };
}

function refuseUnrotatable(key: Key, nowMs: number): void {
  const reason = whyNotRotatable(key, nowMs);
  if (reason !== undefined) throw new Failure('key_not_active', reason);
}
