import { createCipheriv, createDecipheriv } from 'node:crypto';

/*
 * AES-256-GCM: nonce(12) ciphertext tag(16). `context` is authenticated with it: what was sealed for one row does not
 * open in another.
 */
const CIPHER = 'aes-256-gcm';
const NONCE_BYTES = 12;
const TAG_BYTES = 16;

export interface SealingKey {
  /** 32 bytes. */
  readonly key: Uint8Array;
  readonly context: string;
}

/** @param randomBytes the CSPRNG: a nonce of its own for each text that one key seals. */
export function seal(
  text: string,
  { key, context }: SealingKey,
  randomBytes: (size: number) => Uint8Array,
): Buffer {
  const nonce = randomBytes(NONCE_BYTES);
  const cipher = createCipheriv(CIPHER, key, nonce).setAAD(Buffer.from(context));
  return Buffer.concat([nonce, cipher.update(text, 'utf8'), cipher.final(), cipher.getAuthTag()]);
}

/** @throws where it was sealed with anything else, or was changed since. */
export function unseal(sealed: Buffer, { key, context }: SealingKey): string {
  const nonce = sealed.subarray(0, NONCE_BYTES);
  const decipher = createDecipheriv(CIPHER, key, nonce, { authTagLength: TAG_BYTES })
    .setAAD(Buffer.from(context))
    .setAuthTag(sealed.subarray(-TAG_BYTES));
  const text = decipher.update(sealed.subarray(NONCE_BYTES, -TAG_BYTES));
  return Buffer.concat([text, decipher.final()]).toString('utf8');
}
