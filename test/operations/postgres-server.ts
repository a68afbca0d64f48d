import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chown, mkdtemp, readdir, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';
import { collectOutput } from '../support/service.ts';

const run = promisify(execFile);

/** Where Debian keeps them, by version. */
const INSTALLED = '/usr/lib/postgresql';
const START_WITHIN_MS = 30_000;

/** A PostgreSQL server as an operator has one: a distribution's, with its tools. */
export interface PostgresServer {
  /** The folder of `pg_dump`, `pg_restore` and the others. */
  readonly bin: string;
  readonly port: number;
  url(database: string): string;
  query<Row extends pg.QueryResultRow>(database: string, sql: string): Promise<Row[]>;
  close(): Promise<void>;
}

/** The newest that is installed. Nothing is skipped for want of one: the test fails, and says what to install. */
async function findInstalled(): Promise<string> {
  const versions = (await readdir(INSTALLED).catch(() => [])).map(Number).sort((one, other) => other - one);
  const [newest] = versions;
  if (newest === undefined)
    throw new Error('This test needs a PostgreSQL server with its tools: apt-get install postgresql');
  return join(INSTALLED, String(newest), 'bin');
}

/** Whom the server runs as: it refuses to be root. */
async function findAccount(): Promise<{ uid: number; gid: number } | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const idOf = async (flag: string) => Number((await run('id', [flag, 'postgres'])).stdout);
  return { uid: await idOf('-u'), gid: await idOf('-g') };
}

/** A new, empty server on the loopback, ended by `close`. */
export async function startPostgresServer(): Promise<PostgresServer> {
  const bin = await findInstalled();
  const account = await findAccount();
  const folder = await mkdtemp(join(tmpdir(), 'claviger-postgres-'));
  if (account !== undefined) await chown(folder, account.uid, account.gid);
  const data = join(folder, 'data');
  const environment = { PATH: process.env.PATH, LC_ALL: 'C' };
  const options = { ...account, cwd: folder, env: environment };
  await run(
    join(bin, 'initdb'),
    ['--pgdata', data, '--username=claviger', '--auth=trust', '--encoding=UTF8', '--no-sync'],
    options,
  );
  const port = await freePort();
  const settings = {
    listen_addresses: '127.0.0.1',
    port: String(port),
    unix_socket_directories: '',
    fsync: 'off',
  };
  const server = spawn(
    join(bin, 'postgres'),
    ['-D', data, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])],
    { ...options, stdio: ['ignore', 'ignore', 'pipe'] },
  );
  const printed = collectOutput(server);
  const ended = once(server, 'exit');

  const url = (database: string) => `postgres://claviger@127.0.0.1:${port}/${database}`;
  async function query<Row extends pg.QueryResultRow>(database: string, sql: string): Promise<Row[]> {
    const client = new pg.Client({ connectionString: url(database) });
    await client.connect();
    try {
      return (await client.query<Row>(sql)).rows;
    } finally {
      await client.end();
    }
  }
  async function close(): Promise<void> {
    // A fast shutdown: it does not wait for those who are connected.
    server.kill('SIGINT');
    await ended;
    await rm(folder, { recursive: true, force: true });
  }

  const deadline = performance.now() + START_WITHIN_MS;
  while (!printed.stderr.includes('ready to accept connections')) {
    if (server.exitCode !== null || performance.now() > deadline) {
      server.kill('SIGKILL');
      throw new Error(`PostgreSQL does not start: ${printed.stderr}`);
    }
    await Promise.race([once(server.stderr ?? server, 'data'), ended]);
  }
  return { bin, port, url, query, close };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string') throw new Error('no port');
  return address.port;
}
