import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { findViolations } from '../support/history.ts';
import { startInstance } from '../support/instances.ts';
import { startFleet } from './fleet.ts';
import { NARROW, revoke, setScopes } from './mutator.ts';
import { needPackage } from './packages.ts';
import { type FaultPostgres, startFaultPostgres } from './postgres.ts';

const PGBOUNCER = '/usr/sbin/pgbouncer';
const READY_WITHIN_MS = 30_000;

let postgres: FaultPostgres;
let folder: string;
let port: number;
let bouncer: ChildProcess;

beforeAll(async () => {
  await needPackage('pgbouncer', PGBOUNCER);
  postgres = await startFaultPostgres();
  folder = await mkdtemp(join(tmpdir(), 'claviger-pgbouncer-'));
  await chmod(folder, 0o755);
  port = await freePort();
  const { hostname, port: postgresPort, username, password } = new URL(postgres.url());
  await writeFile(
    join(folder, 'pgbouncer.ini'),
    [
      '[databases]',
      `* = host=${hostname} port=${postgresPort} user=${username} password=${password}`,
      '[pgbouncer]',
      'listen_addr = 127.0.0.1',
      `listen_port = ${port}`,
      'unix_socket_dir =',
      'auth_type = any',
      'pool_mode = transaction',
      'default_pool_size = 10',
    ].join('\n'),
  );
  // It refuses to run as root.
  const user = process.geteuid?.() === 0 ? { uid: idOf('-u'), gid: idOf('-g') } : {};
  bouncer = spawn(PGBOUNCER, [join(folder, 'pgbouncer.ini')], { stdio: 'ignore', ...user });
  await answers(pooled('claviger'));
});

afterAll(async () => {
  if (bouncer?.exitCode === null) {
    const ended = once(bouncer, 'exit');
    bouncer.kill('SIGKILL');
    await ended;
  }
  await postgres?.close();
  if (folder !== undefined) await rm(folder, { recursive: true, force: true });
});

function idOf(what: '-u' | '-g'): number {
  return Number(spawnSync('id', [what, 'nobody'], { encoding: 'utf8' }).stdout);
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  return typeof address === 'object' && address !== null ? address.port : 0;
}

function pooled(database: string): string {
  const url = new URL(postgres.url(database));
  url.port = String(port);
  return url.href;
}

async function answers(url: string): Promise<void> {
  const deadline = performance.now() + READY_WITHIN_MS;
  for (;;) {
    const client = new pg.Client({ connectionString: url });
    client.on('error', () => undefined);
    try {
      await client.connect();
      await client.query('SELECT 1');
      await client.end();
      return;
    } catch (cause) {
      if (performance.now() > deadline) throw cause;
      await sleep(50);
    }
  }
}

it('behind a transaction pooler alone the service refuses to start, and says what to set', async () => {
  await postgres.createDatabase('pooled_alone');
  const starting = startInstance({ name: 'a', databaseUrl: pooled('pooled_alone') });
  await expect(starting).rejects.toThrow(/does not reach the listener\. .*set DATABASE_LISTEN_URL/s);
  const rows = await postgres.query('pooled_alone', 'SELECT FROM instances');
  expect(rows).toEqual([]);
});

it('with DATABASE_LISTEN_URL beside it a revocation holds on every instance once it has answered', async () => {
  const fleet = await startFleet({
    postgres,
    count: 2,
    databaseUrl: pooled,
    environment: (database) => ({ DATABASE_LISTEN_URL: postgres.url(database) }),
  });
  try {
    const [a, b] = fleet.instances;
    if (a === undefined || b === undefined) throw new Error('two instances are needed');
    const keys = [];
    for (let count = 0; count < 10; count++) {
      const key = await fleet.createKey(a, 'ws_pooled');
      keys.push(key);
      for (const instance of [a, b])
        expect((await fleet.look(instance, key, 'write')).verdict.kind).toBe('active');
      await setScopes(fleet, [a], key, { version: 1, scopes: NARROW });
      const { propagation } = await revoke(fleet, [b], key);
      expect(propagation).toMatchObject({ instances: 2, confirmed: 2, fenced: 0 });
      expect((await fleet.look(a, key, 'read')).verdict).toEqual({ kind: 'denied', code: 'revoked' });
    }
    await fleet.settled();
    expect(findViolations(fleet.takeHistory(keys))).toEqual([]);
  } finally {
    await fleet.close();
  }
});
