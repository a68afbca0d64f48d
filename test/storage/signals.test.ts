import { setTimeout as sleep } from 'node:timers/promises';
import { drizzle } from 'drizzle-orm/node-postgres';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { KeyRecord } from '../../src/domain/decision.ts';
import { type KeyId, keyIdToBytes, keyIdToUuid, newKeyId } from '../../src/domain/key-id.ts';
import { SIGNAL_RULES, type SignalRule, type SignalThresholds } from '../../src/domain/signal.ts';
import { createSignalSweep } from '../../src/recording/failures.ts';
import { createUsageKeeper } from '../../src/recording/usage.ts';
import { createDatabase, type Database } from '../../src/storage/database.ts';
import { appendRequestLogs } from '../../src/storage/request-logs.ts';
import { addFailures } from '../../src/storage/signal-sources.ts';
import { listSignals, type SignalPage, type StoredSignal } from '../../src/storage/signals.ts';
import { addUsage } from '../../src/storage/usage.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { useOf } from '../support/usage.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
/** A morning of this month, for which there are partitions. */
const TODAY = Math.floor(Date.now() / DAY_MS) * DAY_MS;
const NOW = TODAY + 9.5 * HOUR_MS;
const THRESHOLDS: SignalThresholds = {
  unusedDays: 90,
  rotationDueDays: 60,
  expiringDays: 14,
  growth: { factor: 10, minimum: 1_000 },
  burst: { failures: 100, windowMinutes: 10 },
  recentDays: 7,
};
const ASKING = { id: 'req_1', caller: null };

let testDatabase: TestDatabase;
let database: Database;

beforeAll(async () => {
  testDatabase = await createTestDatabase();
  database = createDatabase({
    url: testDatabase.url,
    poolSize: 2,
    applicationName: 'test',
    onConnectionLost: () => undefined,
  });
  await testDatabase.query(
    `INSERT INTO key_secrets (fingerprint) VALUES ('\\x00');
     INSERT INTO workspaces (id) VALUES ('ws_acme'), ('ws_other'), ('system') ON CONFLICT DO NOTHING`,
  );
});
afterAll(async () => {
  await database.close();
  await testDatabase.drop();
});
/** Keys are for ever; one that is not watched is none of a rule's. */
async function forgetAll(): Promise<void> {
  for (const table of [
    'watched_keys',
    'key_growths',
    'usage',
    'request_logs',
    'key_addresses',
    'failed_authentications',
  ]) {
    await testDatabase.query(`DELETE FROM ${table}`);
  }
}

interface MadeKey {
  readonly workspaceId?: string;
  readonly expiresAt?: number;
}

async function makeKey(
  createdAt: number,
  { workspaceId = 'ws_acme', expiresAt }: MadeKey = {},
): Promise<KeyId> {
  const id = newKeyId(createdAt);
  const environment = workspaceId === 'system' ? 'svc' : 'live';
  await testDatabase.query(
    `INSERT INTO api_keys (id, workspace_id, environment, name, prefix, last_characters, hash, secret_id, scopes, created_at, expires_at)
     SELECT $1, $2, $3, 'Test', 'ck_live_', 'x7Qa', '$argon2id$v=19$m=1024,t=1,p=1$' || repeat('a', 22) || '$' || repeat('a', 43),
       min(id), '{}', $4, $5 FROM key_secrets`,
    [
      keyIdToUuid(id),
      workspaceId,
      environment,
      new Date(createdAt),
      expiresAt === undefined ? null : new Date(expiresAt),
    ],
  );
  return id;
}

function change(id: KeyId, what: string): Promise<unknown> {
  return testDatabase.query(`UPDATE api_keys SET ${what} WHERE id = $1`, [keyIdToUuid(id)]);
}

async function signals(page: Partial<SignalPage> = {}): Promise<StoredSignal[]> {
  return database.read((executor) =>
    listSignals(executor, {
      rules: SIGNAL_RULES,
      workspaceIds: null,
      includeSystem: false,
      thresholds: THRESHOLDS,
      after: undefined,
      limit: 1_000,
      nowMs: NOW,
      ...page,
    }),
  );
}

