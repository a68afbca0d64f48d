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

export interface Process {
  readonly url: string;
  readonly child: ChildProcess;
  /** What it printed until it listened. */
  readonly printed: string;
  stop(signal?: NodeJS.Signals): Promise<void>;
  /** Ends it, and starts the same anew, at another address. */
  renew(): Promise<void>;
  /** Starts the same beside it. */
  startAnother(): Promise<Process>;
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
  /** The yardstick; with a database's address and a statement, it asks that for each request. */
  bare(answerBytes: number, select?: { url: string; statement: string }): Promise<Process>;
  /** A program of the bench's own that tells "listens on URL". */
  program(args: readonly string[], environment?: Record<string, string>): Promise<Process>;
  /** An instance of the compiled service; `token` is the first admin key where it made one. */
  service(
    databaseUrl: string,
    environment?: Record<string, string>,
  ): Promise<Process & { token: string | undefined }>;
  /** Ends all programs, and connections to databases, that are open. */
  endAll(): Promise<void>;
  close(): Promise<void>;
}

/** What every instance of the bench is started with. */
export const SERVICE_SETTINGS = {
  LOG_LEVEL: 'warn',
  CALLER_RATE_LIMIT: 'off',
  FAILED_AUTH_RATE_LIMIT: 'off',
} as const;

export const KEY_SECRET = 'a-secret-for-the-bench-alone-of-enough-length';

export async function openBench(): Promise<Bench> {
  const folder = await mkdtemp(join(tmpdir(), 'claviger-bench-'));
  const postgres = await openEmbeddedPostgres({ dataDir: join(folder, 'postgres'), role: 'service' });
  const closers: (() => Promise<void>)[] = [];
  const server = new pg.Client({ connectionString: postgres.url });
  await server.connect();
  const endAll = async () => {
    for (const close of closers.splice(0).reverse()) await close();
  };

  return {
    folder,
    async createDatabase(name) {
      await server.query(`CREATE DATABASE ${name}`);
      const url = new URL(postgres.url);
      url.pathname = `/${name}`;
      const client = new pg.Client({ connectionString: url.href });
      // A measurement that fails may leave it at that; the next statement tells.
      client.on('error', () => undefined);
      await client.connect();
      closers.push(() => client.end());
      return {
        url: url.href,
        query: async (sql, values = []) => (await client.query(sql, [...values])).rows,
      };
    },
    bare: (answerBytes, select) =>
      start(['bench/bare.js', JSON.stringify({ answerBytes, ...select })], {}, closers),
    program: (args, environment = {}) => start(args, environment, closers),
    async service(databaseUrl, environment = {}) {
      const adminKeyFile = join(folder, `admin-${files++}`);
      const started = await start(
        ['dist/cli.js', 'serve'],
        {
          DATABASE_URL: databaseUrl,
          KEY_SECRET,
          ADMIN_KEY_FILE: adminKeyFile,
          PORT: '0',
          ...SERVICE_SETTINGS,
          ...environment,
        },
        closers,
      );
      const token = await readFile(adminKeyFile, 'utf8').catch(() => undefined);
      return Object.assign(started, { token: token?.trim() });
    },
    endAll,
    async close() {
      await endAll();
      await server.end();
      await postgres.stop();
      if (postgres.moved) await rm(postgres.folder, { recursive: true, force: true });
      await rm(folder, { recursive: true, force: true });
    },
  };
}

async function start(
  args: readonly string[],
  environment: Record<string, string>,
  closers: (() => Promise<void>)[],
): Promise<Process> {
  let running = await spawnListening(args, environment);
  const stop = async (signal: NodeJS.Signals = 'SIGTERM') => {
    const { child } = running;
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill(signal);
    await once(child, 'exit');
  };
  closers.push(() => stop('SIGKILL'));
  return {
    get url() {
      return running.url;
    },
    get child() {
      return running.child;
    },
    printed: running.printed,
    stop,
    async renew() {
      await stop('SIGKILL');
      running = await spawnListening(args, environment);
    },
    startAnother: () => start(args, environment, closers),
  };
}

async function spawnListening(args: readonly string[], environment: Record<string, string>) {
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
  return { url, child, printed };
}

