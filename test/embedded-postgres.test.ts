import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  appendFile,
  chmod,
  chown,
  copyFile,
  lstat,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  rmdir,
  stat,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest';
import {
  binariesOf,
  isRoot,
  killIfThere,
  makeCheckout,
  makeSandbox,
  type Opener,
  type OpenerOptions,
  ordinaryUser,
  type Sandbox,
} from './support/embedded-checkout.ts';
import type { Opened } from './support/embedded-child.ts';

// A start takes a second, or many of them while the machine is busy with other tests.
vi.setConfig({ testTimeout: 60_000 });

const MEGABYTE = 1024 * 1024;

let sandbox: Sandbox;
let checkout: string;
/** A data folder with a database that was stopped cleanly, for tests that leave it so: initdb takes a second. */
let used: string;
let count = 0;

beforeAll(async () => {
  sandbox = await makeSandbox();
  checkout = await makeCheckout(join(sandbox.folder, 'checkout'), { binaries: 'linked' });
  used = newFolder();
  const first = await start({ dataDir: used });
  await first.open();
  await first.stop();
});
afterEach(() => sandbox.quiet());
afterAll(() => sandbox.end());

/** A path that does not exist yet. */
function newFolder(): string {
  count += 1;
  return join(sandbox.folder, `data-${count}`);
}

function copyOf(folder: string): string {
  const copy = newFolder();
  spawnSync('cp', ['-a', folder, copy]);
  return copy;
}

/** What a start looks at before it touches the database, without one. */
async function folderWithoutDatabase(): Promise<string> {
  const folder = newFolder();
  await mkdir(join(folder, 'cluster'), { recursive: true });
  const { uid, gid } = await stat(join(used, 'cluster'));
  await chown(join(folder, 'cluster'), uid, gid);
  for (const name of ['password', 'key-secret', join('cluster', 'PG_VERSION')]) {
    await copyFile(join(used, name), join(folder, name));
  }
  return folder;
}

async function start(options: Partial<OpenerOptions> & { dataDir: string }): Promise<Opener> {
  return sandbox.start({ checkout, role: 'service', ...options });
}

async function startAndOpen(
  options: Partial<OpenerOptions> & { dataDir: string },
): Promise<{ opener: Opener; opened: Opened }> {
  const opener = await start(options);
  return { opener, opened: await opener.open() };
}

async function failureOf(options: Partial<OpenerOptions> & { dataDir: string }): Promise<string> {
  const opener = await start(options);
  return opener.open().then(
    () => 'it opened',
    (error: Error) => error.message,
  );
}

async function query(url: string, sql: string): Promise<unknown[]> {
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => {});
  await client.connect();
  try {
    const { rows } = await client.query<unknown[]>({ text: sql, rowMode: 'array' });
    return rows[0] ?? [];
  } finally {
    await client.end();
  }
}

/** A server on 127.0.0.1 that has nothing to do with PostgreSQL. */
async function listener(): Promise<Server> {
  const server = createServer().listen({ host: '127.0.0.1', port: 0 });
  await once(server, 'listening');
  onTestFinished(() => void server.close());
  return server;
}

function portOf(server: Server): number {
  const address = server.address();
  return address !== null && typeof address === 'object' ? address.port : 0;
}

const pidFile = (folder: string): string => join(folder, 'cluster', 'postmaster.pid');

/** The pid of the database that runs in this folder; undefined when none does. */
async function databasePid(folder: string): Promise<number | undefined> {
  const text = await readFile(pidFile(folder), 'utf8').catch(() => '');
  return text === '' ? undefined : Number.parseInt(text, 10);
}

async function killDatabase(folder: string): Promise<void> {
  killIfThere((await databasePid(folder)) ?? 0);
  while ((await sandbox.processes(join(folder, 'cluster'))).length > 0) await sleep(10);
}

const logOf = (folder: string): Promise<string> => readFile(join(folder, 'postgres.log'), 'utf8');

