import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { BrokenRule } from '../../src/verification/membership.ts';
import { describeViolation } from '../support/history.ts';
import { type Fleet, startFleet } from './fleet.ts';
import { type FaultPostgres, startFaultPostgres } from './postgres.ts';
import { type Outcome, SCENARIOS } from './scenarios.ts';

/** Long enough for a fence to be seen set while the lease of the fenced still lasts. */
const LEASE_SECONDS = 2;
const CAUGHT_WITHIN_MS = 60_000;
const RULES = Object.keys(SCENARIOS) as BrokenRule[];

let postgres: FaultPostgres;
beforeAll(async () => {
  postgres = await startFaultPostgres();
});
afterAll(() => postgres?.close());

function tell({ violations, history }: Outcome): string {
  return violations.map((violation) => describeViolation(violation, history)).join('\n');
}

describe('with every rule in force', () => {
  let fleet: Fleet;
  beforeAll(async () => {
    fleet = await startFleet({ postgres, leaseSeconds: LEASE_SECONDS });
  });
  afterAll(() => fleet?.close());

  it.each(RULES)('the story of the rule "%s" ends well', async (rule) => {
    await fleet.healthy();
    const outcome = await SCENARIOS[rule](fleet);
    expect(tell(outcome)).toBe('');
    expect(outcome.history.looks.length).toBeGreaterThan(3);
  });
});

describe.each(RULES)('without the rule "%s"', (rule) => {
  let fleet: Fleet;
  beforeAll(async () => {
    fleet = await startFleet({ postgres, leaseSeconds: LEASE_SECONDS, broken: [rule] });
  });
  afterAll(() => fleet?.close());

  it('an old answer is found after a revocation answered, and for that reason', async () => {
    await fleet.healthy();
    const beganAt = performance.now();
    const outcome = await SCENARIOS[rule](fleet);
    const tookMs = performance.now() - beganAt;
    const [found] = outcome.violations.filter(({ rule: broken }) => broken === 'stale');
    expect(found, 'no violation was found').toBeDefined();
    expect(found).toMatchObject({
      key: outcome.key.id,
      look: { instance: outcome.at.name, verdict: { kind: 'active' } },
      mutation: { what: 'revoke' },
    });
    expect(outcome.reason).toEqual(
      Object.fromEntries(Object.keys(outcome.reason).map((what) => [what, true])),
    );
    expect(tookMs).toBeLessThan(CAUGHT_WITHIN_MS);
  });
});
