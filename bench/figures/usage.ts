import { mkdir, writeFile } from 'node:fs/promises';
import { drizzle } from 'drizzle-orm/node-postgres';
import pg from 'pg';
import { keyIdFromUuid, uuidFloor } from '../../src/domain/key-id.ts';
import { GRANULARITIES, MAX_DAYS } from '../../src/domain/usage.ts';
import { readDurations, readUsage, type UsageSpan } from '../../src/storage/usage.ts';
import { type Bench, type BenchDatabase, type QueryTimes, quantile, rankQueries } from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { SOME_HASH } from './keys.ts';
import { timesOf } from './request-logs.ts';

/*
 * Every documented query of usage, of a key and of a workspace, by the hour and by the day, as wide as it may be, at ten
 * million counts and as many reported durations. The plans are kept in bench/results/.
 */

const DAY_MS = 86_400_000;
const HOURS = 400 * 24;
const AIM_MS = 50;
/** Each query so many times a round. */
const REPEATS = 30;
/** How many keys there are in one of the workspaces, and in each of the others. */
const BIG = 100;
const SMALL = 10;
const WORKSPACE_SQL = `CASE WHEN k <= ${BIG} THEN 'ws_big' ELSE 'ws_' || k / ${SMALL} END`;
/** Outcomes that each key has in each hour, and the busiest one; it also has more buckets of durations than others. */
const CODES = ['active', 'rate_limited'];
const BUSY_CODES = [...CODES, 'ip_not_allowed', 'insufficient_scope', 'expired', 'revoked'];
const BUSY_BUCKETS = 60;
/** The rows of whole workspaces (storage/usage.ts). */
const EVERY_KEY = '00000000-0000-0000-0000-000000000000';

const uuidOf = (n: number) =>
  `${uuidFloor(1_700_000_000_000).slice(0, 24)}${n.toString(16).padStart(12, '0')}`;
const BUSY = 1;
const ANY = BIG + 16;
/** Response times are reported for so many of the keys, and of the busiest one. */
const REPORTED_SQL = `k % 4 = 0 OR k = ${BUSY}`;

