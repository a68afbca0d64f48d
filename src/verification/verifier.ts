import { type Caller, callerOf } from '../domain/caller.ts';
import {
  type Decision,
  decide,
  INVALID,
  isVisible,
  type KeyRecord,
  type Question,
  refuseUnproved,
} from '../domain/decision.ts';
import { Failure } from '../domain/errors.ts';
import type { Key } from '../domain/key.ts';
import { compileRestrictions } from '../domain/restriction.ts';
import type { TokenMint } from '../domain/token.ts';
import { SYSTEM_WORKSPACE } from '../domain/workspace.ts';
import type { Database } from '../storage/database.ts';
import { findHashedKey, replaceHash } from '../storage/keys.ts';
import type { SecretHasher } from './secret-hasher.ts';

/** What came of showing a service key: who calls, or why not. */
export type Authentication =
  | { readonly authenticated: true; readonly caller: Caller }
  | { readonly authenticated: false; readonly because: 'invalid' | 'address' };

export interface Verifier {
  /**
   * Decides what the holder of `token` may do.
   * @throws Failure `overloaded` or `unavailable`: no verdict was reached.
   */
  verify(token: string, question: Question): Promise<Decision>;
  /** Finds out which service key calls Claviger, from which address. Throws as `verify` does. */
  authenticate(token: string, address: string): Promise<Authentication>;
}

export interface VerifierOptions {
  readonly database: Database;
  readonly mint: TokenMint;
  readonly hasher: SecretHasher;
}

/** The one way from a token to a verdict: parse, load, prove, decide. */
export function createVerifier({ database, mint, hasher }: VerifierOptions): Verifier {
  async function load(token: string) {
    const id = mint.identify(token);
    return id === undefined ? undefined : database.read((executor) => findHashedKey(executor, id));
  }

  async function proves(token: string, key: Key, hash: string): Promise<boolean> {
    if (!(await hasher.verify(token, hash))) return false;
    if (hasher.isWeak(hash)) await strengthen(token, key, hash);
    return true;
  }

  /** Saves nothing but risk, so that neither a full queue nor a lost database may refuse a genuine key here. */
  async function strengthen(token: string, key: Key, hash: string): Promise<void> {
    try {
      const stronger = await hasher.hash(token);
      await database.read((executor) => replaceHash(executor, key.id, { from: hash, to: stronger }));
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
    }
  }

  return {
    async verify(token, question) {
      const found = await load(token);
      if (found === undefined) return INVALID;
      const { hashed, nowMs } = found;
      if (!isVisible(hashed.key, question)) return INVALID;
      const unproved = refuseUnproved(hashed.key, nowMs);
      if (unproved !== undefined) return unproved;
      if (!(await proves(token, hashed.key, hashed.hash))) return INVALID;
      return decide(recordOf(hashed.key), question, nowMs);
    },

    async authenticate(token, address) {
      const found = await load(token);
      const key = found?.hashed.key;
      if (found === undefined || key === undefined || key.workspaceId !== SYSTEM_WORKSPACE)
        return NOT_GENUINE;
      if (refuseUnproved(key, found.nowMs) !== undefined) return NOT_GENUINE;
      if (!(await proves(token, key, found.hashed.hash))) return NOT_GENUINE;
      if (recordOf(key).restrictions?.allowsAddress(address) === false) return WRONG_ADDRESS;
      return { authenticated: true, caller: callerOf(key, found.nowMs) };
    },
  };
}

const NOT_GENUINE: Authentication = { authenticated: false, because: 'invalid' };
const WRONG_ADDRESS: Authentication = { authenticated: false, because: 'address' };

function recordOf(key: Key): KeyRecord {
  return { key, restrictions: compileRestrictions(key.restrictions) };
}
