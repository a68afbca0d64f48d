import { hash, timingSafeEqual } from 'node:crypto';
import { isJwt } from '../domain/access-token.ts';
import { type Caller, callerOf } from '../domain/caller.ts';
import {
  type Allowance,
  type Decision,
  decide,
  INVALID,
  type KeyRecord,
  type Question,
  refuse,
  refuseKey,
  refuseUnproved,
} from '../domain/decision.ts';
import { Failure } from '../domain/errors.ts';
import { type Key, statusOf } from '../domain/key.ts';
import type { KeyId } from '../domain/key-id.ts';
import { hmacSha256 } from '../domain/key-secret.ts';
import type { RateLimit } from '../domain/rate-limit.ts';
import { compileRestrictions } from '../domain/restriction.ts';
import type { Catalogue } from '../domain/scope-catalogue.ts';
import { idPartOf, type TokenMint } from '../domain/token.ts';
import { SYSTEM_WORKSPACE } from '../domain/workspace.ts';
import type { Database } from '../storage/database.ts';
import { type LoadedKey, loadKeys, replaceHash, storeMemo } from '../storage/keys.ts';
import { createAccessTokens } from './access-tokens.ts';
import type { CatalogueCache } from './catalogue-cache.ts';
import { createKeyReader } from './key-reader.ts';
import type { EngineObserver } from './observer.ts';
import type { Charge, Quota } from './quota.ts';
import type { Flight, RecordCache, TokenName } from './record-cache.ts';
import type { SecretHasher } from './secret-hasher.ts';
import type { SigningKeys } from './signing-keys.ts';

/** What came of showing a service key: who calls, or why not. */
export type Authentication =
  | { readonly authenticated: true; readonly caller: Caller; readonly rateLimit: RateLimit | null }
  | { readonly authenticated: false; readonly because: 'invalid' | 'address' };

/** A token that somebody shows, with what was worked out of it: once, however often the same is shown again. */
export interface ShownToken {
  readonly token: string;
  readonly idPart: string;
  /** Its SHA-256, once that was asked for. Of a string that was made up it never is. */
  digest: string | undefined;
}

export function showToken(token: string): ShownToken {
  return { token, idPart: idPartOf(token), digest: undefined };
}

/** A promise only where the database or argon2 had to be asked: a warm answer waits for nothing. */
export type Soon<T> = T | Promise<T>;

/** Whether the holder of a key may be issued an access token, and what it is made of; else why not. */
export type Authorization =
  | { readonly authorized: true; readonly key: Key; readonly catalogue: Catalogue; readonly nowMs: number }
  | {
      readonly authorized: false;
      readonly because: 'invalid' | 'revoked' | 'expired' | 'disabled' | 'address';
    };

/** The key that a token belongs to. */
export interface Holder {
  readonly id: KeyId;
  readonly isRevoked: boolean;
}

export interface Verifier {
  /**
   * Decides what the holder of `token` may do: a key's own token, or an access token of a key.
   * @throws Failure `overloaded` or `unavailable`: no verdict was reached.
   */
  verify(token: string, question: Question): Soon<Decision>;
  /** Finds out which service key calls Claviger, from which address. Throws as `verify` does. */
  authenticate(token: string | ShownToken, address: () => string): Soon<Authentication>;
  /** The same where memory alone tells; `undefined` where it does not. Whoever goes by it says so (`recalled`). */
  recall(shown: ShownToken, address: () => string): Authentication | undefined;
  recalled(): void;
  /**
   * The key whose token this is, whatever became of the key, a service key too: for whoever may do to it what its holder
   * may. Proved, but for a revoked key, to which nothing more can be done. Throws as `verify` does.
   */
  identifyHolder(token: string): Promise<Holder | undefined>;
  /**
   * Finds out whether a client at this address may be issued access tokens for its key: it shows the key's id and own
   * token. No service key may. Throws as `verify` does.
   */
  authorizeClient(
    client: { readonly id: string; readonly token: string },
    address: string,
  ): Promise<Authorization>;
  /** Charges one call to the rate limit that a service key was given. Throws as `verify` does. */
  chargeCall(caller: Caller, rateLimit: RateLimit): Soon<Charge>;
  /** Keys that wait to be read from the database. */
  readsWaiting(): number;
}

