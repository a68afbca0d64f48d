/** The alphabet in its order of value (contract §2). */
const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
const BASE = ALPHABET.length;

const VALUES = new Uint8Array(128).fill(BASE);
for (let value = 0; value < BASE; value++) VALUES[ALPHABET.charCodeAt(value)] = value;

/** Writes big-endian `bytes` as `length` base62 characters, left-padded with `0`. */
export function encodeBase62(bytes: Uint8Array, length: number): string {
  const rest = Uint8Array.from(bytes);
  let text = '';
  for (let position = 0; position < length; position++) {
    let remainder = 0;
    for (let index = 0; index < rest.length; index++) {
      const dividend = remainder * 256 + (rest[index] ?? 0);
      rest[index] = Math.floor(dividend / BASE);
      remainder = dividend % BASE;
    }
    text = ALPHABET.charAt(remainder) + text;
  }
  return text;
}

/** Reads base62 `text` as `byteLength` big-endian bytes; `undefined` if a character or the value does not fit. */
export function decodeBase62(text: string, byteLength: number): Uint8Array | undefined {
  const bytes = new Uint8Array(byteLength);
  for (let position = 0; position < text.length; position++) {
    let carry = VALUES[text.charCodeAt(position)] ?? BASE;
    if (carry === BASE) return undefined;
    for (let index = byteLength - 1; index >= 0; index--) {
      const product = (bytes[index] ?? 0) * BASE + carry;
      bytes[index] = product & 0xff;
      carry = product >>> 8;
    }
    if (carry !== 0) return undefined;
  }
  return bytes;
}

/**
 * `length` characters drawn uniformly: bytes of 248 and more are thrown away, since 248 is the largest
 * multiple of 62 that a byte holds and the rest would favour the first characters.
 */
export function randomBase62(length: number, randomBytes: (size: number) => Uint8Array): string {
  let text = '';
  while (text.length < length) {
    for (const byte of randomBytes(length - text.length)) {
      if (byte < BASE * 4) text += ALPHABET.charAt(byte % BASE);
    }
  }
  return text;
}
