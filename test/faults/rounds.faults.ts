import { afterAll, beforeAll, expect, it } from 'vitest';
import type { BrokenRule } from '../../src/verification/membership.ts';
import { type Fleet, startFleet, type TestKey } from './fleet.ts';
import { fillCatalogue } from './mutator.ts';
import { type FaultPostgres, startFaultPostgres } from './postgres.ts';
import { type RoundReport, runRound } from './rounds.ts';

/** Set by run.ts; without them so many rounds of one seed, each fault six times and more. */
const MINUTES = Number(process.env.FAULT_MINUTES ?? 0);
const SEED = Number(process.env.FAULT_SEED ?? 1);
const ONE_ROUND = process.env.FAULT_ROUND === undefined ? undefined : Number(process.env.FAULT_ROUND);
const IS_VERBOSE = process.env.FAULT_VERBOSE !== undefined;
const BROKEN = process.env.FAULT_BROKEN === undefined ? [] : [process.env.FAULT_BROKEN as BrokenRule];
const ROUNDS = 108;
/** Rounds wait more than they work: two at once, each on its own PostgreSQL and instances, take little longer. */
const LANES = ONE_ROUND === undefined ? 2 : 1;
/** One violation tells as much as many. */
const ENOUGH_FOUND = 3;

interface Lane {
  readonly postgres: FaultPostgres;
  readonly fleet: Fleet;
  /** A key that nobody ever changes. */
  readonly control: TestKey;
}

const lanes: Lane[] = [];

beforeAll(async () => {
  for (let count = 0; count < LANES; count++) {
    const postgres = await startFaultPostgres();
    const fleet = await startFleet({ postgres, broken: BROKEN });
    const [first] = fleet.instances;
    if (first === undefined) throw new Error('there are no instances');
    await fillCatalogue(fleet, first);
    lanes.push({ postgres, fleet, control: await fleet.createKey(first, 'ws_control') });
  }
});
afterAll(async () => {
  for (const { fleet, postgres } of lanes) await fleet.close().finally(() => postgres.close());
});

function tell(round: number, report: RoundReport): string {
  const { name, looks, mutations, tookMs, violations, excerpt } = report;
  return [
    `round ${round} (seed ${SEED}): ${name}; ${looks} requests, ${mutations} mutations, ${Math.round(tookMs)} ms, ${violations.length} violations`,
    ...(excerpt === '' ? [] : [excerpt]),
  ].join('\n');
}

const extent =
  MINUTES > 0 ? `${MINUTES} minutes` : ONE_ROUND === undefined ? `${ROUNDS} rounds` : `round ${ONE_ROUND}`;

it(
  `in ${extent} of faults (seed ${SEED}) no old state is answered`,
  async () => {
    const startedAt = performance.now();
    const endsAt = startedAt + MINUTES * 60_000;
    const found: string[] = [];
    const sum = { rounds: 0, looks: 0, mutations: 0 };
    let next = ONE_ROUND ?? 0;
    const isOver = () =>
      found.length >= ENOUGH_FOUND ||
      (MINUTES > 0 ? performance.now() > endsAt : next >= (ONE_ROUND === undefined ? ROUNDS : ONE_ROUND + 1));
    await Promise.all(
      lanes.map(async ({ fleet, control }) => {
        while (!isOver()) {
          const round = next++;
          const report = await runRound({ fleet, seed: SEED, round, control });
          sum.rounds++;
          sum.looks += report.looks;
          sum.mutations += report.mutations;
          const told = tell(round, report);
          if (IS_VERBOSE || report.violations.length > 0) process.stdout.write(`${told}\n`);
          if (report.violations.length > 0) found.push(told);
        }
      }),
    );
    const seconds = Math.round((performance.now() - startedAt) / 1000);
    process.stdout.write(
      `${sum.rounds} rounds (seed ${SEED}): ${sum.looks} requests, ${sum.mutations} mutations in ${seconds} s, ${found.length} with violations\n`,
    );
    expect(found.join('\n\n')).toBe('');
    expect(sum.looks).toBeGreaterThan(100 * sum.rounds);
  },
  (MINUTES + 20) * 60_000,
);
