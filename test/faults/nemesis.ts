import { setTimeout as sleep } from 'node:timers/promises';
import type { Instance } from '../support/instances.ts';
import type { Fleet, TestKey } from './fleet.ts';
import { revoke } from './mutator.ts';
import type { Random } from './random.ts';
import { isRevoked } from './scenarios.ts';

/** What a fault may touch and needs to know. */
export interface Theatre {
  readonly fleet: Fleet;
  readonly random: Random;
  /** The one to be disturbed. */
  readonly victim: Instance;
  /** The keys of this round: what is asked of a stopped instance just before it wakes. */
  readonly keys: readonly TestKey[];
  /** Creates one more key of the round. */
  newKey(): Promise<TestKey>;
}

/** Disturbs, and resolves when all is as it was. */
export type Fault = (theatre: Theatre) => Promise<void>;

/** Up to well past a lease of one second and the fence before it. */
const SHORT_MS = 100;
const LONG_MS = 1_600;

/** Every fault, by the name that a violation's report shows. */
export const FAULTS: Readonly<Record<string, Fault>> = {
  async nothing({ random }) {
    await sleep(random.between(SHORT_MS, 500));
  },

  async stopped({ fleet, random, victim, keys }) {
    await during(fleet, victim, 'stopped', async () => {
      victim.stop();
      await sleep(random.between(SHORT_MS, LONG_MS));
      await fleet.queue(victim, keys);
      victim.wake();
    });
  },

  /** Several short stops, each at another step of renewals and acknowledgements. */
  async stuttering({ fleet, random, victim, keys }) {
    await during(fleet, victim, 'stuttering', async () => {
      for (let times = 0; times < 6; times++) {
        victim.stop();
        await sleep(random.between(20, 400));
        if (random.chance(0.5)) await fleet.queue(victim, keys.slice(0, 2));
        victim.wake();
        await sleep(random.between(1, 60));
      }
    });
  },

  async killed({ fleet, random, victim }) {
    await during(fleet, victim, 'killed', async () => {
      await sleep(random.between(0, 300));
      await victim.kill();
      await sleep(random.between(0, 300));
      await fleet.revive(victim);
    });
  },

  async cut({ fleet, random, victim }) {
    await during(fleet, victim, 'cut off the database', async () => {
      victim.proxy.cut(random.pick(['reset', 'end']));
      await sleep(random.between(SHORT_MS, LONG_MS));
      victim.proxy.deliver();
    });
  },

  /** Connections end again and again. */
  async flapping({ fleet, random, victim }) {
    await during(fleet, victim, 'flapping', async () => {
      for (let times = 0; times < 6; times++) {
        victim.proxy.cut(random.pick(['reset', 'end']));
        await sleep(random.between(5, 100));
        victim.proxy.deliver();
        await sleep(random.between(50, 300));
      }
    });
  },

  async delayed({ fleet, random, victim }) {
    await during(fleet, victim, 'delayed', async () => {
      const direction = random.pick(['up', 'down', undefined] as const);
      const kind = random.pick(['pool', 'listener', undefined] as const);
      victim.proxy.delay(random.between(5, 400), { direction, kind });
      await sleep(random.between(500, LONG_MS));
      victim.proxy.deliver();
    });
  },

  async stalled({ fleet, random, victim }) {
    await during(fleet, victim, 'stalled', async () => {
      victim.proxy.stall({ kind: random.pick(['pool', 'listener', undefined] as const) });
      await sleep(random.between(SHORT_MS, LONG_MS));
      victim.proxy.deliver();
    });
  },

  async halfOpen({ fleet, random, victim }) {
    await during(fleet, victim, 'half open', async () => {
      const direction = random.pick(['up', 'down'] as const);
      victim.proxy.stall({ direction, kind: random.pick(['pool', 'listener', undefined] as const) });
      await sleep(random.between(SHORT_MS, LONG_MS));
      victim.proxy.deliver();
    });
  },

  /** What an instance sent before it died reaches PostgreSQL after that. */
  async killedWhileStalled({ fleet, random, victim }) {
    await during(fleet, victim, 'killed while stalled', async () => {
      victim.proxy.stall({ direction: 'up' });
      await sleep(random.between(50, 500));
      await victim.kill();
      await sleep(random.between(0, 500));
      victim.proxy.deliver();
      await fleet.revive(victim);
    });
  },

  async stoppedWhileStalled({ fleet, random, victim, keys }) {
    await during(fleet, victim, 'stopped while stalled', async () => {
      victim.proxy.stall({ kind: random.pick(['pool', 'listener', undefined] as const) });
      await sleep(random.between(0, 300));
      victim.stop();
      await sleep(random.between(SHORT_MS, LONG_MS));
      await fleet.queue(victim, keys);
      victim.wake();
      await sleep(random.between(0, 300));
      victim.proxy.deliver();
    });
  },

  /** Loads under way hear nothing of what changes, and land when their instance has joined under another id. */
  async loadHeld({ fleet, random, victim }) {
    await during(fleet, victim, 'a load held', async () => {
      const former = victim.registeredAs;
      const load = random.pick(['from "api_keys"', 'from "api_keys"', 'from "scopes"']);
      await Promise.race([victim.proxy.holdAnswersTo(load), sleep(1_000)]);
      const deliver = victim.proxy.stall({ kind: 'listener' });
      await sleep(random.between(LONG_MS, 2 * LONG_MS));
      deliver();
      const waitUntil = performance.now() + 2_000;
      while (victim.registeredAs === former && performance.now() < waitUntil) await sleep(10);
      await sleep(random.between(50, 300));
      victim.proxy.deliver();
    });
  },

  async listenerTerminated({ fleet, random, victim }) {
    await during(fleet, victim, 'listener terminated', async () => {
      for (let times = random.pick([1, 1, 3]); times > 0; times--) {
        await sleep(random.between(0, 300));
        await fleet.query(
          fleet.database,
          `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE application_name = 'claviger listener' AND client_port = ANY ($1)`,
          [victim.proxy.portsOf('listener')],
        );
      }
    });
  },

  async fencedByHand({ fleet, random, victim }) {
    await during(fleet, victim, 'fenced by hand', async () => {
      await sleep(random.between(0, 300));
      const sql = 'UPDATE instances SET fenced = true WHERE id = $1 AND NOT released';
      await fleet.query(fleet.database, sql, [victim.registeredAs]);
      await sleep(random.between(0, 500));
    });
  },

  /** Killed between COMMIT and its answer, while another member may hear nothing; the client repeats elsewhere. */
  async killedAfterCommit({ fleet, random, victim, newKey }) {
    const key = await newKey();
    for (const instance of fleet.instances) await fleet.look(instance, key, 'read');
    const others = random.shuffle(fleet.instances.filter((one) => one !== victim));
    const [deaf] = others;
    const isDeaf = deaf !== undefined && random.chance(0.6);
    const heals = isDeaf ? fleet.disturb(deaf, 'deaf') : undefined;
    const deliver = isDeaf ? deaf.proxy.stall({ kind: 'listener' }) : undefined;
    await during(fleet, victim, 'killed after COMMIT', async () => {
      const statement = random.pick(['update "api_keys"', 'insert into "sealed_answers"']);
      const committing = victim.proxy.holdAnswersTo('COMMIT', statement);
      const revoked = revoke(fleet, [victim, ...others.slice().reverse()], key);
      // Some mutation of this round commits there first; whichever it is, its author dies.
      await Promise.race([committing, sleep(2_000)]);
      const waitUntil = performance.now() + 1_000;
      while (performance.now() < waitUntil && !(await isRevoked(fleet, key))) await sleep(5);
      await sleep(random.pick([0, 0, random.between(0, 300)]));
      await victim.kill();
      victim.proxy.deliver();
      await revoked;
      await fleet.revive(victim);
    });
    deliver?.();
    heals?.end();
  },

  /** Killed at a random moment of a revocation. */
  async killedInMutation({ fleet, random, victim, newKey }) {
    const key = await newKey();
    const others = random.shuffle(fleet.instances.filter((one) => one !== victim));
    await during(fleet, victim, 'killed in a mutation', async () => {
      const revoked = revoke(fleet, [victim, ...others], key);
      await sleep(random.between(0, 40));
      await victim.kill();
      await revoked;
      await fleet.revive(victim);
    });
  },

  async postgresRestarted({ fleet, random }) {
    await restartPostgres(fleet, 'clean', random);
  },

  async postgresCrashed({ fleet, random }) {
    await restartPostgres(fleet, 'crash', random);
  },
};

async function restartPostgres(fleet: Fleet, how: 'clean' | 'crash', random: Random): Promise<void> {
  const all = fleet.instances.map((instance) => fleet.disturb(instance, `PostgreSQL restarted (${how})`));
  await sleep(random.between(0, 300));
  await fleet.restartPostgres(how);
  for (const disturbance of all) disturbance.end();
}

async function during(
  fleet: Fleet,
  instance: Instance,
  what: string,
  disturb: () => Promise<void>,
): Promise<void> {
  const disturbance = fleet.disturb(instance, what);
  await disturb();
  disturbance.end();
}
