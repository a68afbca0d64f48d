import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { sql } from 'drizzle-orm';
import { describe, expect, onTestFinished, test } from 'vitest';
import { decide, INVALID, type KeyRecord, refuse, refuseKey } from '../../src/domain/decision.ts';
import { keyIdFromUuid, keyIdToBytes, keyIdToUuid } from '../../src/domain/key-id.ts';
import { EMPTY_CATALOGUE } from '../../src/domain/scope-catalogue.ts';
import type { UsageObserver } from '../../src/recording/observer.ts';
import { createUsageKeeper, type UsageKeeper } from '../../src/recording/usage.ts';
import { createDatabase, type Database, type Executor } from '../../src/storage/database.ts';
import { addUsage, beginFlush, findUses, readUsage, type UsageBatch } from '../../src/storage/usage.ts';
import { databaseOfTest, type TestDatabase } from '../support/database.ts';
import { useOf } from '../support/usage.ts';

const ASKING = { id: 'req_1', caller: null };
const HOUR_MS = 3_600_000;
const IN_TIME = { timeout: 20_000, interval: 20 };
/** Half past some hour of this month, for which there is a partition. */
const NOW = Math.floor(Date.now() / HOUR_MS) * HOUR_MS + HOUR_MS / 2;

function keyOf(number: number, workspaceId = 'ws_acme'): KeyRecord {
  const id = keyIdFromUuid(`019b76da-a800-7000-8000-${number.toString(16).padStart(12, '0')}`);
  const key = { id, workspaceId, scopes: [], revokedAt: null, expiresAt: null };
  return { key, restrictions: undefined } as unknown as KeyRecord;
}

const active = (record: KeyRecord, nowMs = NOW) => ({ active: true, record, nowMs }) as const;
const refused = (record: KeyRecord, nowMs = NOW) =>
  refuseKey(refuse('insufficient_scope', ''), record, nowMs);

interface Fixture {
  readonly keeper: UsageKeeper;
  readonly database: Database;
  readonly test: TestDatabase;
  readonly reports: string[];
  readonly events: Record<keyof UsageObserver, number>;
}

/** A keeper on a database of its own; `disturb` may fail a transaction after or before its commit. */
async function openKeeper(
  options: { maxTallies?: number; disturb?: (attempt: number) => 'lose answer' | 'fail' | undefined } = {},
): Promise<Fixture> {
  const testDatabase = await databaseOfTest();
  // As the trigger of api_keys makes them.
  await testDatabase.query(
    "INSERT INTO key_uses (key_id, idle_since) SELECT unnest($1::uuid[]), '2026-01-01T00:00:00Z'",
    [Array.from({ length: 9 }, (_, index) => keyIdToUuid(keyOf(index + 1).key.id))],
  );
  const real = createDatabase({
    url: testDatabase.url,
    poolSize: 2,
    applicationName: 'test',
    onConnectionLost: () => undefined,
  });
  let attempts = 0;
  const database: Database = {
    ...real,
    async transaction(run) {
      const fault = options.disturb?.(++attempts);
      const result = await real.transaction(async (executor) => {
        const done = await run(executor);
        if (fault === 'fail') throw new Error('the statement failed');
        return done;
      });
      if (fault === 'lose answer') throw new Error('the answer was lost');
      return result;
    },
  };
  const events = { introspected: 0, usageFlushed: 0, usageFlushFailed: 0, usageDropped: 0 };
  const reports: string[] = [];
  const keeper = createUsageKeeper({
    database,
    report: ({ message }) => reports.push(message),
    observer: {
      introspected() {
        events.introspected++;
      },
      usageFlushed() {
        events.usageFlushed++;
      },
      usageFlushFailed() {
        events.usageFlushFailed++;
      },
      usageDropped(count) {
        events.usageDropped += count;
      },
    },
    ...(options.maxTallies === undefined ? {} : { maxTallies: options.maxTallies }),
  });
  onTestFinished(async () => {
    await keeper.close(0);
    await real.close();
  });
  return { keeper, database: real, test: testDatabase, reports, events };
}

/** Counts in both of their places. Only keys of ws_acme are ever allowed anything here. */
const COUNTS = `(SELECT * FROM usage
  UNION ALL SELECT 'ws_acme', key_id, used_hour, 'active', hour_count FROM key_uses WHERE hour_count > 0) AS counts`;

