import { type Key, statusOf } from './key.ts';
import type { KeyId } from './key-id.ts';
import { latestExpiry } from './plan.ts';
import type { PlanLimits } from './workspace.ts';

export const DEFAULT_GRACE_SECONDS = 86_400;
/** 30 days. */
export const MAX_GRACE_SECONDS = 2_592_000;
export const ROTATED_REASON = 'rotated';

/** Why a key cannot be rotated, as a sentence; `undefined` where it can. A key has one successor. */
export function whyNotRotatable(key: Key, nowMs: number): string | undefined {
  if (key.rotatedTo !== null) return `The key was rotated already, to ${key.rotatedTo}: rotate that one.`;
  const status = statusOf(key, nowMs);
  return status === 'active' ? undefined : `The key is ${status}; only active keys can be rotated.`;
}

/**
 * A key's successor: `made` with the settings that the key has now. It ends when the key would have ended, or when
 * its workspace's plan says, whichever comes first.
 */
export function successorOf(key: Key, made: Key, limits: PlanLimits): Key {
  const { name, scopes, restrictions, rateLimit, metadata, createdBy } = key;
  const expiresAt = earlier(key.expiresAt, latestExpiry(limits, made.createdAt));
  return {
    ...made,
    name,
    scopes,
    restrictions,
    rateLimit,
    metadata,
    createdBy,
    expiresAt,
    rotatedFrom: key.id,
  };
}

/** The key itself after its rotation: it ends after the grace period, at once where that is 0, and never later than before. */
export function rotatedAway(
  key: Key,
  { to, graceSeconds, nowMs }: { to: KeyId; graceSeconds: number; nowMs: number },
): Key {
  return graceSeconds === 0
    ? { ...key, rotatedTo: to, revokedAt: nowMs, revokedReason: ROTATED_REASON }
    : { ...key, rotatedTo: to, expiresAt: earlier(key.expiresAt, nowMs + graceSeconds * 1000) };
}

/** `null` is never. */
function earlier<One extends number | null, Other extends number | null>(
  one: One,
  other: Other,
): One | Other {
  if (one === null) return other;
  return other === null || one <= other ? one : other;
}
