import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { TEST_KEY_SECRET } from '../support/app.ts';
import { readBlocks } from '../support/readme.ts';
import { type Service, startService } from '../support/service.ts';
import { startTcpProxy } from '../support/tcp-proxy.ts';
import { type PostgresServer, startPostgresServer } from './postgres-server.ts';

/*
 * The commands of docs/operations.md for backup and restore, as they stand there, with PostgreSQL's own tools: from
 * one server into a new one.
 */

const run = promisify(execFile);
const LEASE_SECONDS = 3;
const LEASE_MS = LEASE_SECONDS * 1_000;

let former: PostgresServer;

beforeAll(async () => {
  former = await startPostgresServer();
});
afterAll(() => former.close());

async function newServer(): Promise<PostgresServer> {
  const server = await startPostgresServer();
  onTestFinished(() => server.close());
  return server;
}

/** The block of commands under a heading of docs/operations.md that is marked for this test. */
async function commandsFor(tool: 'pg_dump' | 'pg_restore'): Promise<string> {
  const blocks = await readBlocks('docs/operations.md');
  const found = blocks.filter(({ where, text }) => where === 'operations' && text.includes(tool));
  expect(found).toHaveLength(1);
  return found[0]?.text ?? '';
}

async function backUp(server: PostgresServer, database: string, folder: string): Promise<void> {
  await runThere(await commandsFor('pg_dump'), server, database, folder);
}

/** Into an empty database. */
async function restore(server: PostgresServer, database: string, folder: string): Promise<void> {
  await server.query('postgres', `CREATE DATABASE ${database}`);
  await runThere(await commandsFor('pg_restore'), server, database, folder);
}

async function runThere(
  commands: string,
  server: PostgresServer,
  database: string,
  cwd: string,
): Promise<void> {
  const DATABASE_URL = server.url(database);
  await run('sh', ['-euc', commands], {
    cwd,
    env: { PATH: `${server.bin}:${process.env.PATH}`, DATABASE_URL },
  });
}

async function folderOfTest(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'claviger-backup-'));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

let databases = 0;
/** An empty database on the former server. */
async function freshDatabase(): Promise<string> {
  const name = `claviger_${databases++}`;
  await former.query('postgres', `CREATE DATABASE ${name}`);
  return name;
}

const startOn = (url: string, token?: string): Promise<Service> =>
  startService({
    database: { url, query: () => Promise.reject(new Error('unused')), drop: async () => undefined },
    ...(token === undefined ? {} : { token }),
    environment: { LEASE_SECONDS: String(LEASE_SECONDS), CALLER_RATE_LIMIT: 'off' },
  });

/** What the tables hold, row by row, but for what lives for seconds. */
async function contentsOf(server: PostgresServer, database: string): Promise<Record<string, unknown>> {
  const tables = await server.query<{ name: string }>(
    database,
    `SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables
      WHERE schemaname IN ('public', 'partitions', 'drizzle') AND tablename NOT IN ('acknowledgements', 'verified_secrets')
      ORDER BY 1`,
  );
  const contents: Record<string, unknown> = {};
  for (const { name } of tables) {
    const [row] = await server.query<{ rows: number; digest: string }>(
      database,
      `SELECT count(*)::int AS rows, md5(coalesce(string_agg(t::text, E'\n' ORDER BY t::text), '')) AS digest FROM ${name} t`,
    );
    contents[name] = row;
  }
  return contents;
}

