import { mkdir, writeFile } from 'node:fs/promises';
import { drizzle } from 'drizzle-orm/node-postgres';
import pg from 'pg';
import { uuidFloor } from '../../src/domain/key-id.ts';
import { SIGNAL_RULES, type SignalThresholds } from '../../src/domain/signal.ts';
import { listSignals } from '../../src/storage/signals.ts';
import {
  type Bench,
  type BenchDatabase,
  call,
  type Process,
  type QueryTimes,
  quantile,
  rankQueries,
} from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { fillWithKeys } from './keys.ts';
import { timesOf } from './request-logs.ts';

/*
 * Signals at a million keys: a page of all rules, of each, of a workspace, of callers bound to some, at the start of
 * the list and deep in it. Once where every key is worth a look by two rules, or three, and once where none is. The
 * plans are kept in bench/results/.
 */

const DAY_MS = 86_400_000;
const AIM_MS = 200;
const LIMIT = 100;
const WORKSPACES = 1_000;
/** Each query so many times a round. */
const REPEATS = 15;
/** So many pages are walked to get deep into the list. */
const DEEP_PAGES = 30;

/** What the service's defaults are. */
const THRESHOLDS: SignalThresholds = {
  unusedDays: 90,
  rotationDueDays: 90,
  expiringDays: 14,
  growth: { factor: 10, minimum: 1_000 },
  burst: { failures: 100, windowMinutes: 10 },
  recentDays: 7,
};

