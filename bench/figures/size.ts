import { setTimeout as sleep } from 'node:timers/promises';
import { keyIdFromUuid } from '../../src/domain/key-id.ts';
import { type Bench, call, median } from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { fillWithKeys } from './keys.ts';

const START_KEYS = 1_000_000;
const SMALL_KEYS = 10_000;
const LARGE_KEYS = 10_000_000;
/** So few that a page is full also where there are few keys. */
const WORKSPACES = 100;
const CALLS_PER_ROUND = 30;
const SAMPLED_KEYS = 10_000;
/** Argon2 would hide what the database takes for a creation. */
const CHEAP_ARGON2 = { ARGON2_MEMORY_KIB: '1024', ARGON2_TIME_COST: '1' };

/** From the start of the process until it is ready, with a million keys in the database; and with none. */
export async function start(bench: Bench, { rounds }: Options): Promise<Figure[]> {
  const full = await bench.createDatabase('bench_start');
  const empty = await bench.createDatabase('bench_start_empty');
  for (const { url } of [full, empty]) await (await bench.service(url)).stop();
  await fillWithKeys(full, { count: START_KEYS, workspaces: WORKSPACES });
  const taken: number[] = [];
  const takenEmpty: number[] = [];
  for (let round = 0; round < rounds; round++) {
    taken.push(await startTime(bench, full.url));
    takenEmpty.push(await startTime(bench, empty.url));
  }
  const value = median(taken) / 1000;
  return [
    {
      name: `start with ${START_KEYS} keys until ready`,
      value,
      unit: 's',
      aim: { text: '≤ 1.5 s', reached: value <= 1.5 },
      detail: `with an empty database ${(median(takenEmpty) / 1000).toFixed(2)} s`,
    },
  ];
}

async function startTime(bench: Bench, databaseUrl: string): Promise<number> {
  const startedAt = performance.now();
  const service = await bench.service(databaseUrl);
  while (!(await fetch(`${service.url}/readyz`)).ok) await sleep(5);
  const tookMs = performance.now() - startedAt;
  await service.stop();
  return tookMs;
}

type Calls = Record<'list' | 'get' | 'create', () => Promise<unknown>>;

/** A page, a key and a creation among ten million keys ÷ among ten thousand. */
export async function size(bench: Bench, { rounds }: Options): Promise<Figure[]> {
  const small = await crowded(bench, 'bench_small', SMALL_KEYS);
  const large = await crowded(bench, 'bench_large', LARGE_KEYS);
  const kinds = ['list', 'get', 'create'] as const;
  const taken = kinds.map((kind) => ({
    kind,
    small: [] as number[],
    large: [] as number[],
    again: [] as number[],
  }));
  for (let round = -1; round < rounds; round++) {
    for (const times of taken) {
      const measured = {
        small: await timesOf(small.calls[times.kind]),
        large: await timesOf(large.calls[times.kind]),
        again: await timesOf(small.calls[times.kind]),
      };
      if (round < 0) continue;
      times.small.push(median(measured.small));
      times.large.push(median(measured.large));
      times.again.push(median(measured.again));
    }
  }
  await small.stop();
  await large.stop();
  return taken.map((times) => {
    const value = median(times.large.map((ms, round) => ms / mean(times.small[round], times.again[round])));
    return {
      name: `${times.kind} at ${LARGE_KEYS} keys ÷ at ${SMALL_KEYS}`,
      value,
      unit: '',
      aim: { text: '≤ 1.5', reached: value <= 1.5 },
      control: median(times.small.map((ms, round) => ms / (times.again[round] ?? Number.NaN))),
      detail: `median ${median(times.large).toFixed(2)} ms against ${median(times.small).toFixed(2)} ms${times.kind === 'create' ? ', with the cheapest argon2' : ''}`,
    };
  });
}

const mean = (first = Number.NaN, second = Number.NaN) => (first + second) / 2;

async function timesOf(work: () => Promise<unknown>): Promise<number[]> {
  const times: number[] = [];
  for (let index = 0; index < CALLS_PER_ROUND; index++) {
    const startedAt = performance.now();
    await work();
    times.push(performance.now() - startedAt);
  }
  return times;
}

/** A service whose database holds so many keys, and calls that each touch another one. */
async function crowded(
  bench: Bench,
  name: string,
  count: number,
): Promise<{ calls: Calls; stop(): Promise<void> }> {
  const database = await bench.createDatabase(name);
  const service = await bench.service(database.url, CHEAP_ARGON2);
  await fillWithKeys(database, { count, workspaces: WORKSPACES });
  const share = Math.min(100, (100 * SAMPLED_KEYS) / count);
  const rows = await database.query<{ id: string }>(
    `SELECT id FROM api_keys TABLESAMPLE SYSTEM (${share}) WHERE workspace_id <> 'system'`,
  );
  const ids = rows.map(({ id }) => keyIdFromUuid(id));
  const token = service.token ?? '';
  const workspace = () => `ws_${Math.floor(Math.random() * WORKSPACES)}`;
  const id = () => ids[Math.floor(Math.random() * ids.length)];
  return {
    calls: {
      list: () => call(service, token, `/v1/api-keys?workspace_id=${workspace()}`, { method: 'GET' }),
      get: () => call(service, token, `/v1/api-keys/${id()}`, { method: 'GET' }),
      create: () =>
        call(service, token, '/v1/api-keys', { body: { workspace_id: workspace(), name: 'Bench' } }),
    },
    stop: () => service.stop(),
  };
}
