import { TypeID } from 'typeid-js';
import { v7 as uuidv7 } from 'uuid';

/** A key's id as callers see it: a TypeID 0.3, `key_` and 26 characters. In the database it is the UUIDv7 itself. */
export type KeyId = string;

const TYPE = 'key';
/** The alphabet of TypeID, in its order of value: by the code of a character. */
const VALUES = new Uint8Array(128);
[...'0123456789abcdefghjkmnpqrstvwxyz'].forEach((character, value) => {
  VALUES[character.charCodeAt(0)] = value;
});
const uuidBytes = Buffer.alloc(16);

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
 * hand, since each key that is used has its id converted once a second: a tenth of what it takes by way of typeid-js.
 *
 * @throws TypeError for what is no key id.
 */
export function keyIdToUuid(id: KeyId): string {
  if (!KEY_ID_PATTERN.test(id)) throw new TypeError('this is not the id of a key');
  let rest = 0;
  let bits = -2; // 26 characters of 5 bits are two more than 128, which the first one does not use.
  let at = 0;
  for (let index = TYPE.length + 1; index < id.length; index++) {
    rest = (rest << 5) | (VALUES[id.charCodeAt(index)] ?? 0);
    bits += 5;
    if (bits < 8) continue;
    bits -= 8;
    uuidBytes[at++] = rest >> bits;
    rest &= (1 << bits) - 1;
  }
  const hex = uuidBytes.toString('hex');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}

export function keyIdFromBytes(bytes: Uint8Array): KeyId {
  return TypeID.fromUUIDBytes(TYPE, bytes).toString();
}

export function keyIdToBytes(id: KeyId): Uint8Array {
  return TypeID.fromString(id, TYPE).toUUIDBytes();
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