const isOneLineWithACure = /^EmbeddedPostgresError: [^\n]+(DATABASE_URL|DATA_DIR)[^\n]*$/;

describe('the first start', () => {
  it('makes a UTF-8 database, whatever locale the environment names', async () => {
    const sql = `SELECT current_database(), current_user, getdatabaseencoding(), datcollate,
      current_setting('server_encoding'), upper('é') FROM pg_database WHERE datname = current_database()`;
    const neverGenerated = { LANG: 'en_US.UTF-8', LC_ALL: 'en_US.UTF-8' };
    const ofMacos = { LC_CTYPE: 'UTF-8' };
    const none = {};
    const found = [neverGenerated, ofMacos, none].map(async (environment) => {
      const { opener, opened } = await startAndOpen({ dataDir: newFolder(), environment });
      const row = await query(opened.url, sql);
      await opener.stop();
      return row;
    });
    for (const row of await Promise.all(found)) {
      expect(row).toEqual(['claviger', 'claviger', 'UTF8', 'C', 'UTF8', 'é']);
    }
  });

  it('keeps its secrets to the service, also under umask 077, and leaves nothing else behind', async () => {
    const dataDir = join(newFolder(), 'deeper');
    const { opener, opened } = await startAndOpen({ dataDir, umask: 0o077 });
    expect(opened.keySecret).toMatch(/^[\w-]{43}$/);
    expect(await readFile(join(dataDir, 'key-secret'), 'utf8')).toBe(opened.keySecret);
    for (const name of ['key-secret', 'password']) {
      const { mode, uid } = await stat(join(dataDir, name));
      expect({ name, mode: mode & 0o777, uid }).toEqual({ name, mode: 0o600, uid: process.geteuid?.() });
    }
    const names = (await readdir(dataDir)).filter((name) => !name.endsWith('.lock'));
    expect(names.sort()).toEqual(['cluster', 'key-secret', 'password', 'postgres.log']);
    await opener.stop();
  });

  it('is not hindered by one that was killed at any moment before', async () => {
    const dataDir = newFolder();
    const keySecrets = new Set<string>();
    for (const afterMs of [200, 500, 900]) {
      const opener = await start({ dataDir });
      const opening = opener.open().then(
        (opened) => keySecrets.add(opened.keySecret),
        () => {},
      );
      await Promise.race([sleep(afterMs), opening]);
      await opener.kill9();
    }
    const { opener, opened } = await startAndOpen({ dataDir });
    keySecrets.add(opened.keySecret);
    expect(keySecrets.size).toBe(1);
    expect(await query(opened.url, 'SELECT 1')).toEqual([1]);
    await opener.stop();
  });
});

describe('a running database', () => {
  it('listens on 127.0.0.1 alone, without Unix sockets, for 200 connections, and does not risk data', async () => {
    const { opener, opened } = await startAndOpen({ dataDir: used });
    const names = [
      'listen_addresses',
      'unix_socket_directories',
      'max_connections',
      'fsync',
      'full_page_writes',
    ];
    const settings = names.map((name) => `current_setting('${name}')`).join(', ');
    expect(await query(opened.url, `SELECT ${settings}`)).toEqual(['127.0.0.1', '', '200', 'on', 'on']);
    expect(new URL(opened.url).host).toMatch(/^127\.0\.0\.1:\d+$/);
    await opener.stop();
  });

  it('refuses who does not know its password', async () => {
    const { opener, opened } = await startAndOpen({ dataDir: used });
    const url = new URL(opened.url);
    url.password = 'guessed';
    await expect(query(url.href, 'SELECT 1')).rejects.toMatchObject({ code: '28P01' });
    await opener.stop();
  });

  it('takes another port when somebody takes the first between finding and using it', async () => {
    const takenPort = portOf(await listener());
    const { opener, opened } = await startAndOpen({ dataDir: used, pretend: { takenPort } });
    expect(new URL(opened.url).port).not.toBe(String(takenPort));
    expect(await query(opened.url, 'SELECT 1')).toEqual([1]);
    await opener.stop();
  });

  it('writes neither statements nor values of failed queries to its log', async () => {
    const dataDir = used;
    const { opener, opened } = await startAndOpen({ dataDir });
    await expect(query(opened.url, "SELECT 'ck_live_leaked'::int")).rejects.toThrow();
    await opener.stop();
    expect(await logOf(dataDir)).not.toContain('ck_live_leaked');
  });
});

