import { type KeyId, writeKeyId } from '../domain/key-id.ts';

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
const UUID_BYTES = 16;
const FLOAT8_BYTES = 8;

/** `uuid[]` */
export function uuidArray(ids: readonly KeyId[]): Buffer {
  const step = LENGTH_BYTES + UUID_BYTES;
  const { array, view } = begin(TYPES.uuid, { length: ids.length, bytes: ids.length * step });
  let at = HEADER_BYTES;
  for (const id of ids) {
    view.setInt32(at, UUID_BYTES);
    writeKeyId(id, array, at + LENGTH_BYTES);
    at += step;
  }
  return array;
}

/** `float8[]`: exact for integers, too, up to 2^53. */
export function float8Array(numbers: readonly number[]): Buffer {
  const step = LENGTH_BYTES + FLOAT8_BYTES;
  const { array, view } = begin(TYPES.float8, { length: numbers.length, bytes: numbers.length * step });
  let at = HEADER_BYTES;
  for (const number of numbers) {
    view.setInt32(at, FLOAT8_BYTES);
    view.setFloat64(at + LENGTH_BYTES, number);
    at += step;
  }
  return array;
}

/** `text[]`, of any text or null. */
export function textArray(texts: readonly (string | null)[]): Buffer {
  let bytes = 0;
  for (const text of texts) bytes += LENGTH_BYTES + (text === null ? 0 : Buffer.byteLength(text));
  const { array, view } = begin(TYPES.text, { length: texts.length, bytes, hasNull: texts.includes(null) });
  let at = HEADER_BYTES;
  for (const text of texts) {
    const written = text === null ? 0 : array.write(text, at + LENGTH_BYTES);
    view.setInt32(at, text === null ? NULL_LENGTH : written);
    at += LENGTH_BYTES + written;
  }
  return array;
}

/** An array with its header, and room for so many bytes of elements. */
function begin(
  type: number,
  { length, bytes, hasNull = false }: { length: number; bytes: number; hasNull?: boolean },
): { array: Buffer; view: DataView } {
  const array = Buffer.allocUnsafe(HEADER_BYTES + bytes);
  const view = new DataView(array.buffer, array.byteOffset, array.byteLength);
  for (const [index, value] of [1, hasNull ? 1 : 0, type, length, 1].entries())
    view.setInt32(index * 4, value);
  return { array, view };
}
