import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { keyIdToUuid } from '../../src/domain/key-id.ts';
import { type Bench, call, compare, load, median } from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { storeHashedKeys, storeKeysWithMemo } from './keys.ts';

const KEYS_PER_ROUND = 120;
const MEMO_KEYS_PER_ROUND = 5_000;
/** As many at a time as keep the slots busy. */
const COLD_CONNECTIONS = 8;

/** Keys that no instance has seen, without a memo: throughput ÷ that of raw argon2 with the same slots, in turns. */
export async function cold(bench: Bench, { rounds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_cold');
  const service = await bench.service(database.url, { VERIFICATION_MEMO: 'off' });
  const ratios: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const keys = await storeHashedKeys(database, KEYS_PER_ROUND);
    const raw = await rawArgon2(2);
    const { succeeded, errors, seconds } = await load(bench, {
      url: `${service.url}/v1/introspect`,
      headers: { authorization: `Bearer ${service.token}` },
      bodies: keys.map(({ token }) => JSON.stringify({ key: token })),
      inTurn: true,
      amount: KEYS_PER_ROUND,
      connections: COLD_CONNECTIONS,
    });
    if (errors > 0) throw new Error(`${errors} first introspections failed`);
    const again = await rawArgon2(2);
    ratios.push(succeeded / seconds / ((raw + again) / 2));
  }
  await service.stop();
  const value = median(ratios);
  return [
    {
      name: 'first introspection ÷ raw argon2 with the same slots',
      value,
      unit: '',
      aim: { text: '≥ 0.9', reached: value >= 0.9 },
      detail: `throughput, ${KEYS_PER_ROUND} never-seen keys a round, no memo`,
    },
  ];
}

async function rawArgon2(seconds: number): Promise<number> {
  const { stdout } = await promisify(execFile)(process.execPath, ['bench/raw-argon2.js', String(seconds)]);
  return JSON.parse(stdout).perSecond;
}

/** Keys that another instance has proved, against a route that reads one row by its primary key. */
export async function memo(bench: Bench, { rounds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_memo');
  const service = await bench.service(database.url);
  const token = service.token ?? '';
  // One round more, which warms up.
  const keys = await storeKeysWithMemo(database, MEMO_KEYS_PER_ROUND * (rounds + 1) + 1);
  await database.query('VACUUM ANALYZE');
  const bodies = keys.map((key) => JSON.stringify({ key: key.token, scopes: ['read'] }));
  const answer = await call(service, token, '/v1/introspect', { body: JSON.parse(bodies.pop() ?? '{}') });
  const bare = await bench.bare(JSON.stringify(answer).length, {
    url: database.url,
    statement: 'SELECT * FROM api_keys WHERE id = $1',
  });
  const ids = keys.map(({ id, token: own }) =>
    JSON.stringify({ id: keyIdToUuid(id), token: own.slice(0, 44) }),
  );
  const amount = MEMO_KEYS_PER_ROUND;
  let used = 0;
  const { ratio, control, oursUs, yardstickUs } = await compare(bench, {
    yardstick: [bare, { url: `${bare.url}/bare`, bodies: ids, amount }],
    ours: [
      service,
      {
        url: `${service.url}/v1/introspect`,
        headers: { authorization: `Bearer ${token}` },
        get bodies() {
          const unseen = bodies.slice(used, used + amount);
          used += amount;
          return unseen;
        },
        inTurn: true,
        amount,
      },
    ],
    rounds,
  });
  const metrics = await (await fetch(`${service.url}/metrics`)).text();
  const byMemo = Number(/claviger_proofs_total\{by="memo"\} (\d+)/.exec(metrics)?.[1]);
  if (byMemo !== used + 1) throw new Error(`${byMemo} of ${used + 1} keys were proved by their memo`);
  await service.stop();
  await bare.stop('SIGKILL');
  return [
    {
      name: 'first introspection with a memo ÷ a route with one primary-key SELECT',
      value: ratio,
      unit: '',
      aim: { text: '≥ 0.75', reached: ratio >= 0.75 },
      control,
      detail: `${oursUs.toFixed(0)} µs against ${yardstickUs.toFixed(0)} µs of CPU of the server, ${amount} never-seen keys a round`,
    },
  ];
}