/** What is counted: workspace, key (0: all), hours after that of NOW, outcome, count. */
async function countsOf({ test }: Fixture): Promise<string[]> {
  const found = await test.query<{ line: string }>(
    `SELECT concat_ws(' ', workspace_id, right(key_id::text, 1),
       (extract(epoch FROM hour) * 1000 - $1::float8)::bigint / ${HOUR_MS}, code, sum(count)) AS line
     FROM ${COUNTS}
     GROUP BY workspace_id, key_id, hour, code ORDER BY workspace_id, key_id, hour, code`,
    [NOW - HOUR_MS / 2],
  );
  return found.map(({ line }) => line);
}

function promiseWithResolver(): { promise: Promise<void>; resolve: () => void } {
  let resolve = () => {};
  const promise = new Promise<void>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}

/** Collects garbage, and answers the bytes that are left. */
function collector(): () => number {
  setFlagsFromString('--expose-gc');
  const collect: unknown = runInNewContext('gc');
  if (typeof collect !== 'function') throw new TypeError('there is no gc');
  return () => {
    collect();
    collect();
    const { heapUsed, external } = process.memoryUsage();
    return heapUsed + external;
  };
}

test('outcomes are counted by key and by workspace, each in the hour of its decision', async () => {
  const fixture = await openKeeper();
  const [first, second, foreign] = [keyOf(1), keyOf(2), keyOf(3, 'ws_other')];
  for (const decision of [
    active(first),
    active(first),
    refused(first),
    active(first, NOW + HOUR_MS / 2 - 0.001),
    active(first, NOW + HOUR_MS / 2),
    active(second),
    refused(foreign),
    INVALID,
  ]) {
    fixture.keeper.introspected(decision, undefined, ASKING);
  }
  expect(fixture.keeper.pending()).toBe(5);
  await fixture.keeper.close(5_000);
  expect(await countsOf(fixture)).toEqual([
    'ws_acme 0 0 active 4',
    'ws_acme 0 0 insufficient_scope 1',
    'ws_acme 0 1 active 1',
    'ws_acme 1 0 active 3',
    'ws_acme 1 0 insufficient_scope 1',
    'ws_acme 1 1 active 1',
    'ws_acme 2 0 active 1',
    'ws_other 0 0 insufficient_scope 1',
    'ws_other 3 0 insufficient_scope 1',
  ]);
  expect(fixture.events).toEqual({ introspected: 8, usageFlushed: 1, usageFlushFailed: 0, usageDropped: 0 });
});

test('what is told is written within a second or so, without being asked for', async () => {
  const fixture = await openKeeper();
  fixture.keeper.introspected(active(keyOf(1)), undefined, ASKING);
  await expect.poll(() => countsOf(fixture), { timeout: 10_000 }).toHaveLength(2);
  fixture.keeper.introspected(active(keyOf(1)), undefined, ASKING);
  await expect
    .poll(() => countsOf(fixture), { timeout: 10_000 })
    .toEqual(['ws_acme 0 0 active 2', 'ws_acme 1 0 active 2']);
  expect(fixture.keeper.pending()).toBe(0);
});

describe('a batch is counted once', () => {
  test.each(['lose answer', 'fail'] as const)(
    'where its transaction did %s, again and again',
    async (fault) => {
      const fixture = await openKeeper({ disturb: (attempt) => (attempt <= 3 ? fault : undefined) });
      fixture.keeper.introspected(active(keyOf(1)), undefined, ASKING);
      await expect.poll(() => fixture.events.usageFlushFailed, { timeout: 10_000 }).toBeGreaterThan(0);
      // In flight by now: this one belongs to the next batch.
      fixture.keeper.introspected(active(keyOf(1)), undefined, ASKING);
      await fixture.keeper.close(10_000);
      expect(await countsOf(fixture)).toEqual(['ws_acme 0 0 active 2', 'ws_acme 1 0 active 2']);
      expect(fixture.events.usageFlushFailed).toBe(3);
      expect(fixture.reports).toEqual([
        'usage could not be written; it is kept and tried again',
        'usage is written again',
      ]);
      expect(await fixture.test.query('SELECT FROM usage_flushes')).toEqual([]);
    },
  );

  test('where the lost transaction still runs when the batch is sent again', async () => {
    const fixture = await openKeeper();
    const batch = { recorder: '019b76da-a800-7000-8000-00000000000a', sequence: 1 };
    const counts = {
      workspaceIds: ['ws_acme'],
      keyIds: keyIdToBytes(keyOf(1).key.id),
      hoursMs: [NOW - HOUR_MS / 2],
      codes: ['active'],
      counts: [5],
      usedMs: [NOW],
      ips: [null],
    };
    const write = (until: Promise<void>) =>
      fixture.database.transaction(async (executor) => {
        const isNew = await beginFlush(executor, batch);
        if (isNew) await addUsage(executor, counts);
        await until;
        return isNew;
      });
    const { promise, resolve: release } = promiseWithResolver();
    const lost = write(promise);
    await expect
      .poll(() => fixture.test.query("SELECT FROM pg_locks WHERE relation = 'usage_flushes'::regclass"))
      .not.toEqual([]);
    const again = write(Promise.resolve());
    await expect.poll(() => fixture.test.query('SELECT FROM pg_locks WHERE NOT granted')).not.toEqual([]);
    release();
    expect(await Promise.all([lost, again])).toEqual([true, false]);
    expect(await countsOf(fixture)).toEqual(['ws_acme 0 0 active 5', 'ws_acme 1 0 active 5']);
  });
});

