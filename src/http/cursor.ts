import { timingSafeEqual } from 'node:crypto';
import { invalidInput } from '../domain/errors.ts';
import { type KeyId, keyIdFromBytes, keyIdToBytes } from '../domain/key-id.ts';
import { hmacSha256 } from '../domain/key-secret.ts';

const ID_BYTES = 16;
const MAC_BYTES = 16;

export interface CursorCodec {
  /** A cursor behind `last`, the last key of a page of the list that `filters` describe. */
  write(filters: string, last: KeyId): string;
  /** @throws Failure `invalid_request` for a cursor that was changed or that belongs to another list. */
  read(filters: string, cursor: string): KeyId;
}

/**
 * Opaque cursors: the id of the last key, and a MAC of it and of the filters.
 * @param cursorKeys derived from `KEY_SECRET`, newest first: the first writes, all read.
 */
export function createCursorCodec(cursorKeys: readonly [Uint8Array, ...Uint8Array[]]): CursorCodec {
  const macOf = (key: Uint8Array, filters: string, id: Uint8Array) =>
    hmacSha256(key, id, filters).subarray(0, MAC_BYTES);
  return {
    write(filters, last) {
      const id = keyIdToBytes(last);
      return Buffer.concat([id, macOf(cursorKeys[0], filters, id)]).toString('base64url');
    },
    read(filters, cursor) {
      const bytes = Buffer.from(cursor, 'base64url');
      const id = bytes.subarray(0, ID_BYTES);
      const mac = bytes.subarray(ID_BYTES);
      const genuine =
        bytes.length === ID_BYTES + MAC_BYTES &&
        bytes.toString('base64url') === cursor &&
        cursorKeys.some((key) => timingSafeEqual(macOf(key, filters, id), mac));
      if (!genuine)
        throw invalidInput({ path: 'cursor', message: 'is not a cursor of this list with these filters' });
      return keyIdFromBytes(id);
    },
  };
}
