import { setTimeout as sleep } from 'node:timers/promises';
import { describeViolation, findViolations, type Violation } from '../support/history.ts';
import type { Instance } from '../support/instances.ts';
import { ALL_SCOPES, accessTokenOf, type Fleet, type TestKey } from './fleet.ts';
import {
  createOnce,
  NARROW,
  revoke,
  revokeAll,
  rotate,
  setDisabled,
  setImplied,
  setScopes,
  tokensOf,
  WIDE,
} from './mutator.ts';
import { FAULTS, type Theatre } from './nemesis.ts';
import { type Random, seededRandom } from './random.ts';

/*
 * One round: keys are made and warmed here and there; a fault, or two, befall instances; meanwhile keys are
 * narrowed, widened, revoked, revoked again elsewhere, and revoked in bulk, a workspace is disabled and enabled,
 * the catalogue lets a scope imply another and takes that back, keys are made and rotated by requests that are repeated
 * until they are answered, and all instances are asked about them without pause. When all is answered, the round's history is
 * checked.
 */

export interface RoundReport {
  readonly name: string;
  readonly looks: number;
  readonly mutations: number;
  readonly tookMs: number;
  readonly violations: readonly Violation[];
  /** For a person; empty where nothing was found. */
  readonly excerpt: string;
}

export interface RoundOptions {
  readonly fleet: Fleet;
  readonly seed: number;
  readonly round: number;
  /** A key that nobody ever changes. */
  readonly control: TestKey;
}

/** No round takes nearly as long on the slowest machine. */
const HUNG_AFTER_MS = 90_000;
/** Waiting for a change that a fault holds up, a client may lose its patience. */
const PATIENCE_MS = { least: 200, most: 1_500 } as const;

/** Runs a round; where it hangs, fails with what everyone was waiting for. */
export async function runRound(options: RoundOptions): Promise<RoundReport> {
  const hung = new AbortController();
  const watch = sleep(HUNG_AFTER_MS, undefined, { signal: hung.signal }).then(async () => {
    throw new Error(
      `round ${options.round} (seed ${options.seed}) hangs:\n${await options.fleet.diagnose()}`,
    );
  });
  watch.catch(() => undefined);
  try {
    const report = await Promise.race([playRound(options), watch]);
    const crashes = options.fleet.instances.flatMap(({ crash }) => crash ?? []);
    if (crashes.length > 0)
      throw new Error(`round ${options.round} (seed ${options.seed}), ${report.name}: ${crashes.join('\n')}`);
    return report;
  } finally {
    hung.abort();
  }
}

async function playRound({ fleet, seed, round, control }: RoundOptions): Promise<RoundReport> {
  const startedAt = performance.now();
  const random = seededRandom(Math.imul(seed, 0x9e3779b1) ^ round);
  const plan = planFaults(random, round, fleet.instances);
  const name = plan.map(({ fault, victim }) => `${fault} ${victim.name}`).join(' and ');
  const workspace = `ws_${seed}_${round}`;
  const keys: TestKey[] = [];

  async function newKey(suffix = ''): Promise<TestKey> {
    const instance = random.pick(fleet.instances);
    const made = await fleet.createKey(instance, workspace + suffix);
    const key = { ...made, accessToken: await accessTokenOf(instance, made) };
    keys.push(key);
    return key;
  }
  for (let count = 0; count < 5; count++) await newKey();
  const bulk = [await newKey('_bulk'), await newKey('_bulk')];
  const tenant = [await newKey('_tenant'), await newKey('_tenant')];
  for (const instance of fleet.instances) {
    for (const key of keys) if (random.chance(0.6)) await fleet.look(instance, key, 'read');
  }

  const workers = fleet.instances.map((instance) => {
    const own = random.fork();
    return fleet.work(instance, () => ({
      key: own.chance(0.1) ? control : own.pick(keys),
      scope: own.pick(ALL_SCOPES),
    }));
  });
  const faults = plan.map(({ fault, victim }) => {
    const theatre: Theatre = { fleet, random: random.fork(), victim, keys, newKey };
    return FAULTS[fault]?.(theatre);
  });
  const once: Once[] = [];
  await Promise.all([
    ...faults,
    ...mutate({ fleet, random: random.fork(), keys: keys.slice(0, 5), bulk, tenant }),
    ...make({ fleet, random: random.fork(), workspace: `${workspace}_once`, keys, once }),
  ]);
  for (const { end } of workers.map((worker) => ({ end: worker.end() }))) await end;
  await fleet.settled();
  // What a fault held up has landed by now; whether it was kept shows in the next answers.
  for (const key of keys) fleet.probe(key);
  await fleet.settled();

  await refuseTwice(fleet, once, `${workspace}_once`);

  const history = fleet.takeHistory([...keys, control]);
  const violations = findViolations(history);
  return {
    name,
    looks: history.looks.length,
    mutations: history.mutations.length,
    tookMs: performance.now() - startedAt,
    violations,
    excerpt: violations
      .slice(0, 3)
      .map((violation) => describeViolation(violation, history))
      .join('\n'),
  };
}

/** A key that was asked for with an Idempotency-Key, and all answers to that. */
interface Once {
  readonly name: string;
  readonly answers: readonly string[];
}

