import { mkdir, writeFile } from 'node:fs/promises';
import { drizzle } from 'drizzle-orm/node-postgres';
import pg from 'pg';
import { keyIdFromUuid, uuidFloor } from '../../src/domain/key-id.ts';
import { keySecret } from '../../src/domain/key-secret.ts';
import { type LogFilters, listRequestLogs } from '../../src/storage/request-logs.ts';
import {
  type Bench,
  call,
  KEY_SECRET,
  type Process,
  type QueryTimes,
  quantile,
  rankQueries,
} from '../harness.ts';
import type { Figure, Options } from '../run.ts';

/*
 * Every documented query of the request log, at ten million entries of thirty days, with values that are common, rare,
 * long gone and absent, alone and together: a page has to cost the same for all of them. The plans are kept in
 * bench/results/.
 */

const DAYS = 30;
const DAY_MS = 86_400_000;
const KEYS = 20_000;
/** Each query so many times a round. */
const REPEATS = 30;

const LIMIT = 100;
const AIM_MS = 50;
/** An address that a fifth of all requests came from, over all workspaces. */
const PROXY = '198.51.100.1';
const RARE = '203.0.113.77';

/** The id of the n-th key, as in the rows below. */
const keyUuid = (n: number) =>
  `${uuidFloor(1_700_000_000_000).slice(0, 24)}${n.toString(16).padStart(12, '0')}`;
const keyId = (n: number) => keyIdFromUuid(keyUuid(n));
/** A tenth of all entries is of this key, and none came of late to that one. */
const HOT = 1;
const GONE = 2;
const WORKSPACE_SQL =
  "CASE WHEN k = 2 THEN 'ws_gone' WHEN k % 3 = 1 THEN 'ws_big' ELSE 'ws_' || k % 3000 END";

