import { z } from 'zod';
import { keyIdFromUuid, keyIdToUuid } from '../domain/key-id.ts';
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

/** A page that is asked for: of a list by name, with these filters. */
export interface PageRequest {
  /** The UUID behind which it begins. */
  readonly after: string | undefined;
  /** How many to read: one more than is shown tells whether there are more. */
  readonly limit: number;
  /** The entries to show, and where the list goes on. */
  answer<Entry>(
    found: readonly Entry[],
    uuidOf: (entry: Entry) => string,
  ): { shown: Entry[]; pagination: z.input<typeof paginationOutput> };
}

/** @throws Failure `invalid_request` for a cursor of another list or of other filters. */
export function pageOf(
  cursors: CursorCodec,
  { limit: limitText, cursor, ...filters }: PageQuery & Readonly<Record<string, string | undefined>>,
  listName: string,
): PageRequest {
  const limit = Number(limitText ?? DEFAULT_PAGE);
  const list = `${listName} ${JSON.stringify(Object.entries(filters).sort())}`;
  return {
    // A cursor holds 16 bytes, whatever they are the id of.
    after: cursor === undefined ? undefined : keyIdToUuid(cursors.read(list, cursor)),
    limit: limit + 1,
    answer(found, uuidOf) {
      const shown = found.slice(0, limit);
      const last = shown.at(-1);
      const hasMore = found.length > limit && last !== undefined;
      return {
        shown,
        pagination: {
          next_cursor: hasMore ? cursors.write(list, keyIdFromUuid(uuidOf(last))) : null,
          has_more: hasMore,
        },
      };
    },
  };
}