export interface Load {
  readonly url: string;
  readonly headers?: Record<string, string>;
  /** One is chosen at random for each request, or each in its turn; without them the requests are GET. */
  readonly bodies?: readonly string[];
  readonly inTurn?: boolean;
  readonly connections?: number;
  readonly seconds?: number;
  /** So many requests instead of so many seconds. */
  readonly amount?: number;
  /** So many requests a second, whatever the answers do; without it, each connection asks as soon as it is answered. */
  readonly rate?: number;
  /** Whether what is due may be sent a millisecond late, which the latency counts: else a core is busy waiting for it. */
  readonly isCoarse?: boolean;
  /**
   * Keeps a core busy looking for answers. Whoever sends to a process that sleeps has to wake it, and over loopback
   * that is the server, the more often the slower it is: in the CPU time of a server it would count what no server does
   * whose clients are on other machines.
   */
  readonly isAwake?: boolean;
  /** Sent at the same rate before, until then (Unix time), and not counted: a program that begins is slow for a while. */
  readonly lead?: { readonly body: string; readonly untilMs: number };
  /** The server, whose CPU time is counted meanwhile. */
  readonly pid?: number | undefined;
}

export interface LoadResult {
  readonly answered: number;
  readonly succeeded: number;
  readonly errors: number;
  readonly seconds: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly maxUs: number;
  /** While the stream went on, where it named the server. */
  readonly serverCpuUs: number;
}

/** Enough that an open stream hardly ever finds none of them free. */
export const OPEN_CONNECTIONS = 64;
const DEFAULT_SECONDS = 3;
let files = 0;

/**
 * Runs loads beside each other to their end, in a process of their own; `cpuMs` is what that took itself.
 * @param turnMs they take turns of so long instead, each for its seconds.
 */
export async function loads(
  bench: Bench,
  streams: readonly Load[],
  turnMs?: number,
): Promise<{ streams: LoadResult[]; cpuMs: number }> {
  const written: string[] = [];
  const write = async (content: unknown) => {
    const file = join(bench.folder, `load-${files++}.json`);
    await writeFile(file, JSON.stringify(content));
    written.push(file);
    return file;
  };
  const options = {
    turnMs,
    seconds: streams[0]?.seconds ?? DEFAULT_SECONDS,
    streams: await Promise.all(
      streams.map(async ({ bodies, ...rest }) =>
        bodies === undefined ? rest : { ...rest, bodiesFile: await write(bodies) },
      ),
    ),
  };
  const { stdout } = await run(process.execPath, ['bench/load.js', await write(options)], { cwd: ROOT });
  for (const file of written) await rm(file);
  return JSON.parse(stdout);
}

export async function load(bench: Bench, stream: Load): Promise<LoadResult> {
  const { streams } = await loads(bench, [stream]);
  const [result] = streams;
  if (result === undefined) throw new Error('the load told no result');
  return result;
}

/** CPU time of the server per request that it answered, in microseconds. */
export async function cpuPerRequest(bench: Bench, server: Process, work: Load): Promise<number> {
  return cpuOf(await load(bench, withCpu([server, work])));
}

export interface Comparison {
  readonly ratio: number;
  readonly control: number;
  readonly oursUs: number;
  readonly yardstickUs: number;
}

type Measured = readonly [Process, Load];

/** What one round took, in microseconds a request. */
interface Taken {
  readonly yardstick: number;
  readonly ours: number;
  readonly again: number;
}

const TURN_MS = 100;

/** Yardstick ÷ ours, in CPU per request, medians over alternating rounds; `control` is the yardstick ÷ itself. */
export async function compare(
  bench: Bench,
  { yardstick, ours, rounds }: { yardstick: Measured; ours: Measured; rounds: number },
): Promise<Comparison> {
  const taken: Taken[] = [];
  for (let round = -1; round < rounds; round++) {
    const measured = {
      yardstick: await cpuPerRequest(bench, ...yardstick),
      ours: await cpuPerRequest(bench, ...ours),
      again: await cpuPerRequest(bench, ...yardstick),
    };
    // The first round warms up.
    if (round >= 0) taken.push(measured);
  }
  return comparisonOf(taken);
}

/**
 * The same of programs that have nothing to do for each other's requests: each round with new processes, which are
 * warmed up and then asked in short turns. One and the same program needs a third more in one process than in the next,
 * as its memory happens to lie, and half as much again in one second as in the next, as the machine's other guests do:
 * new processes spread the one, and turns let the other meet all alike. The yardstick is there twice.
 */
