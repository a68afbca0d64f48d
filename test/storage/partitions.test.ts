import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { drizzle } from 'drizzle-orm/node-postgres';
import { migrate } from 'drizzle-orm/node-postgres/migrator';
import pg from 'pg';
import { v7 as uuidv7 } from 'uuid';
import { describe, expect, onTestFinished, test } from 'vitest';
import { appendAuditEvent, OPERATOR } from '../../src/storage/audit.ts';
import { createDatabase, type Database } from '../../src/storage/database.ts';
import { migrateDatabase } from '../../src/storage/migrations.ts';
import {
  beginUpkeep,
  dropPartitions,
  emptyCatchAll,
  listPartitions,
  makePartitions,
  PARTITIONED_TABLES,
} from '../../src/storage/partitions.ts';
import { databaseOfTest, type TestDatabase } from '../support/database.ts';
import { ROOT } from '../support/service.ts';

const AUDIT = PARTITIONED_TABLES.audit_events;
const MONTH_MS = 31 * 86_400_000;
/** In the middle of a month, far from any other time of these tests. */
const NOW = Date.UTC(2031, 4, 15, 12);

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

function append(database: Database, atMs: number, workspaceId = 'ws_acme'): Promise<void> {
  const event = {
    action: 'key.created',
    actor: OPERATOR,
    workspaceId,
    keyId: null,
    before: null,
    after: null,
  } as const;
  return database.transaction((executor) => appendAuditEvent(executor, event, atMs));
}

async function upkeepAt(database: Database, nowMs: number): Promise<void> {
  await database.transaction(async (executor) => {
    expect(await beginUpkeep(executor)).toBe(true);
    await makePartitions(executor, AUDIT, nowMs);
  });
}

async function placesOf(database: TestDatabase): Promise<string[]> {
  const rows = await database.query<{ place: string }>(
    'SELECT tableoid::regclass::text AS place FROM audit_events ORDER BY id',
  );
  return rows.map(({ place }) => place.replace('partitions.', ''));
}

describe('upkeep makes partitions ahead', () => {
  test('of this month and of three more, and again nothing where they are there', async () => {
    const database = openDatabase((await databaseOfTest()).url);
    const make = () =>
      database.transaction(async (executor) => {
        await beginUpkeep(executor);
        return makePartitions(executor, AUDIT, NOW);
      });
    expect(await make()).toEqual([
      'audit_events_203105',
      'audit_events_203106',
      'audit_events_203107',
      'audit_events_203108',
    ]);
    expect(await make()).toEqual([]);
    const [may] = (await database.read((executor) => listPartitions(executor, AUDIT))).filter(
      ({ name }) => name === 'audit_events_203105',
    );
    expect(may).toMatchObject({ from: Date.UTC(2031, 4, 1), to: Date.UTC(2031, 5, 1), isCatchAll: false });
  });

  test('whose bounds are those of UTC: the last millisecond of a month, and the first of the next', async () => {
    const test = await databaseOfTest();
    const database = openDatabase(test.url);
    await upkeepAt(database, NOW);
    await append(database, Date.UTC(2031, 5, 1) - 1);
    await append(database, Date.UTC(2031, 5, 1));
    expect(await placesOf(test)).toEqual(['audit_events_203105', 'audit_events_203106']);
  });

  test('with room on the pages of usage for the next versions of its rows', async () => {
    const test = await databaseOfTest();
    await openDatabase(test.url).transaction(async (executor) => {
      await beginUpkeep(executor);
      return makePartitions(executor, PARTITIONED_TABLES.usage, NOW);
    });
    const rooms = await test.query<{ reloptions: string[] }>(
      `SELECT c.reloptions FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
       WHERE inhparent = 'usage'::regclass`,
    );
    expect(rooms.length).toBeGreaterThan(4);
    for (const { reloptions } of rooms) expect(reloptions).toEqual(['fillfactor=50']);
  });

  test('by one instance at a time: another one leaves it alone', async () => {
    const database = openDatabase((await databaseOfTest()).url);
    await database.transaction(async (first) => {
      expect(await beginUpkeep(first)).toBe(true);
      await database.transaction(async (second) => {
        expect(await beginUpkeep(second)).toBe(false);
      });
    });
    await database.transaction(async (third) => expect(await beginUpkeep(third)).toBe(true));
  });

  test('without waiting for a lock that is not to be had', async () => {
    const test = await databaseOfTest();
    const database = openDatabase(test.url);
    const holder = new pg.Client({ connectionString: test.url });
    await holder.connect();
    onTestFinished(() => holder.end());
    await holder.query(
      'BEGIN; LOCK TABLE audit_events IN ACCESS SHARE MODE; LOCK TABLE partitions.audit_events_default',
    );
    await expect(upkeepAt(database, NOW)).rejects.toMatchObject({ cause: { code: '55P03' } });
    await holder.query('COMMIT');
    await expect(upkeepAt(database, NOW)).resolves.toBeUndefined();
  });
});

describe('a row whose partition nobody made', () => {
  test('is taken all the same, and shown', async () => {
    const test = await databaseOfTest();
    await append(openDatabase(test.url), NOW + 20 * MONTH_MS);
    expect(await placesOf(test)).toEqual(['audit_events_default']);
  });

  test('is moved by upkeep to a partition of its own, and none is lost or changed', async () => {
    const test = await databaseOfTest();
    const database = openDatabase(test.url);
    await upkeepAt(database, NOW);
    const times = [NOW, NOW + 20 * MONTH_MS, NOW + 20 * MONTH_MS + 1, NOW - 5 * MONTH_MS];
    for (const time of times) await append(database, time);
    const before = await test.query('SELECT * FROM audit_events ORDER BY id');
    const empty = () =>
      database.transaction(async (executor) => {
        await beginUpkeep(executor);
        return emptyCatchAll(executor, AUDIT);
      });
    expect(await empty()).toBe(true);
    expect(await test.query('SELECT * FROM audit_events ORDER BY id')).toEqual(before);
    expect(await placesOf(test)).toEqual([
      'audit_events_203012',
      'audit_events_203105',
      'audit_events_203301',
      'audit_events_203301',
    ]);
    expect(await empty()).toBe(false);

    await append(database, NOW + 90 * MONTH_MS);
    expect((await placesOf(test)).at(-1)).toBe('audit_events_default');
  });
});

