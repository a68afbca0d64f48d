import { hash as digest } from 'node:crypto';
import { LRUCache } from 'lru-cache';
import type { KeyRecord } from '../domain/decision.ts';
import type { KeyId } from '../domain/key-id.ts';
import { compileRestrictions } from '../domain/restriction.ts';
import type { Database } from '../storage/database.ts';
import { type LoadedKey, loadKeys } from '../storage/keys.ts';
import { isTokenRevoked } from '../storage/revoked-tokens.ts';
import type { KeyReader } from './key-reader.ts';
import { DIGEST_LENGTH } from './name-cache.ts';
import type { EngineObserver } from './observer.ts';
import type { Flight, RecordCache, TokenName } from './record-cache.ts';
import type { Signed, SigningKeys } from './signing-keys.ts';
import type { Resolved, Soon } from './verifier.ts';

/*
 * From an access token to what is decided on: the record of the key behind it, and whether the token was revoked by
 * itself. Memory holds of each token, found by its digest:
 *
 *   signed   what it says, and that one of our keys signed that. Never stale, as long as that key is believed.
 *   record   its key's record with the token's own state, as they were read together
 *   behind   the record of the key that this was read beside
 *
 * A token's state was read after `behind` was in hand. To revoke a token is a change of its key, which drops `behind`
 * from every memory: a token's record is good just as long as `behind` is the very object that the record cache holds
 * for its key (record-cache.ts, docs/revocation.md).
 */

/** The least recently used go first. Each takes about half a kilobyte, and one that is not remembered a signature. */
const MOST_TOKENS = 50_000;

interface Held {
  readonly signed: Signed;
  readonly record: KeyRecord;
  readonly behind: KeyRecord;
}

export interface AccessTokens {
  /** The record to decide on for an access token; `undefined` for what is none of ours. Throws as `verify` does. */
  resolve(jwt: string, leased: boolean): Soon<Resolved>;
}

export interface AccessTokensOptions {
  readonly database: Database;
  readonly reader: KeyReader;
  readonly cache: RecordCache<Resolved>;
  readonly signingKeys: Pick<SigningKeys, 'verify' | 'has'>;
  readonly lease: { leasedNow(): number | undefined };
  readonly observer: Pick<EngineObserver, 'lookedUp'>;
}

export function createAccessTokens(options: AccessTokensOptions): AccessTokens {
  const { database, reader, cache, signingKeys, lease, observer } = options;
  const tokens = new LRUCache<string, Held>({ max: MOST_TOKENS });

  /** What is held of a key itself, by its id: no token of a key is found by that. */
  function currentRecord(keyId: KeyId): KeyRecord | undefined {
    const place = cache.find(keyId);
    return place !== undefined && cache.isOf(place, nameOf(keyId).digest)
      ? cache.currentRecord(place)
      : undefined;
  }

  async function load(jwt: string, tokenDigest: string, leased: boolean): Promise<Resolved> {
    const known = tokens.get(tokenDigest)?.signed;
    const signed = known !== undefined && signingKeys.has(known.kid) ? known : await signingKeys.verify(jwt);
    if (signed === undefined) {
      observer.lookedUp('unminted');
      return undefined;
    }
    observer.lookedUp('database');
    const { token } = signed;
    const found = await loadRecord(token.keyId, leased);
    if (found === undefined) return undefined;
    const foundAt = performance.now();
    const behind = leased ? currentRecord(token.keyId) : undefined;
    // Read when `behind` is in hand, not sooner.
    const isRevoked = await database.read((executor) => isTokenRevoked(executor, token.jti));
    const { key, workspace, restrictions } = behind ?? found.record;
    const record: KeyRecord = { key, workspace, restrictions, accessToken: { ...token, isRevoked } };
    if (behind !== undefined) tokens.set(tokenDigest, { signed, record, behind });
    return { record, nowMs: found.nowMs + (performance.now() - foundAt) };
  }

  /** By the road of all records (verifier.ts), but for the proof: the signature was that. */
  function loadRecord(keyId: KeyId, leased: boolean): Soon<Resolved> {
    if (!leased) return readRecord(keyId, undefined);
    const record = currentRecord(keyId);
    const nowMs = lease.leasedNow();
    if (record !== undefined && nowMs !== undefined) return { record, nowMs };
    const underWay = cache.joinable(nameOf(keyId).digest)?.outcome;
    if (underWay !== undefined) return underWay;
    const flight = cache.begin(nameOf(keyId), keyId);
    flight.outcome = readRecord(keyId, flight).finally(() => cache.end(flight));
    return flight.outcome;
  }

  async function readRecord(keyId: KeyId, flight: Flight<Resolved> | undefined): Promise<Resolved> {
    const loaded: LoadedKey | undefined =
      flight === undefined
        ? (await database.read((executor) => loadKeys(executor, [keyId])))[0]
        : await reader.read(keyId);
    if (loaded === undefined) return undefined;
    const readAt = performance.now();
    const { key, workspace, hash } = loaded;
    const record: KeyRecord = { key, workspace, restrictions: compileRestrictions(key.restrictions) };
    cache.store(nameOf(keyId), { record, hash, proven: false }, flight);
    return { record, nowMs: loaded.nowMs + (performance.now() - readAt) };
  }

  return {
    resolve(jwt, leased) {
      const tokenDigest = digest('sha256', jwt, 'binary');
      const held = leased ? tokens.get(tokenDigest) : undefined;
      if (held !== undefined && signingKeys.has(held.signed.kid)) {
        const nowMs = lease.leasedNow();
        if (nowMs !== undefined && currentRecord(held.signed.token.keyId) === held.behind) {
          observer.lookedUp('memory');
          return { record: held.record, nowMs };
        }
      }
      return load(jwt, tokenDigest, leased);
    },
  };
}

/** Under which a key itself is held: no token has such a name. */
function nameOf(keyId: KeyId): TokenName {
  return { idPart: keyId, digest: keyId.padEnd(DIGEST_LENGTH) };
}