describe('a backup that is restored into a new server', () => {
  test('has every row; keys verify, what was revoked stays revoked, and what came later never was', async () => {
    const database = await freshDatabase();
    const folder = await folderOfTest();
    const before = await startOn(former.url(database));
    const admin = await before.createServiceKey(['admin']);
    const kept = await before.createKey({ name: 'Kept', scopes: ['read'], metadata: { team: 'data' } });
    const revoked = await before.createKey({ name: 'Revoked' });
    const revokedLater = await before.createKey({ name: 'Revoked later' });
    await before.put('/v1/workspaces/ws_acme', { name: 'Acme', limits: { max_active_keys: 50 } });
    await before.put('/v1/scopes/read', { description: 'Read' });
    expect((await before.delete(`/v1/api-keys/${revoked.id}`)).status).toBe(200);
    for (const { token } of [kept, revokedLater])
      expect((await before.introspect(token)).body.active).toBe(true);
    const detailsOf = async (service: Service) =>
      (await service.get(`/v1/api-keys/${kept.id}`, { as: admin.token })).body.data;

    await backUp(former, database, folder);

    const later = await before.createKey({ name: 'Made later', scopes: ['read'] });
    expect((await before.delete(`/v1/api-keys/${revokedLater.id}`)).status).toBe(200);
    const details = await detailsOf(before);
    expect(await before.end('SIGTERM')).toBe(0);

    const server = await newServer();
    await restore(server, 'claviger', folder);
    const after = await startOn(server.url('claviger'), admin.token);
    expect((await after.introspect(kept.token)).body).toMatchObject({
      active: true,
      key_id: kept.id,
      scopes: ['read'],
    });
    expect((await after.introspect(revoked.token)).body.reason.code).toBe('revoked');
    expect((await after.introspect(later.token)).body.reason.code).toBe('invalid');
    // As the documentation warns, and as it says to do.
    expect((await after.introspect(revokedLater.token)).body.active).toBe(true);
    const again = await after.delete(`/v1/api-keys/${revokedLater.id}`);
    expect(again.status).toBe(200);
    expect((await after.introspect(revokedLater.token)).body.reason.code).toBe('revoked');
    // The instance that ran when the backup was made is in it, and is waited for.
    expect(again.body.propagation.waited_ms).toBeGreaterThanOrEqual(LEASE_MS);
    const next = await after.delete(`/v1/api-keys/${kept.id}`);
    expect(next.body.propagation.waited_ms).toBeLessThan(LEASE_MS);
    expect({ ...(await detailsOf(after)), last_used: null, last_used_ip: null }).toMatchObject({
      ...details,
      status: 'revoked',
      revoked_at: expect.any(String),
      revoked_reason: null,
      last_used: null,
      last_used_ip: null,
    });
  });

  test('has every row of every table', async () => {
    const database = await freshDatabase();
    const folder = await folderOfTest();
    const service = await startOn(former.url(database));
    const { token, id } = await service.createKey({}, { headers: { 'idempotency-key': 'once' } });
    await service.introspect(token);
    await service.introspect(token, { scopes: ['more'] });
    await service.delete(`/v1/api-keys/${id}`);
    // So that what it has recorded is written.
    expect(await service.end('SIGTERM')).toBe(0);
    await backUp(former, database, folder);
    const server = await newServer();
    await restore(server, 'claviger', folder);
    const contents = await contentsOf(server, 'claviger');
    expect(contents).toEqual(await contentsOf(former, database));
    for (const table of [
      'public.api_keys',
      'public.audit_events',
      'public.sealed_answers',
      'public.key_uses',
    ])
      expect(contents[table], table).not.toMatchObject({ rows: 0 });
    // Triggers and constraints came along: what must never be is refused there too.
    await expect(
      server.query('claviger', 'UPDATE api_keys SET revoked_at = NULL WHERE revoked_at IS NOT NULL'),
    ).rejects.toThrow();
    await expect(server.query('claviger', 'DELETE FROM audit_events')).rejects.toThrow();
  });
});

describe('an instance that nobody stopped while an older copy was put in its place', () => {
  test('never answers by what it remembers once a change at the copy has answered', async () => {
    const database = await freshDatabase();
    const folder = await folderOfTest();
    const proxy = await startTcpProxy(former.port);
    onTestFinished(() => proxy.close());
    const proxied = new URL(former.url(database));
    proxied.port = String(proxy.port);
    const overlooked = await startOn(proxied.href);
    const admin = await overlooked.createServiceKey(['admin']);
    const key = await overlooked.createKey();
    await backUp(former, database, folder);
    const later = await overlooked.createKey({ name: 'Made later' });
    const ask = ({ token }: { token: string }) => overlooked.introspect(token, {}, { as: admin.token });
    for (const known of [key, later]) expect((await ask(known)).body.active).toBe(true);

    const server = await newServer();
    await restore(server, database, folder);
    const fresh = await startOn(server.url(database), admin.token);
    // The way to the former server breaks, and leads to the copy from now on.
    proxy.cut('reset');
    const answers: { askedMs: number; active: unknown }[] = [];
    let asking = true;
    let answeredMs = Number.POSITIVE_INFINITY;
    const asker = (async () => {
      while (asking) {
        const askedMs = performance.now();
        answers.push({ askedMs, active: (await ask(key)).body.active });
      }
    })();
    try {
      proxy.target(server.port);
      const revocation = await fresh.delete(`/v1/api-keys/${key.id}`);
      answeredMs = performance.now();
      expect(revocation.status).toBe(200);
    } finally {
      asking = false;
      await asker;
    }
    const isLate = ({ askedMs }: { askedMs: number }) => askedMs > answeredMs;
    proxy.deliver();
    await expect
      .poll(
        async () => {
          const askedMs = performance.now();
          const { body } = await ask(key);
          answers.push({ askedMs, active: body.active });
          return body.reason?.code;
        },
        { timeout: 20_000, interval: 20 },
      )
      .toBe('revoked');

    // It did answer from memory, as long as its lease allowed; and not once after the revocation had answered.
    expect(answers.some(({ active }) => active === true)).toBe(true);
    expect(answers.filter((answer) => isLate(answer) && answer.active === true)).toEqual([]);
    // What the copy does not know is not known any more.
    expect((await ask(later)).body.reason.code).toBe('invalid');
    expect((await ask(key)).body.reason.code).toBe('revoked');
  });
});

test('a restored copy without its KEY_SECRET does not start', async () => {
  const database = await freshDatabase();
  const folder = await folderOfTest();
  const service = await startOn(former.url(database));
  await service.createKey();
  expect(await service.end('SIGTERM')).toBe(0);
  await backUp(former, database, folder);
  const server = await newServer();
  await restore(server, 'claviger', folder);
  const start = startService({
    database: { url: server.url('claviger'), query: async () => [], drop: async () => undefined },
    token: 'none',
    environment: { KEY_SECRET: TEST_KEY_SECRET.replaceAll('e', 'o') },
  });
  await expect(start).rejects.toThrow('KEY_SECRET does not cover');
});