export async function usage(bench: Bench, { entries, rounds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_usage');
  const service = await bench.service(database.url);
  const token = service.token ?? '';
  const nowMs = Date.now();
  const keys = Math.max(ANY + SMALL, Math.ceil(entries / HOURS / CODES.length));
  const rows = await fill(database, { keys, nowMs });

  const subjects = {
    'the busiest key': `/v1/api-keys/${keyIdFromUuid(uuidOf(BUSY))}`,
    'any key': `/v1/api-keys/${keyIdFromUuid(uuidOf(ANY))}`,
    'the big workspace': '/v1/workspaces/ws_big',
    'a small workspace': `/v1/workspaces/ws_${Math.floor(ANY / SMALL)}`,
  };
  const times: QueryTimes[] = [];
  for (const [subject, path] of Object.entries(subjects)) {
    for (const granularity of GRANULARITIES) {
      for (const days of [1, MAX_DAYS[granularity]]) {
        const from = new Date(nowMs - days * DAY_MS).toISOString();
        const taken = await timesOf(service, token, {
          path: `${path}/usage?granularity=${granularity}&from=${from}`,
          repeats: REPEATS * rounds,
        });
        times.push({ name: `${subject}, by the ${granularity}, ${days} days`, ...taken });
      }
    }
  }
  await keepPlans(database.url, nowMs);
  await service.stop();

  const ranked = rankQueries(times);
  const [slowest] = ranked;
  return [
    {
      name: 'usage: p99 of the slowest query',
      value: slowest?.p99 ?? Number.NaN,
      unit: 'ms',
      aim: { text: `≤ ${AIM_MS} ms`, reached: (slowest?.p99 ?? Number.POSITIVE_INFINITY) <= AIM_MS },
      detail: `${ranked.length} queries at ${rows.toLocaleString('en')} counts; the slowest: ${slowest?.name}`,
    },
    {
      name: 'usage: p99 of a request that reads nothing, meanwhile',
      value: quantile(
        times.flatMap(({ control }) => control),
        0.99,
      ),
      unit: 'ms',
      detail: 'GET /v1/me, in turn with the queries: what the machine does to any request',
    },
    {
      name: 'usage: median of all queries',
      value: quantile(
        ranked.map(({ p50 }) => p50),
        0.5,
      ),
      unit: 'ms',
      detail: 'by HTTP, one after the other; plans in bench/results/usage-plans.txt',
    },
  ];
}

/** Makes keys, and what they came to in each hour of 400 days, in the order of time; answers how many counts there are. */
async function fill(
  { query }: BenchDatabase,
  { keys, nowMs }: { keys: number; nowMs: number },
): Promise<number> {
  const codes = (names: readonly string[]) => `ARRAY['${names.join("', '")}']`;
  const uuid = `('${uuidOf(0).slice(0, 24)}' || lpad(to_hex(k), 12, '0'))::uuid`;
  await query(`
    INSERT INTO workspaces (id) SELECT DISTINCT ${WORKSPACE_SQL} FROM generate_series(1, ${keys}) k ON CONFLICT DO NOTHING;
    INSERT INTO api_keys (id, workspace_id, environment, name, prefix, last_characters, hash, secret_id, scopes, created_at)
    SELECT ${uuid}, ${WORKSPACE_SQL}, 'live', 'Bench', 'ck_live_', 'x7Qa', '${SOME_HASH}',
           (SELECT min(id) FROM key_secrets), '{}', to_timestamp(1700000000)
      FROM generate_series(1, ${keys}) k;
    CREATE TEMP TABLE an_hour AS
      SELECT ${WORKSPACE_SQL} AS workspace_id, ${uuid} AS key_id, code, 1 + k % 7 AS count
        FROM generate_series(1, ${keys}) k,
             unnest(CASE WHEN k = ${BUSY} THEN ${codes(BUSY_CODES)} ELSE ${codes(CODES)} END) AS code;
    CREATE TEMP TABLE durations AS
      SELECT ${WORKSPACE_SQL} AS workspace_id, ${uuid} AS key_id, bucket::smallint, 1 + k % 7 AS count, 1000 AS sum_us
        FROM generate_series(1, ${keys}) k,
             generate_series(300 + k % 100, 300 + k % 100 + CASE WHEN k = ${BUSY} THEN ${BUSY_BUCKETS} ELSE 1 END) AS bucket
       WHERE ${REPORTED_SQL};
    INSERT INTO an_hour SELECT workspace_id, '${EVERY_KEY}', code, sum(count) FROM an_hour GROUP BY 1, 3;
    INSERT INTO durations SELECT workspace_id, '${EVERY_KEY}', bucket, sum(count), sum(sum_us) FROM durations GROUP BY 1, 3`);
  const now = new Date(nowMs);
  const month = (ago: number) => Date.UTC(now.getUTCFullYear(), now.getUTCMonth() - ago, 1);
  const firstMs = nowMs - MAX_DAYS.day * DAY_MS;
  for (let ago = 14; ago >= 0; ago--) {
    const [from, to] = [new Date(month(ago)).toISOString(), new Date(month(ago - 1)).toISOString()];
    if (Date.parse(to) < firstMs) continue;
    for (const [table, source] of [
      ['usage', 'an_hour'],
      ['usage_durations', 'durations'],
    ] as const) {
      const partition = `partitions.${table}_${from.slice(0, 7).replace('-', '')}`;
      await query(`
        DROP TABLE IF EXISTS ${partition};
        CREATE TABLE ${partition} (LIKE ${table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
        INSERT INTO ${partition}
        SELECT workspace_id, key_id, hour, ${table === 'usage' ? 'code, count' : 'bucket, count, sum_us'}
          FROM generate_series('${from}'::timestamptz, least('${to}'::timestamptz - interval '1 hour', now()), '1 hour') AS hour,
               ${source}
         ORDER BY hour;
        ALTER TABLE ${table} ATTACH PARTITION ${partition} FOR VALUES FROM ('${from}') TO ('${to}')`);
    }
  }
  await query('VACUUM ANALYZE usage, usage_durations');
  await query('CHECKPOINT');
  const [counted] = await query<{ rows: number }>('SELECT count(*)::float8 AS rows FROM usage');
  return counted?.rows ?? Number.NaN;
}

/** The plans of the widest of them, as PostgreSQL carries them out. */
async function keepPlans(url: string, nowMs: number): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  const sent: { text: string; values: unknown[] }[] = [];
  const executor = drizzle(client, { logger: { logQuery: (text, values) => sent.push({ text, values }) } });
  const explained: string[] = [];
  for (const granularity of GRANULARITIES) {
    const fromMs = nowMs - MAX_DAYS[granularity] * DAY_MS;
    for (const keyId of [keyIdFromUuid(uuidOf(BUSY)), undefined]) {
      const span: UsageSpan = { workspaceId: 'ws_big', keyId, granularity, fromMs, toMs: nowMs };
      sent.length = 0;
      await readUsage(executor, span);
      await readDurations(executor, span);
      for (const { text, values } of [...sent]) {
        const { rows } = await client.query<{ 'QUERY PLAN': string }>(
          `EXPLAIN (ANALYZE, BUFFERS) ${text}`,
          values,
        );
        const plan = rows.map((row) => row['QUERY PLAN']).join('\n');
        explained.push(
          `## ${keyId === undefined ? 'a workspace' : 'a key'}, by the ${granularity}\n\n${text}\n\n${plan}`,
        );
      }
    }
  }
  await client.end();
  await mkdir('bench/results', { recursive: true });
  await writeFile('bench/results/usage-plans.txt', `${explained.join('\n\n\n')}\n`);
}
