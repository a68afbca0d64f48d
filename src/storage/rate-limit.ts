import type { RateLimit } from '../domain/rate-limit.ts';

/** The two columns that hold a limit: both null, or neither (`…_rate_limit_form`). */
export interface RateLimitColumns {
  readonly rateLimit: number | null;
  readonly rateLimitWindowSeconds: number | null;
}

export function rateLimitOf({ rateLimit, rateLimitWindowSeconds }: RateLimitColumns): RateLimit | null {
  return rateLimit === null || rateLimitWindowSeconds === null
    ? null
    : { limit: rateLimit, window_seconds: rateLimitWindowSeconds };
}

export function rateLimitColumnsOf(limit: RateLimit | null): RateLimitColumns {
  return { rateLimit: limit?.limit ?? null, rateLimitWindowSeconds: limit?.window_seconds ?? null };
}