/** A token's record and the database time (ms) to judge it by; `undefined` for a token that is not genuine. */
export type Resolved = { readonly record: KeyRecord; readonly nowMs: number } | undefined;

export interface VerifierOptions {
  readonly database: Database;
  readonly mint: TokenMint;
  readonly hasher: SecretHasher;
  readonly cache: RecordCache<Resolved>;
  readonly catalogues: CatalogueCache;
  readonly quota: Pick<Quota, 'charge'>;
  readonly signingKeys: Pick<SigningKeys, 'verify' | 'has'>;
  /** Whether memory may answer, and if it may, the database time to judge it by. */
  readonly lease: { isLeased(): boolean; leasedNow(): number | undefined };
  /** The key of the memo's MACs; `undefined`: no memo. */
  readonly memoKey: Uint8Array | undefined;
  readonly observer: EngineObserver;
}

/** The one way from a token to a verdict (docs/architecture.md): memory, else parse, load, prove; then decide. */
export function createVerifier(options: VerifierOptions): Verifier {
  const { database, mint, hasher, cache, catalogues, quota, lease, memoKey, observer } = options;
  const reader = createKeyReader(database);
  const accessTokens = createAccessTokens({ ...options, reader });

  function resolve(shown: ShownToken, leasedNowMs: number | undefined): Soon<Resolved> {
    const leased = leasedNowMs !== undefined;
    const held = leased ? fromMemory(shown, leasedNowMs) : undefined;
    if (held !== undefined) {
      observer.lookedUp('memory');
      return held;
    }
    const { token } = shown;
    const id = mint.identify(token);
    if (id === undefined) {
      observer.lookedUp('unminted');
      return undefined;
    }
    const name = nameOf(shown);
    if (!leased) {
      observer.lookedUp('database');
      return load({ token, name, id }, undefined);
    }
    const joined = cache.joinable(name.digest)?.outcome;
    if (joined !== undefined) {
      observer.lookedUp('joined');
      return joined;
    }
    observer.lookedUp('database');
    const flight = cache.begin(name, id);
    flight.outcome = load({ token, name, id }, flight).finally(() => cache.end(flight));
    return flight.outcome;
  }

  function fromMemory(shown: ShownToken, nowMs: number): Resolved {
    const place = cache.find(shown.idPart);
    const record = place === undefined ? undefined : cache.currentRecord(place);
    if (place === undefined || record === undefined || !cache.isOf(place, digestOf(shown))) return undefined;
    // A key that is over needs no proof: its token was minted here, and nothing but its end is told.
    if (!record.isProven && refuseUnproved(record.key, nowMs) === undefined) return undefined;
    return { record, nowMs };
  }

  async function load(
    { token, name, id }: { token: string; name: TokenName; id: KeyId },
    flight: Flight<Resolved> | undefined,
  ): Promise<Resolved> {
    // Without a lease no request shares a read, not even the statement.
    const loaded =
      flight === undefined
        ? (await database.read((executor) => loadKeys(executor, [id])))[0]
        : await reader.read(id);
    if (loaded === undefined) return undefined;
    const readAt = performance.now();
    const { key, workspace } = loaded;
    const record: KeyRecord = { key, workspace, restrictions: compileRestrictions(key.restrictions) };
    const over = refuseUnproved(key, loaded.nowMs) !== undefined;
    const hash = over ? loaded.hash : await prove(token, name, loaded);
    if (hash === undefined) return undefined;
    cache.store(name, { record, hash, proven: !over }, flight);
    // The proof may have waited long for its slot, and a request may have joined when the key was over already.
    return { record, nowMs: loaded.nowMs + (performance.now() - readAt) };
  }

  /** The hash that the token is now known to match; `undefined` for a token that does not match. */
  async function prove(
    token: string,
    name: TokenName,
    { key, hash, memo }: LoadedKey,
  ): Promise<string | undefined> {
    if (cache.isProven(name, hash)) {
      observer.proved('memory');
      return hash;
    }
    // Not for a weak hash: to replace it takes what argon2 alone shows, and the memo would keep it for ever.
    const usable = memo !== null && !hasher.isWeak(hash);
    if (usable && memoKey !== undefined && isEqual(memo, macOf(memoKey, token, hash))) {
      observer.proved('memo');
      return hash;
    }
    if (!(await hasher.verify(token, hash))) return undefined;
    observer.proved('argon2');
    const kept = hasher.isWeak(hash) ? await strengthen(token, key.id, hash) : hash;
    if (memoKey !== undefined) rememberProof(key.id, macOf(memoKey, token, kept));
    return kept;
  }

  /** Replaces a weak hash. Neither a full queue nor a lost database may refuse a genuine key for that. */
  async function strengthen(token: string, id: KeyId, hash: string): Promise<string> {
    try {
      const stronger = await hasher.hash(token);
      const replaced = await database.read((executor) =>
        replaceHash(executor, id, { from: hash, to: stronger }),
      );
      return replaced ? stronger : hash;
    } catch (error) {
      if (error instanceof Failure) return hash;
      throw error;
    }
  }

  /** Nobody waits for it and its loss costs an argon2: a failure is no news. */
  function rememberProof(id: KeyId, mac: Buffer): void {
    database.read((executor) => storeMemo(executor, id, mac)).catch(() => undefined);
  }

  function currentCatalogue(): Soon<Catalogue> {
    if (!lease.isLeased()) return catalogues.read();
    return catalogues.held() ?? catalogues.load();
  }

  /** Where the record or the catalogue has to be waited for. Each is of this request's time, or later. */
  async function decideLater(resolved: Soon<Resolved>, question: Question): Promise<Decision> {
    const found = await resolved;
    if (found === undefined) return INVALID;
    const foundAt = performance.now();
    const catalogue = await currentCatalogue();
    return chargeAllowed(
      decide(found.record, question, catalogue, found.nowMs + (performance.now() - foundAt)),
      question,
    );
  }

  /** Charges what passed all other checks, and nothing else. */
  function chargeAllowed(decision: Decision, { cost = 1 }: Question): Soon<Decision> {
    if (!decision.active) return decision;
    const { key, workspace } = decision.record;
    if (key.rateLimit === null && workspace.rateLimit === null) return decision;
    const charge = quota.charge({
      keyId: key.id,
      keyLimit: key.rateLimit,
      workspaceId: key.workspaceId,
      workspaceLimit: workspace.rateLimit,
      cost,
      leased: lease.isLeased(),
      nowMs: decision.nowMs,
    });
    return charge instanceof Promise
      ? charge.then((done) => decisionOf(decision, done))
      : decisionOf(decision, charge);
  }

  return {
    verify(token, question) {
      const leasedNowMs = lease.leasedNow();
      const leased = leasedNowMs !== undefined;
      const resolved = isJwt(token)
        ? accessTokens.resolve(token, leased)
        : resolve(showToken(token), leasedNowMs);
      const catalogue = leased ? catalogues.held() : undefined;
      if (resolved instanceof Promise || (resolved !== undefined && catalogue === undefined)) {
        return decideLater(resolved, question);
      }
      if (resolved === undefined || catalogue === undefined) return INVALID;
      return chargeAllowed(decide(resolved.record, question, catalogue, resolved.nowMs), question);
    },

    authenticate(token, address) {
      const shown = typeof token === 'string' ? showToken(token) : token;
      const resolved = resolve(shown, lease.leasedNow());
      return resolved instanceof Promise
        ? resolved.then((found) => authenticationOf(found, address))
        : authenticationOf(resolved, address);
    },

    recall(shown, address) {
      const leasedNowMs = lease.leasedNow();
      const found = leasedNowMs === undefined ? undefined : fromMemory(shown, leasedNowMs);
      return found && authenticationOf(found, address);
    },

    recalled: () => observer.lookedUp('memory'),

    async identifyHolder(token) {
      const shown = showToken(token);
      const found = await resolve(shown, lease.leasedNow());
      if (found === undefined) return undefined;
      const { id } = found.record.key;
      const status = statusOf(found.record.key, found.nowMs);
      if (status !== 'expired') return { id, isRevoked: status === 'revoked' };
      // Without a proof so far: that it has expired is told for the tag alone.
      const loaded = await reader.read(id);
      const proof = loaded && (await prove(token, nameOf(shown), loaded));
      return proof === undefined ? undefined : { id, isRevoked: false };
    },

    async authorizeClient({ id, token }, address) {
      // Before all else: a token of another key is none for this one, and an access token is none at all.
      if (mint.identify(token) !== id) return unauthorized('invalid');
      const found = await resolve(showToken(token), lease.leasedNow());
      if (found === undefined || found.record.key.workspaceId === SYSTEM_WORKSPACE)
        return unauthorized('invalid');
      const foundAt = performance.now();
      const { key, workspace, restrictions } = found.record;
      const status = statusOf(key, found.nowMs);
      if (status !== 'active') return unauthorized(status);
      if (workspace.disabled) return unauthorized('disabled');
      if (restrictions?.allowsAddress(address) === false) return unauthorized('address');
      const catalogue = await currentCatalogue();
      return { authorized: true, key, catalogue, nowMs: found.nowMs + (performance.now() - foundAt) };
    },

    chargeCall: ({ keyId, now }, rateLimit) =>
      quota.charge({
        keyId,
        keyLimit: rateLimit,
        workspaceId: SYSTEM_WORKSPACE,
        workspaceLimit: null,
        cost: 1,
        leased: lease.isLeased(),
        nowMs: now,
      }),

    readsWaiting: reader.waiting,
  };
}