test('two recorders that add the same rows in other orders do not wait for each other in a circle', async () => {
  const fixture = await openKeeper();
  const others = [fixture.keeper, createUsageKeeper({ database: fixture.database, report: () => undefined })];
  const keys = Array.from({ length: 500 }, (_, index) => keyOf(index + 1, `ws_${index % 7}`));
  for (let round = 0; round < 5; round++) {
    for (const [index, keeper] of others.entries()) {
      for (const key of index === 0 ? keys : keys.toReversed())
        keeper.introspected(active(key), undefined, ASKING);
    }
    await expect.poll(() => others.map((keeper) => keeper.pending()), { timeout: 20_000 }).toEqual([0, 0]);
  }
  expect(fixture.events.usageFlushFailed).toBe(0);
  const [sums] = await fixture.test.query(
    'SELECT min(hour_count), max(hour_count) FROM key_uses WHERE hour_count > 0',
  );
  expect(sums).toEqual({ min: '10', max: '10' });
  for (const keeper of others) await keeper.close(5_000);
});

test('a key is counted on when its record was read anew, and where another has taken the place of its tally', async () => {
  const fixture = await openKeeper();
  const held = (number: number): KeyRecord => ({ ...keyOf(number), tally: 0 });
  const [first, again, other] = [held(1), held(1), held(2)];
  for (const decision of [
    active(first),
    active(first),
    active(again, NOW + 5),
    refused(again),
    active(other),
  ])
    fixture.keeper.introspected(decision, { ip: '203.0.113.9' }, ASKING);
  expect(fixture.keeper.pending()).toBe(4);
  await expect.poll(() => fixture.keeper.pending(), IN_TIME).toBe(0);
  // In the other order than before.
  for (const decision of [active(other), active(again), active(first)])
    fixture.keeper.introspected(decision, undefined, ASKING);
  await fixture.keeper.close(5_000);
  expect(await countsOf(fixture)).toEqual([
    'ws_acme 0 0 active 7',
    'ws_acme 0 0 insufficient_scope 1',
    'ws_acme 1 0 active 5',
    'ws_acme 1 0 insufficient_scope 1',
    'ws_acme 2 0 active 2',
  ]);
  const uses = await fixture.database.read((executor) => findUses(executor, [first.key.id]));
  expect(uses.get(first.key.id)).toEqual({ at: NOW + 5, ip: '203.0.113.9' });
});

test('a key is counted in one tally however often an access token of it is shown', async () => {
  const fixture = await openKeeper();
  const accessToken = { scopes: [], expiresAt: NOW, isRevoked: false };
  const record = {
    ...keyOf(1),
    accessToken,
    workspace: { disabled: false },
    tally: 0,
  } as unknown as KeyRecord;
  for (let times = 0; times < 100; times++) {
    const decision = decide(record, { visibleWorkspaces: null }, EMPTY_CATALOGUE, NOW - 1);
    fixture.keeper.introspected(decision, undefined, ASKING);
  }
  expect(fixture.keeper.pending()).toBe(1);
  await fixture.keeper.close(5_000);
  expect(await countsOf(fixture)).toEqual(['ws_acme 0 0 active 100', 'ws_acme 1 0 active 100']);
});