export async function requestLogs(bench: Bench, { entries, rounds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('request_logs');
  const service = await bench.service(database.url);
  const token = service.token ?? '';
  const today = Math.floor(Date.now() / DAY_MS) * DAY_MS;
  await fill(database.query, { today, perDay: Math.ceil(entries / DAYS) });
  const [size] = await database.query<{ bytes: number }>(
    "SELECT sum(pg_total_relation_size(inhrelid))::float8 AS bytes FROM pg_inherits WHERE inhparent = 'request_logs'::regclass",
  );
  const bound = await Promise.all([1, 10, 100].map((count) => boundCaller(service, token, count)));

  const repeats = REPEATS * rounds;
  const times: QueryTimes[] = [];
  for (const [name, query] of Object.entries(queriesOf(today))) {
    times.push({ name, ...(await timesOf(service, token, { path: pathOf(query), repeats })) });
  }
  for (const { count, token: ofCaller } of bound) {
    for (const query of ['', 'code=active', 'code=revoked', `ip=${PROXY}`, `ip=${PROXY}&code=expired`]) {
      const name = `a caller bound to ${count} workspaces: ${query || 'everything'}`;
      times.push({ name, ...(await timesOf(service, ofCaller, { path: pathOf(query), repeats })) });
    }
  }
  await keepPlans(database.url, today);
  await service.stop();

  const ranked = rankQueries(times);
  const [slowest] = ranked;
  return [
    {
      name: 'request log: p99 of the slowest query',
      value: slowest?.p99 ?? Number.NaN,
      unit: 'ms',
      aim: { text: `≤ ${AIM_MS} ms`, reached: (slowest?.p99 ?? Number.POSITIVE_INFINITY) <= AIM_MS },
      detail: `${ranked.length} queries at ${entries.toLocaleString('en')} entries, ${repeats} times each, pages of ${LIMIT}; the slowest: ${slowest?.name}`,
    },
    {
      name: 'request log: p99 of a request that reads nothing, meanwhile',
      value: quantile(
        times.flatMap(({ control }) => control),
        0.99,
      ),
      unit: 'ms',
      detail: 'GET /v1/me, in turn with the queries: what the machine does to any request',
    },
    {
      name: 'request log: median of all queries',
      value: quantile(
        ranked.map(({ p50 }) => p50),
        0.5,
      ),
      unit: 'ms',
      detail: 'by HTTP, one after the other; plans in bench/results/request-log-plans.txt',
    },
    {
      name: 'request log: size of an entry',
      value: (size?.bytes ?? Number.NaN) / entries,
      unit: 'bytes',
      detail: 'with its share of all indexes',
    },
  ];
}

function queriesOf(today: number): Record<string, string> {
  const { of, codes, ips } = VALUES;
  const queries: Record<string, string> = {};
  for (const [owner, ownerQuery] of Object.entries(of)) {
    for (const code of ['', ...codes]) {
      for (const ip of ['', ...ips]) {
        const query = [ownerQuery, code && `code=${code}`, ip && `ip=${ip}`].filter(Boolean).join('&');
        queries[`${owner}${code && `, code ${code}`}${ip && `, address ${ip}`}`] = query;
      }
    }
  }
  const ago = (days: number) => new Date(today - days * DAY_MS).toISOString();
  for (const [owner, ownerQuery] of Object.entries(of)) {
    queries[`${owner}, of one day 20 days ago`] = `${ownerQuery}&from=${ago(21)}&to=${ago(20)}`;
    queries[`${owner}, until 25 days ago, address ${PROXY}`] = `${ownerQuery}&to=${ago(25)}&ip=${PROXY}`;
  }
  return queries;
}

const VALUES = {
  of: {
    'all workspaces': '',
    'the big workspace': 'workspace_id=ws_big',
    'a small workspace': 'workspace_id=ws_17',
    'a workspace long gone': 'workspace_id=ws_gone',
    'the busiest key': `key_id=${keyId(HOT)}`,
    'any key': `key_id=${keyId(4711)}`,
    'a key long gone': `key_id=${keyId(GONE)}`,
  },
  codes: ['active', 'revoked', 'workspace_disabled'],
  ips: [PROXY, RARE],
};

const pathOf = (query: string) => `/v1/request-logs?limit=${LIMIT}&${query}`;

/** How long a request takes, one after the other. */
export async function timesOf(
  service: Process,
  token: string,
  { path, repeats }: { path: string; repeats: number },
): Promise<Omit<QueryTimes, 'name'>> {
  const milliseconds: number[] = [];
  const controls: number[] = [];
  const timeOf = async (asked: string) => {
    const startedAt = performance.now();
    await call(service, token, asked, { method: 'GET' });
    return performance.now() - startedAt;
  };
  for (let repeat = -5; repeat < repeats; repeat++) {
    const taken = await timeOf(path);
    const control = await timeOf('/v1/me');
    // The first few warm up.
    if (repeat < 0) continue;
    milliseconds.push(taken);
    controls.push(control);
  }
  return { milliseconds, control: controls };
}

async function boundCaller(service: Process, token: string, count: number) {
  const allowed_workspaces = ['ws_big', ...Array.from({ length: count - 1 }, (_, n) => `ws_${n * 3 + 2}`)];
  const { data } = await call(service, token, '/v1/api-keys', {
    body: {
      workspace_id: 'system',
      name: 'Bound',
      scopes: ['keys:read'],
      restrictions: { allowed_workspaces },
    },
  });
  return { count, token: data.key as string };
}

/** Keys, and the entries of each day: in a table apart, so that its indexes are built at once. */
async function fill(
  query: (sql: string) => Promise<unknown>,
  { today, perDay }: { today: number; perDay: number },
): Promise<void> {
  const secret = `'\\x${keySecret(KEY_SECRET).fingerprint.toString('hex')}'`;
  const prefix = keyUuid(0).slice(0, 24);
  await query(`
    INSERT INTO workspaces (id) SELECT DISTINCT ${WORKSPACE_SQL} FROM generate_series(1, ${KEYS}) k ON CONFLICT DO NOTHING;
    INSERT INTO api_keys (id, workspace_id, environment, name, prefix, last_characters, hash, secret_id, scopes, created_at)
    SELECT ('${prefix}' || lpad(to_hex(k), 12, '0'))::uuid, ${WORKSPACE_SQL}, 'live', 'Bench', 'ck_live_', 'x7Qa',
      '$argon2id$v=19$m=19456,t=2,p=1$' || repeat('a', 22) || '$' || repeat('a', 43),
      (SELECT id FROM key_secrets WHERE fingerprint = ${secret}), '{}', to_timestamp(1700000000)
    FROM generate_series(1, ${KEYS}) k`);
  for (let day = DAYS - 1; day >= 0; day--) {
    const from = today - day * DAY_MS;
    const name = `request_logs_${new Date(from).toISOString().slice(0, 10).replaceAll('-', '')}`;
    const step = Math.floor(((day === 0 ? Date.now() - today : DAY_MS) * 1000) / perDay);
    await query(`
      DROP TABLE IF EXISTS partitions.${name};
      CREATE TABLE partitions.${name} (LIKE request_logs INCLUDING DEFAULTS);
      INSERT INTO partitions.${name}
        (id, at, key_id, workspace_id, code, status, ip, ip_first_seen, method, path, caller_key_id, request_id)
      SELECT (lpad(to_hex(ms), 12, '0') || '7' || substr(noise, 1, 3) || 'a' || substr(noise, 4, 15))::uuid,
        to_timestamp(ms / 1000.0),
        CASE WHEN code <> 'invalid' THEN ('${prefix}' || lpad(to_hex(k), 12, '0'))::uuid END,
        CASE WHEN code <> 'invalid' THEN ${WORKSPACE_SQL} END,
        code, CASE WHEN code <> 'active' THEN 403 END, ip, chance % 500 = 0, 'GET', '/contacts/' || chance % 1000,
        ('${prefix}' || lpad(to_hex(3), 12, '0'))::uuid, 'req_' || substr(noise, 1, 19)
      FROM (
        SELECT ms, noise, chance,
          CASE WHEN chance % 10 = 0 THEN ${HOT}
            WHEN ${day === DAYS - 1} AND chance % 1000 = 1 THEN ${GONE}
            ELSE 3 + chance / 7 % ${KEYS - 3} END AS k,
          CASE WHEN chance % 100 < 70 THEN 'active' WHEN chance % 100 < 85 THEN 'rate_limited'
            WHEN chance % 100 < 92 THEN 'insufficient_scope' WHEN chance % 100 < 97 THEN 'invalid'
            WHEN chance % 100000 = 98 THEN 'revoked' ELSE 'ip_not_allowed' END AS code,
          CASE WHEN chance / 11 % 5 = 0 THEN '${PROXY}' WHEN chance / 13 % 300000 = 1 THEN '${RARE}'
            ELSE '10.' || chance / 17 % 4 || '.' || chance / 19 % 250 || '.' || chance / 23 % 250 END AS ip
        FROM (
          SELECT ${from} + i::bigint * ${step} / 1000 AS ms, md5(${from} || '/' || i) AS noise,
            hashint4(i + ${day} * 7919) & 2147483647 AS chance
          FROM generate_series(0, ${perDay - 1}) i
        ) AS drawn
      ) AS entry;
      ALTER TABLE request_logs ATTACH PARTITION partitions.${name}
        FOR VALUES FROM ('${uuidFloor(from)}') TO ('${uuidFloor(from + DAY_MS)}');
      ANALYZE partitions.${name}`);
  }
  await query('ANALYZE request_logs');
  await query('CHECKPOINT');
}

/** The plans of some of the queries, as PostgreSQL carries them out. */
async function keepPlans(url: string, today: number): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  const sent: { text: string; values: unknown[] }[] = [];
  const executor = drizzle(client, { logger: { logQuery: (text, values) => sent.push({ text, values }) } });
  const explained: string[] = [];
  for (const [name, filters] of Object.entries<LogFilters>({
    everything: { of: null },
    'the big workspace': { of: { workspaceIds: ['ws_big'] } },
    'the big workspace, code revoked': { of: { workspaceIds: ['ws_big'] }, code: 'revoked' },
    'the busiest key, one address': { of: { keyId: keyId(HOT) }, ip: PROXY },
    'one address, code revoked': { of: null, ip: PROXY, code: 'revoked' },
    'ten workspaces': { of: { workspaceIds: ['ws_big', ...Array.from({ length: 9 }, (_, n) => `ws_${n}`)] } },
  })) {
    for (const stretch of [{}, { from: today - 21 * DAY_MS, to: today - 20 * DAY_MS }]) {
      sent.length = 0;
      await listRequestLogs(executor, { filters, stretch, limit: LIMIT + 1, nowMs: Date.now() });
      const range = 'from' in stretch ? ', of one day' : '';
      for (const { text, values } of [...sent]) {
        const { rows } = await client.query<{ 'QUERY PLAN': string }>(
          `EXPLAIN (ANALYZE, BUFFERS) ${text}`,
          values,
        );
        const plan = rows.map((row) => row['QUERY PLAN']).join('\n');
        explained.push(`## ${name}${range}\n\n${text}\n\n${plan}`);
      }
    }
  }
  await client.end();
  await mkdir('bench/results', { recursive: true });
  await writeFile('bench/results/request-log-plans.txt', `${explained.join('\n\n\n')}\n`);
}
