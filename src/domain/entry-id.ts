import { TypeID } from 'typeid-js';

/** What has an id besides keys: audit events and entries of the request log. */
export type EntryType = 'evt' | 'log';

/** The id of an entry as callers see it: a TypeID 0.3. In the database it is the UUIDv7 itself. */
export function entryIdFromUuid(type: EntryType, uuid: string): string {
  return TypeID.fromUUIDBytes(type, Buffer.from(uuid.replaceAll('-', ''), 'hex')).toString();
}