describe('stopping', () => {
  it('is a clean shutdown: the next start has the data and recovers nothing', async () => {
    const dataDir = used;
    const first = await startAndOpen({ dataDir });
    await query(first.opened.url, 'CREATE TABLE kept_1 AS SELECT 17 AS value');
    await first.opener.stop();
    expect(await databasePid(dataDir)).toBeUndefined();
    expect(await sandbox.processes(join(dataDir, 'cluster'))).toEqual([]);

    const second = await startAndOpen({ dataDir });
    expect(await query(second.opened.url, 'SELECT value FROM kept_1')).toEqual([17]);
    expect(second.opened.keySecret).toBe(first.opened.keySecret);
    const log = await logOf(dataDir);
    expect(log).toContain('database system was shut down at');
    expect(log).not.toMatch(/interrupted|not properly shut down/);
    await second.opener.stop();
  });

  it('comes when the service says so: Ctrl-C at its terminal does not reach the database', async () => {
    const dataDir = used;
    const { opener, opened } = await startAndOpen({ dataDir });
    await opener.interrupt();
    await sleep(200);
    expect(await query(opened.url, 'SELECT 1')).toEqual([1]);
    await opener.stop();
    expect(await databasePid(dataDir)).toBeUndefined();
  });

  it('succeeds when the database has died before', async () => {
    const dataDir = used;
    const { opener } = await startAndOpen({ dataDir });
    await killDatabase(dataDir);
    await opener.stop();
  });
});

