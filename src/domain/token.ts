import { hash, timingSafeEqual } from 'node:crypto';
import { crc32 } from 'node:zlib';
import { decodeBase62, decodeNumber, encodeBase62, randomBase62 } from './base62.ts';
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
  const [tagOf] = taggers as [Tagger, ...Tagger[]];
  return {
    mint({ prefix, environment, id }) {
      const secret = randomBase62(SECRET_LENGTH, randomBytes);
      const untagged = `${prefix}_${environment}_${idPartOfKey(id)}${secret}`;
      const unchecked = untagged + encodeBase62(tagOf(untagged), TAG_LENGTH);
      return unchecked + checksumOf(unchecked);
    },

    identify(token) {
      if (token.length > MAX_TOKEN_LENGTH || !TOKEN_PATTERN.test(token)) return undefined;
      const unchecked = token.slice(0, -CHECKSUM_LENGTH);
      if (crc32(unchecked) !== decodeNumber(token.slice(-CHECKSUM_LENGTH))) return undefined;
      const untagged = unchecked.slice(0, -TAG_LENGTH);
      const tag = decodeBase62(unchecked.slice(-TAG_LENGTH), TAG_BYTES);
      if (tag === undefined || !taggers.some((tagged) => timingSafeEqual(tagged(untagged), tag)))
        return undefined;
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

/** The tag of a text; the bytes are good until the next call. */
type Tagger = (untagged: string) => Uint8Array;

const BLOCK_BYTES = 64;
const HASH_BYTES = 32;

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
  const tag = Buffer.alloc(TAG_BYTES);
  // `binary` is Latin-1, a character for each byte: the cheapest way out of `hash`.
  return (untagged) => {
    const end = BLOCK_BYTES + inner.write(untagged, BLOCK_BYTES, 'latin1');
    outer.write(hash('sha256', inner.subarray(0, end), 'binary'), BLOCK_BYTES, 'latin1');
    tag.write(hash('sha256', outer, 'binary'), 0, TAG_BYTES, 'latin1');
    return tag;
  };
}

function checksumOf(unchecked: string): string {
  const bytes = Buffer.allocUnsafe(4);
  bytes.writeUInt32BE(crc32(unchecked));
  return encodeBase62(bytes, CHECKSUM_LENGTH);
}
