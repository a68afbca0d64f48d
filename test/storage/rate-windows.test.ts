import fc from 'fast-check';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { createDatabase, type Database } from '../../src/storage/database.ts';
import {
  type Ask,
  type Counter,
  exchangeQuota,
  forgetCounters,
  QUOTA_CHANNEL,
  type QuotaNotice,
  readCounter,
  readQuotaNotice,
} from '../../src/storage/rate-windows.ts';
import { type CounterRow, exchangeOf, NEW_COUNTER } from '../support/counter-model.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';

/** A window that no test sees turn. */
const LONG = 2_678_400;

let testDatabase: TestDatabase;
let database: Database;
beforeAll(async () => {
  testDatabase = await createTestDatabase();
  database = createDatabase({
    url: testDatabase.url,
    poolSize: 8,
    applicationName: 'test',
    onConnectionLost: () => undefined,
  });
});
afterAll(async () => {
  await database.close();
  await testDatabase.drop();
});
beforeEach(() => testDatabase.query('TRUNCATE rate_windows'));

const askOf = (ask: Partial<Ask> = {}): Ask => ({
  subject: 'key_a',
  windowSeconds: LONG,
  limit: 10,
  uses: 0,
  cost: 1,
  stock: 0,
  windowStart: 0,
  handedIn: 0,
  unstocked: 0,
  holds: false,
  callAgain: false,
  ...ask,
});
const exchange = (...asks: Ask[]) => database.read((executor) => exchangeQuota(executor, asks));
/** Counters that are new have granted nothing. */
const open = async (...counters: Counter[]) => {
  expect(await exchange(...counters.map(askOf))).toEqual(counters.map(() => undefined));
};

async function rowOf({ subject, windowSeconds }: Counter): Promise<CounterRow | undefined> {
  const [row] = await testDatabase.query<Record<string, string | boolean>>(
    'SELECT window_start, leased, stocked, wanted FROM rate_windows WHERE subject = $1 AND window_seconds = $2',
    [subject, windowSeconds],
  );
  return (
    row && {
      windowStart: Number(row.window_start),
      leased: Number(row.leased),
      stocked: Number(row.stocked),
      wanted: row.wanted === true,
    }
  );
}

test('an exchange does to a row what the model says, and notifies what it says', async () => {
  const heard: QuotaNotice[] = [];
  const ear = new pg.Client({ connectionString: testDatabase.url });
  await ear.connect();
  ear.on('notification', ({ payload = '' }) => {
    const notice = readQuotaNotice(payload);
    if (notice !== undefined) heard.push(notice);
  });
  await ear.query(`LISTEN ${QUOTA_CHANNEL}`);
  const amount = fc.integer({ min: 0, max: 30 });
  const asks = fc.array(
    fc.record({
      limit: fc.constantFrom(1, 7, 40, 100),
      uses: amount,
      cost: fc.integer({ min: 1, max: 8 }),
      stock: amount,
      isOfWindow: fc.boolean(),
      handedIn: fc.integer({ min: 0, max: 12 }),
      unstocked: fc.integer({ min: -6, max: 12 }),
      holds: fc.boolean(),
      callAgain: fc.boolean(),
    }),
    { minLength: 1, maxLength: 8 },
  );
  let subjects = 0;
  await fc.assert(
    fc.asyncProperty(asks, async (sequence) => {
      const subject = `key_${subjects++}`;
      await open({ subject, windowSeconds: LONG });
      let row = NEW_COUNTER;
      const expected: QuotaNotice[] = [];
      heard.length = 0;
      for (const { isOfWindow, ...step } of sequence) {
        const windowStart = isOfWindow ? row.windowStart : 1;
        const ask = askOf({ ...step, subject, windowStart });
        const [grant] = await exchange(ask);
        const model = exchangeOf(row, ask, Date.now());
        expect(grant).toMatchObject({ ...model.grant, msLeft: expect.any(Number) });
        expect(Math.abs((grant?.msLeft ?? 0) - model.grant.msLeft)).toBeLessThan(5_000);
        row = model.row;
        expect(await rowOf(ask)).toEqual(row);
        expected.push(...model.notices);
      }
      await ear.query('SELECT 1');
      expect(heard).toEqual(expected);
    }),
    { numRuns: 60 },
  );
  await ear.end();
});

describe('a window', () => {
  test('begins at a multiple of its length by the clock of the database, and what was leased before is over', async () => {
    await open({ subject: 'key_a', windowSeconds: 60 });
    await testDatabase.query(
      'UPDATE rate_windows SET window_start = 60, leased = 10, stocked = 4, wanted = true',
    );
    const [grant] = await exchange(askOf({ windowSeconds: 60, uses: 3, windowStart: 60, handedIn: 5 }));
    expect(grant).toMatchObject({ uses: 3, left: 7, stocked: 0, wanted: false });
    expect((grant?.windowStart ?? 0) % 60).toBe(0);
    const nowMs = Date.now();
    expect((grant?.windowStart ?? 0) * 1000 + 60_000 - nowMs).toBeGreaterThan(-5_000);
    expect(Math.abs((grant?.windowStart ?? 0) * 1000 + 60_000 - (grant?.msLeft ?? 0) - nowMs)).toBeLessThan(
      5_000,
    );
  });

  test.each([
    [
      'one window ahead of the clock stays, so that a window that turned meanwhile is not granted twice',
      1,
      2,
    ],
    ['further ahead, as after the clock was set back, does not bind', 2, 9],
  ])('%s', async (_, windows, uses) => {
    await open({ subject: 'key_a', windowSeconds: LONG });
    const start = (Math.floor(Date.now() / 1000 / LONG) + windows) * LONG;
    await testDatabase.query('UPDATE rate_windows SET window_start = $1, leased = 8', [start]);
    const [grant] = await exchange(askOf({ uses: 9 }));
    expect(grant?.uses).toBe(uses);
    expect(grant?.msLeft).toBeGreaterThan(windows === 1 ? LONG * 1000 : 0);
  });

  test('of another length is another counter', async () => {
    await open({ subject: 'key_a', windowSeconds: 60 }, { subject: 'key_a', windowSeconds: LONG });
    const grants = await exchange(askOf({ uses: 10 }), askOf({ windowSeconds: 60, uses: 4 }));
    expect(grants.map((grant) => grant?.uses)).toEqual([10, 4]);
  });
});

