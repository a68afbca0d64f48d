import { isDeepStrictEqual } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { BrokenRule } from '../../src/verification/membership.ts';
import { describeViolation, type Mutation } from '../support/history.ts';
import { type Fleet, startFleet } from './fleet.ts';
import { type FaultPostgres, startFaultPostgres } from './postgres.ts';
import { OTHER_SUBJECTS, type Outcome, SCENARIOS, type Scenario } from './scenarios.ts';

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

/** Plays a story in which a rule is off, and asserts that it ends with an old answer, for that reason. */
async function expectCaught(fleet: Fleet, scenario: Scenario, ignored: Mutation['what']): Promise<void> {
  await fleet.healthy();
  const beganAt = performance.now();
  const outcome = await scenario(fleet);
  const tookMs = performance.now() - beganAt;
  // What led up to it may have been answered too early as well.
  const found = outcome.violations.find(
    ({ rule, mutation }) => rule === 'stale' && isDeepStrictEqual(mutation?.what, ignored),
  );
  expect(found, 'no violation was found').toBeDefined();
  expect(found).toMatchObject({
    key: outcome.key.id,
    look: { instance: outcome.at.name, verdict: { kind: 'active' } },
  });
  expect(outcome.reason).toEqual(Object.fromEntries(Object.keys(outcome.reason).map((what) => [what, true])));
  expect(tookMs).toBeLessThan(CAUGHT_WITHIN_MS);
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

  it.each(OTHER_SUBJECTS)('the story of the rule $rule and $subject ends well', async ({ play }) => {
    await fleet.healthy();
    const outcome = await play(fleet);
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

  it('an old answer is found after a revocation answered, and for that reason', () =>
    expectCaught(fleet, SCENARIOS[rule], 'revoke'));

  for (const { subject, ignored, play } of OTHER_SUBJECTS.filter((other) => other.rule === rule)) {
    it(`the same of ${subject}`, () => expectCaught(fleet, play, ignored));
  }
});
