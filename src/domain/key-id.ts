import { TypeID } from 'typeid-js';
import { v7 as uuidv7 } from 'uuid';

/** A key's id as callers see it: a TypeID 0.3, `key_` and 26 characters. In the database it is the UUIDv7 itself. */
export type KeyId = string;

const TYPE = 'key';

/** The one spelling of a key id: lower-case Crockford base32 of 128 bits. */
export const KEY_ID_PATTERN = /^key_[0-7][0-9a-hjkmnp-tv-z]{25}$/;

/** A new id whose time part is `nowMs` (database time, milliseconds), so that ids sort by creation. */
export function newKeyId(nowMs: number): KeyId {
  return keyIdFromUuid(uuidv7({ msecs: Math.floor(nowMs) }));
}

export function keyIdFromUuid(uuid: string): KeyId {
  return keyIdFromBytes(Buffer.from(uuid.replaceAll('-', ''), 'hex'));
}

/** Any 128 bits, as PostgreSQL's `uuid` takes them: typeid-js's own `toUUID` throws where they have no UUID version. */
export function keyIdToUuid(id: KeyId): string {
  const hex = Buffer.from(keyIdToBytes(id)).toString('hex');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
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