describe('after kill -9 of the service', () => {
  it('the next start adopts the database that was left running, and stops it in the end', async () => {
    const dataDir = used;
    const first = await startAndOpen({ dataDir });
    const pid = await databasePid(dataDir);
    await first.opener.kill9();

    const second = await startAndOpen({ dataDir });
    expect(await databasePid(dataDir)).toBe(pid);
    expect(second.opened).toEqual(first.opened);
    await second.opener.stop();
    expect(await sandbox.processes(join(dataDir, 'cluster'))).toEqual([]);
  });

  it('a database that died too is started again, by the stale file it left', async () => {
    const dataDir = used;
    const first = await startAndOpen({ dataDir });
    await query(first.opened.url, 'CREATE TABLE kept_2 AS SELECT 17 AS value');
    await first.opener.kill9();
    await killDatabase(dataDir);
    expect(await databasePid(dataDir)).toBeDefined();

    const second = await startAndOpen({ dataDir });
    expect(await query(second.opened.url, 'SELECT value FROM kept_2')).toEqual([17]);
    await second.opener.stop();
  });

  it("a stale file whose pid and port are others' now is no obstacle, and nothing is told to them", async () => {
    const dataDir = used;
    const first = await startAndOpen({ dataDir });
    await first.opener.kill9();
    const stale = await readFile(pidFile(dataDir), 'utf8');
    await killDatabase(dataDir);
    const other = await bystander(dataDir);
    const stranger = await listener();
    let calls = 0;
    stranger.on('connection', () => (calls += 1));
    const lines = stale
      .split('\n')
      .with(0, String(other.pid))
      .with(3, String(portOf(stranger)));
    await writeFile(pidFile(dataDir), lines.join('\n'));

    const second = await startAndOpen({ dataDir });
    expect(await query(second.opened.url, 'SELECT 1')).toEqual([1]);
    await second.opener.stop();
    expect(other.exitCode ?? other.signalCode).toBeNull();
    expect(calls).toBe(0);
  });

  it('an empty file from a power cut is no obstacle', async () => {
    const dataDir = used;
    await writeFile(pidFile(dataDir), '');
    const { opener, opened } = await startAndOpen({ dataDir });
    expect(await query(opened.url, 'SELECT 1')).toEqual([1]);
    await opener.stop();
  });

  it('a database that is still shutting down is waited for', async () => {
    const dataDir = used;
    const first = await startAndOpen({ dataDir });
    await first.opener.kill9();
    process.kill((await databasePid(dataDir)) ?? 0, 'SIGTERM'); // waits for its clients: this one
    const client = new pg.Client({ connectionString: first.opened.url });
    const connected = client.connect().catch(() => {});
    const second = await startAndOpen({ dataDir });
    await connected;
    await client.end();
    expect(await query(second.opened.url, 'SELECT 1')).toEqual([1]);
    await second.opener.stop();
  });

  it('a database of which this folder is a copy is not taken for its own', async () => {
    const original = used;
    const first = await startAndOpen({ dataDir: original });
    await query(first.opened.url, 'CHECKPOINT');
    const copy = copyOf(original);
    const second = await startAndOpen({ dataDir: copy });
    expect(second.opened.url).not.toBe(first.opened.url);
    expect(await query(second.opened.url, "SELECT current_setting('data_directory')")).toEqual([
      join(copy, 'cluster'),
    ]);
    await second.opener.stop();
    expect(await query(first.opened.url, 'SELECT 1')).toEqual([1]);
    await first.opener.stop();
  });

  it.runIf(process.platform === 'linux')(
    'a database whose folder was renamed meanwhile starts anew',
    async () => {
      const before = copyOf(used);
      const first = await startAndOpen({ dataDir: before });
      await query(first.opened.url, 'CREATE TABLE kept_3 AS SELECT 17 AS value');
      await first.opener.kill9();
      const after = newFolder();
      await rename(before, after);

      const second = await startAndOpen({ dataDir: after });
      expect(await query(second.opened.url, 'SELECT value FROM kept_3')).toEqual([17]);
      expect(await sandbox.processes(before)).toEqual([]);
      await second.opener.stop();
    },
  );

  it('its log is cut when it has grown beyond its bound', async () => {
    const dataDir = used;
    const first = await startAndOpen({ dataDir });
    await first.opener.kill9();
    await appendFile(join(dataDir, 'postgres.log'), 'x'.repeat(11 * MEGABYTE));
    const second = await startAndOpen({ dataDir });
    expect((await stat(join(dataDir, 'postgres.log'))).size).toBeLessThan(MEGABYTE);
    await second.opener.stop();
    expect(await logOf(dataDir)).toContain('database system is shut down');
  });

  /** A process of the database's user that has nothing to do with it. */
  async function bystander(dataDir: string): Promise<ChildProcess> {
    const { uid, gid } = await stat(join(dataDir, 'cluster'));
    const other = spawn('sleep', ['60'], { stdio: 'ignore', cwd: '/', ...(isRoot && { uid, gid }) });
    await once(other, 'spawn');
    onTestFinished(() => void other.kill('SIGKILL'));
    return other;
  }
});