test('with no more room introspections are dropped and told so, and keys that have a place are counted on', async () => {
  const fixture = await openKeeper({ maxTallies: 2 });
  for (const number of [1, 2, 3, 3, 1]) fixture.keeper.introspected(active(keyOf(number)), undefined, ASKING);
  expect(fixture.events.usageDropped).toBe(2);
  await fixture.keeper.close(5_000);
  expect(await countsOf(fixture)).toEqual([
    'ws_acme 0 0 active 3',
    'ws_acme 1 0 active 2',
    'ws_acme 2 0 active 1',
  ]);
});

test('while the database is away memory grows by keys, hours and outcomes, not by requests, and nothing is lost', async () => {
  let isAway = true;
  const fixture = await openKeeper({ disturb: () => (isAway ? 'fail' : undefined) });
  const keys = Array.from({ length: 20_000 }, (_, index) => keyOf(index + 1, `ws_${index % 100}`));
  const collect = collector();
  const useAll = (times: number, nowMs: number) => {
    for (let time = 0; time < times; time++) {
      for (const key of keys) {
        fixture.keeper.introspected(active(key, nowMs), { ip: '203.0.113.9' }, ASKING);
        if (time % 10 === 0) fixture.keeper.introspected(refused(key, nowMs), undefined, ASKING);
      }
    }
  };
  useAll(1, NOW);
  await expect.poll(() => fixture.events.usageFlushFailed, IN_TIME).toBeGreaterThan(0);
  const usedWithNone = collect();
  useAll(1, NOW + HOUR_MS);
  const usedWithOneHour = collect();
  const grown = usedWithOneHour - usedWithNone;
  expect(grown / keys.length, 'bytes for a key and hour, with two outcomes').toBeLessThan(200);
  useAll(60, NOW + HOUR_MS);
  // A few hundred kilobytes come and go with whatever else runs in this process.
  expect(collect() - usedWithOneHour, 'bytes for 60 times as many').toBeLessThan(0.2 * grown + 1_000_000);
  expect(fixture.keeper.pending()).toBe(4 * keys.length);

  isAway = false;
  await fixture.keeper.close(60_000);
  const sums = await fixture.test.query(
    `SELECT min(count), max(count), count(*)::int AS rows, code, hour < $1 AS first FROM ${COUNTS}
     WHERE key_id > '00000000-0000-0000-0000-000000000000' GROUP BY code, first ORDER BY code, first DESC`,
    [new Date(NOW + HOUR_MS / 2)],
  );
  expect(sums).toEqual([
    { min: '1', max: '1', rows: keys.length, code: 'active', first: true },
    { min: '61', max: '61', rows: keys.length, code: 'active', first: false },
    { min: '1', max: '1', rows: keys.length, code: 'insufficient_scope', first: true },
    { min: '7', max: '7', rows: keys.length, code: 'insufficient_scope', first: false },
  ]);
  expect(fixture.events.usageDropped).toBe(0);
}, 120_000);

test('what cannot be written by the end is told as lost', async () => {
  const fixture = await openKeeper({ disturb: () => 'fail' });
  for (const number of [1, 1, 2]) fixture.keeper.introspected(active(keyOf(number)), undefined, ASKING);
  await fixture.keeper.close(300);
  expect(fixture.reports.at(-1)).toBe(
    '3 introspections could not be counted: the database was away to the end',
  );
  expect(fixture.events.usageDropped).toBe(3);
});

