import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../faults/random.ts';
import { createWorld, type Fate, type Limits, type Outcome, WORKSPACE, type World } from './quota-model.ts';

/*
 * Quota against a model of the database, with random schedules: uses in bursts on several instances, statements and
 * notifications that overtake each other, crashes, drains, changes of limits, lost answers, windows that turn.
 */

/** Long enough that no schedule leaves it. */
const LONG = 2_678_400;
const LIMITS = [1, 7, 100, 999, 1000, 1001, 3000];

/** QUOTA_THOROUGH=50 searches so many times longer. */
const THOROUGH = Number(process.env.QUOTA_THOROUGH ?? 1);

interface Burst {
  readonly kind: 'burst';
  readonly instance: number;
  readonly uses: number;
  readonly cost: number;
  readonly key: 0 | 1;
}
type Step = Burst | { readonly kind: 'pass'; readonly ms: number };

const burst = (costs: readonly number[]): fc.Arbitrary<Burst> =>
  fc.record({
    kind: fc.constant('burst' as const),
    instance: fc.nat(3),
    uses: fc.oneof(fc.integer({ min: 1, max: 12 }), fc.integer({ min: 30, max: 300 })),
    cost: fc.constantFrom(...costs),
    key: fc.constantFrom(0 as const, 1 as const),
  });
const passing = fc.record({
  kind: fc.constant('pass' as const),
  ms: fc.oneof(fc.integer({ min: 0, max: 40 }), fc.integer({ min: 100, max: 3_000 })),
});
const stepsOf = (costs: readonly number[] = [1]) =>
  fc.array(fc.oneof({ arbitrary: burst(costs), weight: 3 }, passing), { minLength: 3, maxLength: 30 });
const limitOf = (windowSeconds = LONG) =>
  fc.constantFrom(...LIMITS).map((limit) => ({ limit, window_seconds: windowSeconds }));

function worldOf(
  limits: Limits,
  {
    seed,
    instances = 4,
    faults = 0,
    delayMs = 20,
  }: { seed: number; instances?: number; faults?: number; delayMs?: number },
): World {
  const random = seededRandom(seed).fraction;
  const fate = (): Fate => {
    if (random() >= faults) return 'arrives';
    return (['never sent', 'answer lost', 'answer late'] as const)[Math.floor(random() * 3)] ?? 'arrives';
  };
  return createWorld({ instances, limits, random, delayMs, fate });
}

async function run(world: World, steps: readonly Step[]): Promise<void> {
  for (const step of steps) {
    if (step.kind === 'pass') await world.pass(step.ms);
    else
      for (let use = 0; use < step.uses; use++)
        world.use({ instance: step.instance, keyId: `key_${step.key}`, cost: step.cost });
  }
  await world.pass(10_000);
}

const costOf = (outcomes: readonly Outcome[]) =>
  outcomes.reduce((sum, { charge, cost }) => sum + (charge?.admitted ? cost : 0), 0);
const refused = (outcomes: readonly Outcome[]) =>
  outcomes.filter(({ charge }) => charge !== undefined && !charge.admitted && charge.because === 'spent');
const leasedOf = (world: World, subject: string) => world.rows().get(`${subject} ${LONG}`)?.leased ?? 0;
const ofKey = (world: World, key: string) => world.outcomes.filter(({ keyId }) => keyId === key);

/** A refusal is right if less was left, when all was over, than it cost. */
function expectFull(outcomes: readonly Outcome[], limit: number): void {
  const left = limit - costOf(outcomes);
  expect(left).toBeGreaterThanOrEqual(0);
  for (const { cost } of refused(outcomes)) expect(left).toBeLessThan(cost);
}

