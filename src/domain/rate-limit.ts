/** At most `limit` in each window of `window_seconds`, aligned to the epoch (contract §4, §6). */
export interface RateLimit {
  readonly limit: number;
  readonly window_seconds: number;
}

/** An `integer` column holds it. */
export const MAX_LIMIT = 2_147_483_647;
/** 31 days: the longest month. */
export const MAX_WINDOW_SECONDS = 2_678_400;
/** What one use may count at most (contract §5). */
export const MAX_COST = 10_000;

/** How a limit stands, as answers show it. */
export interface RateLimitState {
  readonly limit: number;
  readonly remaining: number;
  /** When the window ends, in seconds since the epoch. */
  readonly reset: number;
  readonly window_seconds: number;
}

/** When the window ends that a time is in; both in seconds since the epoch. */
export function windowEnd(timeMs: number, windowSeconds: number): number {
  return (Math.floor(timeMs / 1000 / windowSeconds) + 1) * windowSeconds;
}

/** How long a client should wait for a window's end, in whole seconds. */
export function secondsUntil(reset: number, nowMs: number): number {
  return Math.max(1, Math.ceil(reset - nowMs / 1000));
}

/** The one that leaves less; the first where both leave the same. */
export function tighter(first: RateLimitState, second: RateLimitState): RateLimitState {
  return second.remaining < first.remaining ? second : first;
}