describe('two on one data folder', () => {
  it('the second service says which process has the folder, and the first goes on', async () => {
    const dataDir = used;
    const { opener, opened } = await startAndOpen({ dataDir });
    const failure = await failureOf({ dataDir });
    expect(failure).toMatch(isOneLineWithACure);
    expect(failure).toContain(`pid ${opener.pid})`);
    expect(failure).toContain(dataDir);
    expect(await query(opened.url, 'SELECT 1')).toEqual([1]);
    await opener.stop();
  });

  it.each([
    ['a folder that does not exist yet', async () => newFolder()],
    ['a folder where all was killed', killedFolder],
  ])('exactly one of several services starting at the same moment wins: %s', async (_, makeFolder) => {
    const dataDir = await makeFolder();
    const openers = await Promise.all([1, 2, 3].map(() => start({ dataDir })));
    const outcomes = await Promise.allSettled(openers.map((opener) => opener.open()));
    expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    const winner = openers[outcomes.findIndex(({ status }) => status === 'fulfilled')];
    for (const outcome of outcomes) {
      if (outcome.status === 'rejected') expect(outcome.reason.message).toContain(`pid ${winner?.pid})`);
    }
    await winner?.stop();
    expect(await databasePid(dataDir)).toBeUndefined();
  });

  it('a visitor uses the database of the service and leaves it running', async () => {
    const dataDir = used;
    const service = await startAndOpen({ dataDir });
    const visitor = await startAndOpen({ dataDir, role: 'visitor' });
    expect(visitor.opened).toEqual(service.opened);
    await visitor.opener.stop();
    expect(await query(service.opened.url, 'SELECT 1')).toEqual([1]);
    await service.opener.stop();
  });

  it('a visitor without a service starts the database and stops it', async () => {
    const dataDir = used;
    const { opener, opened } = await startAndOpen({ dataDir, role: 'visitor' });
    expect(await query(opened.url, 'SELECT 1')).toEqual([1]);
    await opener.stop();
    expect(await databasePid(dataDir)).toBeUndefined();
  });

  it('a visitor leaves the database that it started to the service that came meanwhile', async () => {
    const dataDir = used;
    const visitor = await startAndOpen({ dataDir, role: 'visitor' });
    const service = await startAndOpen({ dataDir });
    await visitor.opener.stop();
    expect(await query(service.opened.url, 'SELECT 1')).toEqual([1]);
    await service.opener.stop();
    expect(await databasePid(dataDir)).toBeUndefined();
  });

  it('a visitor does not stop the database under another visitor', async () => {
    const dataDir = used;
    const first = await startAndOpen({ dataDir, role: 'visitor' });
    const second = await startAndOpen({ dataDir, role: 'visitor' });
    const leaving = first.opener.stop();
    await sleep(300);
    expect(await query(second.opened.url, 'SELECT 1')).toEqual([1]);
    await second.opener.stop();
    await leaving;
    expect(await databasePid(dataDir)).toBeUndefined();
  });

  async function killedFolder(): Promise<string> {
    const dataDir = used;
    const { opener } = await startAndOpen({ dataDir });
    await opener.kill9();
    await killDatabase(dataDir);
    return dataDir;
  }
});

