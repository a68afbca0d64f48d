import { hash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import { decodeBase62, decodeNumber, decodeWords, encodeBase62, randomBase62 } from './base62.ts';
import { type KeyId, keyIdFromBytes, keyIdToBytes } from './key-id.ts';

/*
 * <prefix>_<environment>_ id(22) secret(27) tag(11) checksum(6), contract §2.
 * The tag says that this deployment minted the string; the checksum finds typing errors without any secret.
 * Neither is the proof: that is the argon2id hash of the whole token.
 */
const ID_LENGTH = 22;
const SECRET_LENGTH = 27;
const TAG_LENGTH = 11;
const CHECKSUM_LENGTH = 6;
/** What stands behind the two labels. */
export const BODY_LENGTH = ID_LENGTH + SECRET_LENGTH + TAG_LENGTH + CHECKSUM_LENGTH;
const ID_BYTES = 16;
const TAG_BYTES = 8;

/** `KEY_PREFIX` and the names of environments: short, and no `_`, since that separates them. */
export const LABEL_PATTERN = /^[a-z][a-z0-9]{0,15}$/;
const TOKEN_PATTERN = new RegExp(`^[a-z][a-z0-9]{0,15}_[a-z][a-z0-9]{0,15}_[0-9A-Za-z]{${BODY_LENGTH}}$`);

/** The longest string worth looking at: two labels of 16 characters, two separators, the body. */
export const MAX_TOKEN_LENGTH = 16 + 1 + 16 + 1 + BODY_LENGTH;
/** Two labels of one character. */
export const MIN_TOKEN_LENGTH = 1 + 1 + 1 + 1 + BODY_LENGTH;

/** How many characters of a token's end its hint shows. They are part of the checksum and tell nothing of the secret. */
export const HINT_LENGTH = 4;

/**
 * The part of a token that is its key's id; of any other string, whatever stands there. It tells which key a token
 * claims to be of, and nothing of whether it is.
 */
export function idPartOf(token: string): string {
  return token.slice(-BODY_LENGTH, ID_LENGTH - BODY_LENGTH);
}

/** The same of the token of a key, from the key's id. */
export function idPartOfKey(id: KeyId): string {
  return encodeBase62(keyIdToBytes(id), ID_LENGTH);
}

export interface TokenMint {
  /** Makes the token of a key: `prefix` and `environment` are labels, `id` is the key's. */
  mint(key: { readonly prefix: string; readonly environment: string; readonly id: KeyId }): string;
  /** The id of the key that a token names, or `undefined` for any string that this deployment did not mint. */
  identify(token: string): KeyId | undefined;
}

/**
 * @param mintKeys HMAC keys derived from `KEY_SECRET`, newest first: the first mints, all verify.
 * @param randomBytes the CSPRNG.
 */
export function createTokenMint(
  mintKeys: readonly [Uint8Array, ...Uint8Array[]],
  randomBytes: (size: number) => Uint8Array,
): TokenMint {
  const taggers = mintKeys.map(createTagger);
  const [newest] = taggers as [Tagger, ...Tagger[]];
  return {
    mint({ prefix, environment, id }) {
      const secret = randomBase62(SECRET_LENGTH, randomBytes);
      const untagged = `${prefix}_${environment}_${idPartOfKey(id)}${secret}`;
      const unchecked = untagged + encodeBase62(newest.tagOf(untagged), TAG_LENGTH);
      return unchecked + checksumOf(unchecked);
    },

    identify(token) {
      if (token.length < MIN_TOKEN_LENGTH || token.length > MAX_TOKEN_LENGTH) return undefined;
      const unchecked = token.slice(0, -CHECKSUM_LENGTH);
      if (crc32(unchecked) !== decodeNumber(token.slice(-CHECKSUM_LENGTH))) return undefined;
      const untagged = unchecked.slice(0, -TAG_LENGTH);
      const tag = unchecked.slice(-TAG_LENGTH);
      if (!taggers.some((tagger) => tagger.isTag(tag, untagged))) return undefined;
      // Last, since a string that was made up costs less so.
      if (!TOKEN_PATTERN.test(token)) return undefined;
      const id = decodeBase62(untagged.slice(-SECRET_LENGTH - ID_LENGTH, -SECRET_LENGTH), ID_BYTES);
      return id && keyIdFromBytes(id);
    },
  };
}

const TOKEN_WITHIN = new RegExp(TOKEN_PATTERN.source.slice(1, -1), 'g');

/** Whether a text holds something that looks like a token: one that was typed into the wrong field must not be stored. */
export function holdsToken(text: string): boolean {
  const found = text.match(TOKEN_WITHIN) ?? [];
  return found.some(
    (token) => checksumOf(token.slice(0, -CHECKSUM_LENGTH)) === token.slice(-CHECKSUM_LENGTH),
  );
}

/** What lists show of a token: its prefix and its last characters. */
export function hintOf(prefix: string, lastCharacters: string): string {
  return `${prefix}…${lastCharacters}`;
}

/** Tags with one mint key. */
interface Tagger {
  /** The tag of a text, big-endian. */
  tagOf(untagged: string): Uint8Array;
  /** Whether this, in base62, is the tag of a text. Takes as long for every wrong tag. */
  isTag(tag: string, untagged: string): boolean;
}

const BLOCK_BYTES = 64;
const HASH_BYTES = 32;
const TAG_WORDS = TAG_BYTES / 4;

/**
 * HMAC-SHA-256 (RFC 2104) by its definition, H(key ⊕ opad ‖ H(key ⊕ ipad ‖ text)), cut to the tag's length. A flood of
 * strings that we did not mint costs little more than this, and node's Hmac object takes three times as long.
 */
function createTagger(mintKey: Uint8Array): Tagger {
  if (mintKey.length > BLOCK_BYTES) throw new RangeError('a mint key longer than a block of SHA-256');
  const inner = Buffer.alloc(BLOCK_BYTES + MAX_TOKEN_LENGTH, 0x36);
  const outer = Buffer.alloc(BLOCK_BYTES + HASH_BYTES, 0x5c);
  mintKey.forEach((byte, index) => {
    inner[index] = byte ^ 0x36;
    outer[index] = byte ^ 0x5c;
  });
  /** `inner` up to the end of a text of each length: to make one anew takes a third of what a hash does. */
  const inners: Uint8Array[] = [];
  const shown = new Uint32Array(TAG_WORDS);

  /** A character for each byte: the cheapest way out of `hash`, which it calls `binary`. */
  function macOf(untagged: string): string {
    const { length } = untagged;
    inner.write(untagged, BLOCK_BYTES, 'latin1');
    inners[length] ??= inner.subarray(0, BLOCK_BYTES + length);
    outer.write(hash('sha256', inners[length], 'binary'), BLOCK_BYTES, 'latin1');
    return hash('sha256', outer, 'binary');
  }

  return {
    tagOf: (untagged) => Buffer.from(macOf(untagged), 'latin1').subarray(0, TAG_BYTES),

    isTag(tag, untagged) {
      if (!decodeWords(tag, shown)) return false;
      const mac = macOf(untagged);
      // All words are compared, whatever the first ones are: the time tells nothing of where they differ.
      let difference = 0;
      for (let index = 0; index < TAG_WORDS; index++) difference |= wordAt(mac, index) ^ (shown[index] ?? 0);
      return difference === 0;
    },
  };
}

/** Four bytes of a text that has a character for each, as a signed number. */
function wordAt(text: string, index: number): number {
  const at = index * 4;
  return (
    (text.charCodeAt(at) << 24) |
    (text.charCodeAt(at + 1) << 16) |
    (text.charCodeAt(at + 2) << 8) |
    text.charCodeAt(at + 3)
  );
}

function checksumOf(unchecked: string): string {
  const bytes = Buffer.allocUnsafe(4);
  bytes.writeUInt32BE(crc32(unchecked));
  return encodeBase62(bytes, CHECKSUM_LENGTH);
}
