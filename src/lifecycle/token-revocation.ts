import type { JsonObject, Key } from '../domain/key.ts';
import type { KeyId } from '../domain/key-id.ts';
import { isoTime } from '../domain/time.ts';
import { type Actor, appendAuditEvents, type TokenSource } from '../storage/audit.ts';
import type { Database, Executor } from '../storage/database.ts';
import { findWorkspacesOf, lockKeys, readDatabaseTime, revokeKeys } from '../storage/keys.ts';
import { MAX_KEYS_PER_CHANGE } from '../storage/membership.ts';
import { lockWorkspaces } from '../storage/workspaces.ts';
import type { Changed, Membership } from '../verification/membership.ts';
import { overloaded, type SecretHasher } from '../verification/secret-hasher.ts';
import type { Verifier } from '../verification/verifier.ts';
import type { Origin } from './audit.ts';

/** By which door the strings came, and why their keys are revoked. */
export interface Showing {
  readonly source: TokenSource;
  readonly reason: string;
  readonly origin: Origin;
  /** What is said of a string beside its key's end, in the audit event: nothing secret. */
  readonly about?: (token: string) => JsonObject;
}

export interface TokenRevocation {
  /**
   * Revokes the keys whose tokens are among these strings, service keys and the last admin's too: whoever holds a token
   * may end it. When it resolves, that holds on every instance, also for keys that were revoked before.
   *
   * @returns those of the strings that are tokens of this deployment.
   * @throws Failure as a change and as a verification do, once all that could be proved is revoked: repeat it.
   */
  revokeTokens(strings: readonly string[], showing: Showing): Promise<ReadonlySet<string>>;
  /**
   * The same for a door whose answer must not tell what the strings are: where a token would fail for want of argon2 or
   * of the database, any string does.
   */
  revokeAlike(strings: readonly string[], showing: Showing): Promise<void>;
}

interface Identified {
  /** The keys, each with its token. */
  readonly holders: ReadonlyMap<KeyId, string>;
  readonly allRevoked: boolean;
  readonly failure: unknown;
}

interface Repeats {
  readonly ids: Set<KeyId>;
  readonly confirmed: Promise<unknown>;
}

/** A request of many tokens reads their keys together, and yet leaves argon2's queue to others. */
const PROVED_AT_ONCE = 4;
/** However many strings come that are no tokens, the database is asked no more often for them than this. */
const LOOK_EVERY_MS = 1_000;

/** Revocation by possession of the token (contract §7). The tag comes first: other strings cost nothing. */
export function createTokenRevocation({
  verifier,
  membership,
  hasher,
  database,
}: {
  readonly verifier: Pick<Verifier, 'identifyHolder'>;
  readonly membership: Pick<Membership, 'change'>;
  readonly hasher: Pick<SecretHasher, 'isFull'>;
  readonly database: Pick<Database, 'read'>;
}): TokenRevocation {
  /** Repeats that wait for their change to begin, and the last one begun or to begin. */
  let gathering: Repeats | undefined;
  let confirming: Promise<unknown> = Promise.resolve();
  let look: { readonly at: number; readonly answered: Promise<unknown> } | undefined;

  /** Whether the database answers, as of a moment ago. */
  function databaseAnswers(): Promise<unknown> {
    const now = performance.now();
    if (look === undefined || now - look.at >= LOOK_EVERY_MS) {
      look = { at: now, answered: database.read(readDatabaseTime) };
    }
    return look.answered;
  }

  /** The keys of those strings that are tokens, and what kept it from looking at all of them. */
  async function identify(strings: readonly string[]): Promise<Identified> {
    const holders = new Map<KeyId, string>();
    const waiting = strings.values();
    let allRevoked = true;
    let failure: unknown;
    const work = async () => {
      for (const token of waiting) {
        if (failure !== undefined) return;
        const holder = await verifier.identifyHolder(token);
        if (holder === undefined) continue;
        holders.set(holder.id, token);
        allRevoked &&= holder.isRevoked;
      }
    };
    const fail = (cause: unknown) => {
      failure ??= cause;
    };
    await Promise.all(Array.from({ length: PROVED_AT_ONCE }, () => work().catch(fail)));
    return { holders, allRevoked, failure };
  }

  /**
   * Waits until the revocation of these keys holds on every instance: whoever revoked them may have died half-way. A
   * revoked token can be shown again for ever, so that there is one such change at a time, for all that gathered.
   */
  function confirmAgain(ids: readonly KeyId[]): Promise<unknown> {
    let batch = gathering;
    if (batch === undefined || batch.ids.size + ids.length > MAX_KEYS_PER_CHANGE) {
      const begun = { ids: new Set<KeyId>() };
      const confirmed = confirming
        .catch(() => undefined)
        .then(() => {
          // Whoever comes from here on needs a change that begins after.
          if (gathering?.ids === begun.ids) gathering = undefined;
          return membership.change(async () => ({
            result: undefined,
            subject: { kind: 'keys', ids: [...begun.ids] },
            repeated: true,
          }));
        });
      batch = { ...begun, confirmed };
      gathering = batch;
      confirming = confirmed;
    }
    for (const id of ids) batch.ids.add(id);
    return batch.confirmed;
  }

  async function revokeTokens(strings: readonly string[], showing: Showing): Promise<ReadonlySet<string>> {
    const distinct = [...new Set(strings)];
    const tokens = new Set<string>();
    for (let start = 0; start < distinct.length; start += MAX_KEYS_PER_CHANGE) {
      const { holders, allRevoked, failure } = await identify(
        distinct.slice(start, start + MAX_KEYS_PER_CHANGE),
      );
      const { requestId } = showing.origin;
      if (holders.size > 0 && allRevoked) await confirmAgain([...holders.keys()]);
      else if (holders.size > 0)
        await membership.change((executor) => revokeHeld(executor, holders, showing), requestId);
      if (failure !== undefined) throw failure;
      for (const token of holders.values()) tokens.add(token);
    }
    return tokens;
  }

  return {
    revokeTokens,
    async revokeAlike(strings, showing) {
      if (hasher.isFull()) throw overloaded();
      await databaseAnswers();
      await revokeTokens(strings, showing);
    },
  };
}

async function revokeHeld(
  executor: Executor,
  holders: ReadonlyMap<KeyId, string>,
  { source, reason, origin, about }: Showing,
): Promise<Changed<void>> {
  const ids = [...holders.keys()];
  // The order of locks is the workspaces, then the keys (key-rules.ts): a bulk revocation takes the same keys in any order.
  const workspaces = await findWorkspacesOf(executor, ids);
  await lockWorkspaces(executor, [...new Set(workspaces.values())]);
  const unrevoked = (await lockKeys(executor, ids)).filter(({ revokedAt }) => revokedAt === null);
  if (unrevoked.length > 0) {
    const at = Math.floor(await readDatabaseTime(executor));
    await revokeKeys(
      executor,
      unrevoked.map(({ id }) => id),
      { at, reason },
    );
    const actor: Actor = { keyId: null, source, address: origin.address, requestId: origin.requestId };
    const after = { revoked_at: isoTime(at), revoked_reason: reason };
    const eventOf = ({ id, workspaceId }: Key) => ({
      action: 'key.revoked' as const,
      actor,
      workspaceId,
      keyId: id,
      before: { revoked_at: null, revoked_reason: null },
      after: { ...after, ...about?.(holders.get(id) ?? '') },
    });
    await appendAuditEvents(executor, unrevoked.map(eventOf), at);
  }
  return { result: undefined, subject: { kind: 'keys', ids }, repeated: unrevoked.length === 0 };
}
