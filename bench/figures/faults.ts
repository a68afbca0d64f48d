import { setTimeout as sleep } from 'node:timers/promises';
import { keyIdFromUuid } from '../../src/domain/key-id.ts';
import { startFleet } from '../../test/faults/fleet.ts';
import { FAULTS } from '../../test/faults/nemesis.ts';
import { startFaultPostgres } from '../../test/faults/postgres.ts';
import { seededRandom } from '../../test/faults/random.ts';
import { type Bench, quantile } from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { fillWithKeys } from './keys.ts';

const SEED = 4;
const LEASE_SECONDS = 2;
/** Between one fault and the next; a fault itself takes up to three seconds. */
const CALM_MS = { least: 1_000, most: 4_000 } as const;
/** What a client does that got no confirmation, before it asks the next instance. */
const REPEAT_AFTER_MS = 20;
/** The faults of the fault suite that need no keys of their own. */
const KINDS = [
  'stopped',
  'stuttering',
  'killed',
  'cut',
  'flapping',
  'delayed',
  'stalled',
  'halfOpen',
  'killedWhileStalled',
  'stoppedWhileStalled',
  'listenerTerminated',
  'fencedByHand',
  'postgresRestarted',
] as const;

interface Revocation {
  readonly tookMs: number;
  readonly attempts: number;
  readonly fenced: number;
}

/**
 * Revocations one after another, while the fault suite's nemesis disturbs one of three instances at a time. The client
 * takes the instances in turn, and repeats at the next where one answers 503 or not at all.
 */
export async function faults(_bench: Bench, { revocations }: Options): Promise<Figure[]> {
  const postgres = await startFaultPostgres();
  try {
    const fleet = await startFleet({ postgres, leaseSeconds: LEASE_SECONDS });
    try {
      const { database, instances } = fleet;
      const query: typeof postgres.query<never> = postgres.query;
      await fillWithKeys(
        { url: postgres.url(database), query: (sql, values) => query(database, sql, values) },
        { count: revocations, workspaces: 10 },
      );
      const rows = await postgres.query<{ id: string }>(
        database,
        "SELECT id FROM api_keys WHERE workspace_id <> 'system'",
      );
      const random = seededRandom(SEED);
      let done = false;
      let disturbed = 0;
      const disturbing = (async () => {
        while (!done) {
          await sleep(random.between(CALM_MS.least, CALM_MS.most));
          const fault = FAULTS[random.pick(KINDS)];
          const victim = random.pick(instances);
          await fault?.({
            fleet,
            random,
            victim,
            keys: [],
            newKey: () => Promise.reject(new Error('none of these faults makes a key')),
          });
          disturbed++;
        }
      })();

      const taken: Revocation[] = [];
      const startedAt = performance.now();
      for (const [index, { id }] of rows.entries()) {
        taken.push(await revoke(keyIdFromUuid(id), index));
        if (index % 1_000 === 999) process.stderr.write(`  ${index + 1} revoked\n`);
      }
      const seconds = (performance.now() - startedAt) / 1000;
      done = true;
      await disturbing;
      const crashed = instances.find(({ crash }) => crash !== undefined);
      if (crashed !== undefined) throw new Error(crashed.crash);
      const [left] = await postgres.query<{ left: string }>(
        database,
        "SELECT count(*) AS left FROM api_keys WHERE workspace_id <> 'system' AND revoked_at IS NULL",
      );
      if (Number(left?.left) !== 0) throw new Error(`${left?.left} keys are not revoked`);
      return figuresOf(taken, { seconds, disturbed });

      /** Until it is confirmed. */
      async function revoke(id: string, turn: number): Promise<Revocation> {
        const begin = performance.now();
        for (let attempts = 1; ; attempts++) {
          const instance = instances[(turn + attempts) % instances.length];
          if (instance === undefined) throw new Error('there are no instances');
          const reply = await fleet.send(instance, 'DELETE', `/v1/api-keys/${id}`);
          if (reply.kind === 'answer' && reply.status === 200) {
            const { fenced } = JSON.parse(reply.text).propagation;
            return { tookMs: performance.now() - begin, attempts, fenced };
          }
          if (reply.kind === 'answer' && reply.status !== 503)
            throw new Error(`DELETE: ${reply.status} ${reply.text}`);
          await sleep(REPEAT_AFTER_MS);
        }
      }
    } finally {
      await fleet.close();
    }
  } finally {
    await postgres.close();
  }
}

function figuresOf(
  taken: readonly Revocation[],
  { seconds, disturbed }: { seconds: number; disturbed: number },
): Figure[] {
  const waits = taken.map(({ tookMs }) => tookMs);
  const count = (which: (revocation: Revocation) => boolean) => taken.filter(which).length;
  return [
    {
      name: `${taken.length} DELETEs under faults, median`,
      value: quantile(waits, 0.5),
      unit: 'ms',
      detail: `one after another at 3 instances, LEASE_SECONDS=${LEASE_SECONDS}, ${disturbed} faults in ${seconds.toFixed(0)} s, seed ${SEED}`,
    },
    { name: '… p99', value: quantile(waits, 0.99), unit: 'ms' },
    {
      name: '… worst',
      value: quantile(waits, 1),
      unit: 'ms',
      detail: `${count(({ fenced }) => fenced > 0)} waited for a fence, ${count(({ attempts }) => attempts > 1)} were repeated`,
    },
  ];
}
