import type { Key } from './key.ts';
import type { KeyId } from './key-id.ts';
import type { Catalogue } from './scope-catalogue.ts';

/** What an access token says of itself: a JWT (RFC 9068) that was issued for a key. Times in seconds since the epoch. */
export interface AccessToken {
  readonly jti: string;
  readonly keyId: KeyId;
  readonly scopes: readonly string[];
  readonly issuedAt: number;
  readonly expiresAt: number;
}

/** All JWTs begin so, `{"` in base64url, and no key's token does: its first label is lower-case. */
const JWT_START = 'eyJ';

/** Whether a string is to be looked at as an access token, rather than as a key's own. */
export function isJwt(token: string): boolean {
  return token.startsWith(JWT_START);
}

/** RFC 6749 §3.3: `scope-token`s with one space between them; `undefined` for what is no such text. */
export function parseScope(text: string): string[] | undefined {
  if (!/^[!#-[\]-~]+( [!#-[\]-~]+)*$/.test(text)) return undefined;
  return [...new Set(text.split(' '))];
}

/** Whether who holds these scopes has this one, directly or by `implies`. */
export function holdsScope(held: readonly string[], wanted: string, catalogue: Catalogue): boolean {
  return held.includes(wanted) || catalogue.implies(held, wanted);
}

/** The key as an access token lets it be used: of the token's scopes those that the key still has. */
export function narrowKey(key: Key, { scopes }: AccessToken, catalogue: Catalogue): Key {
  return { ...key, scopes: scopes.filter((scope) => holdsScope(key.scopes, scope, catalogue)) };
}

/** When an access token ends, in milliseconds: with its key at the latest, whose expiry may have moved since. */
export function endOf(key: Key, { expiresAt }: AccessToken): number {
  return Math.min(expiresAt * 1000, key.expiresAt ?? Number.POSITIVE_INFINITY);
}
