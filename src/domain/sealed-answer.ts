import { hkdfSync } from 'node:crypto';
import type { KeyId } from './key-id.ts';
import { hmacSha256 } from './key-secret.ts';
import { seal, unseal } from './sealing.ts';

/*
 * An answer that holds a token, kept for a retry (docs/idempotency.md): AES-256-GCM under a key that takes three
 * things to derive, KEY_SECRET, the token of the calling service key and its Idempotency-Key. The last may be
 * guessable; the first two are in no table.
 *
 * salt(32), then what sealing.ts makes of it, for the id of the row.
 */
const SALT_BYTES = 32;
const KEY_BYTES = 32;
const INFO = 'claviger/answer/aes-256-gcm';

/** What it takes to open an answer again. */
export interface Seal {
  /** Derived from a value of `KEY_SECRET` for the purpose `answer`. */
  readonly secret: Uint8Array;
  readonly callerToken: string;
  readonly idempotencyKey: string;
  /** The id of the row: what was sealed for one does not open in another. */
  readonly rowId: string;
}

/**
 * Where an answer is found: an HMAC under a key derived from `KEY_SECRET` for the purpose `idempotency`, so that a
 * table of them tells nothing of guessable Idempotency-Keys. A key id has a fixed length: no two pairs share a text.
 */
export function lookupMac(
  lookupKey: Uint8Array,
  { callerId, idempotencyKey }: { readonly callerId: KeyId; readonly idempotencyKey: string },
): Buffer {
  return hmacSha256(lookupKey, callerId, idempotencyKey);
}

/** @param randomBytes the CSPRNG: a salt of its own for each answer makes a key of its own. */
export function sealAnswer(
  answer: string,
  { rowId, ...secrets }: Seal,
  randomBytes: (size: number) => Uint8Array,
): Buffer {
  const salt = randomBytes(SALT_BYTES);
  return Buffer.concat([salt, seal(answer, { key: sealingKey(secrets, salt), context: rowId }, randomBytes)]);
}

/** @throws where it was sealed with anything else, or was changed since. */
export function openAnswer(sealed: Buffer, { rowId, ...secrets }: Seal): string {
  const salt = sealed.subarray(0, SALT_BYTES);
  return unseal(sealed.subarray(SALT_BYTES), { key: sealingKey(secrets, salt), context: rowId });
}

/** HKDF-SHA-256 (RFC 5869). Neither tokens nor Idempotency-Keys hold a space: no two triples share a text. */
function sealingKey({ secret, callerToken, idempotencyKey }: Omit<Seal, 'rowId'>, salt: Uint8Array): Buffer {
  const material = Buffer.concat([secret, Buffer.from(`${callerToken} ${idempotencyKey}`)]);
  return Buffer.from(hkdfSync('sha256', material, salt, INFO, KEY_BYTES));
}
