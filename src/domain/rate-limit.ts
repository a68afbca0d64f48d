/** At most `limit` in each window of `window_seconds`, aligned to the epoch (contract §4, §6). */
export interface RateLimit {
  readonly limit: number;
  readonly window_seconds: number;
}

/** An `integer` column holds it. */
export const MAX_LIMIT = 2_147_483_647;
/** 31 days: the longest month. */
export const MAX_WINDOW_SECONDS = 2_678_400;
