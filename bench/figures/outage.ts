import { setTimeout as sleep } from 'node:timers/promises';
import { startTcpProxy } from '../../test/support/tcp-proxy.ts';
import { type Bench, load } from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { storeKeysWithMemo } from './keys.ts';

const KEYS = 100_000;
/** The longest there is. Memory answers until it ends, which is up to a third of it before the database is back. */
const LEASE_SECONDS = 300;
const LOOK_EVERY_MS = 1_000;
const MIB = 2 ** 20;

/** What the recorder costs in memory while the database is away at full load, and whether its counts are right then. */
export async function outage(bench: Bench, { outage: outageSeconds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_outage');
  const direct = new URL(database.url);
  const proxy = await startTcpProxy(Number(direct.port));
  direct.port = String(proxy.port);
  const service = await bench.service(direct.href, { LEASE_SECONDS: String(LEASE_SECONDS) });
  const keys = await storeKeysWithMemo(database, KEYS);
  await database.query('UPDATE api_keys SET rate_limit = NULL, rate_limit_window_seconds = NULL');
  const work = {
    url: `${service.url}/v1/introspect`,
    headers: { authorization: `Bearer ${service.token}` },
    bodies: keys.map(({ token }) =>
      JSON.stringify({ key: token, scopes: ['read'], request: { ip: '203.0.113.9' } }),
    ),
  };
  const metric = async (name: string) => {
    const text = await (await fetch(`${service.url}/metrics`)).text();
    return Number(new RegExp(`^claviger_${name} (.+)$`, 'm').exec(text)?.[1]);
  };
  const heap = async () =>
    (await metric('nodejs_heap_size_used_bytes')) + (await metric('nodejs_external_memory_bytes'));
  const written = async () => {
    while ((await metric('usage_pending')) > 0) await sleep(LOOK_EVERY_MS / 10);
  };

  const filled = await load(bench, { ...work, inTurn: true, amount: KEYS });
  if (filled.succeeded !== KEYS) throw new Error(`${KEYS - filled.succeeded} keys were not answered`);
  await written();
  const before = await heap();
  proxy.cut('reset');
  let isAway = true;
  let [most, pending] = [0, 0];
  const watch = async () => {
    while (isAway) {
      most = Math.max(most, await heap());
      pending = Math.max(pending, await metric('usage_pending'));
      await sleep(LOOK_EVERY_MS);
    }
  };
  const loading = load(bench, { ...work, seconds: outageSeconds }).finally(() => {
    isAway = false;
  });
  const [during] = await Promise.all([loading, watch()]);
  proxy.deliver();
  await written();
  const [row] = await database.query<{ count: number }>(
    `SELECT sum(count)::float8 AS count FROM (
       SELECT count FROM usage WHERE key_id <> '00000000-0000-0000-0000-000000000000'
       UNION ALL SELECT hour_count FROM key_uses) AS counts`,
  );
  await service.stop();
  await proxy.close();
  const told = filled.succeeded + during.succeeded;
  const miscounted = Math.abs((row?.count ?? 0) - told);
  const grown = (most - before) / MIB;
  return [
    {
      name: `heap + external gained, database away for ${outageSeconds} s at full load`,
      value: grown,
      unit: 'MiB',
      aim: { text: '≤ 256 MiB', reached: grown <= 256 },
      detail: `${during.succeeded} introspections of ${KEYS} keys, ${during.answered - during.succeeded} refused after the lease; garbage included; ${pending} tallies at most`,
    },
    {
      name: 'introspections miscounted in that outage',
      value: miscounted,
      unit: '',
      aim: { text: '0', reached: miscounted === 0 },
      detail: `${told} told by the clients`,
    },
  ];
}