describe('a limit of a key', () => {
  test('admits what it says and not less while there is demand, whatever the schedule and the costs', async () => {
    await fc.assert(
      fc.asyncProperty(limitOf(), stepsOf([0, 1, 2, 5, 40]), fc.integer(), async (limit, steps, seed) => {
        const world = worldOf({ key: limit, workspace: null }, { seed });
        await run(world, steps);
        expect(world.outcomes.every(({ charge }) => charge !== undefined)).toBe(true);
        for (const key of ['key_0', 'key_1']) expectFull(ofKey(world, key), limit.limit);
        await world.close();
        for (const key of ['key_0', 'key_1']) expect(leasedOf(world, key)).toBe(costOf(ofKey(world, key)));
      }),
      { numRuns: 150 * THOROUGH },
    );
  });

  test('is told exactly while one instance serves the key', async () => {
    await fc.assert(
      fc.asyncProperty(limitOf(), stepsOf([0, 1, 3]), fc.integer(), async (limit, steps, seed) => {
        const world = worldOf({ key: limit, workspace: null }, { seed, instances: 1 });
        await run(
          world,
          steps.map((step) => (step.kind === 'burst' ? { ...step, instance: 0, key: 0 as const } : step)),
        );
        const remains = world.outcomes
          .filter(({ charge, cost }) => charge?.admitted && cost > 0)
          .map(({ charge }) => charge?.rateLimit?.remaining ?? Number.NaN)
          .sort((one, other) => other - one);
        const costs = world.outcomes.filter(({ charge, cost }) => charge?.admitted && cost > 0);
        // Each use has a remainder of its own, and the least is what is left of all.
        expect(new Set(remains).size).toBe(costs.length);
        if (remains.length > 0) expect(remains.at(-1)).toBe(limit.limit - costOf(world.outcomes));
        await world.close();
      }),
      { numRuns: 60 * THOROUGH },
    );
  });

  test('loses what a crashed instance held, and never admits more', async () => {
    await fc.assert(
      fc.asyncProperty(
        limitOf(),
        stepsOf([1, 5]),
        stepsOf([1, 5]),
        fc.nat(3),
        fc.integer(),
        async (limit, before, after, victim, seed) => {
          const world = worldOf({ key: limit, workspace: null }, { seed });
          const last = before.findLastIndex(({ kind }) => kind === 'burst');
          for (const [index, step] of before.entries()) {
            if (step.kind === 'pass') await world.pass(step.ms);
            else
              for (let use = 0; use < step.uses; use++)
                world.use({ instance: step.instance, keyId: 'key_0', cost: step.cost });
            if (index === last) await world.pass(seededRandom(seed).fraction() * 30);
          }
          world.crash(victim);
          await run(
            world,
            after.map((step) => (step.kind === 'burst' ? { ...step, key: 0 as const } : step)),
          );
          expect(costOf(world.outcomes)).toBeLessThanOrEqual(limit.limit);
          // Who lives has an answer to everything.
          for (const { instance, charge } of world.outcomes)
            if (world.isAlive(instance)) expect(charge).toBeDefined();
          await world.close();
          expect(leasedOf(world, 'key_0')).toBeLessThanOrEqual(limit.limit);
        },
      ),
      { numRuns: 80 * THOROUGH },
    );
  });

  test('never admits more where statements fail, are answered late, or are done and never answered', async () => {
    await fc.assert(
      fc.asyncProperty(limitOf(), stepsOf([1, 5]), fc.integer(), async (limit, steps, seed) => {
        const world = worldOf({ key: limit, workspace: null }, { seed, faults: 0.2 });
        await run(world, steps);
        // Once everything that was late has come, too.
        for (let round = 0; round < 3; round++)
          await run(
            world,
            [0, 1, 2, 3].map((instance) => ({ kind: 'burst', instance, uses: 400, cost: 1, key: 0 })),
          );
        for (const key of ['key_0', 'key_1'])
          expect(costOf(ofKey(world, key))).toBeLessThanOrEqual(limit.limit);
        expect(world.outcomes.every(({ charge }) => charge !== undefined)).toBe(true);
      }),
      { numRuns: 80 * THOROUGH },
    );
  });

  test('is as exact with an instance that drains midway, and one that has no lease', async () => {
    await fc.assert(
      fc.asyncProperty(limitOf(), stepsOf(), stepsOf(), fc.integer(), async (limit, before, after, seed) => {
        const world = worldOf({ key: limit, workspace: null }, { seed });
        world.setLeased(2, false);
        for (const step of before) {
          if (step.kind === 'pass') await world.pass(step.ms);
          else
            for (let use = 0; use < step.uses; use++)
              world.use({ instance: step.instance, keyId: 'key_0', cost: 1 });
        }
        world.drain(0);
        world.setLeased(2, true);
        world.setLeased(3, false);
        await run(
          world,
          after.map((step) => (step.kind === 'burst' ? { ...step, key: 0 as const } : step)),
        );
        expectFull(world.outcomes, limit.limit);
        await world.close();
        expect(leasedOf(world, 'key_0')).toBe(costOf(world.outcomes));
      }),
      { numRuns: 80 * THOROUGH },
    );
  });

  test('counts each window by itself, by the clock of the database', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 3 }).chain((seconds) => limitOf(seconds)),
        stepsOf(),
        fc.integer(),
        async (limit, steps, seed) => {
          const world = worldOf({ key: limit, workspace: null }, { seed });
          await run(world, steps);
          const windows = new Map<string, number>();
          for (const { keyId, charge } of world.outcomes) {
            if (!charge?.admitted) continue;
            const window = `${keyId} ${charge.rateLimit?.reset}`;
            windows.set(window, (windows.get(window) ?? 0) + 1);
          }
          // What begins after a window's end neither spends of it nor is refused by it.
          for (const { charge, begunMs } of world.outcomes)
            expect((charge?.rateLimit?.reset ?? 0) * 1000).toBeGreaterThan(begunMs);
          for (const admitted of windows.values()) expect(admitted).toBeLessThanOrEqual(limit.limit);
          expect(world.outcomes.every(({ charge }) => charge !== undefined)).toBe(true);
        },
      ),
      { numRuns: 80 * THOROUGH },
    );
  });

  test('that is lowered or raised midway holds for every use that begins after', async () => {
    await fc.assert(
      fc.asyncProperty(
        limitOf(),
        limitOf(),
        stepsOf(),
        stepsOf(),
        fc.integer(),
        async (first, second, before, after, seed) => {
          const world = worldOf({ key: first, workspace: null }, { seed });
          // It hears of no change, and reads the limit anew for each use.
          world.setLeased(3, false);
          for (const step of before) {
            if (step.kind === 'pass') await world.pass(step.ms);
            else
              for (let use = 0; use < step.uses; use++)
                world.use({ instance: step.instance, keyId: 'key_0', cost: 1 });
          }
          // All that began is over: what is admitted from now on began after the change.
          await world.pass(5_000);
          const spent = costOf(world.outcomes);
          world.change({ key: second, workspace: null });
          const begun = world.outcomes.length;
          await run(
            world,
            after.map((step) => (step.kind === 'burst' ? { ...step, key: 0 as const } : step)),
          );
          const later = world.outcomes.slice(begun);
          const room = Math.max(0, second.limit - spent);
          expect(costOf(later)).toBeLessThanOrEqual(room);
          if (refused(later).length > 0) expect(costOf(later)).toBe(room);
        },
      ),
      { numRuns: 80 * THOROUGH },
    );
  });
});

