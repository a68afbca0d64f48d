import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { drizzle } from 'drizzle-orm/node-postgres';
import { migrate } from 'drizzle-orm/node-postgres/migrator';
import pg from 'pg';
import { z } from 'zod';
import { type ConnectionSetting, connectionTo, unreachable } from './connection.ts';
import { StorageError } from './database.ts';
import { readDatabaseTime } from './keys.ts';
import { beginUpkeep, makePartitions, PARTITIONED_TABLES } from './partitions.ts';

/** migrations/ stands beside src/ and dist/. */
const FOLDER = fileURLToPath(new URL('../../migrations', import.meta.url));
const journalSchema = z.object({ entries: z.array(z.object({ when: z.number() })) });

/** An arbitrary number that this service alone uses: it keeps two migrations of one database apart. */
const MIGRATION_LOCK = 7_165_218_351;

/** SQLSTATE: somebody held the lock for longer than was waited for it. */
const LOCK_NOT_AVAILABLE = '55P03';

const CONNECT_TIMEOUT_MS = 5_000;

/** PostgreSQL 14. */
const OLDEST_VERSION = 140_000;

/** The database cannot be brought to the schema of this release; `message` is one line for the operator. */
export class MigrationError extends Error {
  override readonly name = 'MigrationError';
}

/**
 * Brings the database to the schema of this release. Several instances may call it at once: drizzle's own
 * migrate does not guard against that, so an advisory lock does.
 *
 * @param url a direct connection: an advisory lock of a session does not hold through a transaction pooler.
 * @throws MigrationError, ConnectionError
 */
export async function migrateDatabase(url: string, setting?: ConnectionSetting): Promise<void> {
  const connection = connectionTo(url, setting);
  const client = new pg.Client({
    ...connection.config,
    application_name: 'claviger migrate',
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
  });
  // A connection that breaks fails the statement under way; the event besides would end the process.
  client.on('error', () => undefined);
  await client.connect().catch((error: unknown) => {
    throw unreachable(connection, new StorageError(error).code);
  });
  try {
    await refuseOldServer(client);
    await client.query('SELECT pg_advisory_lock($1)', [MIGRATION_LOCK]);
    await refuseNewerSchema(client);
    await client.query('SET client_min_messages = warning');
    await migrate(drizzle(client), { migrationsFolder: FOLDER });
    await makeFirstPartitions(client);
  } catch (error) {
    if (error instanceof MigrationError) throw error;
    throw new MigrationError(notMigrated(new StorageError(error).code));
  } finally {
    await client.end();
  }
}

/**
 * So that a new table has its partitions from its first row on. A lock that is not to be had is no reason not to
 * start: rows fall into the catch-all then, and upkeep moves them.
 */
async function makeFirstPartitions(client: pg.Client): Promise<void> {
  const executor = drizzle(client);
  const nowMs = await readDatabaseTime(executor);
  for (const table of Object.values(PARTITIONED_TABLES)) {
    await executor
      .transaction(async () => {
        if (await beginUpkeep(executor)) await makePartitions(executor, table, nowMs);
      })
      .catch((error: unknown) => {
        if (new StorageError(error).code !== LOCK_NOT_AVAILABLE) throw error;
      });
  }
}

/** Why a statement of a migration failed, by its SQLSTATE: the message of drizzle quotes the whole migration. */
function notMigrated(code: string): string {
  if (code === '42501')
    return 'The user of DATABASE_URL may not create tables there (42501). Make it the owner of the database.';
  if (code === '25006')
    return 'The database is read-only (25006). DATABASE_URL has to name the primary, not a standby.';
  return `The database could not be migrated (${code}). Is it one that Claviger has to itself?`;
}

/** When the last migration of this release was made. */
function latestMigration(): number {
  const journal = journalSchema.parse(JSON.parse(readFileSync(`${FOLDER}/meta/_journal.json`, 'utf8')));
  return Math.max(...journal.entries.map((entry) => entry.when));
}

async function refuseOldServer(client: pg.Client): Promise<void> {
  const { rows } = await client.query<{ server_version_num: string; server_version: string }>(
    "SELECT current_setting('server_version_num') AS server_version_num, current_setting('server_version') AS server_version",
  );
  const version = rows[0];
  if (version === undefined || Number(version.server_version_num) < OLDEST_VERSION) {
    throw new MigrationError(
      `The database is PostgreSQL ${version?.server_version ?? 'of an unknown version'}; Claviger needs 14 or newer.`,
    );
  }
}

async function refuseNewerSchema(client: pg.Client): Promise<void> {
  const { rows: found } = await client.query<{ there: boolean }>(
    "SELECT to_regclass('drizzle.__drizzle_migrations') IS NOT NULL AS there",
  );
  if (found[0]?.there !== true) return;
  const { rows } = await client.query<{ newer: string }>(
    'SELECT count(*) AS newer FROM drizzle.__drizzle_migrations WHERE created_at > $1',
    [latestMigration()],
  );
  if (Number(rows[0]?.newer) > 0) {
    throw new MigrationError(
      'The database was migrated by a newer release of Claviger. Start that release or a later one, or restore a backup made before the upgrade.',
    );
  }
}