describe.runIf(isRoot)('as root', () => {
  it('the database runs as another user, with none of the groups of root', async () => {
    const dataDir = used;
    const { opener, opened } = await startAndOpen({ dataDir });
    expect(opened).toMatchObject({ folder: dataDir, moved: false });
    const status = await readFile(`/proc/${await databasePid(dataDir)}/status`, 'utf8');
    const { uid, gid } = await stat(join(dataDir, 'cluster'));
    expect(uid).not.toBe(0);
    expect(status).toMatch(new RegExp(`^Uid:\\s${uid}\\s${uid}\\s${uid}\\s${uid}$`, 'm'));
    expect(status).toMatch(new RegExp(`^Gid:\\s${gid}\\s${gid}\\s${gid}\\s${gid}$`, 'm'));
    expect(status).toMatch(/^Groups:\s*$/m);
    await opener.stop();
  });

  it('below a folder of mode 0700, data and binaries move to a place of the system, and stay there', async () => {
    const { closed, state, inside } = await makeClosedCheckout();
    const environment = { STATE_DIRECTORY: state };
    const dataDir = join(inside, '.data');

    // Two at once, so that both want to copy the binaries.
    const openers = await Promise.all([
      start({ checkout: inside, dataDir, environment, umask: 0o077 }),
      start({ checkout: inside, dataDir: join(inside, 'other'), environment, umask: 0o077 }),
    ]);
    const [first, other] = await Promise.all(openers.map((opener) => opener.open()));
    expect(first).toMatchObject({ moved: true });
    expect(first?.folder.startsWith(join(state, 'claviger', 'data-'))).toBe(true);
    expect(other?.folder).not.toBe(first?.folder);
    expect((await stat(closed)).mode & 0o777).toBe(0o700);
    await expect(lstat(dataDir)).rejects.toMatchObject({ code: 'ENOENT' });
    await expectRootsOwn(join(state, 'claviger'));
    await Promise.all(openers.map((opener) => opener.stop()));

    await chmod(closed, 0o755); // the data is found again, now that there would be a way to the checkout as well
    const again = await startAndOpen({ checkout: inside, dataDir, environment });
    expect(again.opened).toMatchObject({ folder: first?.folder, moved: true, keySecret: first?.keySecret });
    await again.opener.stop();
  });

  it('a place that somebody else made first is not used', async () => {
    const { state, inside } = await makeClosedCheckout();
    const theirs = join(state, 'claviger');
    await mkdir(theirs);
    await chown(theirs, ordinaryUser?.uid ?? 0, ordinaryUser?.gid ?? 0);
    const { opener, opened } = await startAndOpen({
      dataDir: join(inside, '.data'),
      environment: { STATE_DIRECTORY: state },
    });
    onTestFinished(async () => {
      await rm(opened.folder, { recursive: true, force: true });
      await rmdir(dirname(opened.folder)).catch(() => {}); // in use by others, or there before
    });
    expect(opened.moved).toBe(true);
    expect(await readdir(theirs)).toEqual([]);
    expect(opened.folder.startsWith(state)).toBe(false);
    await opener.stop();
  });

  it('a data folder that others may write to is refused', async () => {
    const dataDir = newFolder();
    await mkdir(dataDir);
    await chmod(dataDir, 0o777);
    const failure = await failureOf({ dataDir });
    expect(failure).toMatch(isOneLineWithACure);
    expect(failure).toContain('chmod go-w');
    expect(await readdir(dataDir)).toEqual([]);
  });

  it('data that its owner can no longer reach is not replaced by a new database', async () => {
    const { closed } = await makeClosedCheckout('none');
    const dataDir = join(closed, 'data');
    await rename(await folderWithoutDatabase(), dataDir);
    expect(await failureOf({ dataDir })).toMatch(isOneLineWithACure);
  });

  it('a folder of an ordinary user stays in the hands of that user', async () => {
    const dataDir = await ordinaryDatabase();
    const second = await startAndOpen({ dataDir });
    const status = await readFile(`/proc/${await databasePid(dataDir)}/status`, 'utf8');
    expect(status).toMatch(new RegExp(`^Uid:\\s${ordinaryUser?.uid}\\s`, 'm'));
    await second.opener.stop();
    const third = await startAndOpen({ dataDir, user: ordinaryUser });
    await third.opener.stop();
  });

  async function makeClosedCheckout(
    binaries: 'linked' | 'none' = 'linked',
  ): Promise<{ closed: string; state: string; inside: string }> {
    const [closed, state] = [newFolder(), newFolder()];
    await mkdir(state);
    await mkdir(closed);
    await chmod(closed, 0o700);
    const inside = join(closed, 'checkout');
    await makeCheckout(inside, { binaries });
    return { closed, state, inside };
  }

  /** One copy of the binaries, nothing half-made, and nothing that another user than root may write to. */
  async function expectRootsOwn(base: string): Promise<void> {
    const names = await readdir(base);
    expect(names.filter((name) => name.startsWith('postgres-'))).toHaveLength(1);
    expect(names.filter((name) => name.endsWith('.tmp'))).toEqual([]);
    const binaries = names.filter((name) => name.startsWith('postgres-')).map((name) => join(base, name));
    for (const path of [base, ...binaries, ...(await allBelow(binaries[0] ?? ''))]) {
      const { uid, mode } = await stat(path);
      expect({ path, uid, writable: mode & 0o022 }).toEqual({ path, uid: 0, writable: 0 });
    }
  }

  async function allBelow(folder: string): Promise<string[]> {
    const entries = await readdir(folder, { recursive: true });
    return entries.map((name) => join(folder, name));
  }
});

