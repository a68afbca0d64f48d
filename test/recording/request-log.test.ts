import { describe, expect, onTestFinished, test } from 'vitest';
import {
  type Decision,
  INVALID,
  type KeyRecord,
  type RefusalCode,
  refuse,
  refuseKey,
} from '../../src/domain/decision.ts';
import { Failure } from '../../src/domain/errors.ts';
import { keyIdFromUuid } from '../../src/domain/key-id.ts';
import {
  createRequestLog,
  forgetOldAddresses,
  type RequestLogKeeper,
  type RequestLogOptions,
} from '../../src/recording/request-log.ts';
import { createDatabase, type Database } from '../../src/storage/database.ts';
import { databaseOfTest, type TestDatabase } from '../support/database.ts';

const DAY_MS = 86_400_000;
/** Noon of a day that has a partition. */
const NOW = Math.floor(Date.now() / DAY_MS) * DAY_MS + DAY_MS / 2;
const ASKING = { id: 'req_1', caller: null };

function keyOf(number: number): KeyRecord {
  const id = keyIdFromUuid(`019b76da-a800-7000-8000-${number.toString(16).padStart(12, '0')}`);
  return { key: { id, workspaceId: 'ws_acme' }, restrictions: undefined } as KeyRecord;
}

const active = (record = keyOf(1), nowMs = NOW): Decision => ({ active: true, record, nowMs }) as Decision;
const refused = (code: RefusalCode = 'insufficient_scope', record = keyOf(1), nowMs = NOW): Decision =>
  refuseKey(refuse(code, ''), record, nowMs);
const invalid = (): [Decision, undefined, typeof ASKING] => [INVALID, undefined, ASKING];

type Fault = 'away' | 'refuses' | 'lose answer' | undefined;

interface Fixture {
  readonly keeper: RequestLogKeeper;
  readonly test: TestDatabase;
  readonly reports: string[];
  readonly logged: { count: number };
  readonly dropped: Record<string, number>;
  /** What becomes of statements from now on. */
  fault: Fault;
}

async function openLog(options: Partial<RequestLogOptions> = {}, shared?: TestDatabase): Promise<Fixture> {
  const testDatabase = shared ?? (await databaseOfTest());
  const real = createDatabase({
    url: testDatabase.url,
    poolSize: 2,
    applicationName: 'test',
    onConnectionLost: () => undefined,
  });
  const fixture = {
    test: testDatabase,
    reports: [] as string[],
    logged: { count: 0 },
    dropped: {} as Record<string, number>,
    fault: undefined as Fault,
  };
  const database: Database = {
    ...real,
    async read(run) {
      if (fixture.fault === 'away') throw new Failure('unavailable', 'The database cannot be reached.');
      if (fixture.fault === 'refuses') throw new Error('22P05');
      const result = await real.read(run);
      if (fixture.fault === 'lose answer') throw new Failure('unavailable', 'The answer was lost.');
      return result;
    },
  };
  const keeper = createRequestLog({
    database,
    sample: 1,
    perSecond: 1_000,
    report: ({ message }) => fixture.reports.push(message),
    observer: {
      requestsLogged: (count) => {
        fixture.logged.count += count;
      },
      requestLogsDropped: (reason, count) => {
        fixture.dropped[reason] = (fixture.dropped[reason] ?? 0) + count;
      },
    },
    ...options,
  });
  onTestFinished(async () => {
    fixture.fault = undefined;
    await keeper.close(0);
    await real.close();
  });
  return Object.assign(fixture, { keeper });
}

async function countOf({ test }: Fixture, where = 'true'): Promise<number> {
  return (await test.query(`SELECT FROM request_logs WHERE ${where}`)).length;
}