/** A use that was not counted. */
async function noteUse(id: KeyId, atMs: number): Promise<void> {
  await database.read((executor) => addUsage(executor, useOf(id, atMs)));
}

/** Which keys a rule tells of, at a time. */
async function keysOf(rule: SignalRule, page: Partial<SignalPage> = {}): Promise<(KeyId | null)[]> {
  const found = await signals({ rules: [rule], ...page });
  return found.map((signal) => ('keyId' in signal ? signal.keyId : null));
}

describe('a signal of the rule', () => {
  beforeEach(forgetAll);

  describe('unused', () => {
    test('is a key that was not used for so many whole days, from a midnight on', async () => {
      const id = await makeKey(TODAY - 200 * DAY_MS);
      const usedAt = TODAY - 91 * DAY_MS + 5 * HOUR_MS;
      await noteUse(id, usedAt);
      expect(await keysOf('unused', { nowMs: TODAY - 1 })).toEqual([]);
      const [signal] = await signals({ rules: ['unused'], nowMs: TODAY });
      expect(signal).toMatchObject({
        keyId: id,
        sinceMs: TODAY,
        lastUsed: usedAt,
        createdAt: TODAY - 200 * DAY_MS,
      });
    });

    test('is of the day that its last use stands for, in whole milliseconds', async () => {
      const id = await makeKey(TODAY - 200 * DAY_MS);
      await noteUse(id, TODAY - 91 * DAY_MS - 0.1);
      expect(
        await testDatabase.query(
          'SELECT idle_day = idle_since AS same FROM watched_keys JOIN key_uses USING (key_id) WHERE key_id = $1',
          [keyIdToUuid(id)],
        ),
      ).toEqual([{ same: true }]);
    });

    test('is also one that was never used since it was made', async () => {
      const id = await makeKey(TODAY - 91 * DAY_MS);
      await makeKey(TODAY - 90 * DAY_MS);
      const found = await signals({ rules: ['unused'] });
      expect(found).toMatchObject([{ keyId: id, lastUsed: null }]);
    });

    test('is none that is used again, were it by an instance of a former release', async () => {
      const [first, second] = [await makeKey(TODAY - 200 * DAY_MS), await makeKey(TODAY - 201 * DAY_MS)];
      expect(await keysOf('unused')).toEqual([first, second]);
      await noteUse(first, NOW);
      await testDatabase.query('UPDATE key_uses SET idle_since = $2, last_used = $2 WHERE key_id = $1', [
        keyIdToUuid(second),
        new Date(NOW),
      ]);
      expect(await keysOf('unused')).toEqual([]);
    });

    test('is not asked where uses are not recorded', async () => {
      await makeKey(TODAY - 200 * DAY_MS);
      expect(await keysOf('unused', { thresholds: { ...THRESHOLDS, unusedDays: null } })).toEqual([]);
    });
  });

  describe('rotation_due', () => {
    test('is a key from the millisecond on that rotation_due_at names', async () => {
      const id = await makeKey(NOW - 60 * DAY_MS);
      expect(await keysOf('rotation_due', { nowMs: NOW - 1 })).toEqual([]);
      expect(await signals({ rules: ['rotation_due'] })).toMatchObject([{ keyId: id, sinceMs: NOW }]);
    });
  });

  describe('expiring', () => {
    test('is a key that ends within so many days, until it has ended', async () => {
      const id = await makeKey(NOW - DAY_MS, { expiresAt: NOW + 14 * DAY_MS });
      expect(await keysOf('expiring', { nowMs: NOW - 1 })).toEqual([]);
      expect(await signals({ rules: ['expiring'] })).toMatchObject([
        { keyId: id, sinceMs: NOW, expiresAt: NOW + 14 * DAY_MS },
      ]);
      expect(await keysOf('expiring', { nowMs: NOW + 14 * DAY_MS - 1 })).toEqual([id]);
      expect(await keysOf('expiring', { nowMs: NOW + 14 * DAY_MS })).toEqual([]);
    });

    test('follows a change of the expiry', async () => {
      const id = await makeKey(NOW - DAY_MS);
      expect(await keysOf('expiring')).toEqual([]);
      await change(id, `expires_at = '${new Date(NOW + DAY_MS).toISOString()}'`);
      expect(await keysOf('expiring')).toEqual([id]);
      await change(id, 'expires_at = NULL');
      expect(await keysOf('expiring')).toEqual([]);
    });
  });

  describe('a rule of state tells of no key that is', () => {
    const RULES = ['unused', 'rotation_due', 'expiring'] as const;

    test('revoked, rotated or expired', async () => {
      const old = NOW - 300 * DAY_MS;
      const [revoked, rotated] = [
        await makeKey(old, { expiresAt: NOW + DAY_MS }),
        await makeKey(old + 1, { expiresAt: NOW + DAY_MS }),
      ];
      const kept = await makeKey(old + 2, { expiresAt: NOW + DAY_MS });
      await makeKey(old + 3, { expiresAt: NOW });
      const successor = await makeKey(NOW);
      for (const rule of RULES) expect(await keysOf(rule), rule).toEqual([kept, rotated, revoked]);
      await change(revoked, 'revoked_at = now()');
      await change(rotated, `rotated_to = '${keyIdToUuid(successor)}'`);
      for (const rule of RULES) expect(await keysOf(rule), rule).toEqual([kept]);
    });

    test('expired, and upkeep takes it out for good', async () => {
      const id = await makeKey(NOW - 300 * DAY_MS, { expiresAt: NOW });
      const watched = () =>
        testDatabase.query('SELECT FROM watched_keys WHERE key_id = $1', [keyIdToUuid(id)]);
      const sweep = createSignalSweep(THRESHOLDS);
      await database.transaction((executor) => sweep(executor, NOW - 1));
      expect(await watched()).toHaveLength(1);
      await database.transaction((executor) => sweep(executor, NOW));
      expect(await watched()).toHaveLength(0);
    });
  });

  describe('growth', () => {
    const HOUR = TODAY + 8 * HOUR_MS;

    async function requests(id: KeyId, hourMs: number, counts: Record<string, number>): Promise<void> {
      const codes = Object.keys(counts);
      const added = {
        workspaceIds: codes.map(() => 'ws_acme'),
        keyIds: Buffer.concat(codes.map(() => keyIdToBytes(id))),
        hoursMs: codes.map(() => hourMs),
        codes,
        counts: Object.values(counts),
        usedMs: codes.map(() => 0),
        ips: codes.map(() => null),
      };
      await database.read((executor) => addUsage(executor, added));
    }

    /** Introspections of a key by way of the recorder, of some instance. */
    async function introspect(id: KeyId, times: number, nowMs = HOUR): Promise<void> {
      const keeper = createUsageKeeper({ database, growth: THRESHOLDS.growth, report: () => undefined });
      const record = { key: { id, workspaceId: 'ws_acme' }, restrictions: undefined } as KeyRecord;
      for (let n = 0; n < times; n++) keeper.introspected({ active: true, record, nowMs }, undefined, ASKING);
      await keeper.close(5_000);
    }

    test('is an hour with so many requests as the minimum, of a key that was asleep', async () => {
      const id = await makeKey(HOUR - 7 * DAY_MS);
      await introspect(id, 999);
      expect(await keysOf('growth')).toEqual([]);
      await introspect(id, 1);
      await introspect(id, 7);
      expect(await signals({ rules: ['growth'] })).toMatchObject([
        { keyId: id, workspaceId: 'ws_acme', sinceMs: HOUR, requests: 1_007, busiest: 0 },
      ]);
    });

    test('is so many times the busiest hour of the week before', async () => {
      const [grown, usual] = [await makeKey(HOUR - 30 * DAY_MS), await makeKey(HOUR - 30 * DAY_MS)];
      await requests(grown, HOUR - 168 * HOUR_MS, { active: 60, rate_limited: 40 });
      await requests(usual, HOUR - 168 * HOUR_MS, { active: 60, rate_limited: 41 });
      await requests(grown, HOUR - 169 * HOUR_MS, { active: 500 });
      await requests(grown, HOUR - 3 * HOUR_MS, { active: 99 });
      for (const id of [grown, usual]) await introspect(id, 1_000);
      expect(await signals({ rules: ['growth'] })).toMatchObject([{ keyId: grown, busiest: 100 }]);
    });

    test('counts requests of every outcome, of all instances', async () => {
      const id = await makeKey(HOUR - 30 * DAY_MS);
      await requests(id, HOUR, { rate_limited: 600 });
      await introspect(id, 100);
      expect(await keysOf('growth')).toEqual([]);
      await introspect(id, 400);
      expect(await keysOf('growth')).toEqual([id]);
    });

    test('is looked for again as an hour goes on', async () => {
      const id = await makeKey(HOUR - 30 * DAY_MS);
      await requests(id, HOUR - 24 * HOUR_MS, { active: 125 });
      await introspect(id, 1_249);
      expect(await keysOf('growth')).toEqual([]);
      await introspect(id, 1);
      expect(await keysOf('growth')).toEqual([id]);
    });

    test('needs a last week: a younger key has none', async () => {
      await introspect(await makeKey(HOUR - 7 * DAY_MS + 1), 5_000);
      expect(await keysOf('growth')).toEqual([]);
    });

    test('is told of for so many days, then forgotten', async () => {
      const id = await makeKey(HOUR - 30 * DAY_MS);
      await introspect(id, 2_000);
      expect(await keysOf('growth', { nowMs: HOUR + 7 * DAY_MS })).toEqual([id]);
      expect(await keysOf('growth', { nowMs: HOUR + 7 * DAY_MS + 1 })).toEqual([]);
      await database.transaction((executor) => createSignalSweep(THRESHOLDS)(executor, HOUR + 8 * DAY_MS));
      expect(await testDatabase.query('SELECT FROM key_growths')).toEqual([]);
    });
  });

  describe('new_address', () => {
    let serial = 0;

    async function use(id: KeyId, ip: string, { at = NOW, code = 'active' } = {}): Promise<void> {
      serial++;
      await database.read((executor) =>
        appendRequestLogs(executor, [
          {
            id: keyIdToUuid(newKeyId(at)),
            at,
            keyId: id,
            workspaceId: 'ws_acme',
            code: code as 'active',
            status: null,
            durationMs: null,
            ip,
            method: null,
            path: null,
            callerKeyId: null,
            requestId: `req_${serial}`,
            isLogged: true,
            isLookedUp: true,
          },
        ]),
      );
    }

    test('is a first use from an address of a key that was used from another before', async () => {
      const [id, other] = [await makeKey(NOW), await makeKey(NOW)];
      await use(id, '203.0.113.1');
      await use(other, '203.0.113.2');
      await use(id, '203.0.113.1');
      expect(await signals({ rules: ['new_address'] })).toEqual([]);
      await use(id, '203.0.113.2', { code: 'ip_not_allowed' });
      await use(id, '203.0.113.2');
      expect(await signals({ rules: ['new_address'] })).toMatchObject([
        { keyId: id, workspaceId: 'ws_acme', ip: '203.0.113.2', sinceMs: NOW, code: 'ip_not_allowed' },
      ]);
    });

    test('is told of for so many days', async () => {
      const id = await makeKey(NOW);
      await use(id, '203.0.113.1', { at: NOW - 7 * DAY_MS });
      await use(id, '203.0.113.2', { at: NOW - 7 * DAY_MS });
      expect(await keysOf('new_address')).toEqual([id]);
      expect(await keysOf('new_address', { nowMs: NOW + 1 })).toEqual([]);
    });
  });

  describe('failed_authentication', () => {
    const add = (failures: Parameters<typeof addFailures>[1]) =>
      database.transaction((executor) =>
        addFailures(executor, failures, { failures: 100, windowMinutes: 1_440 }),
      );
    const bursts = (page: Partial<SignalPage> = {}) =>
      signals({ rules: ['failed_authentication'], nowMs: Date.now(), ...page });

    // A window of a day ends at midnight: what is to be in one must not be split by it.
    beforeEach(async () => {
      const leftMs = DAY_MS - (Date.now() % DAY_MS);
      if (leftMs < 10_000) await sleep(leftMs + 100);
    });

    test('is so many failures of an address within a window, wherever they were counted', async () => {
      const windowStart = Math.floor(Date.now() / DAY_MS) * DAY_MS;
      await add([
        { ip: '203.0.113.1', introspections: 60, calls: 39 },
        { ip: '203.0.113.2', introspections: 99, calls: 0 },
      ]);
      expect(await bursts()).toEqual([]);
      await add([{ ip: '203.0.113.1', introspections: 0, calls: 1 }]);
      await add([{ ip: '203.0.113.1', introspections: 5, calls: 0 }]);
      expect(await bursts()).toMatchObject([
        { ip: '203.0.113.1', introspections: 65, calls: 40, sinceMs: windowStart },
      ]);
      expect(await bursts({ workspaceIds: ['ws_acme'] })).toEqual([]);
    });

    test('is told of for so many days, then forgotten', async () => {
      await add([{ ip: '203.0.113.1', introspections: 100, calls: 0 }]);
      const windowStart = (await bursts())[0]?.sinceMs ?? 0;
      expect(await bursts({ nowMs: windowStart + 7 * DAY_MS })).toHaveLength(1);
      expect(await bursts({ nowMs: windowStart + 7 * DAY_MS + 1 })).toEqual([]);
      const sweep = createSignalSweep(THRESHOLDS);
      await database.transaction((executor) => sweep(executor, windowStart + 7 * DAY_MS));
      expect(await testDatabase.query('SELECT FROM failed_authentications')).toHaveLength(1);
      await database.transaction((executor) => sweep(executor, windowStart + 7 * DAY_MS + 1));
      expect(await testDatabase.query('SELECT FROM failed_authentications')).toEqual([]);
    });
  });
});

