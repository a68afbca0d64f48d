import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, onTestFinished, test } from 'vitest';
import { uuidFloor } from '../../src/domain/key-id.ts';
import { createUpkeep, type Upkeep, type UpkeepOptions } from '../../src/recording/upkeep.ts';
import { appendAuditEvent, OPERATOR } from '../../src/storage/audit.ts';
import { createDatabase, type Database } from '../../src/storage/database.ts';
import { PARTITIONED_TABLES } from '../../src/storage/partitions.ts';
import { databaseOfTest, type TestDatabase } from '../support/database.ts';

const AUDIT = PARTITIONED_TABLES.audit_events;
const DAY_MS = 86_400_000;
const MONTH_MS = 31 * DAY_MS;

interface Started {
  readonly upkeep: Upkeep;
  readonly reports: string[];
  readonly count: {
    partitionsMade: number;
    partitionsDropped: number;
    upkeepFailed: number;
    upkeepDone: number;
  };
}

function openDatabase(url: string): Database {
  const database = createDatabase({
    url,
    poolSize: 4,
    applicationName: 'test',
    onConnectionLost: () => undefined,
  });
  onTestFinished(() => database.close());
  return database;
}

function upkeepOf(
  database: Database,
  options: Partial<UpkeepOptions> & { retentionDays?: number | null } = {},
): Started {
  const { retentionDays = null, ...rest } = options;
  const reports: string[] = [];
  const count = { partitionsMade: 0, partitionsDropped: 0, upkeepFailed: 0, upkeepDone: 0 };
  const upkeep = createUpkeep({
    database,
    tables: [{ table: AUDIT, retentionDays }],
    observer: {
      partitionsMade: (made) => {
        count.partitionsMade += made;
      },
      partitionsDropped: (dropped) => {
        count.partitionsDropped += dropped;
      },
      upkeepFailed: () => {
        count.upkeepFailed++;
      },
      upkeepDone: () => {
        count.upkeepDone++;
      },
    },
    report: ({ message }) => reports.push(message),
    ...rest,
  });
  onTestFinished(() => upkeep.close());
  return { upkeep, reports, count };
}

function append(database: Database, atMs: number): Promise<void> {
  const event = { action: 'key.created', actor: OPERATOR, workspaceId: 'ws_acme', keyId: null } as const;
  return database.transaction((executor) =>
    appendAuditEvent(executor, { ...event, before: null, after: null }, atMs),
  );
}

const countRows = async (test: TestDatabase) => (await test.query('SELECT FROM audit_events')).length;

async function placesOf(test: TestDatabase): Promise<string[]> {
  const rows = await test.query<{ name: string }>(
    "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'audit_events'::regclass ORDER BY 1",
  );
  return rows.map(({ name }) => name.replace('partitions.', ''));
}

/**
 * As if upkeep had been missed since the month of the migration, which was the last one: what it made for the future is gone,
 * and this month has no partition either, whenever the template that the database is cloned from was migrated.
 */
async function forgetTheFuture(test: TestDatabase): Promise<void> {
  for (const name of await placesOf(test)) {
    if (/_\d{6}$/.test(name)) await test.query(`DROP TABLE partitions.${name}`);
  }
  const now = new Date();
  const bound = uuidFloor(Date.UTC(now.getUTCFullYear(), now.getUTCMonth(), 1));
  await test.query(`ALTER TABLE audit_events DETACH PARTITION partitions.audit_events_first`);
  await test.query(
    `ALTER TABLE audit_events ATTACH PARTITION partitions.audit_events_first FOR VALUES FROM (MINVALUE) TO ('${bound}')`,
  );
}

describe('several instances keep one database at the same time', () => {
  test('and make each partition once, without a failure', async () => {
    const test = await databaseOfTest();
    await forgetTheFuture(test);
    expect(await placesOf(test)).toEqual(['audit_events_default', 'audit_events_first']);
    const instances = Array.from({ length: 6 }, () => upkeepOf(openDatabase(test.url)));
    for (let round = 0; round < 3; round++) {
      const done = await Promise.all(instances.map(({ upkeep }) => upkeep.run()));
      expect(done).toEqual(instances.map(() => true));
    }
    expect(instances.flatMap(({ reports }) => reports)).toEqual([]);
    expect(await placesOf(test)).toHaveLength(6);
    expect(instances.reduce((sum, { count }) => sum + count.partitionsMade, 0)).toBe(4);
  });

  test('while events are appended of all times: none fails and none is lost', async () => {
    const test = await databaseOfTest();
    await forgetTheFuture(test);
    const writer = openDatabase(test.url);
    const instances = Array.from({ length: 3 }, () => upkeepOf(openDatabase(test.url)));
    const appended = Array.from({ length: 60 }, async (_, index) => {
      await append(writer, Date.now() + ((index % 12) - 6) * MONTH_MS);
    });
    for (let round = 0; round < 5; round++) await Promise.all(instances.map(({ upkeep }) => upkeep.run()));
    await Promise.all(appended);
    expect(await countRows(test)).toBe(60);
    // What could not be done while others held a lock is done now.
    await instances[0]?.upkeep.run();
    expect(await test.query('SELECT FROM partitions.audit_events_default')).toEqual([]);
    expect(await countRows(test)).toBe(60);
  });
});