test('a new counter grants nothing yet, and is there when it is asked again', async () => {
  expect(await exchange(askOf({ uses: 1, stock: 5 }))).toEqual([undefined]);
  expect(await exchange(askOf({ uses: 4 }), askOf({ subject: 'key_b', uses: 1 }))).toEqual([
    expect.objectContaining({ uses: 4, left: 6 }),
    undefined,
  ]);
});

test('a grant is on disk when it is answered, whatever the server’s setting is', async () => {
  await open(askOf());
  const setting = await database.transaction(async (executor) => {
    await executor.execute("SET LOCAL synchronous_commit = 'off'");
    await exchangeQuota(executor, [askOf({ uses: 1 })]);
    return executor.execute('SHOW synchronous_commit');
  });
  expect(setting.rows).toEqual([{ synchronous_commit: 'on' }]);
});

test('answers are in the order of the asks, whatever order the rows are locked in', async () => {
  const subjects = ['workspace:Z', 'key_b', 'workspace:a', 'key_A', 'workspace:Ä', 'key_ "{,}\\'];
  const asks = subjects.map((subject, index) => askOf({ subject, uses: index }));
  await open(...asks);
  expect((await exchange(...asks)).map((grant) => grant?.uses)).toEqual([0, 1, 2, 3, 4, 5]);
});

test('many statements at once, each of all counters in another order, end without a deadlock and grant each limit once', async () => {
  const subjects = Array.from({ length: 30 }, (_, index) => `key_${index}`);
  await open(...subjects.map((subject) => ({ subject, windowSeconds: LONG })));
  const grants = await Promise.all(
    Array.from({ length: 40 }, (_, round) => {
      const order = round % 2 === 0 ? subjects : subjects.toReversed();
      return exchange(...order.map((subject) => askOf({ subject, limit: 100, uses: 5 })));
    }),
  );
  for (const [index, subject] of subjects.entries()) {
    const mine = grants.map(
      (answers, round) => answers[round % 2 === 0 ? index : subjects.length - 1 - index],
    );
    expect(mine.reduce((sum, grant) => sum + (grant?.uses ?? 0), 0)).toBe(100);
    expect(await rowOf({ subject, windowSeconds: LONG })).toMatchObject({ leased: 100 });
  }
});

test('limits of more than an integer holds in sum do not overflow', async () => {
  const limit = 2_147_483_647;
  await open(askOf());
  await exchange(askOf({ limit, uses: 100_000, cost: 10_000, stock: 2_000_000_000 }));
  const [grant] = await exchange(askOf({ limit, uses: 200_000, cost: 10_000 }));
  expect((await rowOf(askOf()))?.leased).toBeLessThanOrEqual(limit);
  expect(grant?.left).toBeLessThan(10_000);
});

describe('reading a counter', () => {
  test('spends nothing, and knows only the window that the clock is in', async () => {
    const read = () => database.read((executor) => readCounter(executor, askOf()));
    const now = Math.floor(Date.now() / 1000 / LONG) * LONG;
    expect(await read()).toEqual({ windowStart: now, leased: 0, stocked: 0 });
    await open(askOf());
    await exchange(askOf({ limit: 1000, uses: 4, stock: 10 }));
    expect(await read()).toEqual({ windowStart: now, leased: 14, stocked: 10 });
    await testDatabase.query('UPDATE rate_windows SET window_start = window_start - $1', [LONG]);
    expect(await read()).toEqual({ windowStart: now, leased: 0, stocked: 0 });
  });
});

describe('forgetting counters', () => {
  const forget = (after: Counter | undefined, pageSize = 2) =>
    database.read((executor) => forgetCounters(executor, { after, pageSize, olderThanSeconds: 3600 }));

  test('deletes those whose window ended long ago, page by page, and no other', async () => {
    const subjects = ['key_a', 'key_b', 'key_c', 'workspace:d', 'workspace:e'];
    await open(...subjects.map((subject) => ({ subject, windowSeconds: 60 })));
    await testDatabase.query(
      `UPDATE rate_windows SET window_start = floor(extract(epoch FROM now()) / 60) * 60 -
         CASE WHEN subject IN ('key_b', 'workspace:e') THEN 3600 ELSE 3720 END`,
    );
    const pages = [];
    let after: Counter | undefined;
    do {
      const page = await forget(after);
      pages.push(page.deleted);
      after = page.last;
    } while (after !== undefined);
    expect(pages).toEqual([1, 2, 0, 0]);
    const left = await testDatabase.query<{ subject: string }>('SELECT subject FROM rate_windows ORDER BY 1');
    expect(left.map(({ subject }) => subject)).toEqual(['key_b', 'workspace:e']);
  });
});
