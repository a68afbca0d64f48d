import { timingSafeEqual } from 'node:crypto';
import { invalidInput } from '../domain/errors.ts';
import { hmacSha256 } from '../domain/key-secret.ts';

const MAC_BYTES = 16;

export interface CursorCodec {
  /** A cursor behind the place, of 255 bytes at most, where a page of the list that `filters` describe ends. */
  write(filters: string, place: Uint8Array): string;
  /** @throws Failure `invalid_request` for a cursor that was changed or that belongs to another list. */
  read(filters: string, cursor: string): Uint8Array;
}

/**
 * Opaque cursors: where the page ends, and a MAC of that and of the filters.
 * @param cursorKeys derived from `KEY_SECRET`, newest first: the first writes, all read.
 */
export function createCursorCodec(cursorKeys: readonly [Uint8Array, ...Uint8Array[]]): CursorCodec {
  // The length comes first, so that no part of a place can pass for one of the filters.
  const macOf = (key: Uint8Array, filters: string, place: Uint8Array) =>
    hmacSha256(key, Uint8Array.of(place.length), place, filters).subarray(0, MAC_BYTES);
  return {
    write: (filters, place) =>
      Buffer.concat([place, macOf(cursorKeys[0], filters, place)]).toString('base64url'),
    read(filters, cursor) {
      const bytes = Buffer.from(cursor, 'base64url');
      const place = bytes.subarray(0, -MAC_BYTES);
      const mac = bytes.subarray(-MAC_BYTES);
      const genuine =
        place.length > 0 &&
        bytes.toString('base64url') === cursor &&
        cursorKeys.some((key) => timingSafeEqual(macOf(key, filters, place), mac));
      if (!genuine)
        throw invalidInput({ path: 'cursor', message: 'is not a cursor of this list with these filters' });
      return place;
    },
  };
}
