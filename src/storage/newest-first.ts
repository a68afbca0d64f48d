import { and, desc, gte, lt, type SQL, sql } from 'drizzle-orm';
import type { PgColumn } from 'drizzle-orm/pg-core';
import { uuidFloor, uuidTime } from '../domain/key-id.ts';

/*
 * Pages of a table that is partitioned by its ids, newest first. An id is a UUIDv7 of the time `at`, so that the
 * order of ids and the order of times are the same.
 */

export interface Entries {
  readonly id: PgColumn;
  readonly at: PgColumn;
}

/** Which part of the list: from `from` on, before `to` (milliseconds), behind the entry `after` (a UUID). */
export interface Stretch {
  readonly from?: number | undefined;
  readonly to?: number | undefined;
  readonly after?: string | undefined;
}

export interface NewestFirst {
  readonly order: readonly SQL[];
  within(stretch: Stretch): SQL | undefined;
}

/** For lists without a filter: by the primary key. */
export function newestById({ id }: Entries): NewestFirst {
  return { order: [desc(id)], within: (stretch) => idsWithin(id, stretch) };
}

/**
 * For lists with a filter: by time, which the filter's index has and the primary key has not. The planner would else
 * walk the primary key past the entries of all others. What is said of ids besides chooses the partitions.
 */
export function newestByTime({ id, at }: Entries): NewestFirst {
  return {
    order: [desc(at), desc(id)],
    within: ({ from, to, after }) =>
      and(
        idsWithin(id, { from, to, after }),
        from === undefined ? undefined : gte(at, new Date(from)),
        to === undefined ? undefined : lt(at, new Date(to)),
        after === undefined
          ? undefined
          : sql`(${at}, ${id}) < (${sql.param(new Date(uuidTime(after)), at)}, ${sql.param(after, id)})`,
      ),
  };
}

function idsWithin(id: PgColumn, { from, to, after }: Stretch): SQL | undefined {
  return and(
    from === undefined ? undefined : gte(id, uuidFloor(from)),
    to === undefined ? undefined : lt(id, uuidFloor(to)),
    after === undefined ? undefined : lt(id, after),
  );
}