describe('the last use', () => {
  test('is the latest success, with the address of its client in its one spelling', async () => {
    const fixture = await openKeeper();
    const [first, second, third] = [keyOf(1), keyOf(2), keyOf(3)];
    fixture.keeper.introspected(active(first, NOW), { ip: '203.0.113.9' }, ASKING);
    fixture.keeper.introspected(active(first, NOW + 2), { ip: '2001:DB8:0::1' }, ASKING);
    fixture.keeper.introspected(active(first, NOW + 1), { ip: '203.0.113.1' }, ASKING);
    fixture.keeper.introspected(refused(first, NOW + 3), { ip: '203.0.113.2' }, ASKING);
    fixture.keeper.introspected(active(second, NOW), { ip: 'ck_live_no_address' }, ASKING);
    fixture.keeper.introspected(active(second, NOW - HOUR_MS), { ip: '203.0.113.4' }, ASKING);
    fixture.keeper.introspected(refused(third), { ip: '203.0.113.3' }, ASKING);
    await fixture.keeper.close(5_000);
    const uses = await fixture.database.read((executor) =>
      findUses(
        executor,
        [first, second, third].map(({ key }) => key.id),
      ),
    );
    expect([...uses].sort()).toEqual([
      [first.key.id, { at: NOW + 2, ip: '2001:db8::1' }],
      [second.key.id, { at: NOW, ip: null }],
    ]);
  });

  test('is never taken back by an instance that comes late with an earlier one', async () => {
    const fixture = await openKeeper();
    const late = createUsageKeeper({ database: fixture.database, report: () => undefined });
    fixture.keeper.introspected(active(keyOf(1), NOW), undefined, ASKING);
    late.introspected(active(keyOf(1), NOW - 1), { ip: '203.0.113.9' }, ASKING);
    await fixture.keeper.close(5_000);
    await late.close(5_000);
    const uses = await fixture.database.read((executor) => findUses(executor, [keyOf(1).key.id]));
    expect([...uses.values()]).toEqual([{ at: NOW, ip: null }]);
  });

  test('writes no index, but the first of an hour does', async () => {
    const { database } = await openKeeper();
    const updates = async (executor: Executor) => {
      const { rows } = await executor.execute<{ all: number; hot: number }>(
        sql`SELECT pg_stat_get_xact_tuples_updated('key_uses'::regclass)::int AS all,
          pg_stat_get_xact_tuples_hot_updated('key_uses'::regclass)::int AS hot`,
      );
      return rows[0] ?? { all: Number.NaN, hot: Number.NaN };
    };
    const useAt = (atMs: number) =>
      database.transaction(async (executor) => {
        const before = await updates(executor);
        await addUsage(executor, useOf(keyOf(1).key.id, atMs));
        const after = await updates(executor);
        return { all: after.all - before.all, hot: after.hot - before.hot };
      });
    expect(await useAt(NOW)).toEqual({ all: 1, hot: 0 });
    expect(await useAt(NOW + 1)).toEqual({ all: 1, hot: 1 });
    expect(await useAt(NOW + HOUR_MS / 2)).toEqual({ all: 1, hot: 0 });
  });
});