describe('upkeep drops', () => {
  test('a partition when all of it is older than what is kept, not a millisecond before', async () => {
    const test = await databaseOfTest();
    const database = openDatabase(test.url);
    await upkeepAt(database, NOW);
    await append(database, NOW);
    const drop = (beforeMs: number) =>
      database.transaction(async (executor) => {
        await beginUpkeep(executor);
        return dropPartitions(executor, AUDIT, beforeMs);
      });
    await drop(Date.UTC(2031, 4, 1));
    expect(await drop(Date.UTC(2031, 5, 1) - 1)).toEqual([]);
    expect(await placesOf(test)).toEqual(['audit_events_203105']);
    expect(await drop(Date.UTC(2031, 5, 1))).toEqual(['audit_events_203105']);
    expect(await placesOf(test)).toEqual([]);
  });

  test('never the catch-all', async () => {
    const test = await databaseOfTest();
    const database = openDatabase(test.url);
    await append(database, NOW);
    await database.transaction((executor) => dropPartitions(executor, AUDIT, NOW * 2));
    await append(database, NOW + 1);
    expect(await placesOf(test)).toEqual(['audit_events_default', 'audit_events_default']);
  });
});

describe('no audit event is changed by the name of its partition', () => {
  test.each([
    ['a partition that upkeep made', NOW],
    ['the catch-all', NOW + 50 * MONTH_MS],
    ['the table of earlier releases', Date.now()],
    ['a partition made for what the catch-all held', NOW + 30 * MONTH_MS],
    ['the catch-all that followed another', NOW + 60 * MONTH_MS],
  ])('in %s', async (_, atMs) => {
    const test = await databaseOfTest();
    const database = openDatabase(test.url);
    await upkeepAt(database, NOW);
    await append(database, NOW + 30 * MONTH_MS);
    await database.transaction((executor) => emptyCatchAll(executor, AUDIT));
    await append(database, atMs, 'ws_kept');
    const [row] = await test.query<{ place: string }>(
      "SELECT tableoid::regclass::text AS place FROM audit_events WHERE workspace_id = 'ws_kept'",
    );
    for (const statement of [
      `UPDATE ${row?.place} SET action = 'nothing'`,
      `DELETE FROM ${row?.place}`,
      `TRUNCATE ${row?.place}`,
      `BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM ${row?.place}; COMMIT`,
      `BEGIN; SET LOCAL session_replication_role = replica; TRUNCATE ${row?.place}; COMMIT`,
    ]) {
      await expect(test.query(statement), statement).rejects.toMatchObject({ code: '23000' });
      await test.query('ROLLBACK');
    }
    expect(await test.query("SELECT FROM audit_events WHERE workspace_id = 'ws_kept'")).toHaveLength(1);
  });
});

describe('a database of the release before partitions', () => {
  test('keeps its audit events, and instances of that release go on appending', async () => {
    const test = await databaseOfTest({ empty: true });
    await migrateUntil(test, '0001_membership');
    /** As release 0.1.0 sends it. */
    const appendAsBefore = (atMs: number) =>
      test.query(
        `INSERT INTO "audit_events" ("id", "at", "action", "actor_key_id", "workspace_id", "key_id", "before", "after", "address", "request_id")
         VALUES ($1, $2, 'key.updated', NULL, 'ws_acme', NULL, '{"name": "Before"}', '{"name": "After"}', '192.0.2.1', 'req_1')`,
        [uuidv7({ msecs: atMs }), new Date(atMs)],
      );
    await appendAsBefore(Date.now() - 20 * MONTH_MS);
    await appendAsBefore(Date.now());
    const before = await test.query('SELECT * FROM audit_events ORDER BY id');

    await migrateDatabase(test.url);
    expect(await test.query('SELECT * FROM audit_events ORDER BY id')).toEqual(
      before.map((row) => ({ ...row, target: null, source: null })),
    );
    await appendAsBefore(Date.now() + 1);
    await appendAsBefore(Date.now() + MONTH_MS);
    const places = await placesOf(test);
    expect(places.slice(0, 3)).toEqual(Array(3).fill('audit_events_first'));
    expect(places[3]).toMatch(/^audit_events_\d{6}$/);
    await expect(test.query('DELETE FROM audit_events')).rejects.toMatchObject({ code: '23000' });
  });
});

/** Brings an empty database to an earlier state of the migrations. */
async function migrateUntil(database: TestDatabase, last: string): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'claviger-migrations-'));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  await cp(join(ROOT, 'migrations'), folder, { recursive: true });
  const path = join(folder, 'meta/_journal.json');
  const journal: { entries: { tag: string }[] } = JSON.parse(await readFile(path, 'utf8'));
  const end = journal.entries.findIndex(({ tag }) => tag === last) + 1;
  await writeFile(path, JSON.stringify({ ...journal, entries: journal.entries.slice(0, end) }));
  const client = new pg.Client({ connectionString: database.url });
  await client.connect();
  await migrate(drizzle(client), { migrationsFolder: folder });
  await client.end();
}
