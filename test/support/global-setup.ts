import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import type { TestProject } from 'vitest/node';
import { openEmbeddedPostgres } from '../../src/embedded-postgres.ts';
import { migrateDatabase } from '../../src/storage/migrations.ts';

declare module 'vitest' {
  interface ProvidedContext {
    /** The server's maintenance database; support/database.ts makes databases beside it. */
    readonly databaseUrl: string;
  }
}

export const TEMPLATE = 'claviger_template';

/**
 * One PostgreSQL for the whole run, with a migrated template that each test file clones: an embedded one, or the
 * one of TEST_DATABASE_URL, to try other versions.
 */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const given = process.env.TEST_DATABASE_URL;
  const folder = await mkdtemp(join(tmpdir(), 'claviger-test-'));
  const server =
    given === undefined ? await openEmbeddedPostgres({ dataDir: folder, role: 'service' }) : undefined;
  const databaseUrl = given ?? server?.url ?? '';

  const client = new pg.Client({ connectionString: databaseUrl });
  await client.connect();
  await client.query(`DROP DATABASE IF EXISTS ${TEMPLATE}`);
  await client.query(`CREATE DATABASE ${TEMPLATE}`);
  await client.end();
  const template = new URL(databaseUrl);
  template.pathname = `/${TEMPLATE}`;
  await migrateDatabase(template.href);
  project.provide('databaseUrl', databaseUrl);

  return async () => {
    await server?.stop();
    if (server?.moved === true) await rm(server.folder, { recursive: true, force: true });
    await rm(folder, { recursive: true, force: true });
  };
}