describe('the rate', () => {
  const tell = (keeper: RequestLogKeeper, decision: Decision, times: number) => {
    for (let n = 0; n < times; n++) keeper.introspected(decision, undefined, ASKING);
  };

  test('bounds the entries of a second, and counts those that are over', async () => {
    let clockMs = 5_000;
    const log = await openLog({ perSecond: 10, clock: () => clockMs });
    tell(log.keeper, refused(), 25);
    clockMs = 5_999;
    tell(log.keeper, refused(), 5);
    expect(log.dropped).toEqual({ rate: 20 });
    clockMs = 6_000;
    tell(log.keeper, refused(), 3);
    await log.keeper.close(5_000);
    expect([await countOf(log), log.logged.count]).toEqual([13, 13]);
  });

  test('leaves room for refusals of genuine keys, whatever is allowed or is no key', async () => {
    const log = await openLog({ perSecond: 100, clock: () => 0 });
    for (let n = 0; n < 500; n++) {
      log.keeper.introspected(active(), undefined, ASKING);
      log.keeper.introspected(...invalid());
      log.keeper.introspected(refused('rate_limited'), undefined, ASKING);
    }
    tell(log.keeper, refused('ip_not_allowed'), 20);
    await log.keeper.close(5_000);
    const counts = await log.test.query<{ code: string; count: number }>(
      'SELECT code, count(*)::int AS count FROM request_logs GROUP BY code ORDER BY code',
    );
    expect(counts).toEqual([
      { code: 'active', count: 40 },
      { code: 'invalid', count: 20 },
      { code: 'ip_not_allowed', count: 20 },
      { code: 'rate_limited', count: 20 },
    ]);
  });
});

describe('the sample', () => {
  test('is of what was allowed alone, and what it leaves out is no drop', async () => {
    const draws = [0.1, 0.9, 0.24, 0.25];
    let drawn = 0;
    const log = await openLog({ sample: 0.25, draw: () => draws[drawn++ % draws.length] ?? 0 });
    for (let n = 0; n < 8; n++) log.keeper.introspected(active(), undefined, ASKING);
    for (let n = 0; n < 8; n++) log.keeper.introspected(refused(), undefined, ASKING);
    await log.keeper.close(5_000);
    expect(await countOf(log, "code = 'active'")).toBe(4);
    expect(await countOf(log, "code = 'insufficient_scope'")).toBe(8);
    expect(log.dropped).toEqual({});
  });
});

describe('while the database is away', () => {
  test('entries wait, up to a bound; what is over is dropped and counted; all that waited is written then', async () => {
    const log = await openLog({ maxWaiting: 2_500, perSecond: 100_000 });
    log.fault = 'away';
    for (let n = 0; n < 2_500; n++) log.keeper.introspected(refused(), undefined, ASKING);
    await expect.poll(() => log.reports.length, { timeout: 10_000 }).toBe(1);
    // A batch was taken out to be written: memory holds that and what waits.
    for (let n = 0; n < 5_000; n++) log.keeper.introspected(refused(), undefined, ASKING);
    expect(log.keeper.waiting()).toBeLessThanOrEqual(3_500);
    const waiting = log.keeper.waiting();
    expect(log.dropped).toEqual({ full: 7_500 - waiting });
    expect(await countOf(log)).toBe(0);
    log.fault = undefined;
    await log.keeper.close(10_000);
    expect(await countOf(log)).toBe(waiting);
    expect(log.reports).toEqual([
      'request logs could not be written; this is tried again',
      'request logs are written again',
    ]);
  });

  test('what is left at the end is lost, told and counted', async () => {
    const log = await openLog();
    log.fault = 'away';
    for (let n = 0; n < 3; n++) log.keeper.introspected(refused(), undefined, ASKING);
    await log.keeper.close(300);
    expect(log.dropped).toEqual({ lost: 3 });
    expect(log.reports.at(-1)).toBe(
      '3 entries of the request log are lost: the database was away to the end',
    );
  });

  test('a batch whose answer was lost is there once, and its addresses are still called new', async () => {
    const log = await openLog();
    log.fault = 'lose answer';
    for (const ip of ['192.0.2.1', '192.0.2.2']) log.keeper.introspected(active(), { ip }, ASKING);
    await expect.poll(() => countOf(log), { timeout: 10_000 }).toBe(2);
    log.fault = undefined;
    await log.keeper.close(5_000);
    expect(await countOf(log)).toBe(2);
    expect(await countOf(log, 'ip_first_seen')).toBe(2);
    expect(log.logged.count).toBe(0);
  });
});

test('a batch that the database refuses is given up in the end, and does not hold up the next', async () => {
  const log = await openLog();
  log.fault = 'refuses';
  for (let n = 0; n < 2; n++) log.keeper.introspected(refused(), { ip: '192.0.2.1' }, ASKING);
  await expect.poll(() => log.dropped.lost, { timeout: 15_000 }).toBe(2);
  log.fault = undefined;
  log.keeper.introspected(refused(), { ip: '192.0.2.1' }, ASKING);
  await log.keeper.close(5_000);
  // The address was noted nowhere: its next use is the first.
  expect(await countOf(log, 'ip_first_seen')).toBe(1);
  expect(await countOf(log)).toBe(1);
});

