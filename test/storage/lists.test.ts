import pg from 'pg';
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import { readConfig } from '../../src/config.ts';
import { openCore } from '../../src/core.ts';
import { keyIdFromUuid, keyIdToBytes, keyIdToUuid, uuidFloor } from '../../src/domain/key-id.ts';
import { keySecret } from '../../src/domain/key-secret.ts';
import { createCursorCodec } from '../../src/http/cursor.ts';
import { appOfTest, createTestApp, TEST_KEY_SECRET, type TestApp } from '../support/app.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { BIG_WORKSPACE, FORMER_SECRET, fillWithKeys } from './many-keys.ts';

/*
 * The statements under test are those that the service sends: requests go through its HTTP door, the driver is
 * listened to, and what it was told to run is explained.
 */

const DAY_MS = 86_400_000;
const MANY = 100_000;
const FEW = 20_000;
/** Tens of thousands of keys take their time on a busy machine. */
const FILL_TIMEOUT_MS = 120_000;
const LIMIT = 20;

interface Plan {
  readonly 'Node Type': string;
  readonly 'Relation Name'?: string;
  readonly 'Shared Hit Blocks': number;
  readonly 'Shared Read Blocks': number;
  readonly Plans?: readonly Plan[];
}

let large: TestApp;
let small: TestApp;

beforeAll(async () => {
  const open = async (keys: number) => {
    const database = await createTestDatabase();
    const app = await createTestApp({ CALLER_RATE_LIMIT: 'off' }, database);
    await fillWithKeys(database, keys, Date.now());
    return app;
  };
  small = await open(FEW);
  large = await open(MANY);
}, 120_000);

afterAll(async () => {
  for (const app of [small, large]) {
    await app?.close();
    await app?.database.drop();
  }
});

const ago = (days: number) => encodeURIComponent(new Date(Date.now() - days * DAY_MS).toISOString());

/** Each filter with a common value, a rare one, and one that nothing has. */
const FILTERS: Readonly<Record<string, readonly string[]>> = {
  environment: ['environment=live', 'environment=test', 'environment=svc', 'environment=staging'],
  status: ['status=active', 'status=expired', 'status=revoked'],
  scope: ['scope=read', 'scope=validate:offers', 'scope=export:everything', 'scope=nothing'],
  name: ['name=P', 'name=Production%20import', 'name=Zapier%20sync%20976', 'name=Nothing'],
  created_by: ['created_by=ci', 'created_by=usr_17', 'created_by=nobody'],
  expires_before: [`expires_before=${ago(-7)}`, `expires_before=${ago(-400)}`, `expires_before=${ago(2000)}`],
  unused_since: [`unused_since=${ago(90)}`, `unused_since=${ago(395)}`, `unused_since=${ago(2000)}`],
  rotation_due: ['rotation_due=true'],
};
const EACH_FILTER = Object.values(FILTERS).flat();
const WORKSPACES = [`workspace_id=${BIG_WORKSPACE}`, 'workspace_id=ws_17', 'workspace_id=nobody'];

describe('with 100,000 keys, by index alone runs', () => {
  test('the list of all keys', async () => {
    expect(await plansOfList(large, '')).toSatisfy(readsKeysByIndex);
  });

  test.each(EACH_FILTER)('the list with %s', async (filter) => {
    expect(await plansOfList(large, filter)).toSatisfy(readsKeysByIndex);
  });

  test.each(WORKSPACES)('the list with %s, alone and with each other filter', async (workspace) => {
    for (const filter of ['', ...EACH_FILTER]) {
      expect(await plansOfList(large, `${workspace}&${filter}`), filter).toSatisfy(readsKeysByIndex);
    }
  });

  test('the list of a caller that sees some workspaces, with each filter', async () => {
    const { token } = await large.createServiceKey(['keys:read'], {
      restrictions: { allowed_workspaces: [BIG_WORKSPACE, ...manyWorkspaces(99)] },
    });
    for (const filter of ['', ...EACH_FILTER]) {
      expect(await plansOfList(large, filter, token), filter).toSatisfy(readsKeysByIndex);
    }
  });

  test.each([true, false])('what a start asks, with service keys there: %s', async (serviceKeys) => {
    const database = await createTestDatabase();
    onTestFinished(() => database.drop());
    await fillWithKeys(database, FEW, Date.now(), { serviceKeys });
    const plans = await plansOf(database, async () => {
      const core = await openCore(
        readConfig({ DATABASE_URL: database.url, KEY_SECRET: `${TEST_KEY_SECRET},${FORMER_SECRET}` }),
        { role: 'visitor', report: () => undefined },
      );
      expect(await core.lifecycle.hasServiceKey()).toBe(serviceKeys);
      await core.close();
    });
    expect(plans.map(({ statement }) => statement)).toEqual([
      expect.stringContaining('AS uncovered'),
      expect.stringContaining('limit'),
    ]);
    expect(plans).toSatisfy(readsKeysByIndex);
  });

  test('the count of admins that the change of an admin key takes', async () => {
    const { id } = await large.createServiceKey(['admin']);
    const plans = await plansOf(large.database, async () => {
      expect((await large.delete(`/v1/api-keys/${id}`)).status).toBe(200);
    });
    expect(plans.map(({ statement }) => statement)).toContainEqual(expect.stringContaining('count(*)'));
    expect(plans).toSatisfy(readsKeysByIndex);
  });

  test('the revocation of the keys of a workspace', async () => {
    const plans = await plansOf(large.database, async () => {
      const { text, body } = await large.post('/v1/workspaces/ws_31/revoke-keys', {});
      expect(body.data?.revoked, text).toBeGreaterThan(0);
    });
    expect(plans).toSatisfy(readsKeysByIndex);
  });
});