describe('limits of a key and of its workspace', () => {
  test('admit what the tighter allows; refusals spend neither', async () => {
    await fc.assert(
      fc.asyncProperty(
        limitOf(),
        limitOf(),
        stepsOf([1, 2, 5]),
        fc.integer(),
        async (key, workspace, steps, seed) => {
          const world = worldOf({ key, workspace }, { seed });
          await run(world, steps);
          expect(world.outcomes.every(({ charge }) => charge !== undefined)).toBe(true);
          await world.close();
          const inAll = costOf(world.outcomes);
          expect(inAll).toBeLessThanOrEqual(workspace.limit);
          for (const id of ['key_0', 'key_1']) {
            const spent = costOf(ofKey(world, id));
            expect(spent).toBeLessThanOrEqual(key.limit);
            expect(leasedOf(world, id)).toBe(spent);
            const left = Math.min(key.limit - spent, workspace.limit - inAll);
            for (const { cost } of refused(ofKey(world, id))) expect(left).toBeLessThan(cost);
          }
          expect(leasedOf(world, `workspace:${WORKSPACE}`)).toBe(inAll);
        },
      ),
      { numRuns: 150 * THOROUGH },
    );
  });
});

test('a stock dies with its window', async () => {
  const world = worldOf(
    { key: { limit: 1000, window_seconds: 2 }, workspace: null },
    { seed: 1, instances: 1 },
  );
  await world.pass(1_000);
  for (let use = 0; use < 100; use++) world.use({ instance: 0, keyId: 'key_0', cost: 1 });
  // 50 ms into the next window, before anybody has looked for what is void.
  await world.pass(1_050);
  const stocked = [...world.rows().values()].map((row) => row.stocked);
  expect(stocked[0]).toBeGreaterThan(0);
  world.use({ instance: 0, keyId: 'key_0', cost: 1 });
  await world.pass(100);
  const { charge, begunMs } = world.outcomes.at(-1) ?? {};
  expect((charge?.rateLimit?.reset ?? 0) * 1000).toBeGreaterThan((begunMs ?? 0) + 1_900);
  expect(charge?.rateLimit?.remaining).toBe(999);
});

