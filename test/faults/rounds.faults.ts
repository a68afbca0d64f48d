import { afterAll, beforeAll, expect, it } from 'vitest';
import { type Fleet, startFleet, type TestKey } from './fleet.ts';
import { type FaultPostgres, startFaultPostgres } from './postgres.ts';
import { runRound } from './rounds.ts';

/** `npm run test:faults -- --minutes N --seed S` sets these; without them so many rounds of a fixed seed. */
const MINUTES = Number(process.env.FAULT_MINUTES ?? 0);
const SEED = Number(process.env.FAULT_SEED ?? 1);
const ROUNDS = Number(process.env.FAULT_ROUNDS ?? 102);
const ONLY = process.env.FAULT_ONLY_ROUND;

let postgres: FaultPostgres;
let fleet: Fleet;
let control: TestKey;

beforeAll(async () => {
  postgres = await startFaultPostgres();
  fleet = await startFleet({ postgres });
  const [first] = fleet.instances;
  if (first === undefined) throw new Error('there are no instances');
  control = await fleet.createKey(first, 'ws_control');
});
afterAll(async () => {
  await fleet?.close();
  await postgres?.close();
});

it(
  `in ${MINUTES > 0 ? `${MINUTES} minutes` : `${ROUNDS} rounds`} of faults (seed ${SEED}) no old state is answered`,
  async () => {
    const startedAt = performance.now();
    const endsAt = startedAt + MINUTES * 60_000;
    const found: string[] = [];
    let looks = 0;
    let mutations = 0;
    let round = Number(ONLY ?? 0);
    const isOver = () =>
      ONLY !== undefined ? round > Number(ONLY) : MINUTES > 0 ? performance.now() > endsAt : round >= ROUNDS;
    for (; !isOver(); round++) {
      const report = await runRound({ fleet, seed: SEED, round, control });
      looks += report.looks;
      mutations += report.mutations;
      if (process.env.FAULT_VERBOSE !== undefined || report.violations.length > 0)
        process.stdout.write(
          `round ${round} (seed ${SEED}): ${report.name}; ${report.looks} requests, ${report.mutations} mutations, ${Math.round(report.tookMs)} ms, ${report.violations.length} violations\n${report.excerpt}`,
        );
      if (report.violations.length > 0)
        found.push(`round ${round} (seed ${SEED}), ${report.name}\n${report.excerpt}`);
      if (found.length >= 5) break;
    }
    const seconds = Math.round((performance.now() - startedAt) / 1000);
    process.stdout.write(
      `${round} rounds (seed ${SEED}): ${looks} requests, ${mutations} mutations in ${seconds} s\n`,
    );
    expect(found.join('\n\n')).toBe('');
  },
  Math.max(1_200_000, (MINUTES + 5) * 60_000),
);
