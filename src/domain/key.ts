import type { KeyId } from './key-id.ts';
import type { RateLimit } from './rate-limit.ts';
import type { Restrictions } from './restriction.ts';

export type JsonValue = null | boolean | number | string | readonly JsonValue[] | JsonObject;
export interface JsonObject {
  readonly [member: string]: JsonValue;
}

/** A key as it is stored, without its hash. Times are milliseconds since the epoch. */
export interface Key {
  readonly id: KeyId;
  readonly workspaceId: string;
  readonly environment: string;
  readonly name: string;
  /** `ck_live_` and the token's last characters: all that is kept of how the token reads. */
  readonly prefix: string;
  readonly lastCharacters: string;
  readonly scopes: readonly string[];
  readonly restrictions: Restrictions | null;
  readonly rateLimit: RateLimit | null;
  readonly metadata: JsonObject | null;
  readonly createdBy: string | null;
  readonly createdAt: number;
  readonly expiresAt: number | null;
  readonly revokedAt: number | null;
  readonly revokedReason: string | null;
  /** The key that this one succeeds, and the one that succeeds it (rotation.ts). */
  readonly rotatedFrom: KeyId | null;
  readonly rotatedTo: KeyId | null;
}

export const KEY_STATUSES = ['active', 'expired', 'revoked'] as const;
export type KeyStatus = (typeof KEY_STATUSES)[number];

/** Computed, never stored: a revoked key stays revoked whatever its expiry says. */
export function statusOf(key: Pick<Key, 'revokedAt' | 'expiresAt'>, nowMs: number): KeyStatus {
  if (key.revokedAt !== null) return 'revoked';
  return key.expiresAt !== null && key.expiresAt <= nowMs ? 'expired' : 'active';
}