export async function signals(bench: Bench, { keys, rounds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('signals');
  const service = await bench.service(database.url);
  const token = service.token ?? '';
  await fillWithKeys(database, {
    count: keys,
    workspaces: WORKSPACES,
    madeDaysAgo: 200,
    expiring: true,
    listed: false,
  });
  await fillWithEvents(database, keys);
  const bound = await Promise.all([1, 10, 100].map((count) => boundCaller(service, token, count)));

  const repeats = REPEATS * rounds;
  const times: QueryTimes[] = [];
  const take = async (name: string, of: Process, as: string, query: string) => {
    const path = `/v1/signals?limit=${LIMIT}&${query}`;
    times.push({ name, ...(await timesOf(of, as, { path, repeats })) });
  };
  const queries = ['', ...SIGNAL_RULES.map((rule) => `rule=${rule}`)];
  for (const query of queries) {
    await take(query || 'everything', service, token, query);
    const deep = await cursorInto(service, token, query);
    if (deep !== undefined)
      await take(`${query || 'everything'}, deep in the list`, service, token, `${query}&cursor=${deep}`);
    await take(`a workspace: ${query || 'everything'}`, service, token, `workspace_id=ws_17&${query}`);
  }
  for (const { count, token: ofCaller } of bound) {
    await take(`a caller bound to ${count} workspaces: everything`, service, ofCaller, '');
  }
  await service.stop();

  const calm = await bench.service(database.url, {
    SIGNAL_UNUSED_DAYS: '3650',
    ROTATION_DUE_DAYS: '3650',
    SIGNAL_EXPIRING_DAYS: '1',
  });
  for (const query of queries) {
    await take(`where no key is worth a look: ${query || 'everything'}`, calm, token, query);
  }
  await calm.stop();
  await keepPlans(database.url);

  const ranked = rankQueries(times);
  const [slowest] = ranked;
  return [
    {
      name: 'signals: p99 of the slowest query',
      value: slowest?.p99 ?? Number.NaN,
      unit: 'ms',
      aim: { text: `≤ ${AIM_MS} ms`, reached: (slowest?.p99 ?? Number.POSITIVE_INFINITY) <= AIM_MS },
      detail: `${ranked.length} queries at ${keys.toLocaleString('en')} keys, ${repeats} times each, pages of ${LIMIT}; the slowest: ${slowest?.name}`,
    },
    {
      name: 'signals: median of all queries',
      value: quantile(
        ranked.map(({ p50 }) => p50),
        0.5,
      ),
      unit: 'ms',
      detail: 'by HTTP, one after the other; plans in bench/results/signal-plans.txt',
    },
    {
      name: 'signals: p99 of a request that reads nothing, meanwhile',
      value: quantile(
        times.flatMap(({ control }) => control),
        0.99,
      ),
      unit: 'ms',
      detail: 'GET /v1/me, in turn with the queries: what the machine does to any request',
    },
  ];
}

/** For a tenth of the keys a growth and a new address within the last week, and as many addresses with failures. */
async function fillWithEvents({ query }: BenchDatabase, keys: number): Promise<void> {
  const someKeys = `(SELECT key_id, workspace_id, row_number() OVER () AS n FROM watched_keys TABLESAMPLE BERNOULLI (10) REPEATABLE (7)) AS picked`;
  await query(`
    INSERT INTO key_growths (hour, key_id, workspace_id, busiest)
      SELECT date_trunc('hour', now()) - n % 160 * interval '1 hour', key_id, workspace_id, 100 FROM ${someKeys};
    INSERT INTO usage (workspace_id, key_id, hour, code, count)
      SELECT workspace_id, key_id, hour, code, 1000 FROM key_growths, unnest(ARRAY['active', 'rate_limited']) AS code;
    INSERT INTO failed_authentications (window_start, ip, introspections, calls, is_burst)
      SELECT to_timestamp(floor(extract(epoch FROM now()) / 600) * 600) - n % 1000 * interval '10 minutes',
        '10.' || n % 200 || '.' || n / 200 % 250 || '.' || n / 50000, 200, 0, n % 10 = 0
      FROM generate_series(1, ${keys / 10}) AS n;
    INSERT INTO request_logs (id, at, key_id, workspace_id, code, ip, ip_first_seen, ip_is_further)
      SELECT (lpad(to_hex(ms), 12, '0') || '7' || substr(md5(n::text), 1, 3) || 'a' || substr(md5(n::text), 4, 15))::uuid,
        to_timestamp(ms / 1000.0), key_id, workspace_id, 'active', '10.0.0.1', n % 3 = 0, n % 3 = 0
      FROM (SELECT *, (extract(epoch FROM now()) * 1000)::bigint - n * 5000 AS ms FROM ${someKeys}) AS drawn;
    ANALYZE key_growths, usage, failed_authentications, request_logs`);
  await query('CHECKPOINT');
}

async function boundCaller(service: Process, token: string, count: number) {
  const { data } = await call(service, token, '/v1/api-keys', {
    body: {
      workspace_id: 'system',
      name: 'Bound',
      scopes: ['keys:read'],
      restrictions: { allowed_workspaces: Array.from({ length: count }, (_, n) => `ws_${n * 7}`) },
    },
  });
  return { count, token: data.key as string };
}

async function cursorInto(service: Process, token: string, query: string): Promise<string | undefined> {
  let cursor: string | undefined;
  for (let page = 0; page < DEEP_PAGES; page++) {
    const behind = cursor === undefined ? '' : `&cursor=${cursor}`;
    const { pagination } = await call(service, token, `/v1/signals?limit=${LIMIT}&${query}${behind}`, {
      method: 'GET',
    });
    if (pagination.next_cursor === null) return cursor;
    cursor = pagination.next_cursor;
  }
  return cursor;
}

/** The plans of some of the queries, as PostgreSQL carries them out. */
async function keepPlans(url: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  const sent: { text: string; values: unknown[] }[] = [];
  const executor = drizzle(client, { logger: { logQuery: (text, values) => sent.push({ text, values }) } });
  const explained: string[] = [];
  const nowMs = Date.now();
  const after = {
    sinceMs: nowMs - 110 * DAY_MS,
    rule: 'rotation_due',
    tie: uuidFloor(nowMs - 200 * DAY_MS),
  } as const;
  for (const [name, page] of Object.entries({
    everything: {},
    'everything, deep in the list': { after },
    'a workspace': { workspaceIds: ['ws_17'] },
    'ten workspaces': { workspaceIds: Array.from({ length: 10 }, (_, n) => `ws_${n}`) },
  })) {
    sent.length = 0;
    await listSignals(executor, {
      rules: SIGNAL_RULES,
      workspaceIds: null,
      includeSystem: false,
      thresholds: THRESHOLDS,
      after: undefined,
      limit: LIMIT + 1,
      nowMs,
      ...page,
    });
    for (const { text, values } of [...sent]) {
      const { rows } = await client.query<{ 'QUERY PLAN': string }>(
        `EXPLAIN (ANALYZE, BUFFERS) ${text}`,
        values,
      );
      explained.push(`## ${name}\n\n${text}\n\n${rows.map((row) => row['QUERY PLAN']).join('\n')}`);
    }
  }
  await client.end();
  await mkdir('bench/results', { recursive: true });
  await writeFile('bench/results/signal-plans.txt', `${explained.join('\n\n\n')}\n`);
}
