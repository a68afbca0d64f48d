import { type Bench, call, compareInTurns, load } from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { unmintedTokens } from './keys.ts';

/** Tokens of the right checksum that this deployment did not mint, against the bare route; and what the database saw. */
export async function unminted(bench: Bench, { rounds, seconds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_unminted');
  // Nothing but the requests has a reason to ask the database while this runs.
  const service = await bench.service(database.url, { LEASE_SECONDS: '300' });
  const token = service.token ?? '';
  const bodies = unmintedTokens(1_000).map((key) => JSON.stringify({ key }));
  const answer = await call(service, token, '/v1/introspect', { body: JSON.parse(bodies[0] ?? '{}') });
  const bare = await bench.bare(JSON.stringify(answer).length);
  const work = { headers: { authorization: `Bearer ${token}` }, bodies, seconds };
  const { ratio, control, oursUs, yardstickUs } = await compareInTurns(bench, {
    yardstick: [bare, { ...work, url: `${bare.url}/bare` }],
    ours: [service, { ...work, url: `${service.url}/v1/introspect` }],
    rounds,
  });
  // Of a process that has long begun, whose caller is in its memory.
  const before = await countStatements(database.query);
  await load(bench, { ...work, url: `${service.url}/v1/introspect` });
  const after = await countStatements(database.query);
  const reads = after.reads - before.reads;
  await service.stop();
  await bare.stop('SIGKILL');
  return [
    {
      name: 'bogus tokens ÷ bare route',
      value: ratio,
      unit: '',
      aim: { text: '≥ 0.80', reached: ratio >= 0.8 },
      control,
      detail: `${oursUs.toFixed(1)} µs against ${yardstickUs.toFixed(1)} µs of CPU`,
    },
    {
      name: 'reads of keys by the database meanwhile',
      value: reads,
      unit: '',
      aim: { text: '0', reached: reads === 0 },
      detail: `scans of api_keys and verified_secrets; ${after.transactions - before.transactions} transactions for the whole service, the bench's own look among them`,
    },
  ];
}

type Query = <Row extends Record<string, unknown>>(sql: string) => Promise<Row[]>;

/** A session tells of its own figures once it has been idle for so long (PGSTAT_IDLE_INTERVAL). */
const TOLD_WITHIN_MS = 11_000;

/** What PostgreSQL counted. */
export async function countStatements(query: Query): Promise<{ reads: number; transactions: number }> {
  await new Promise((resolve) => setTimeout(resolve, TOLD_WITHIN_MS));
  const [row] = await query<{ reads: string; transactions: string }>(
    `SELECT (SELECT sum(seq_scan + coalesce(idx_scan, 0)) FROM pg_stat_user_tables
              WHERE relname IN ('api_keys', 'verified_secrets')) AS reads,
            (SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()) AS transactions`,
  );
  return { reads: Number(row?.reads), transactions: Number(row?.transactions) };
}