describe('uses within the hour of the last one', () => {
  const HOUR = NOW - HOUR_MS / 2;
  const { id } = keyOf(1).key;

  /** So many uses, the last of them so far into that hour after NOW's. */
  function uses(hour: number, count: number, intoMs = 60_000): UsageBatch {
    const atMs = HOUR + hour * HOUR_MS + intoMs;
    return { ...useOf(id, atMs), workspaceIds: ['ws_acme'], codes: ['active'], counts: [count] };
  }

  const joined = (...batches: readonly UsageBatch[]): UsageBatch => ({
    workspaceIds: batches.flatMap(({ workspaceIds }) => workspaceIds),
    keyIds: Buffer.concat(batches.map(({ keyIds }) => keyIds)),
    hoursMs: batches.flatMap(({ hoursMs }) => Array.from(hoursMs)),
    codes: batches.flatMap(({ codes }) => codes),
    counts: batches.flatMap(({ counts }) => Array.from(counts)),
    usedMs: batches.flatMap(({ usedMs }) => Array.from(usedMs)),
    ips: batches.flatMap(({ ips }) => ips),
  });

  /** Of the key itself: hours after NOW's, and how many are counted, in `usage` and beside the last use. */
  async function placesOf({ test }: Fixture): Promise<{ usage: string[]; beside: string[] }> {
    const of = async (from: string) => {
      const found = await test.query<{ line: string }>(
        `SELECT ((extract(epoch FROM hour) * 1000 - $1::float8) / ${HOUR_MS})::int || ': ' || count AS line
         FROM ${from} WHERE key_id = $2 ORDER BY hour`,
        [HOUR, keyIdToUuid(id)],
      );
      return found.map(({ line }) => line);
    };
    return {
      usage: await of('usage'),
      beside: await of('(SELECT key_id, used_hour AS hour, hour_count AS count FROM key_uses) AS uses'),
    };
  }

  const written = async (...batches: readonly UsageBatch[]) => {
    const fixture = await openKeeper();
    for (const batch of batches) await fixture.database.read((executor) => addUsage(executor, batch));
    return placesOf(fixture);
  };

  test('are counted beside it, and moved to the usage when another hour has one', async () => {
    expect(await written(uses(0, 2), uses(0, 3))).toEqual({ usage: [], beside: ['0: 5'] });
    expect(await written(uses(0, 2), uses(2, 3))).toEqual({ usage: ['0: 2'], beside: ['2: 3'] });
    expect(await written(uses(0, 2), uses(1, 3), uses(1, 4))).toEqual({ usage: ['0: 2'], beside: ['1: 7'] });
  });

  test('go to the usage where a later hour has one already', async () => {
    expect(await written(uses(1, 2), uses(0, 3), uses(1, 1))).toEqual({ usage: ['0: 3'], beside: ['1: 3'] });
    expect(await written(uses(1, 2), uses(0, 3), uses(0, 4))).toEqual({ usage: ['0: 7'], beside: ['1: 2'] });
  });

  test('are all counted where a batch has several tallies of a key', async () => {
    expect(await written(joined(uses(0, 1), uses(1, 2), uses(0, 3), uses(1, 4, 120_000)))).toEqual({
      usage: ['0: 4', '1: 2'],
      beside: ['1: 4'],
    });
    expect(await written(uses(0, 5), joined(uses(1, 2), uses(2, 3)), uses(2, 1))).toEqual({
      usage: ['0: 5', '1: 2'],
      beside: ['2: 4'],
    });
  });

  test('are moved by the first use that is noted without being counted, and only once', async () => {
    const fixture = await openKeeper();
    const noted = { ...useOf(id, HOUR + HOUR_MS + 60_000), workspaceIds: ['ws_acme'] };
    for (const batch of [uses(0, 2), noted, noted])
      await fixture.database.read((executor) => addUsage(executor, batch));
    expect(await placesOf(fixture)).toEqual({ usage: ['0: 2'], beside: ['1: 0'] });
    expect(await countsOf(fixture)).toEqual(['ws_acme 0 0 active 2', 'ws_acme 1 0 active 2']);
  });

  test('stay with it when the usage of their month is dropped', async () => {
    const fixture = await openKeeper();
    for (const batch of [uses(0, 2), uses(1, 3)])
      await fixture.database.read((executor) => addUsage(executor, batch));
    await fixture.test.query('TRUNCATE usage');
    const span = {
      workspaceId: 'ws_acme',
      keyId: id,
      granularity: 'hour',
      fromMs: 0,
      toMs: NOW * 2,
    } as const;
    expect(await fixture.database.read((executor) => readUsage(executor, span))).toEqual([
      { startMs: HOUR + HOUR_MS, code: 'active', count: 3 },
    ]);
  });

  test('are told in whichever place they are, and as often whatever the order in which they come', async () => {
    const fixture = await openKeeper();
    const others = [
      fixture.keeper,
      createUsageKeeper({ database: fixture.database, report: () => undefined }),
    ];
    const expected = new Map<number, number>();
    for (let round = 0; round < 12; round++) {
      const hour = [0, 1, 0, 2, 1, 3, 2, 0, 3, 3, 1, 2][round] ?? 0;
      for (const [index, keeper] of others.entries()) {
        for (let times = 0; times <= index; times++)
          keeper.introspected(active(keyOf(1), HOUR + hour * HOUR_MS + round), undefined, ASKING);
      }
      expected.set(HOUR + hour * HOUR_MS, (expected.get(HOUR + hour * HOUR_MS) ?? 0) + 3);
      if (round % 3 === 2)
        await expect.poll(() => others.map((keeper) => keeper.pending()), IN_TIME).toEqual([0, 0]);
    }
    for (const keeper of others) await keeper.close(5_000);
    for (const keyId of [id, undefined]) {
      const span = { workspaceId: 'ws_acme', keyId, granularity: 'hour', fromMs: 0, toMs: NOW * 2 } as const;
      const told = await fixture.database.read((executor) => readUsage(executor, span));
      expect(told).toEqual(
        [...expected]
          .sort(([left], [right]) => left - right)
          .map(([startMs, count]) => ({ startMs, code: 'active', count })),
      );
    }
  });
});

test('recorders that were killed are forgotten after a week', async () => {
  const fixture = await openKeeper();
  await fixture.test.query(
    `INSERT INTO usage_flushes (recorder, sequence, at) VALUES
       ('019b76da-a800-7000-8000-00000000000a', 1, now() - interval '8 days'),
       ('019b76da-a800-7000-8000-00000000000b', 1, now() - interval '6 days')`,
  );
  fixture.keeper.introspected(active(keyOf(1)), undefined, ASKING);
  await fixture.keeper.close(5_000);
  await expect
    .poll(() => fixture.test.query('SELECT right(recorder::text, 1) AS recorder FROM usage_flushes'))
    .toEqual([{ recorder: 'b' }]);
});
