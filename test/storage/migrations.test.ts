import { createServer, type Server, type Socket } from 'node:net';
import { describe, expect, onTestFinished, test } from 'vitest';
import { ConnectionError } from '../../src/storage/connection.ts';
import { MigrationError, migrateDatabase } from '../../src/storage/migrations.ts';
import { databaseOfTest } from '../support/database.ts';

describe('an empty database', () => {
  test('is migrated once by six instances that start at the same time', async () => {
    const database = await databaseOfTest({ empty: true });
    await Promise.all(Array.from({ length: 6 }, () => migrateDatabase(database.url)));

    const applied = await database.query<{ hash: string }>('SELECT hash FROM drizzle.__drizzle_migrations');
    expect(applied.length).toBeGreaterThan(0);
    expect(new Set(applied.map(({ hash }) => hash)).size).toBe(applied.length);
    expect(await database.query('SELECT id FROM workspaces')).toEqual([{ id: 'system' }]);
  });

  test('is left alone by a second migration', async () => {
    const database = await databaseOfTest({ empty: true });
    await migrateDatabase(database.url);
    const before = await database.query('SELECT * FROM drizzle.__drizzle_migrations');
    await migrateDatabase(database.url);
    expect(await database.query('SELECT * FROM drizzle.__drizzle_migrations')).toEqual(before);
  });

  test('keeps nothing of a migration that fails half-way', async () => {
    const database = await databaseOfTest({ empty: true });
    // A table of the name that the last statements of the first migration trip over.
    await database.query('CREATE TABLE workspaces (id text)');
    const failure = await failureOf(database.url);
    expect(failure.message).toMatch(/42P07/);
    expect(failure.message).not.toContain('\n');
    expect(await database.query("SELECT to_regclass('api_keys') AS keys")).toEqual([{ keys: null }]);
  });
});

describe('the start ends with one line that names the cure', () => {
  test('where the database was migrated by a newer release', async () => {
    const database = await databaseOfTest();
    await database.query(
      "INSERT INTO drizzle.__drizzle_migrations (hash, created_at) VALUES ('of the future', $1)",
      [Date.now() * 2],
    );
    expect((await failureOf(database.url)).message).toMatch(/newer release of Claviger. Start that release/);
  });

  test('where PostgreSQL is older than 14', async () => {
    const database = await databaseOfTest({ empty: true });
    const pretend = (version: number, text: string) =>
      database.query(`
        CREATE SCHEMA IF NOT EXISTS pretended;
        CREATE OR REPLACE FUNCTION pretended.current_setting(text) RETURNS text LANGUAGE sql AS
          $$ SELECT CASE $1 WHEN 'server_version_num' THEN '${version}' ELSE '${text}' END $$;
      `);
    const url = new URL(database.url);
    url.searchParams.set('options', '-c search_path=pretended,pg_catalog,public');
    await pretend(130_022, '13.22');
    expect((await failureOf(url.href)).message).toBe(
      'The database is PostgreSQL 13.22; Claviger needs 14 or newer.',
    );
    expect(await database.query("SELECT to_regclass('public.api_keys') AS keys")).toEqual([{ keys: null }]);

    await pretend(140_000, '14.0');
    await migrateDatabase(database.url);
    await expect(migrateDatabase(url.href)).resolves.toBeUndefined();
  });

  test('where the password is wrong', async () => {
    const url = new URL((await databaseOfTest()).url);
    url.password = 'a-wrong-password';
    const { message } = await failureOf(url.href);
    expect(message).toMatch(/refuses the user or password of DATABASE_URL \(28P01\)/);
  });

  test('where the user does not exist', async () => {
    const url = new URL((await databaseOfTest()).url);
    url.username = 'nobody';
    expect((await failureOf(url.href)).message).toMatch(/refuses the user or password of DATABASE_URL/);
  });

  test('where the user may not create tables', async () => {
    const database = await databaseOfTest({ empty: true });
    const role = `visitor_${Date.now().toString(36)}`;
    await database.query(`CREATE ROLE ${role} LOGIN PASSWORD 'pass-word-of-visitor'`);
    onTestFinished(async () => {
      await database.query(`DROP ROLE ${role}`);
    });
    const url = new URL(database.url);
    url.username = role;
    url.password = 'pass-word-of-visitor';
    expect((await failureOf(url.href)).message).toMatch(/may not .*42501/);
  });

  test('where the database is read-only', async () => {
    const url = new URL((await databaseOfTest({ empty: true })).url);
    url.searchParams.set('options', '-c default_transaction_read_only=on');
    expect((await failureOf(url.href)).message).toMatch(/read-only \(25006\)/);
  });

  test('where the database does not exist', async () => {
    const url = new URL((await databaseOfTest()).url);
    url.pathname = '/no_such_database';
    expect((await failureOf(url.href)).message).toMatch(/does not exist; create it/);
  });

  test('where nothing listens', async () => {
    const port = await portOf(createServer(), { close: true });
    const { message } = await failureOf(`postgres://me:pass-word@127.0.0.1:${port}/db`);
    expect(message).toMatch(/cannot be reached \(ECONNREFUSED\)/);
  });

  test('where the host has no address', async () => {
    const { message } = await failureOf('postgres://me:pass-word@nowhere.invalid:5432/db');
    expect(message).toMatch(/cannot be reached \((ENOTFOUND|EAI_AGAIN)\)/);
  });

  test('where something else than PostgreSQL hangs up', async () => {
    const port = await portOf(createServer((socket) => socket.destroy()));
    expect((await failureOf(`postgres://me:pass-word@127.0.0.1:${port}/db`)).message).toMatch(
      /cannot be reached/,
    );
  });

  test('where something listens and never answers', async () => {
    const port = await portOf(createServer(() => undefined));
    expect((await failureOf(`postgres://me:pass-word@127.0.0.1:${port}/db`)).message).toMatch(
      /cannot be reached/,
    );
  });

  test('where the server has no TLS and the URL asks for it', async () => {
    const url = new URL((await databaseOfTest()).url);
    url.searchParams.set('sslmode', 'verify-full');
    expect((await failureOf(url.href)).message).toBe(
      'PostgreSQL does not speak TLS, which DATABASE_URL asks for.',
    );
  });

  test.each([
    ['a malformed escape', 'postgres://me:pass%zzword@127.0.0.1:5432/db'],
    [
      'a certificate file that is not there',
      'postgres://me:pass-word@127.0.0.1/db?sslrootcert=/no/such/file',
    ],
  ])('where DATABASE_URL holds %s', async (_, url) => {
    expect((await failureOf(url)).message).toMatch(/DATABASE_URL/);
  });
});

/** The failure to migrate, which is one line for the operator and holds no password. */
async function failureOf(url: string): Promise<MigrationError | ConnectionError> {
  try {
    await migrateDatabase(url);
  } catch (error) {
    if (!(error instanceof MigrationError || error instanceof ConnectionError)) throw error;
    const failure = error;
    expect(failure.message).not.toMatch(/\n|pass-word|pass%|wrong-password/);
    return failure;
  }
  throw new Error('the migration succeeded');
}

async function portOf(server: Server, { close = false } = {}): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('there is no port');
  const sockets = new Set<Socket>();
  server.on('connection', (socket) => sockets.add(socket.on('error', () => undefined)));
  const end = () =>
    new Promise<void>((resolve) => {
      server.close(() => resolve());
      for (const socket of sockets) socket.destroy();
    });
  if (close) await end();
  else onTestFinished(end);
  return address.port;
}