describe('reads no more of 100,000 keys than of 20,000 for', () => {
  const KEYSET = [
    '',
    'workspace_id=ws_big',
    'workspace_id=ws_17',
    ...['environment', 'status', 'unused_since', 'rotation_due', 'created_by'].flatMap(
      (name) => FILTERS[name] ?? [],
    ),
    ...['environment', 'status', 'unused_since', 'rotation_due'].flatMap((name) =>
      (FILTERS[name] ?? []).map((filter) => `workspace_id=${BIG_WORKSPACE}&${filter}`),
    ),
  ];

  test.each(KEYSET)('the first page of the list with "%s"', async (query) => {
    const [fewer, more] = [await blocksOfList(small, query), await blocksOfList(large, query)];
    expect(more).toBeLessThanOrEqual(1.5 * fewer + LIMIT);
  });

  test.each(
    [
      '',
      'workspace_id=ws_big',
      'environment=live',
      'environment=test',
      'status=active',
      'status=revoked',
      'created_by=ci',
      'rotation_due=true',
      'workspace_id=ws_big&status=revoked',
      'workspace_id=ws_big&environment=live',
    ].flatMap((query) => [210, 390].map((ageDays) => [query, ageDays] as const)),
  )('the page of the list with "%s" that begins %i days ago', async (query, ageDays) => {
    const deep = `${query}&cursor=${cursorAt(query, ageDays)}`;
    const [fewer, more] = [await blocksOfList(small, deep), await blocksOfList(large, deep)];
    expect(fewer).toBeGreaterThan(0);
    expect(more).toBeLessThanOrEqual(1.5 * fewer + LIMIT);
  });

  test('a caller that sees some workspaces, however large they are: a page of each at most', async () => {
    const workspaces = [BIG_WORKSPACE, ...manyWorkspaces(9)];
    for (const app of [small, large]) {
      const { token } = await app.createServiceKey(['keys:read'], {
        restrictions: { allowed_workspaces: workspaces },
      });
      for (const query of ['', 'environment=live', 'status=active', 'status=revoked', 'rotation_due=true']) {
        const plans = await plansOfList(app, query, token);
        expect(blocksOf(plans), query).toBeLessThanOrEqual(workspaces.length * (LIMIT + 10));
      }
    }
  });
});

test(
  'the count against a plan reads as many keys as the plan allows, however many there are and were',
  async () => {
    const app = await appOfTest();
    /** Gives a workspace many keys, of which the first five never expire. */
    const fill = async (workspace_id: string, { expiry, madeAt }: { expiry: string; madeAt: number }) => {
      const { id } = await app.createKey({ workspace_id });
      await app.database.query(
        `INSERT INTO api_keys (id, workspace_id, environment, name, prefix, last_characters, hash, secret_id, scopes, created_at, expires_at)
       SELECT (lpad(to_hex(made), 12, '0') || '7000a000' || lpad(to_hex(i), 12, '0'))::uuid, workspace_id, environment, name, prefix,
         last_characters, hash, secret_id, scopes, to_timestamp(made / 1000.0), CASE WHEN i > 5 THEN (${expiry})::timestamptz END
       FROM api_keys, generate_series(1, ${FEW}) i, LATERAL (SELECT ${madeAt} + i AS made) AS key WHERE id = $1`,
        [keyIdToUuid(id)],
      );
    };
    await fill('ws_endless', { expiry: 'NULL', madeAt: 1_700_000_000_000 });
    await fill('ws_over', { expiry: "now() - interval '1 day'", madeAt: 1_710_000_000_000 });
    // Six that are active, and six that have successors.
    await fill('ws_rotated', { expiry: "now() - interval '1 day'", madeAt: 1_720_000_000_000 });
    const { body } = await app.get('/v1/api-keys?workspace_id=ws_rotated&status=active');
    for (const { id } of body.data) await app.post(`/v1/api-keys/${id}/rotate`);
    await app.database.query('ANALYZE api_keys');
    for (const [workspace, allowed, status, blocks] of [
      ['ws_endless', 10, 403, 20],
      ['ws_over', 6, 403, 20],
      ['ws_over', 10, 201, 20],
      ['ws_rotated', 6, 403, 40],
      ['ws_rotated', 10, 201, 40],
    ] as const) {
      await app.put(`/v1/workspaces/${workspace}`, { limits: { max_active_keys: allowed } });
      const plans = await plansOf(app.database, async () => {
        const answer = await app.post('/v1/api-keys', { workspace_id: workspace, name: 'One more' });
        expect(answer.status, answer.text).toBe(status);
      });
      expect(plans).toSatisfy(readsKeysByIndex);
      expect(blocksOf(plans)).toBeGreaterThan(0);
      expect(blocksOf(plans), workspace).toBeLessThanOrEqual(blocks);
    }
  },
  FILL_TIMEOUT_MS,
);

