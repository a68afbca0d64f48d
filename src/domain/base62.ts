/** The alphabet in its order of value (contract §2). */
const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
const BASE = ALPHABET.length;

const VALUES = new Uint8Array(128).fill(BASE);
for (let value = 0; value < BASE; value++) VALUES[ALPHABET.charCodeAt(value)] = value;

const CODES = Buffer.from(ALPHABET, 'latin1');

/*
 * Both ways reckon in words of 32 bits: a remainder below 62 before a word, and a word times 62, are exact as
 * doubles. Every number of a token fills whole words.
 */
const WORD_BYTES = 4;
const WORD = 2 ** 32;

/** Writes big-endian `bytes`, a multiple of four, as `length` base62 characters, left-padded with `0`. */
export function encodeBase62(bytes: Uint8Array, length: number): string {
  const words = wordsOf(bytes);
  const text = Buffer.allocUnsafe(length);
  for (let position = length - 1; position >= 0; position--) {
    let remainder = 0;
    for (let index = 0; index < words.length; index++) {
      const dividend = remainder * WORD + (words[index] ?? 0);
      words[index] = Math.floor(dividend / BASE);
      remainder = dividend % BASE;
    }
    text[position] = CODES[remainder] ?? 0;
  }
  return text.toString('latin1');
}

/**
 * Reads base62 `text` as `byteLength` big-endian bytes, a multiple of four; `undefined` if a character or the value
 * does not fit.
 */
export function decodeBase62(text: string, byteLength: number): Uint8Array | undefined {
  const words = new Uint32Array(byteLength / WORD_BYTES);
  for (let position = 0; position < text.length; position++) {
    let carry = VALUES[text.charCodeAt(position)] ?? BASE;
    if (carry === BASE) return undefined;
    for (let index = words.length - 1; index >= 0; index--) {
      const product = (words[index] ?? 0) * BASE + carry;
      carry = Math.floor(product / WORD);
      words[index] = product - carry * WORD;
    }
    if (carry !== 0) return undefined;
  }
  const bytes = new Uint8Array(byteLength);
  const view = new DataView(bytes.buffer);
  words.forEach((word, index) => {
    view.setUint32(index * WORD_BYTES, word);
  });
  return bytes;
}

/** Reads base62 `text` of at most eight characters, whose value is below 2^53; `undefined` for another character. */
export function decodeNumber(text: string): number | undefined {
  let number = 0;
  for (let position = 0; position < text.length; position++) {
    const value = VALUES[text.charCodeAt(position)] ?? BASE;
    if (value === BASE) return undefined;
    number = number * BASE + value;
  }
  return number;
}

/**
 * Reads base62 `text` of at most 14 characters as two words, high and low, into `words`; answers whether each character
 * and the value fit. A fraction of what `decodeBase62` takes.
 */
export function decodeWords(text: string, words: Uint32Array): boolean {
  let high = 0;
  let low = 0;
  for (let position = 0; position < text.length; position++) {
    const value = VALUES[text.charCodeAt(position)] ?? BASE;
    if (value === BASE) return false;
    const product = low * BASE + value;
    const carry = Math.floor(product / WORD);
    low = product - carry * WORD;
    high = high * BASE + carry;
  }
  words[0] = high;
  words[1] = low;
  return high < WORD;
}

function wordsOf(bytes: Uint8Array): Uint32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const words = new Uint32Array(bytes.byteLength / WORD_BYTES);
  for (let index = 0; index < words.length; index++) words[index] = view.getUint32(index * WORD_BYTES);
  return words;
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