/** Makes keys, and rotates them, by requests that are repeated until they are answered. */
function make({
  fleet,
  random,
  workspace,
  keys,
  once,
}: {
  fleet: Fleet;
  random: Random;
  workspace: string;
  /** Where the keys are added. */
  keys: TestKey[];
  once: Once[];
}): Promise<unknown>[] {
  const patience = () => random.between(PATIENCE_MS.least / 4, PATIENCE_MS.most);
  const route = () => random.shuffle(fleet.instances);

  function adopt(key: TestKey): void {
    keys.push(key);
    fleet.probe(key);
  }
  async function makeKey(name: string): Promise<TestKey> {
    await sleep(random.between(0, 300));
    const { key, answers } = await createOnce(fleet, route(), { workspace, name }, patience());
    once.push({ name, answers });
    adopt(key);
    return key;
  }
  async function rotateKey(key: TestKey): Promise<TestKey> {
    const { successor, answers } = await rotate(fleet, route(), key, patience());
    once.push({ name: successor.id, answers });
    adopt(successor);
    return successor;
  }
  return [
    makeKey(`${workspace}_1`)
      .then(() => makeKey(`${workspace}_2`))
      .then(() => makeKey(`${workspace}_3`)),
    makeKey(`${workspace}_4`)
      .then(rotateKey)
      .then(rotateKey)
      .then((key) => revoke(fleet, route(), key, patience())),
  ];
}

/** However often they were asked for, and whoever was killed meanwhile: each was made once, and one token was told. */
async function refuseTwice(fleet: Fleet, once: readonly Once[], workspace: string): Promise<void> {
  for (const { name, answers } of once) {
    if (tokensOf(answers).size !== 1) throw new Error(`"${name}" was answered with several tokens`);
  }
  const sql = 'SELECT count(*)::int AS made FROM api_keys WHERE workspace_id = $1';
  const [row] = await fleet.query<{ made: number }>(fleet.database, sql, [workspace]);
  if (row?.made !== once.length) throw new Error(`${row?.made} keys were made of ${once.length} requests`);
}

/** Every fault has its turn; a second one at random on another instance. */
function planFaults(
  random: Random,
  round: number,
  instances: readonly Instance[],
): { fault: string; victim: Instance }[] {
  const names = Object.keys(FAULTS);
  const [one, other] = random.shuffle(instances);
  const first = names[round % names.length];
  if (one === undefined || other === undefined || first === undefined) throw new Error('too few instances');
  const plan = [{ fault: first, victim: one }];
  if (random.chance(0.35)) plan.push({ fault: random.pick(names.filter(isLight)), victim: other });
  return plan;
}

/** Of two faults at once only one starts a process again, which takes the longest. */
function isLight(name: string): boolean {
  return !/^(postgres|killed)/.test(name);
}

function mutate({
  fleet,
  random,
  keys,
  bulk,
  tenant,
}: {
  fleet: Fleet;
  random: Random;
  keys: readonly TestKey[];
  /** All keys of a workspace that they have to themselves. */
  bulk: readonly TestKey[];
  tenant: readonly TestKey[];
}): Promise<unknown>[] {
  const [first, second, third, fourth, fifth] = keys;
  const [inBulk] = bulk;
  const [ofTenant] = tenant;
  if (
    first === undefined ||
    second === undefined ||
    third === undefined ||
    fourth === undefined ||
    fifth === undefined
  )
    throw new Error('too few keys');
  if (inBulk === undefined || ofTenant === undefined) throw new Error('an empty workspace');
  const route = () => random.shuffle(fleet.instances);
  const soon = () => sleep(random.between(0, 600));
  const patience = () => random.between(PATIENCE_MS.least, PATIENCE_MS.most);

  async function narrowAndWiden(key: TestKey, times: number): Promise<void> {
    await soon();
    for (let version = 1; version <= times; version++) {
      await setScopes(fleet, route(), key, { version, scopes: version % 2 === 1 ? NARROW : WIDE });
    }
  }
  async function disableAndEnable(workspace: string, times: number): Promise<void> {
    await soon();
    for (let time = 1; time <= times; time++) {
      await setDisabled(fleet, route(), { workspace, keys: tenant, disabled: time % 2 === 1 });
    }
  }
  async function implyAndTakeBack(times: number): Promise<void> {
    await soon();
    // What is left is what the next round begins with.
    for (let time = 1; time <= 2 * times; time++) {
      await setImplied(fleet, route(), { keys: [...keys, ...tenant], implied: time % 2 === 1 });
    }
  }
  return [
    narrowAndWiden(first, 3).then(() => revoke(fleet, route(), first, patience())),
    narrowAndWiden(second, 2),
    // The same revocation by two clients at once: each of their answers binds.
    soon().then(() => revoke(fleet, route(), third, patience())),
    soon().then(() => revoke(fleet, route(), third, patience())),
    // Confirmed, and then confirmed again by another instance.
    soon()
      .then(() => revoke(fleet, route(), fourth, patience()))
      .then(() => revoke(fleet, route(), fourth, patience())),
    soon().then(() => revokeAll(fleet, route(), inBulk.workspace, bulk, patience())),
    disableAndEnable(ofTenant.workspace, 3),
    // What was disabled is narrowed all the same.
    narrowAndWiden(ofTenant, 1),
    // Narrow for good, so that what its scope implies shows.
    narrowAndWiden(fifth, 1),
    implyAndTakeBack(2),
  ];
}