test('pages by creation time and pages by id are in the same order, and none leaves a key out', async () => {
  const ids = async (query: string) => {
    const found: string[] = [];
    let cursor = '';
    do {
      const { body } = await large.get(`/v1/api-keys?limit=100&${query}${cursor}`);
      found.push(...body.data.map((key: { id: string }) => key.id));
      cursor = body.pagination.has_more ? `&cursor=${body.pagination.next_cursor}` : '';
    } while (cursor !== '');
    return found;
  };
  const uuids = await large.database.query<{ n: string }>(
    "SELECT count(*) AS n FROM api_keys WHERE scopes @> '{export:everything}' AND revoked_at IS NULL AND expires_at IS NULL",
  );
  const byTime = await ids('scope=export:everything&status=active');
  const byId = await ids('scope=export:everything');
  expect(byTime.length).toBeGreaterThanOrEqual(Number(uuids[0]?.n));
  expect(byTime).toEqual(byId.filter((id) => byTime.includes(id)));
  expect([...byId].sort().reverse()).toEqual(byId);
  expect(new Set(byId).size).toBe(byId.length);
});

function manyWorkspaces(count: number): string[] {
  return Array.from({ length: count }, (_, index) => `ws_${index * 31}`);
}

/** The cursor that the service gives behind a key of that age: a walk there by pages would take a thousand requests. */
function cursorAt(query: string, ageDays: number): string {
  const filters = JSON.stringify([...new URLSearchParams(query)].sort());
  const codec = createCursorCodec([keySecret(TEST_KEY_SECRET).derive('cursor')]);
  return codec.write(
    `keys ${filters}`,
    keyIdToBytes(keyIdFromUuid(uuidFloor(Date.now() - ageDays * DAY_MS))),
  );
}

type ExplainedStatement = { readonly statement: string; readonly plan: Plan };

async function plansOfList(app: TestApp, query: string, as?: string): Promise<ExplainedStatement[]> {
  return plansOf(app.database, async () => {
    const { status, text } = await app.get(
      `/v1/api-keys?limit=${LIMIT}&${query}`,
      as === undefined ? {} : { as },
    );
    if (status !== 200) throw new Error(text);
  });
}

async function blocksOfList(app: TestApp, query: string): Promise<number> {
  return blocksOf(await plansOfList(app, query));
}

function blocksOf(plans: readonly ExplainedStatement[]): number {
  return plans
    .filter(({ statement }) => /order by/i.test(statement))
    .reduce((sum, { plan }) => sum + plan['Shared Hit Blocks'] + plan['Shared Read Blocks'], 0);
}

/** The plans of all statements on keys that are run meanwhile, each explained with the parameters it was sent with. */
async function plansOf(database: TestDatabase, run: () => Promise<void>): Promise<ExplainedStatement[]> {
  const sent: { statement: string; parameters: unknown[] }[] = [];
  const query = vi.spyOn(pg.Client.prototype, 'query');
  try {
    await run();
    for (const [first, second] of query.mock.calls as unknown[][]) {
      const statement = typeof first === 'string' ? first : textOf(first);
      if (!/\bapi_keys\b/.test(statement) || !/^\s*(select|update)/i.test(statement)) continue;
      sent.push({ statement, parameters: Array.isArray(second) ? second : [] });
    }
  } finally {
    query.mockRestore();
  }
  if (sent.length === 0) throw new Error('no statement on keys was sent');
  const plans: ExplainedStatement[] = [];
  for (const { statement, parameters } of sent) {
    // An UPDATE is planned, but not run again.
    const options = /^\s*update/i.test(statement) ? 'FORMAT JSON' : 'ANALYZE, BUFFERS, FORMAT JSON';
    const [row] = await database.query<{ 'QUERY PLAN': [{ Plan: Plan }] }>(
      `EXPLAIN (${options}) ${statement}`,
      parameters,
    );
    if (row === undefined) throw new Error('there is no plan');
    plans.push({ statement, plan: row['QUERY PLAN'][0].Plan });
  }
  return plans;
}

function textOf(query: unknown): string {
  const text: unknown = typeof query === 'object' && query !== null ? Reflect.get(query, 'text') : undefined;
  return typeof text === 'string' ? text : '';
}

function readsKeysByIndex(plans: readonly ExplainedStatement[]): boolean {
  return plans.every(({ plan }) => !scansKeys(plan));
}

function scansKeys(plan: Plan): boolean {
  return (
    (plan['Node Type'] === 'Seq Scan' && plan['Relation Name'] === 'api_keys') ||
    (plan.Plans ?? []).some(scansKeys)
  );
}
