import { TypeID } from 'typeid-js';
import { v7 as uuidv7 } from 'uuid';

/** A key's id as callers see it: a TypeID 0.3, `key_` and 26 characters. In the database it is the UUIDv7 itself. */
export type KeyId = string;

const TYPE = 'key';
const PREFIX = `${TYPE}_`;
const SUFFIX_LENGTH = 26;
/** The alphabet of TypeID, in its order of value: by the code of a character. */
const ALPHABET = '0123456789abcdefghjkmnpqrstvwxyz';
const NO_VALUE = 0xff;
const VALUES = new Uint8Array(128).fill(NO_VALUE);
[...ALPHABET].forEach((character, value) => {
  VALUES[character.charCodeAt(0)] = value;
});
/** The first of 26 characters of 5 bits has two bits more than 128 need. */
const FIRST_BITS = 3;
const HEX = Buffer.from('0123456789abcdef');
const DASH = 0x2d;
export const KEY_ID_BYTES = 16;
/** Where ids are read and UUIDs are written, since neither ever yields to another. */
const uuidBytes = Buffer.alloc(KEY_ID_BYTES);
const uuidText = Buffer.alloc(36, DASH);
/** Where the two digits of each byte stand: past the dashes before them. */
const HEX_AT = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];

/** The one spelling of a key id: lower-case Crockford base32 of 128 bits. */
export const KEY_ID_PATTERN = /^key_[0-7][0-9a-hjkmnp-tv-z]{25}$/;

/** A new id whose time part is `nowMs` (database time, milliseconds), so that ids sort by creation. */
export function newKeyId(nowMs: number): KeyId {
  return keyIdFromUuid(uuidv7({ msecs: Math.floor(nowMs) }));
}

export function keyIdFromUuid(uuid: string): KeyId {
  return keyIdFromBytes(Buffer.from(uuid.replaceAll('-', ''), 'hex'));
}

/**
 * Any 128 bits, as PostgreSQL's `uuid` takes them: typeid-js's own `toUUID` throws where they have no UUID version. By
 * hand, since each key that is used has its id converted about once a second: a tenth of what typeid-js takes.
 *
 * @throws TypeError for what is no key id.
 */
export function keyIdToUuid(id: KeyId): string {
  writeKeyId(id, uuidBytes, 0);
  for (let index = 0; index < uuidBytes.length; index++) {
    const byte = uuidBytes[index] ?? 0;
    const at = HEX_AT[index] ?? 0;
    uuidText[at] = HEX[byte >> 4] ?? 0;
    uuidText[at + 1] = HEX[byte & 0xf] ?? 0;
  }
  return uuidText.toString('latin1');
}

export function keyIdFromBytes(bytes: Uint8Array): KeyId {
  return TypeID.fromUUIDBytes(TYPE, bytes).toString();
}

/** @throws TypeError for what is no key id. */
export function keyIdToBytes(id: KeyId): Uint8Array {
  const bytes = new Uint8Array(KEY_ID_BYTES);
  writeKeyId(id, bytes, 0);
  return bytes;
}

/**
 * Writes the 16 bytes of an id.
 * @throws TypeError for what is no key id.
 */
export function writeKeyId(id: KeyId, bytes: Uint8Array, start: number): void {
  let isId = id.length === PREFIX.length + SUFFIX_LENGTH && id.startsWith(PREFIX);
  let rest = 0;
  let bits = FIRST_BITS - 5;
  let at = start;
  for (let index = PREFIX.length; index < id.length && isId; index++) {
    const value = VALUES[id.charCodeAt(index)] ?? NO_VALUE;
    isId = value < 1 << (index === PREFIX.length ? FIRST_BITS : 5);
    rest = (rest << 5) | value;
    bits += 5;
    if (bits < 8) continue;
    bits -= 8;
    bytes[at++] = rest >> bits;
    rest &= (1 << bits) - 1;
  }
  if (!isId) throw new TypeError('this is not the id of a key');
}

/**
 * The smallest UUIDv7 of a millisecond: `id < uuidFloor(t)` holds just for keys created before `t`
 * (RFC 9562 §5.7: the first 48 bits are the Unix time in milliseconds).
 */
export function uuidFloor(timeMs: number): string {
  const clamped = Math.min(Math.max(Math.floor(timeMs), 0), 2 ** 48 - 1);
  const hex = clamped.toString(16).padStart(12, '0');
  return `${hex.slice(0, 8)}-${hex.slice(8)}-7000-8000-000000000000`;
}

/** The time part of a UUIDv7, in milliseconds since the epoch. */
export function uuidTime(uuid: string): number {
  return Number.parseInt(uuid.slice(0, 8) + uuid.slice(9, 13), 16);
}
