import { z } from 'zod';
import { keyIdFromBytes, keyIdFromUuid, keyIdToBytes, keyIdToUuid } from '../domain/key-id.ts';
import type { CursorCodec } from './cursor.ts';
import type { paginationOutput } from './schemas.ts';

const DEFAULT_PAGE = 20;
const MAX_PAGE = 100;

/** The members of a list's query that say which page (contract §3). */
export const pageQuery = {
  limit: z
    .string()
    .regex(/^([1-9]\d?|100)$/, `must be a whole number from 1 to ${MAX_PAGE}`)
    .optional()
    .meta({
      documentedAs: { type: 'integer', minimum: 1, maximum: MAX_PAGE, default: DEFAULT_PAGE },
      description: 'How many entries a page holds at most.',
    }),
  cursor: z
    .string()
    .max(200)
    .optional()
    .describe('`pagination.next_cursor` of the page before, asked for with the same filters.'),
};

interface PageQuery {
  readonly limit?: string | undefined;
  readonly cursor?: string | undefined;
}

/** A page that is asked for: of a list by name, with these filters. A place is the UUID of an entry, unless said otherwise. */
export interface PageRequest<Place = string> {
  /** The place behind which it begins. */
  readonly after: Place | undefined;
  /** How many to read: one more than is shown tells whether there are more. */
  readonly limit: number;
  /** The entries to show, and where the list goes on. */
  answer<Entry>(
    found: readonly Entry[],
    placeOf: (entry: Entry) => Place,
  ): { shown: Entry[]; pagination: z.input<typeof paginationOutput> };
}

/** @throws Failure `invalid_request` for a cursor of another list or of other filters. */
export function pageOf(cursors: CursorCodec, query: FilteredPageQuery, listName: string): PageRequest {
  return pageBy(cursors, query, { listName, ...BY_UUID });
}

type FilteredPageQuery = PageQuery & Readonly<Record<string, string | undefined>>;

// A cursor holds 16 bytes, whatever they are the id of.
const BY_UUID = {
  toBytes: (uuid: string) => keyIdToBytes(keyIdFromUuid(uuid)),
  fromBytes: (bytes: Uint8Array) => keyIdToUuid(keyIdFromBytes(bytes)),
};

/** The same for a list whose places are none of UUIDs alone. */
export function pageBy<Place>(
  cursors: CursorCodec,
  { limit: limitText, cursor, ...filters }: FilteredPageQuery,
  {
    listName,
    toBytes,
    fromBytes,
  }: { listName: string; toBytes(place: Place): Uint8Array; fromBytes(bytes: Uint8Array): Place },
): PageRequest<Place> {
  const limit = Number(limitText ?? DEFAULT_PAGE);
  const list = `${listName} ${JSON.stringify(Object.entries(filters).sort())}`;
  return {
    after: cursor === undefined ? undefined : fromBytes(cursors.read(list, cursor)),
    limit: limit + 1,
    answer(found, placeOf) {
      const shown = found.slice(0, limit);
      const last = shown.at(-1);
      const hasMore = found.length > limit && last !== undefined;
      return {
        shown,
        pagination: {
          next_cursor: hasMore ? cursors.write(list, toBytes(placeOf(last))) : null,
          has_more: hasMore,
        },
      };
    },
  };
}