function unauthorized(because: (Authorization & { authorized: false })['because']): Authorization {
  return { authorized: false, because };
}

function decisionOf({ record, nowMs }: Allowance, charge: Charge): Decision {
  if (charge.admitted) return { active: true, record, nowMs, rateLimit: charge.rateLimit };
  const { rateLimit, retryAfterSeconds, because } = charge;
  const detail =
    because === 'spent'
      ? `The rate limit of ${rateLimit.limit} in ${rateLimit.window_seconds} s leaves too little for this.`
      : 'The rate limit cannot be checked at the moment.';
  return {
    ...refuseKey(refuse('rate_limited', detail), record, nowMs),
    limited: { rateLimit, retryAfterSeconds },
  };
}

const NOT_GENUINE: Authentication = { authenticated: false, because: 'invalid' };
const WRONG_ADDRESS: Authentication = { authenticated: false, because: 'address' };

function authenticationOf(found: Resolved, address: () => string): Authentication {
  if (found === undefined) return NOT_GENUINE;
  const { record, nowMs } = found;
  if (record.key.workspaceId !== SYSTEM_WORKSPACE || refuseUnproved(record.key, nowMs) !== undefined)
    return NOT_GENUINE;
  if (record.restrictions?.allowsAddress(address()) === false) return WRONG_ADDRESS;
  return { authenticated: true, caller: callerOf(record.key, nowMs), rateLimit: record.key.rateLimit };
}

/** `binary` is Latin-1, a character for each byte: the cheapest way out of `hash`. */
function digestOf(shown: ShownToken): string {
  shown.digest ??= hash('sha256', shown.token, 'binary');
  return shown.digest;
}

function nameOf(shown: ShownToken): TokenName {
  return { idPart: shown.idPart, digest: digestOf(shown) };
}

/** `timingSafeEqual` throws where lengths differ, and a memo that is none must not cost its key the verdict. */
function isEqual(left: Buffer, right: Buffer): boolean {
  return left.length === right.length && timingSafeEqual(left, right);
}

/** The length of its parts is fixed by their forms, so that no other token and hash make the same text. */
function macOf(memoKey: Uint8Array, token: string, hash: string): Buffer {
  return hmacSha256(memoKey, token, hash);
}
