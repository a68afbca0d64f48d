import { setTimeout as sleep } from 'node:timers/promises';
import type { RateLimit, RateLimitState } from '../domain/rate-limit.ts';
import type { Database } from '../storage/database.ts';
import { callStock, readCounter } from '../storage/rate-windows.ts';
import { type Quota, subjectOf } from './quota.ts';

/** Holders of stock answer a call within milliseconds; one that is dead or cut off never does. */
const CALL_WITHIN_MS = 1_000;
const LOOK_EVERY_MS = 20;

/** Tells how a limit stands in the window that the database's clock is in, over all instances, and spends nothing. */
export type QuotaLook = (
  subject: { kind: 'key' | 'workspace'; id: string },
  limit: RateLimit,
) => Promise<RateLimitState>;

/**
 * Reads what was leased. It is what was spent once no instance holds any in stock: this one hands its own in first,
 * others are called upon. What one holds that does not answer in time counts as unspent, as it last told.
 */
export function createQuotaLook({
  database,
  quota,
}: {
  database: Database;
  quota: Pick<Quota, 'handIn'>;
}): QuotaLook {
  return async ({ kind, id }, { limit, window_seconds: windowSeconds }) => {
    const counter = { subject: subjectOf(kind, id), windowSeconds };
    const until = performance.now() + CALL_WITHIN_MS;
    await quota.handIn(counter);
    for (let looks = 0; ; looks++) {
      const state = await database.read((executor) => readCounter(executor, counter));
      if (state.stocked === 0 || performance.now() > until) {
        return {
          limit,
          remaining: Math.max(0, limit - state.leased + state.stocked),
          reset: state.windowStart + windowSeconds,
          window_seconds: windowSeconds,
        };
      }
      if (looks === 0) await database.read((executor) => callStock(executor, counter));
      await sleep(LOOK_EVERY_MS);
    }
  };
}
