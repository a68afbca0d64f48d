import type { KeyRecord } from '../domain/decision.ts';
import { type RateLimit, type RateLimitState, secondsUntil } from '../domain/rate-limit.ts';

/**
 * `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10), lists of structured fields: the limits
 * of the key and of its workspace, and how the tighter one stands.
 *
 * @param nowMs the time that the decision was made at, in milliseconds.
 */
export function rateLimitFields(
  { key, workspace }: KeyRecord,
  state: RateLimitState,
  nowMs: number,
): { readonly policy: string; readonly limit: string } {
  const policies = [policyOf('key', key.rateLimit), policyOf('workspace', workspace.rateLimit)];
  const name = isStateOf(state, key.rateLimit) ? 'key' : 'workspace';
  return {
    policy: policies.filter((policy) => policy !== undefined).join(', '),
    limit: `"${name}";r=${state.remaining};t=${secondsUntil(state.reset, nowMs)}`,
  };
}

function policyOf(name: string, limit: RateLimit | null): string | undefined {
  return limit === null ? undefined : `"${name}";q=${limit.limit};w=${limit.window_seconds}`;
}

function isStateOf({ limit, window_seconds }: RateLimitState, of: RateLimit | null): boolean {
  return of !== null && of.limit === limit && of.window_seconds === window_seconds;
}
