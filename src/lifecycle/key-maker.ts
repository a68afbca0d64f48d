import type { Key } from '../domain/key.ts';
import { newKeyId } from '../domain/key-id.ts';
import type { KeySettings } from '../domain/key-patch.ts';
import { HINT_LENGTH, type TokenMint } from '../domain/token.ts';
import { type Actor, appendAuditEvent } from '../storage/audit.ts';
import type { Executor } from '../storage/database.ts';
import { insertKey } from '../storage/keys.ts';
import type { SecretHasher } from '../verification/secret-hasher.ts';
import { keyShown } from './audit.ts';

/** A key with its token, which is shown this once and then gone. */
export interface CreatedKey {
  readonly key: Key;
  readonly token: string;
}

/** A key that is minted and hashed, and stands in no table yet. */
export interface MadeKey extends CreatedKey {
  readonly hash: string;
  readonly secretId: number;
}

export interface KeyMaker {
  /** Mints and hashes: outside any transaction, since that takes a core for a while. */
  make(
    nowMs: number,
    settings: KeySettings & Pick<Key, 'workspaceId' | 'environment' | 'createdBy'>,
  ): Promise<MadeKey>;
  /** Stores a key, with the audit event of its creation. */
  insert(executor: Executor, actor: Actor, made: MadeKey): Promise<CreatedKey>;
}

export interface KeyMakerOptions {
  readonly hasher: SecretHasher;
  readonly mint: TokenMint;
  /** The row of the secret that mints (storage/key-secrets.ts). */
  readonly secretId: number;
  readonly prefix: string;
}

export function createKeyMaker({ hasher, mint, secretId, prefix }: KeyMakerOptions): KeyMaker {
  return {
    async make(nowMs, settings) {
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
        rotatedFrom: null,
        rotatedTo: null,
      };
      return { key, token, hash: await hasher.hash(token), secretId };
    },

    async insert(executor, actor, made) {
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
          after:
            key.rotatedFrom === null ? keyShown(key) : { ...keyShown(key), rotated_from: key.rotatedFrom },
        },
        key.createdAt,
      );
      return { key, token };
    },
  };
}