/** A new folder that belongs to the ordinary user. */
async function ordinaryFolder(): Promise<string> {
  const folder = newFolder();
  await mkdir(folder);
  if (ordinaryUser) await chown(folder, ordinaryUser.uid, ordinaryUser.gid);
  return folder;
}

let ordinary: string | undefined;

/** A data folder like `used`, made by the ordinary user. */
async function ordinaryDatabase(): Promise<string> {
  if (ordinary !== undefined) return ordinary;
  const dataDir = join(await ordinaryFolder(), '.data');
  const { opener } = await startAndOpen({ dataDir, user: ordinaryUser });
  await opener.stop();
  ordinary = dataDir;
  return dataDir;
}

describe('as an ordinary user', () => {
  it('the database runs as that user, in the data folder itself, which only that user can enter', async () => {
    const dataDir = await ordinaryDatabase();
    const { opener, opened } = await startAndOpen({ dataDir, user: ordinaryUser });
    expect(opened).toMatchObject({ folder: dataDir, moved: false });
    const uid = ordinaryUser?.uid ?? process.geteuid?.();
    for (const name of ['.', 'cluster', 'key-secret', 'password', 'postgres.log']) {
      const found = await stat(join(dataDir, name));
      expect({ name, uid: found.uid, others: found.mode & 0o077 }).toEqual({ name, uid, others: 0 });
    }
    await opener.stop();
  });

  it('a folder that the user may not write to is named, with the cure', async () => {
    const parent = await ordinaryFolder();
    await chmod(parent, 0o555);
    const dataDir = join(parent, '.data');
    const failure = await failureOf({ dataDir, user: ordinaryUser });
    expect(failure).toMatch(isOneLineWithACure);
    expect(failure).toContain(dataDir);
    expect(failure).toContain('EACCES');
  });

  it('a copy of the binaries serves where node_modules is read-only and lacks the links', async () => {
    const bare = await makeCheckout(newFolder(), { binaries: 'unlinked' });
    const libraries = join(binariesOf(bare), 'lib');
    await chmod(libraries, 0o555);
    onTestFinished(() => chmod(libraries, 0o755));
    const dataDir = await ordinaryDatabase();
    const first = await startAndOpen({ checkout: bare, dataDir, user: ordinaryUser });
    expect(await query(first.opened.url, 'SELECT 1')).toEqual([1]);
    await first.opener.stop();
    const copies = (await readdir(dataDir)).filter((name) => name.startsWith('postgres-'));
    expect(copies).toHaveLength(1);

    await truncate(join(dataDir, copies[0] ?? '', 'native', 'bin', 'postgres'), 1000); // by a power cut, say
    const second = await startAndOpen({ checkout: bare, dataDir, user: ordinaryUser });
    await second.opener.stop();
  });
});

