import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { openEmbeddedPostgres } from '../../src/embedded-postgres.ts';

/** A PostgreSQL that a test may stop, crash and start again. */
export interface FaultPostgres {
  /** The address of one of its databases; the port is another one after each restart. */
  url(database?: string): string;
  createDatabase(name: string): Promise<string>;
  /** Runs SQL on a database, as an operator would. */
  query<Row extends pg.QueryResultRow>(
    database: string,
    sql: string,
    parameters?: readonly unknown[],
  ): Promise<Row[]>;
  /** `clean`: a fast shutdown. `crash`: SIGQUIT, so that it recovers from its log, and UNLOGGED tables are emptied. */
  restart(how: 'clean' | 'crash'): Promise<void>;
  close(): Promise<void>;
}

/** How often a query of the test itself is tried while PostgreSQL comes and goes. */
const ATTEMPTS = 100;

export async function startFaultPostgres(): Promise<FaultPostgres> {
  const dataDir = await mkdtemp(join(tmpdir(), 'claviger-faults-'));
  let server = await openEmbeddedPostgres({ dataDir, role: 'service' });
  const { folder, moved } = server;
  const pools = new Map<string, pg.Pool>();
  let restarting: Promise<void> = Promise.resolve();

  function url(database = 'claviger'): string {
    const address = new URL(server.url);
    address.pathname = `/${database}`;
    return address.href;
  }

  function poolOf(database: string): pg.Pool {
    let pool = pools.get(database);
    if (pool === undefined) {
      pool = new pg.Pool({ connectionString: url(database), max: 4, application_name: 'fault test' });
      pool.on('error', () => undefined);
      pools.set(database, pool);
    }
    return pool;
  }

  async function closePools(): Promise<void> {
    const open = [...pools.values()];
    pools.clear();
    await Promise.all(open.map((pool) => pool.end()));
  }

  async function query<Row extends pg.QueryResultRow>(
    database: string,
    sql: string,
    parameters: readonly unknown[] = [],
  ) {
    for (let attempts = 1; ; attempts++) {
      await restarting;
      try {
        return (await poolOf(database).query<Row>(sql, [...parameters])).rows;
      } catch (cause) {
        // What PostgreSQL itself refuses is not made better by asking again, but for its own shutdown (class 57).
        const isRefused = cause instanceof pg.DatabaseError && cause.code?.startsWith('57') !== true;
        if (isRefused || attempts >= ATTEMPTS) throw cause;
        await sleep(50);
      }
    }
  }

  async function restart(how: 'clean' | 'crash'): Promise<void> {
    await closePools();
    if (how === 'crash') {
      const pid = Number((await readFile(join(folder, 'cluster', 'postmaster.pid'), 'utf8')).split('\n')[0]);
      process.kill(pid, 'SIGQUIT');
    }
    await server.stop();
    server = await openEmbeddedPostgres({ dataDir, role: 'service' });
  }

  return {
    url,
    query,
    async createDatabase(name) {
      await query('claviger', `CREATE DATABASE ${name}`);
      return url(name);
    },
    restart(how) {
      const done = restarting.then(() => restart(how));
      restarting = done.catch(() => undefined);
      return done;
    },
    async close() {
      await closePools();
      await server.stop();
      if (moved) await rm(folder, { recursive: true, force: true });
      await rm(dataDir, { recursive: true, force: true });
    },
  };
}