describe('an address', () => {
  test('is looked up once a day by an instance, and is new once', async () => {
    const log = await openLog({ sample: 0 });
    for (const day of [0, 0, 1, 1, 2]) {
      log.keeper.introspected(active(keyOf(1), NOW + day * DAY_MS), { ip: '192.0.2.1' }, ASKING);
    }
    expect(log.keeper.waiting()).toBe(3);
    await log.keeper.close(5_000);
    expect(await countOf(log)).toBe(1);
    const [row] = await log.test.query<{ first: Date; seen: string }>(
      'SELECT first_seen_at AS first, seen_on::text AS seen FROM key_addresses',
    );
    expect(row?.first.getTime()).toBe(NOW);
  });

  test('is new for one of several instances that see it at the same time', async () => {
    const first = await openLog();
    const others = await Promise.all(Array.from({ length: 3 }, () => openLog({}, first.test)));
    for (const { keeper } of [first, ...others]) {
      for (let n = 0; n < 300; n++) {
        const number = 1 + ((n * 7) % 100);
        keeper.introspected(refused('expired', keyOf(number)), { ip: `192.0.2.${n % 3}` }, ASKING);
      }
    }
    await Promise.all([first, ...others].map(({ keeper }) => keeper.close(10_000)));
    expect(await countOf(first)).toBe(1_200);
    const doubled = await first.test.query(
      'SELECT key_id, ip FROM request_logs GROUP BY 1, 2 HAVING count(*) FILTER (WHERE ip_first_seen) <> 1',
    );
    expect(doubled).toEqual([]);
    expect([first, ...others].flatMap(({ reports }) => reports)).toEqual([]);
  });

  test('that a key was not used from for 400 days is forgotten, and new again', async () => {
    const log = await openLog();
    log.keeper.introspected(active(keyOf(1)), { ip: '192.0.2.1' }, ASKING);
    await log.keeper.close(5_000);
    const database = createDatabase({
      url: log.test.url,
      poolSize: 1,
      applicationName: 'test',
      onConnectionLost: () => undefined,
    });
    onTestFinished(() => database.close());
    const forgetAt = (nowMs: number) =>
      database.transaction((executor) => forgetOldAddresses(executor, nowMs));
    await forgetAt(NOW + 400 * DAY_MS);
    expect(await log.test.query('SELECT FROM key_addresses')).toHaveLength(1);
    await forgetAt(NOW + 401 * DAY_MS);
    expect(await log.test.query('SELECT FROM key_addresses')).toEqual([]);
  });
});

test('entries of a millisecond keep the order that they came in', async () => {
  const log = await openLog();
  for (let n = 0; n < 50; n++) log.keeper.introspected(active(), undefined, { id: `req_${n}`, caller: null });
  await log.keeper.close(5_000);
  const rows = await log.test.query<{ request_id: string }>(
    'SELECT request_id FROM request_logs ORDER BY id',
  );
  expect(rows.map(({ request_id }) => request_id)).toEqual(Array.from({ length: 50 }, (_, n) => `req_${n}`));
});

test('entries on both sides of midnight go to the days they are of, also days that have no partition yet', async () => {
  const told: number[] = [];
  const log = await openLog({ wrote: (timeMs) => told.push(timeMs) });
  const midnight = NOW + DAY_MS / 2;
  for (const at of [midnight - 1, midnight, midnight + 100 * DAY_MS, midnight - 100 * DAY_MS]) {
    log.keeper.introspected(refused('expired', keyOf(1), at), undefined, ASKING);
  }
  await log.keeper.close(5_000);
  const rows = await log.test.query<{ place: string }>(
    'SELECT tableoid::regclass::text AS place FROM request_logs ORDER BY id',
  );
  const dayOf = (at: number) => new Date(at).toISOString().slice(0, 10).replaceAll('-', '');
  expect(rows.map(({ place }) => place.replace('partitions.request_logs_', ''))).toEqual([
    'default',
    dayOf(midnight - 1),
    dayOf(midnight),
    'default',
  ]);
  expect(told).toEqual([midnight + 100 * DAY_MS]);
});
