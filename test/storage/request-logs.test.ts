import { drizzle } from 'drizzle-orm/node-postgres';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { keyIdFromUuid, uuidFloor } from '../../src/domain/key-id.ts';
import { type LogFilters, type LogPage, listRequestLogs } from '../../src/storage/request-logs.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';

/*
 * What a page of the request log costs does not grow with the log: no entry is read that is not shown. Held here for
 * every combination of filters on a small log; npm run bench -- request-logs times it on a large one.
 */

const DAY_MS = 86_400_000;
const TODAY = Math.floor(Date.now() / DAY_MS) * DAY_MS;
const NOW = TODAY + DAY_MS - 1;
const DAYS = 10;
const PER_DAY = 4_000;
const LIMIT = 21;

interface Plan {
  readonly 'Node Type': string;
  readonly 'Actual Rows': number;
  readonly 'Actual Loops': number;
  readonly 'Rows Removed by Filter'?: number;
  readonly 'Relation Name'?: string;
  readonly Plans?: readonly Plan[];
}

let database: TestDatabase;
let client: pg.Client;

beforeAll(async () => {
  database = await createTestDatabase();
  for (let day = 0; day < DAYS; day++) {
    const from = TODAY - day * DAY_MS;
    const name = `request_logs_${new Date(from).toISOString().slice(0, 10).replaceAll('-', '')}`;
    await database.query(`
      CREATE TABLE IF NOT EXISTS partitions.${name} PARTITION OF request_logs
        FOR VALUES FROM ('${uuidFloor(from)}') TO ('${uuidFloor(from + DAY_MS)}');
      INSERT INTO request_logs (id, at, key_id, workspace_id, code, ip)
      SELECT (lpad(to_hex(ms), 12, '0') || '7' || substr(md5(ms::text), 1, 3) || 'a' || substr(md5(ms::text), 4, 15))::uuid,
        to_timestamp(ms / 1000.0), lpad(to_hex(k), 32, '0')::uuid,
        CASE WHEN k % 3 = 0 THEN 'ws_big' ELSE 'ws_' || k % 20 END,
        (ARRAY['active', 'active', 'active', 'invalid', 'insufficient_scope', 'rate_limited'])[1 + chance % 6],
        CASE WHEN chance % 3 = 0 THEN '192.0.2.1' ELSE '10.0.0.' || chance % 200 END
      FROM (
        SELECT ${from} + i::bigint * ${Math.floor(DAY_MS / PER_DAY)} AS ms, (hashint4(i + ${day}) & 65535) % 200 AS k,
          hashint4(i * 7 + ${day}) & 65535 AS chance
        FROM generate_series(0, ${PER_DAY - 1}) i
      ) AS drawn`);
  }
  await database.query('ANALYZE request_logs');
  client = new pg.Client({ connectionString: database.url });
  await client.connect();
}, 60_000);
afterAll(async () => {
  await client.end();
  await database.drop();
});

const KEY = keyIdFromUuid('00000000-0000-0000-0000-000000000003');
const OWNERS: Record<string, LogFilters['of']> = {
  everything: null,
  'a large workspace': { workspaceIds: ['ws_big'] },
  'a small workspace': { workspaceIds: ['ws_7'] },
  'no workspace': { workspaceIds: ['ws_nobody'] },
  'several workspaces': { workspaceIds: ['ws_big', 'ws_7', 'ws_8', 'ws_nobody'] },
  'a key': { keyId: KEY },
};
const CODES = [undefined, 'active', 'revoked'] as const;
const IPS = [undefined, '192.0.2.1', '203.0.113.1'];
const STRETCHES: Record<string, LogPage['stretch']> = {
  'from the newest on': {},
  'of some days': { from: TODAY - 6 * DAY_MS, to: TODAY - 3 * DAY_MS },
  'behind an entry': { after: uuidFloor(TODAY - 4 * DAY_MS) },
};

const PAGES = Object.entries(OWNERS).flatMap(([owner, of]) =>
  CODES.flatMap((code) =>
    IPS.flatMap((ip) =>
      Object.entries(STRETCHES).map(([name, stretch]): [string, LogPage] => [
        `${owner}, code ${code ?? 'any'}, address ${ip ?? 'any'}, ${name}`,
        { filters: { of, code, ip }, stretch, limit: LIMIT, nowMs: NOW },
      ]),
    ),
  ),
);

describe('a page reads no entry that it has not to choose from', () => {
  test.each(PAGES)('%s', async (_, page) => {
    const sent: { text: string; values: unknown[] }[] = [];
    const executor = drizzle(client, { logger: { logQuery: (text, values) => sent.push({ text, values }) } });
    const found = await listRequestLogs(executor, page);
    expect(found).toEqual(await everyEntryOf(page));
    for (const { text, values } of sent) {
      const { rows } = await client.query<{ 'QUERY PLAN': [{ Plan: Plan }] }>(
        `EXPLAIN (ANALYZE, FORMAT JSON) ${text}`,
        values,
      );
      for (const scan of scansOf(rows[0]?.['QUERY PLAN'][0].Plan)) {
        expect(scan['Rows Removed by Filter'] ?? 0, text).toBe(0);
        // In order, from an index, and no further than the page is long.
        if (scan['Actual Rows'] > 0) expect(scan['Node Type']).toMatch(/^Index (Only )?Scan$/);
        expect(scan['Actual Rows']).toBeLessThanOrEqual(LIMIT);
      }
    }
  });
});

/** The same page without any index or window: all that fits, then its first entries. */
async function everyEntryOf({ filters: { of, code, ip }, stretch, limit }: LogPage): Promise<unknown[]> {
  const { rows } = await client.query<{ id: string }>(
    `SELECT id FROM (SELECT id, at, key_id, workspace_id, code, ip FROM request_logs OFFSET 0) AS entry
     WHERE ($1::text[] IS NULL OR workspace_id = ANY($1)) AND ($2::uuid IS NULL OR key_id = $2)
       AND ($3::text IS NULL OR code = $3) AND ($4::text IS NULL OR ip = $4)
       AND ($5::float8 IS NULL OR at >= to_timestamp($5)) AND ($6::float8 IS NULL OR at < to_timestamp($6))
       AND ($7::uuid IS NULL OR id < $7)
     ORDER BY id DESC LIMIT ${limit}`,
    [
      of !== null && 'workspaceIds' in of ? of.workspaceIds : null,
      of !== null && 'keyId' in of ? '00000000-0000-0000-0000-000000000003' : null,
      code ?? null,
      ip ?? null,
      stretch.from === undefined ? null : stretch.from / 1000,
      stretch.to === undefined ? null : stretch.to / 1000,
      stretch.after ?? null,
    ],
  );
  return rows.map(({ id }) => expect.objectContaining({ id }));
}

/** Where a plan reads entries. */
function scansOf(plan: Plan | undefined): Plan[] {
  if (plan === undefined) return [];
  const below = (plan.Plans ?? []).flatMap(scansOf);
  return plan['Relation Name']?.startsWith('request_logs') === true ? [plan, ...below] : below;
}
