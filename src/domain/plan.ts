import { Failure } from './errors.ts';
import type { Key } from './key.ts';
import type { PlanLimits } from './workspace.ts';

const DAY_MS = 86_400_000;
/**
 * A caller whose clock is ahead of the database's reckons "in 90 days" to be later than we do: by so little it does
 * not ask for more than the plan allows. It gets the longest that is allowed.
 */
const CLOCK_TOLERANCE_MS = 5_000;

/** The last moment at which a key may expire, of those that the plan allows; `null`: it may live for ever. */
export function latestExpiry({ maxKeyLifetimeDays }: PlanLimits, createdAt: number): number | null {
  return maxKeyLifetimeDays === null ? null : createdAt + maxKeyLifetimeDays * DAY_MS;
}

/**
 * The expiry that a key is given under a plan. `null` asks for none: a key that would live for ever.
 * @throws Failure `limit_reached` where that is beyond what the plan allows.
 */
export function expiryWithin(
  limits: PlanLimits,
  { createdAt, expiresAt }: Pick<Key, 'createdAt' | 'expiresAt'>,
): number | null {
  const latest = latestExpiry(limits, createdAt);
  if (latest === null || (expiresAt !== null && expiresAt <= latest)) return expiresAt;
  if (expiresAt !== null && expiresAt <= latest + CLOCK_TOLERANCE_MS) return latest;
  throw new Failure(
    'limit_reached',
    `The plan of this workspace lets a key live ${count(limits.maxKeyLifetimeDays, 'day')} from its creation: this one until ${new Date(latest).toISOString()}.`,
  );
}

/** @throws Failure `limit_reached` naming a scope that the plan does not allow. */
export function refuseScopesBeyond({ allowedScopes }: PlanLimits, scopes: readonly string[]): void {
  const refused = allowedScopes === null ? undefined : scopes.find((scope) => !allowedScopes.includes(scope));
  if (refused === undefined) return;
  throw new Failure('limit_reached', `The plan of this workspace does not allow the scope "${refused}".`);
}

/** @throws Failure `limit_reached` where the plan is one without API keys. */
export function refuseWithoutKeys({ maxActiveKeys }: PlanLimits): void {
  if (maxActiveKeys === 0)
    throw new Failure('limit_reached', 'The plan of this workspace is without API keys.');
}

export function noMoreKeys(maxActiveKeys: number): Failure {
  return new Failure(
    'limit_reached',
    `The plan of this workspace allows ${count(maxActiveKeys, 'active key')}, and it has that many.`,
  );
}

function count(number: number | null, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}