export async function compareInTurns(
  bench: Bench,
  { yardstick, ours, rounds }: { yardstick: Measured; ours: Measured; rounds: number },
): Promise<Comparison> {
  const again: Measured = [await yardstick[0].startAnother(), yardstick[1]];
  const taken: Taken[] = [];
  for (let round = 0; round < rounds; round++) {
    const renewed = [await renew(yardstick), await renew(ours), await renew(again)];
    await cpuInTurns(bench, renewed);
    const [first = NaN, second = NaN, third = NaN] = await cpuInTurns(bench, renewed);
    taken.push({ yardstick: first, ours: second, again: third });
  }
  await again[0].stop('SIGKILL');
  return comparisonOf(taken);
}

async function cpuInTurns(bench: Bench, measured: readonly Measured[]): Promise<number[]> {
  const { streams } = await loads(bench, measured.map(withCpu), TURN_MS);
  return streams.map(cpuOf);
}

function withCpu([{ child }, work]: Measured): Load {
  return { ...work, pid: child.pid, isAwake: true };
}

function cpuOf({ answered, errors, serverCpuUs }: LoadResult): number {
  if (errors > 0 || answered === 0) throw new Error(`${errors} of the requests failed`);
  return serverCpuUs / answered;
}

async function renew([server, work]: Measured): Promise<Measured> {
  await server.renew();
  const { pathname, search } = new URL(work.url);
  return [server, { ...work, url: `${server.url}${pathname}${search}` }];
}

function comparisonOf(taken: readonly Taken[]): Comparison {
  return {
    ratio: median(taken.map((round) => (round.yardstick + round.again) / 2 / round.ours)),
    control: median(taken.map((round) => round.yardstick / round.again)),
    oursUs: median(taken.map((round) => round.ours)),
    yardstickUs: median(taken.map((round) => round.yardstick)),
  };
}

/**
 * The p99 of the first stream of ours ÷ that of the yardstick's, in microseconds. Medians over alternating rounds;
 * `control` is the yardstick ÷ itself.
 */
export async function compareLatency(
  bench: Bench,
  { yardstick, ours, rounds }: { yardstick: readonly Load[]; ours: () => readonly Load[]; rounds: number },
): Promise<Comparison> {
  const p99 = async (streams: readonly Load[]) => {
    const { streams: results } = await loads(bench, streams);
    const [first] = results;
    if (first === undefined || results.some(({ errors }) => errors > 0))
      throw new Error('some of the requests failed');
    return first.p99Us;
  };
  const taken: { yardstick: number; ours: number; again: number }[] = [];
  for (let round = -1; round < rounds; round++) {
    const measured = {
      yardstick: await p99(yardstick),
      ours: await p99(ours()),
      again: await p99(yardstick),
    };
    if (round >= 0) taken.push(measured);
  }
  return {
    ratio: median(taken.map((round) => round.ours / ((round.yardstick + round.again) / 2))),
    control: median(taken.map((round) => round.yardstick / round.again)),
    oursUs: median(taken.map((round) => round.ours)),
    yardstickUs: median(taken.map((round) => round.yardstick)),
  };
}

/** Half as many requests a second as are answered of this work when its connections ask as fast as they are answered. */
export async function halfOfSaturation(bench: Bench, work: Load): Promise<number> {
  const { answered, seconds } = await load(bench, work);
  return Math.floor(answered / seconds / 2);
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

/** What a query took, each time that it was asked. */
export interface QueryTimes {
  readonly name: string;
  readonly milliseconds: readonly number[];
  /** Of a request that reads nothing, in turn with those: what the machine does to any request. */
  readonly control: readonly number[];
}

/** Queries by their p99, the slowest first; prints a line of each. */
export function rankQueries(times: readonly QueryTimes[]) {
  const ranked = times
    .map(({ name, milliseconds, control }) => ({
      name,
      p50: quantile(milliseconds, 0.5),
      p99: quantile(milliseconds, 0.99),
      control: quantile(control, 0.99),
    }))
    .sort((left, right) => right.p99 - left.p99);
  for (const { name, p50, p99, control } of ranked) {
    process.stderr.write(
      `  ${p50.toFixed(1)} ms, p99 ${p99.toFixed(1)} ms (of nothing ${control.toFixed(1)} ms): ${name}\n`,
    );
  }
  return ranked;
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
