import {
  type Bench,
  call,
  compare,
  cpuPerRequest,
  halfOfSaturation,
  type Load,
  load,
  type Process,
} from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { storeKeysWithMemo } from './keys.ts';

/** As many as the issue names: each used for the first time in its window. */
const FIRST_USES = 100_000;
const BUSY_SECONDS = 15;

/** What a rate limit costs a warm introspection, the database, and keys that come for the first time in a window. */
export async function limits(bench: Bench, { rounds, seconds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_limits');
  const service = await bench.service(database.url);
  const admin = service.token ?? '';
  const introspect = (bodies: readonly string[]): Load => ({
    url: `${service.url}/v1/introspect`,
    headers: { authorization: `Bearer ${admin}` },
    bodies,
  });
  const keyBody = async (rate_limit: object | null): Promise<string> => {
    const settings = { workspace_id: 'ws_bench', name: 'Bench', scopes: ['read'], rate_limit };
    const { data } = await call(service, admin, '/v1/api-keys', { body: settings });
    return JSON.stringify({ key: data.key, scopes: ['read'] });
  };

  const unlimited = { ...introspect([await keyBody(null)]), seconds };
  const limited = { ...introspect([await keyBody({ limit: 2_000_000_000, window_seconds: 3600 })]), seconds };
  const { ratio, control, oursUs, yardstickUs } = await compare(bench, {
    yardstick: [service, unlimited],
    ours: [service, limited],
    rounds,
  });

  const busy: Figure[] = [];
  for (const { name, limit, rate } of [
    { name: 'full speed, a limit of 2,000,000 a minute', limit: 2_000_000, rate: undefined },
    { name: '17 a second, a limit of 1,000 a minute', limit: 1_000, rate: 17 },
  ]) {
    const work = introspect([await keyBody({ limit, window_seconds: 60 })]);
    await load(bench, { ...work, seconds: 2, ...(rate !== undefined && { rate }) });
    const before = await statementsOf(service);
    await load(bench, { ...work, seconds: BUSY_SECONDS, ...(rate !== undefined && { rate }) });
    const perSecond = ((await statementsOf(service)) - before) / BUSY_SECONDS;
    busy.push({
      name: `statements that lease quota for one key, ${name}`,
      value: perSecond,
      unit: '/s',
      aim: { text: '≤ 2', reached: perSecond <= 2 },
    });
  }

  const keys = await storeKeysWithMemo(database, FIRST_USES);
  await database.query(
    "UPDATE api_keys SET rate_limit = 100, rate_limit_window_seconds = 2678400 WHERE name = 'Bench' AND rate_limit IS NULL",
  );
  const warming = keys.map(({ token }) => JSON.stringify({ key: token, cost: 0 }));
  const warmed = await load(bench, { ...introspect(warming), inTurn: true, amount: FIRST_USES });
  if (warmed.succeeded !== FIRST_USES)
    throw new Error(`${FIRST_USES - warmed.succeeded} keys were not answered`);
  // An eighth of what one core answers warm: a first use costs more, and the database has a part of the machine.
  const rate = Math.floor(halfOfSaturation(await cpuPerRequest(bench, service, unlimited)) / 4);
  const first = await load(bench, {
    ...introspect(keys.map(({ token }) => JSON.stringify({ key: token }))),
    inTurn: true,
    connections: 100,
    amount: FIRST_USES,
    rate,
  });
  if (first.errors > 0) throw new Error(`${first.errors} of the first uses failed`);
  await service.stop();
  const p99Ms = first.p99Us / 1000;
  return [
    {
      name: 'warm introspection with a rate limit ÷ without',
      value: ratio,
      unit: '',
      aim: { text: '≥ 0.9', reached: ratio >= 0.9 },
      control,
      detail: `${oursUs.toFixed(1)} µs against ${yardstickUs.toFixed(1)} µs of CPU`,
    },
    ...busy,
    {
      name: `p99 of the first use of ${FIRST_USES} keys in a window`,
      value: p99Ms,
      unit: 'ms',
      aim: { text: '≤ 100', reached: p99Ms <= 100 },
      detail: `each with a grant of its own, ${rate} a second; p50 ${(first.p50Us / 1000).toFixed(1)} ms`,
    },
  ];
}

async function statementsOf({ url }: Process): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(/^claviger_rate_limit_statement_seconds_count (\d+)$/m.exec(text)?.[1]);
}
