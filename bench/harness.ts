import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import pg from 'pg';
import { openEmbeddedPostgres } from '../src/embedded-postgres.ts';

/*
 * How figures are taken (docs/performance.md): the machine is shared and noisy, so that only ratios within one run
 * count. The yardstick and ours take turns; beside each ratio stands the yardstick against itself.
 */

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const run = promisify(execFile);
/** Linux counts the time of a process in ticks of 10 ms. */
const TICK_MS = 10;

export interface Process {
  readonly url: string;
  readonly child: ChildProcess;
  /** User and system time so far, in milliseconds. */
  cpuMs(): Promise<number>;
  stop(signal?: NodeJS.Signals): Promise<void>;
}

export interface BenchDatabase {
  readonly url: string;
  /** Runs SQL on a connection of its own, past the service. */
  query<Row extends pg.QueryResultRow>(sql: string, values?: readonly unknown[]): Promise<Row[]>;
}

export interface Bench {
  readonly folder: string;
  /** A database of its own on the bench's PostgreSQL. */
  createDatabase(name: string): Promise<BenchDatabase>;
  bare(answerBytes: number): Promise<Process>;
  /** An instance of the compiled service; `token` is the first admin key where it made one. */
  service(
    databaseUrl: string,
    environment?: Record<string, string>,
  ): Promise<Process & { token: string | undefined }>;
  close(): Promise<void>;
}

export const KEY_SECRET = 'a-secret-for-the-bench-alone-of-enough-length';

export async function openBench(): Promise<Bench> {
  const folder = await mkdtemp(join(tmpdir(), 'claviger-bench-'));
  const postgres = await openEmbeddedPostgres({ dataDir: join(folder, 'postgres'), role: 'service' });
  const closers: (() => Promise<void>)[] = [];
  const server = new pg.Client({ connectionString: postgres.url });
  await server.connect();

  return {
    folder,
    async createDatabase(name) {
      await server.query(`CREATE DATABASE ${name}`);
      const url = new URL(postgres.url);
      url.pathname = `/${name}`;
      const client = new pg.Client({ connectionString: url.href });
      await client.connect();
      closers.push(() => client.end());
      return {
        url: url.href,
        query: async (sql, values = []) => (await client.query(sql, [...values])).rows,
      };
    },
    async bare(answerBytes) {
      return start(['bench/bare.js', String(answerBytes)], {}, closers);
    },
    async service(databaseUrl, environment = {}) {
      const adminKeyFile = join(folder, `admin-${closers.length}`);
      const started = await start(
        ['dist/cli.js', 'serve'],
        {
          DATABASE_URL: databaseUrl,
          KEY_SECRET,
          ADMIN_KEY_FILE: adminKeyFile,
          PORT: '0',
          LOG_LEVEL: 'warn',
          CALLER_RATE_LIMIT: 'off',
          FAILED_AUTH_RATE_LIMIT: 'off',
          ...environment,
        },
        closers,
      );
      const token = await readFile(adminKeyFile, 'utf8').catch(() => undefined);
      return { ...started, token: token?.trim() };
    },
    async close() {
      for (const close of closers.reverse()) await close();
      await server.end();
      await postgres.stop();
      if (postgres.moved) await rm(postgres.folder, { recursive: true, force: true });
      await rm(folder, { recursive: true, force: true });
    },
  };
}

async function start(
  args: string[],
  environment: Record<string, string>,
  closers: (() => Promise<void>)[],
): Promise<Process> {
  // BENCH_NODE_ARGS=--cpu-prof shows where the time goes.
  const nodeArgs = (process.env.BENCH_NODE_ARGS ?? '').split(' ').filter((argument) => argument !== '');
  const child = spawn(process.execPath, [...nodeArgs, ...args], {
    cwd: ROOT,
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { PATH: process.env.PATH, NODE_ENV: 'production', ...environment },
  });
  let printed = '';
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    printed += chunk;
  });
  let url: string | undefined;
  while (url === undefined) {
    await Promise.race([once(child.stdout, 'data'), once(child, 'exit')]);
    if (child.exitCode !== null) throw new Error(`${args.join(' ')} ended: ${printed}`);
    url = /listens on (http:\/\/[^\s]+)/.exec(printed)?.[1];
  }
  const stop = async (signal: NodeJS.Signals = 'SIGTERM') => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill(signal);
    await once(child, 'exit');
  };
  closers.push(() => stop('SIGKILL'));
  return { url, child, stop, cpuMs: () => cpuMsOf(child.pid) };
}

