import { KEY_ID_BYTES } from '../domain/key-id.ts';

/*
 * Arrays as PostgreSQL sends and receives them in binary (array_recv in src/backend/utils/adt/arrayfuncs.c): for
 * statements that take thousands of rows, since neither side then writes or reads them as text. node-postgres sends a
 * Buffer in binary; the statement casts it to the array's type.
 *
 *   int32 dimensions (1) · int32 whether any is null · int32 OID of the element's type · int32 length · int32 first index
 *   then for each element: int32 bytes of it, -1 for null · the bytes
 */

/** OIDs of types, which no release of PostgreSQL changes (pg_type.dat). */
const TYPES = { uuid: 2950, float8: 701, text: 25 } as const;
const HEADER_BYTES = 20;
const LENGTH_BYTES = 4;
const NULL_LENGTH = -1;
const FLOAT8_BYTES = 8;

/** `uuid[]`, of ids as their bytes, one behind the other. */
export function uuidArray(ids: Uint8Array): Buffer {
  return arrayOf(
    TYPES.uuid,
    { size: KEY_ID_BYTES, length: ids.length / KEY_ID_BYTES },
    ({ array }, index, at) => {
      const from = index * KEY_ID_BYTES;
      for (let byte = 0; byte < KEY_ID_BYTES; byte++) array[at + byte] = ids[from + byte] ?? 0;
    },
  );
}

/** `float8[]`: exact for integers, too, up to 2^53. */
export function float8Array(numbers: ArrayLike<number>): Buffer {
  return arrayOf(TYPES.float8, { size: FLOAT8_BYTES, length: numbers.length }, ({ view }, index, at) =>
    view.setFloat64(at, numbers[index] ?? 0),
  );
}

/** `text[]`, of any text or null. Of the same text in a row all but the first are copied: to write text costs more. */
export function textArray(texts: readonly (string | null)[]): Buffer {
  let bytes = 0;
  let size = 0;
  let former: string | null | undefined;
  let hasNull = false;
  for (const text of texts) {
    if (text !== former) size = LENGTH_BYTES + (text === null ? 0 : Buffer.byteLength(text));
    hasNull ||= text === null;
    bytes += size;
    former = text;
  }
  const { array, view } = begin(TYPES.text, { length: texts.length, bytes, hasNull });
  let at = HEADER_BYTES;
  former = undefined;
  for (const text of texts) {
    if (text === former) {
      array.copyWithin(at, at - size, at);
    } else {
      const written = text === null ? 0 : array.write(text, at + LENGTH_BYTES);
      view.setInt32(at, text === null ? NULL_LENGTH : written);
      size = LENGTH_BYTES + written;
      former = text;
    }
    at += size;
  }
  return array;
}

/** An array of elements of one size, each of which `write` puts at its place. */
function arrayOf(
  type: number,
  { size, length }: { size: number; length: number },
  write: (begun: Begun, index: number, at: number) => void,
): Buffer {
  const begun = begin(type, { length, bytes: length * (LENGTH_BYTES + size) });
  let at = HEADER_BYTES;
  for (let index = 0; index < length; index++) {
    begun.view.setInt32(at, size);
    write(begun, index, at + LENGTH_BYTES);
    at += LENGTH_BYTES + size;
  }
  return begun.array;
}

interface Begun {
  readonly array: Buffer;
  readonly view: DataView;
}

/** An array with its header, and room for so many bytes of elements. */
function begin(
  type: number,
  { length, bytes, hasNull = false }: { length: number; bytes: number; hasNull?: boolean },
): Begun {
  const array = Buffer.allocUnsafe(HEADER_BYTES + bytes);
  const view = new DataView(array.buffer, array.byteOffset, array.byteLength);
  for (const [index, value] of [1, hasNull ? 1 : 0, type, length, 1].entries())
    view.setInt32(index * 4, value);
  return { array, view };
}