describe('retention', () => {
  const oldest = 'audit_events_202001';
  const withOldPartitions = async () => {
    const test = await databaseOfTest();
    const database = openDatabase(test.url);
    // Rows of years ago fall into the partition of all that was before; a month of its own needs it out of the way.
    await test.query('DROP TABLE partitions.audit_events_first');
    await append(database, Date.UTC(2020, 0, 31));
    await append(database, Date.now());
    await upkeepOf(database).upkeep.run();
    expect(await placesOf(test)).toContain(oldest);
    return { test, database };
  };

  test('drops a month when all of it is older than is kept', async () => {
    const { test, database } = await withOldPartitions();
    const { upkeep, count } = upkeepOf(database, { retentionDays: 730 });
    await upkeep.run();
    expect(await placesOf(test)).not.toContain(oldest);
    expect(count.partitionsDropped).toBe(1);
    expect(await countRows(test)).toBe(1);
  });

  test('that is off drops nothing', async () => {
    const { test, database } = await withOldPartitions();
    await upkeepOf(database, { retentionDays: null }).upkeep.run();
    expect(await placesOf(test)).toContain(oldest);
  });

  test('goes by the earlier of two clocks, so that one that leaps ahead costs nothing', async () => {
    const { test, database } = await withOldPartitions();
    const lastMonth = Date.UTC(2020, 1, 20);
    await upkeepOf(database, { retentionDays: 30, now: () => lastMonth }).upkeep.run();
    expect(await placesOf(test)).toContain(oldest);
    await upkeepOf(database, { retentionDays: 30, now: () => Date.now() * 2 }).upkeep.run();
    expect(await placesOf(test)).not.toContain(oldest);
    expect(await countRows(test)).toBe(1);
  });
});

describe('a step of upkeep that fails', () => {
  test('is told and keeps nobody from the others, and the next run does it', async () => {
    const test = await databaseOfTest();
    await forgetTheFuture(test);
    const database = openDatabase(test.url);
    // A table that stands in its way.
    const now = new Date();
    const next = new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() + 1, 1));
    const name = `partitions.audit_events_${next.toISOString().slice(0, 7).replace('-', '')}`;
    await test.query(`CREATE TABLE ${name} ()`);
    let forgotten = 0;
    const { upkeep, reports, count } = upkeepOf(database, {
      chores: [
        async () => {
          forgotten++;
        },
      ],
    });
    expect(await upkeep.run()).toBe(false);
    expect(reports).toEqual(['no partitions of audit_events were made; this is tried again']);
    expect(count).toMatchObject({ upkeepFailed: 1, partitionsMade: 0 });
    expect(forgotten).toBe(1);
    await append(database, next.getTime());
    expect(await countRows(test)).toBe(1);

    await test.query(`DROP TABLE ${name}`);
    expect(await upkeep.run()).toBe(true);
    // The event that was appended meanwhile brought the partition of its month itself.
    expect(await placesOf(test)).toHaveLength(6);
  });

  test('holds up nobody: appending goes on while another holds what upkeep waits for', async () => {
    const test = await databaseOfTest();
    const database = openDatabase(test.url);
    await append(database, Date.now() + 40 * MONTH_MS);
    const { upkeep } = upkeepOf(database);
    await database.transaction(async (executor) => {
      await executor.execute('LOCK TABLE audit_events IN ACCESS SHARE MODE');
      expect(await upkeep.run()).toBe(false);
      await append(database, Date.now());
    });
    expect(await upkeep.run()).toBe(true);
    expect(await countRows(test)).toBe(2);
  });

  test('is no news while the database is away', async () => {
    const { upkeep, reports } = upkeepOf(openDatabase('postgres://nobody@127.0.0.1:1/nothing'));
    expect(await upkeep.run()).toBe(false);
    expect(reports).toEqual([]);
  });
});

describe('a row of a time that upkeep did not foresee', () => {
  const start = async (retryMs: number) => {
    let runs = 0;
    const chore = async () => {
      runs++;
    };
    const { upkeep } = upkeepOf(openDatabase((await databaseOfTest()).url), { chores: [chore], retryMs });
    upkeep.start();
    await upkeep.run();
    expect(runs).toBe(1);
    return { upkeep, runsSince: () => runs - 1 };
  };

  test('sets upkeep off', async () => {
    const { upkeep, runsSince } = await start(0);
    upkeep.wrote(Date.now());
    expect(runsSince()).toBe(0);
    upkeep.wrote(Date.now() + 90 * MONTH_MS);
    await expect.poll(runsSince).toBe(1);
  });

  test('does not, where upkeep has just run', async () => {
    const { upkeep, runsSince } = await start(60_000);
    for (let n = 0; n < 10; n++) upkeep.wrote(Date.now() + 90 * MONTH_MS);
    await sleep(300);
    expect(runsSince()).toBe(0);
  });
});

test('the end waits for no step that the database does not answer', async () => {
  const test = await databaseOfTest();
  await forgetTheFuture(test);
  const database = openDatabase(test.url);
  let release = () => {};
  const stuck = new Promise<void>((resolve) => {
    release = resolve;
  });
  const { upkeep } = upkeepOf({
    ...database,
    transaction: () => stuck.then(() => Promise.reject(new Error())),
  });
  const run = upkeep.run();
  await upkeep.close();
  release();
  expect(await run).toBe(false);
});