describe('a list of many signals', () => {
  const MANY = 6_000;
  let client: pg.Client;
  const sent: { text: string; values: unknown[] }[] = [];

  beforeAll(async () => {
    await forgetAll();
    // Each key is worth a look by some rule; what is no more, or of another workspace, lies between them.
    await testDatabase.query(`
      INSERT INTO workspaces (id) SELECT 'ws_' || n FROM generate_series(0, 49) n ON CONFLICT DO NOTHING;
      INSERT INTO api_keys (id, workspace_id, environment, name, prefix, last_characters, hash, secret_id, scopes, created_at, expires_at, revoked_at)
      SELECT (lpad(to_hex(ms), 12, '0') || '7' || substr(noise, 1, 3) || 'a' || substr(noise, 4, 15))::uuid,
        CASE WHEN n % 3 = 0 THEN 'ws_acme' ELSE 'ws_' || n % 50 END, 'live', 'Test', 'ck_live_', 'x7Qa',
        '$argon2id$v=19$m=1024,t=1,p=1$' || repeat('a', 22) || '$' || repeat('a', 43),
        (SELECT min(id) FROM key_secrets), '{}', to_timestamp(ms / 1000.0),
        CASE WHEN n % 4 = 0 THEN to_timestamp(${NOW} / 1000.0) + (1 + n % 13) * interval '1 day' END,
        CASE WHEN n % 5 < 3 THEN now() END
      FROM (SELECT n, md5(random()::text) AS noise, ${NOW} - 200 * ${DAY_MS}::bigint + (n / 4) AS ms
        FROM generate_series(1, ${MANY}) n) AS made;
      INSERT INTO key_growths SELECT to_timestamp(${TODAY} / 1000.0) - n % 150 * interval '1 hour', key_id, workspace_id, 5
        FROM (SELECT *, row_number() OVER (ORDER BY key_id) AS n FROM watched_keys) AS keys;
      INSERT INTO failed_authentications SELECT to_timestamp(${TODAY} / 1000.0) - n % 150 * interval '1 hour', '10.0.0.' || n, 200, 0, n % 2 = 0
        FROM generate_series(1, 2000) n;
      INSERT INTO request_logs (id, at, key_id, workspace_id, code, ip, ip_first_seen, ip_is_further)
      SELECT (lpad(to_hex(ms), 12, '0') || '7' || substr(md5(ms::text), 1, 3) || 'a' || substr(md5(ms::text), 4, 15))::uuid,
        to_timestamp(ms / 1000.0), key_id, workspace_id, 'active', '10.0.0.1', n % 7 = 0, n % 7 = 0
      FROM (SELECT *, ${NOW} - row_number() OVER (ORDER BY key_id) * 1000 AS ms, row_number() OVER (ORDER BY key_id) AS n FROM watched_keys) AS keys;
      ANALYZE`);
    client = new pg.Client({ connectionString: testDatabase.url });
    await client.connect();
  }, 60_000);
  afterAll(() => client.end());

  test('comes in pages, newest first, and none is left out or shown twice', async () => {
    const placesOf = (found: readonly StoredSignal[]) =>
      found.map(({ sinceMs, rule, tie }) => `${sinceMs} ${rule} ${tie}`);
    for (const page of [{}, { workspaceIds: ['ws_acme', 'ws_7'] }, { rules: ['unused'] as const }]) {
      const whole = await signals({ ...page, limit: 1_000_000 });
      expect(whole.length).toBeGreaterThan(700);
      const times = whole.map(({ sinceMs }) => sinceMs);
      expect(times).toEqual([...times].sort((left, right) => right - left));
      expect(new Set(placesOf(whole)).size).toBe(whole.length);
      const walked: StoredSignal[] = [];
      for (;;) {
        const next = await signals({ ...page, limit: 97, after: walked.at(-1) });
        walked.push(...next);
        if (next.length < 97) break;
      }
      expect(placesOf(walked)).toEqual(placesOf(whole));
    }
  }, 60_000);

  test.each([
    ['of everything', {}],
    ['of a workspace', { workspaceIds: ['ws_acme'] }],
    ['of a small workspace', { workspaceIds: ['ws_7'] }],
    ['of several', { workspaceIds: ['ws_acme', 'ws_7', 'ws_8'] }],
  ])(
    'reads no more than it shows, by each rule, at its start and behind a place: %s',
    async (_, page) => {
      const executor = drizzle(client, {
        logger: { logQuery: (text, values) => sent.push({ text, values }) },
      });
      const middle = (await signals({ ...page, limit: 500 })).at(-1);
      for (const after of [undefined, middle]) {
        sent.length = 0;
        await listSignals(executor, {
          rules: SIGNAL_RULES,
          workspaceIds: null,
          includeSystem: false,
          thresholds: THRESHOLDS,
          after,
          limit: 21,
          nowMs: NOW,
          ...page,
        });
        expect(sent.length).toBeGreaterThanOrEqual(5);
        for (const { text, values } of sent) {
          const { rows } = await client.query(`EXPLAIN (ANALYZE, FORMAT JSON) ${text}`, values);
          const workspaces = 'workspaceIds' in page ? page.workspaceIds.length : 1;
          for (const { node, rows: read } of scansOf(rows[0]['QUERY PLAN'][0].Plan)) {
            // A page of each workspace; what is looked up besides, for the page that is shown.
            // Whether a key is used again is asked of each that might be shown.
            const isEvidence = /key_uses|usage/.test(node) && !text.includes('idle_since');
            const most = isEvidence ? 21 : 21 * workspaces;
            expect(read, `${text}\n${node}`).toBeLessThanOrEqual(most + 1);
          }
        }
      }
    },
    60_000,
  );
});

interface Plan {
  readonly 'Node Type': string;
  readonly 'Relation Name'?: string;
  readonly 'Actual Rows': number;
  readonly 'Actual Loops': number;
  readonly 'Rows Removed by Filter'?: number;
  readonly Plans?: readonly Plan[];
}

/** How many rows each scan of a table has looked at. */
function scansOf(plan: Plan): { node: string; rows: number }[] {
  const below = (plan.Plans ?? []).flatMap(scansOf);
  const name = plan['Relation Name'];
  if (name === undefined) return below;
  const rows = (plan['Actual Rows'] + (plan['Rows Removed by Filter'] ?? 0)) * plan['Actual Loops'];
  return [...below, { node: `${plan['Node Type']} of ${name}`, rows }];
}
