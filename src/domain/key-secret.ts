import { createHmac, hkdfSync } from 'node:crypto';

/** What keys are derived for. A purpose is never used for two things, and never renamed: it is part of the key. */
export type KeyPurpose = 'mint' | 'cursor' | 'fingerprint' | 'memo' | 'idempotency' | 'answer' | 'signing';

/** One of the comma-separated values of `KEY_SECRET`, as the keys derived from it; the value itself is not kept. */
export interface KeySecret {
  derive(purpose: KeyPurpose): Buffer;
  /** Tells secrets apart in the database without telling anything about them: HKDF output, 16 bytes. */
  readonly fingerprint: Buffer;
}

const DERIVED_BYTES = 32;
const FINGERPRINT_BYTES = 16;

/** Derives by HKDF-SHA-256 (RFC 5869) with the purpose as `info`; the secret has full entropy, so no salt. */
export function keySecret(value: string): KeySecret {
  const derive = (purpose: KeyPurpose, bytes = DERIVED_BYTES) =>
    Buffer.from(hkdfSync('sha256', value, '', `claviger/${purpose}`, bytes));
  return {
    derive: (purpose) => derive(purpose),
    fingerprint: derive('fingerprint', FINGERPRINT_BYTES),
  };
}

export function hmacSha256(key: Uint8Array, ...parts: readonly (string | Uint8Array)[]): Buffer {
  const hmac = createHmac('sha256', key);
  for (const part of parts) hmac.update(part);
  return hmac.digest();
}
