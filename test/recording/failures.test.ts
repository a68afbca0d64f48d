import { setTimeout as sleep } from 'node:timers/promises';
import { beforeEach, expect, test, vi } from 'vitest';
import { INVALID, type KeyRecord, refuse, refuseKey } from '../../src/domain/decision.ts';
import { createFailureKeeper } from '../../src/recording/failures.ts';
import type { Keeper } from '../../src/recording/recorder.ts';
import { createDatabase, type Database } from '../../src/storage/database.ts';
import { databaseOfTest, type TestDatabase } from '../support/database.ts';

const ASKING = { id: 'req_1', caller: null };
const DAY_MS = 86_400_000;
/** A twentieth of it is two. */
const THRESHOLD = { failures: 40, windowMinutes: 1_440 };

// A window of a day ends at midnight: what is to be in one must not be split by it.
beforeEach(async () => {
  const leftMs = DAY_MS - (Date.now() % DAY_MS);
  if (leftMs < 10_000) await sleep(leftMs + 100);
});

async function openKeeper({
  clock,
  fail = () => false,
}: {
  clock?: () => number;
  fail?: () => boolean;
} = {}) {
  const testDatabase = await databaseOfTest();
  const real = createDatabase({
    url: testDatabase.url,
    poolSize: 1,
    applicationName: 'test',
    onConnectionLost: () => undefined,
  });
  const database: Database = {
    ...real,
    read: (run) => (fail() ? Promise.reject(new Error('away')) : real.read(run)),
  };
  const keeper = createFailureKeeper({
    database,
    threshold: THRESHOLD,
    ...(clock === undefined ? {} : { clock }),
  });
  const finish = async () => {
    await keeper.close(5_000);
    const rows = await rowsOf(testDatabase);
    await real.close();
    return rows;
  };
  return { keeper, finish };
}

async function rowsOf({ query }: TestDatabase) {
  return query<{ ip: string; introspections: string; calls: string; is_burst: boolean }>(
    'SELECT ip, introspections, calls, is_burst FROM failed_authentications ORDER BY ip',
  );
}

const fail = (keeper: Keeper, ip: string, times = 1) => {
  for (let n = 0; n < times; n++) keeper.introspected(INVALID, { ip }, ASKING);
};

test('an address is written once it has come up to a share of a burst, with all that it came to', async () => {
  const { keeper, finish } = await openKeeper();
  fail(keeper, '192.0.2.1');
  fail(keeper, '192.0.2.2');
  keeper.refused('192.0.2.2');
  fail(keeper, '192.0.2.3', 40);
  expect(await finish()).toEqual([
    { ip: '192.0.2.2', introspections: '1', calls: '1', is_burst: false },
    { ip: '192.0.2.3', introspections: '40', calls: '0', is_burst: true },
  ]);
});

test('what is no failure, and what is no address, is in no count', async () => {
  const { keeper, finish } = await openKeeper();
  const record = { key: { id: 'key', workspaceId: 'ws' }, restrictions: undefined } as unknown as KeyRecord;
  for (let n = 0; n < 5; n++) {
    keeper.introspected({ active: true, record, nowMs: 5 }, { ip: '192.0.2.1' }, ASKING);
    keeper.introspected(refuseKey(refuse('expired', ''), record, 6), { ip: '192.0.2.1' }, ASKING);
    keeper.introspected(INVALID, undefined, ASKING);
    keeper.introspected(INVALID, { ip: null }, ASKING);
    fail(keeper, 'the office');
    keeper.refused('unknown');
  }
  expect(await finish()).toEqual([]);
});

test('each spelling of an address, and all of an IPv6 /64, are one', async () => {
  const { keeper, finish } = await openKeeper();
  for (const ip of ['192.0.2.1', '::ffff:192.0.2.1', '2001:db8::1', '2001:DB8:0:0:9::', '2001:db8:0:1::1']) {
    fail(keeper, ip, 2);
  }
  expect(await finish()).toMatchObject([
    { ip: '192.0.2.1', introspections: '4' },
    { ip: '2001:db8:0:1::/64', introspections: '2' },
    { ip: '2001:db8::/64', introspections: '4' },
  ]);
});

test('a window that is over takes with it what came to less than the share', async () => {
  let now = 0;
  const { keeper, finish } = await openKeeper({ clock: () => now });
  fail(keeper, '192.0.2.1');
  now = 1_440 * 60_000;
  fail(keeper, '192.0.2.1');
  expect(await finish()).toEqual([]);
});

test('while the database is away failures wait, and are written when it is back', async () => {
  let isAway = true;
  let attempts = 0;
  const { keeper, finish } = await openKeeper({
    fail() {
      attempts++;
      return isAway;
    },
  });
  fail(keeper, '192.0.2.1', 2);
  await vi.waitFor(() => expect(attempts).toBeGreaterThan(0), { timeout: 10_000 });
  fail(keeper, '192.0.2.1', 3);
  isAway = false;
  expect(await finish()).toMatchObject([{ ip: '192.0.2.1', introspections: '5' }]);
});

test('memory counts a bounded number of addresses', async () => {
  const { keeper, finish } = await openKeeper();
  for (let n = 0; n < 50_000; n++) fail(keeper, `10.${n >> 16}.${(n >> 8) & 255}.${n & 255}`);
  fail(keeper, '192.0.2.1', 100);
  fail(keeper, '10.0.0.7', 1);
  expect(await finish()).toMatchObject([{ ip: '10.0.0.7', introspections: '2' }]);
});
