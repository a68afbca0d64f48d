import type { Executor } from '../storage/database.ts';
import { type Counter, forgetCounters } from '../storage/rate-windows.ts';

const PAGE = 1_000;
/** A run looks at so many counters at most, and the next one goes on from there: the deletions are one transaction. */
const PAGES_PER_RUN = 100;
/** Long after any clock's fault. Until it is deleted a counter is one row, whatever the number of its windows. */
const KEPT_SECONDS = 86_400;

/** Deletes the counters of keys and workspaces that have not been used for a day after their last window. */
export function createCounterSweep(): (executor: Executor) => Promise<void> {
  let after: Counter | undefined;
  return async (executor) => {
    for (let pages = 0; pages < PAGES_PER_RUN; pages++) {
      const { last } = await forgetCounters(executor, {
        after,
        pageSize: PAGE,
        olderThanSeconds: KEPT_SECONDS,
      });
      after = last;
      if (last === undefined) return;
    }
  };
}