test.each([
  { instance: 0, where: 'the same instance' },
  { instance: 1, where: 'another instance' },
])('nobody is refused for what a use holds that its workspace then refuses: $where', async ({ instance }) => {
  // Forty uses of cost 5 hold all of the key, and the workspace has room for one of them, or for cost 2.
  const limits = {
    key: { limit: 200, window_seconds: LONG },
    workspace: { limit: 7, window_seconds: LONG },
  };
  for (let seed = 0; seed < 20; seed++) {
    const world = worldOf(limits, { seed });
    for (let use = 0; use < 40; use++) world.use({ instance: 0, keyId: 'key_0', cost: 5 });
    await world.pass(seed * 2);
    world.use({ instance, keyId: 'key_0', cost: 2 });
    await world.pass(5_000);
    expect(world.outcomes.at(-1)?.charge?.admitted, `seed ${seed}`).toBe(true);
    expect(costOf(world.outcomes)).toBe(7);
    await world.close();
    expect(leasedOf(world, 'key_0')).toBe(7);
  }
});

test('a busy key costs at most two statements a second, also where all of its limit is used', async () => {
  for (const perSecond of [17, 100, 1000]) {
    const limit = perSecond * 60;
    const world = worldOf({ key: { limit, window_seconds: 60 }, workspace: null }, { seed: 1, instances: 1 });
    for (let ms = 0; ms < 120_000; ms += 50) {
      const due = Math.floor(((ms + 50) * perSecond) / 1000) - Math.floor((ms * perSecond) / 1000);
      for (let use = 0; use < due; use++) world.use({ instance: 0, keyId: 'key_0', cost: 1 });
      await world.pass(50);
    }
    expect(world.statements / 120, `${perSecond} a second`).toBeLessThanOrEqual(2);
    expect(refused(world.outcomes)).toEqual([]);
  }
}, 60_000);

test('many keys at a time share statements, and a few wait for nothing', async () => {
  const limits = { key: { limit: 100, window_seconds: LONG }, workspace: null };
  /** A use of so many keys each 2 ms for a second, each key twice: to the first the database has no row. */
  const statementsFor = async (keys: number) => {
    const world = worldOf(limits, { seed: 1, instances: 1, delayMs: 1 });
    for (let turn = 0; turn < 500; turn++) {
      for (let key = 0; key < keys; key++)
        world.use({ instance: 0, keyId: `key_${turn % 250}_${key}`, cost: 1 });
      await world.pass(2);
    }
    const { statements } = world;
    await world.pass(1_000);
    expect(world.outcomes.filter(({ charge }) => charge?.admitted !== true)).toEqual([]);
    return statements;
  };
  expect(await statementsFor(10)).toBeLessThanOrEqual(100);
  expect(await statementsFor(1)).toBeGreaterThan(500);
});