async function cpuMsOf(pid: number | undefined): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  // The name of the program may hold spaces; fields are counted from behind it (proc(5): 14 utime, 15 stime).
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) * TICK_MS;
}

export interface Load {
  readonly url: string;
  readonly headers?: Record<string, string>;
  /** Sent in turn. */
  readonly bodies: readonly string[];
  readonly connections?: number;
  readonly seconds?: number;
  /** So many requests instead of so many seconds. */
  readonly amount?: number;
}

export interface LoadResult {
  readonly answered: number;
  readonly succeeded: number;
  readonly errors: number;
  readonly seconds: number;
}

let files = 0;

/** Runs a load to its end, in a process of its own. */
export async function load(
  bench: Bench,
  { bodies, connections = 20, seconds = 3, ...rest }: Load,
): Promise<LoadResult> {
  const bodiesFile = join(bench.folder, `bodies-${files++}.json`);
  await writeFile(bodiesFile, JSON.stringify(bodies));
  const options = JSON.stringify({ ...rest, bodiesFile, connections, seconds });
  const { stdout } = await run(process.execPath, ['bench/load.js', options], { cwd: ROOT });
  await rm(bodiesFile);
  return JSON.parse(stdout);
}

/** CPU time of the server per request that it answered, in microseconds. */
export async function cpuPerRequest(bench: Bench, server: Process, work: Load): Promise<number> {
  const before = await server.cpuMs();
  const { answered, errors } = await load(bench, work);
  if (errors > 0 || answered === 0) throw new Error(`${errors} of the requests to ${work.url} failed`);
  return (((await server.cpuMs()) - before) * 1000) / answered;
}

export interface Comparison {
  readonly ratio: number;
  readonly control: number;
  readonly oursUs: number;
  readonly yardstickUs: number;
  readonly rounds: number;
}

/** Yardstick ÷ ours, in CPU per request, medians over alternating rounds; `control` is the yardstick ÷ itself. */
export async function compare(
  bench: Bench,
  { yardstick, ours, rounds }: { yardstick: [Process, Load]; ours: [Process, Load]; rounds: number },
): Promise<Comparison> {
  const taken: { yardstick: number; ours: number; again: number }[] = [];
  for (let round = -1; round < rounds; round++) {
    const measured = {
      yardstick: await cpuPerRequest(bench, ...yardstick),
      ours: await cpuPerRequest(bench, ...ours),
      again: await cpuPerRequest(bench, ...yardstick),
    };
    // The first round warms up.
    if (round >= 0) taken.push(measured);
  }
  return {
    ratio: median(taken.map((round) => (round.yardstick + round.again) / 2 / round.ours)),
    control: median(taken.map((round) => round.yardstick / round.again)),
    oursUs: median(taken.map((round) => round.ours)),
    yardstickUs: median(taken.map((round) => round.yardstick)),
    rounds,
  };
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

/** A call of the service, for what is set up around a measurement. */
export async function call(
  service: { url: string },
  token: string,
  path: string,
  { method = 'POST', body }: { method?: string; body?: unknown } = {},
  // biome-ignore lint/suspicious/noExplicitAny: a measurement looks at answers of every shape
): Promise<any> {
  const response = await fetch(`${service.url}${path}`, {
    method,
    headers: {
      authorization: `Bearer ${token}`,
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${JSON.stringify(answer)}`);
  return answer;
}