describe('an installation', () => {
  it('made with install scripts off gets its links between libraries at the first start', async () => {
    const bare = await makeCheckout(newFolder(), { binaries: 'unlinked' });
    const before = spawnSync(join(binariesOf(bare), 'bin', 'postgres'), ['--version'], { env: {} });
    expect(before.status).not.toBe(0);
    const { opener } = await startAndOpen({ checkout: bare, dataDir: used });
    await opener.stop();
    const after = spawnSync(join(binariesOf(bare), 'bin', 'postgres'), ['--version'], { env: {} });
    expect(after.status).toBe(0);
  });

  it('made with --omit=optional is told so', async () => {
    const bare = await makeCheckout(newFolder(), { binaries: 'none' });
    const failure = await failureOf({ checkout: bare, dataDir: newFolder() });
    expect(failure).toMatch(isOneLineWithACure);
    expect(failure).toContain('--omit=optional');
  });

  it.runIf(process.platform === 'linux')('on a system without glibc is told so', async () => {
    const failure = await failureOf({ dataDir: newFolder(), pretend: { musl: true } });
    expect(failure).toMatch(isOneLineWithACure);
    expect(failure).toContain('glibc');
  });

  it('that is damaged names what initdb said', async () => {
    const broken = await makeCheckout(newFolder(), { binaries: 'linked' });
    await rm(join(binariesOf(broken), 'share', 'postgresql', 'postgres.bki'));
    const dataDir = newFolder();
    const failure = await failureOf({ checkout: broken, dataDir });
    expect(failure).toMatch(isOneLineWithACure);
    expect(failure).toContain('postgres.bki');
    expect(await readdir(dataDir)).not.toContain('cluster');
    expect((await readdir(dataDir)).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  });
});

describe('a data folder', () => {
  it('with the leftovers of an initdb that was killed half-way is freed of them', async () => {
    const half = join(used, 'cluster.0123456789ab.tmp');
    spawnSync('cp', ['-a', join(used, 'cluster'), half]);
    await mkdir(join(used, 'cluster.ba9876543210.tmp'));
    await writeFile(join(used, 'password.0123456789ab.tmp'), 'old');
    const { opener } = await startAndOpen({ dataDir: used });
    expect((await readdir(used)).filter((name) => name.endsWith('.tmp'))).toEqual([]);
    await opener.stop();
  });

  it('of another PostgreSQL version is named with both versions', async () => {
    const dataDir = await folderWithoutDatabase();
    await writeFile(join(dataDir, 'cluster', 'PG_VERSION'), '17\n');
    const failure = await failureOf({ dataDir });
    expect(failure).toMatch(isOneLineWithACure);
    expect(failure).toContain('PostgreSQL 17');
    expect(failure).toContain('PostgreSQL 18');
  });

  it.each(['password', 'key-secret'])('without its %s is not given a new one', async (name) => {
    const dataDir = await folderWithoutDatabase();
    await rm(join(dataDir, name));
    const failure = await failureOf({ dataDir });
    expect(failure).toMatch(isOneLineWithACure);
    expect(failure).toContain(join(dataDir, name));
    await expect(stat(join(dataDir, name))).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('with the password of another database is refused', async () => {
    const dataDir = copyOf(used);
    const { opener } = await startAndOpen({ dataDir });
    await opener.kill9();
    await writeFile(join(dataDir, 'password'), 'x'.repeat(43));
    const failure = await failureOf({ dataDir });
    expect(failure).toMatch(isOneLineWithACure);
    expect(failure).toContain(`pid ${await databasePid(dataDir)}`);
  });

  it('with a damaged secret is refused', async () => {
    const dataDir = await folderWithoutDatabase();
    await writeFile(join(dataDir, 'key-secret'), 'short,');
    expect(await failureOf({ dataDir })).toMatch(isOneLineWithACure);
  });

  it('with settings that PostgreSQL refuses gives its own words', async () => {
    const dataDir = copyOf(used);
    await appendFile(join(dataDir, 'cluster', 'postgresql.conf'), "\nwork_mem = 'a lot'\n");
    const failure = await failureOf({ dataDir });
    expect(failure).toMatch(isOneLineWithACure);
    expect(failure).toContain('work_mem');
  });

  it('that is a file is refused', async () => {
    const dataDir = newFolder();
    await writeFile(dataDir, '');
    expect(await failureOf({ dataDir })).toMatch(isOneLineWithACure);
    expect(await failureOf({ dataDir: join(dataDir, 'below') })).toMatch(isOneLineWithACure);
  });

  it('may have a path of any length and spelling', async () => {
    const dataDir = join(newFolder(), "it's a 'long' path, with = and spaces", 'x'.repeat(120));
    await mkdir(dirname(dataDir), { recursive: true });
    spawnSync('cp', ['-a', used, dataDir]);
    const { opener, opened } = await startAndOpen({ dataDir });
    expect(opened.folder).toBe(dataDir);
    expect(await query(opened.url, 'SELECT 1')).toEqual([1]);
    await opener.stop();
    expect(await databasePid(dataDir)).toBeUndefined();
  });
});
