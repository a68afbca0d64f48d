import { setTimeout as sleep } from 'node:timers/promises';
import { type Bench, call, compare, type Load, type LoadResult, load, type Process } from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { storeKeysWithMemo } from './keys.ts';

/** As many as the issue names: each used for the first time in its window. */
const FIRST_USES = 100_000;
/** Long enough for all of them, on a slow machine too. */
const WINDOW_SECONDS = 120;
/** The clocks of the bench and of the database are one, but a timer may be early. */
const A_MOMENT_MS = 20;
/** How long before a window turns its load begins, so that load and service are at work as it does. */
const LEAD_MS = 5_000;
/** So many requests may be under way; what is due beyond that waits, and its wait counts. */
const CONNECTIONS = 500;
/** As the other latencies are taken: at half of saturation. */
const SHARE_OF_FASTEST = 0.5;
const BUSY_SECONDS = 15;

/** What a rate limit costs a warm introspection, and the database. */
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

  await service.stop();
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
  ];
}

/**
 * What a grant costs keys that come for the first time in a window, each with one of its own: all are warm, a window
 * turns, and they come, first as fast as they are answered, in the next window at a fixed rate below that, at which others
 * came before the turn.
 */
export async function firstUses(bench: Bench): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_first_uses');
  const service = await bench.service(database.url);
  const keys = await storeKeysWithMemo(database, FIRST_USES);
  await database.query(
    `UPDATE api_keys SET rate_limit = 100, rate_limit_window_seconds = ${WINDOW_SECONDS} WHERE name = 'Bench'`,
  );
  const uses = (cost: number): Load => ({
    url: `${service.url}/v1/introspect`,
    headers: { authorization: `Bearer ${service.token}` },
    bodies: keys.map(({ token }) => JSON.stringify({ key: token, cost })),
    inTurn: true,
    connections: CONNECTIONS,
    amount: FIRST_USES,
  });
  await allOf(load(bench, uses(0)));

  const inNextWindow = async (leadMs: number, workFrom: (beginsAtMs: number) => Load) => {
    const lengthMs = WINDOW_SECONDS * 1000;
    const beginsAtMs = Math.ceil((Date.now() + leadMs) / lengthMs) * lengthMs + A_MOMENT_MS;
    await sleep(beginsAtMs - leadMs - Date.now());
    const before = await statementsOf(service);
    const result = await allOf(load(bench, workFrom(beginsAtMs)));
    const [counter] = await database.query<{ count: number }>(
      `SELECT count(*)::float8 AS count FROM rate_windows
        WHERE leased = 1 AND window_start = floor(extract(epoch FROM now()) / ${WINDOW_SECONDS}) * ${WINDOW_SECONDS}`,
    );
    if (counter?.count !== FIRST_USES)
      throw new Error(`${counter?.count} of ${FIRST_USES} keys were used once in the window`);
    return { ...result, statements: (await statementsOf(service)) - before };
  };
  const fastest = await inNextWindow(0, () => uses(1));
  const rate = Math.floor((FIRST_USES / fastest.seconds) * SHARE_OF_FASTEST);
  const { p50Us, p99Us, maxUs, statements } = await inNextWindow(LEAD_MS, (untilMs) => {
    const [body = ''] = uses(0).bodies ?? [];
    return { ...uses(1), rate, isCoarse: true, lead: { body, untilMs } };
  });
  await service.stop();
  const p99Ms = p99Us / 1000;
  return [
    {
      name: `p99 of the first use of ${FIRST_USES} keys in a window`,
      value: p99Ms,
      unit: 'ms',
      aim: { text: '≤ 100', reached: p99Ms <= 100 },
      detail: `${rate} a second, ${SHARE_OF_FASTEST} of the fastest; p50 ${ms(p50Us)}, longest ${ms(maxUs)}; ${statements} statements`,
    },
    {
      name: `the same as fast as ${CONNECTIONS} connections are answered`,
      value: FIRST_USES / fastest.seconds,
      unit: '/s',
      detail: `p50 ${ms(fastest.p50Us)}, p99 ${ms(fastest.p99Us)}, longest ${ms(fastest.maxUs)}; ${fastest.statements} statements`,
    },
  ];
}

/** Each introspection has to be answered, and allowed. */
async function allOf(result: Promise<LoadResult>): Promise<LoadResult> {
  const { succeeded, errors, ...rest } = await result;
  if (succeeded !== FIRST_USES)
    throw new Error(`${succeeded} of ${FIRST_USES} introspections were answered 200, ${errors} not at all`);
  return { succeeded, errors, ...rest };
}

function ms(us: number): string {
  return `${(us / 1000).toFixed(1)} ms`;
}

async function statementsOf({ url }: Process): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(/^claviger_rate_limit_statement_seconds_count (\d+)$/m.exec(text)?.[1]);
}
