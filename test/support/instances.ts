import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { BrokenRule } from '../../src/verification/membership.ts';
import { CHEAP_ARGON2, TEST_KEY_SECRET } from './app.ts';
import { startTcpProxy, type TcpProxy } from './tcp-proxy.ts';

const MAIN = fileURLToPath(new URL('./instance-main.mjs', import.meta.url));
/** Starting takes a second on an idle machine; this is for one that is not. */
const START_WITHIN_MS = 60_000;
const UUID = /[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/;
const KEPT_OUTPUT = 20_000;

/** One instance as a process, with a disturbable way to PostgreSQL. */
export interface Instance {
  readonly name: string;
  readonly proxy: TcpProxy;
  /** The same over all its lives. */
  readonly port: number;
  readonly pid: number;
  /** The id of its row in `instances`, as last registered. */
  readonly registeredAs: string | undefined;
  /** How it ended of its own accord, which no fault excuses; `undefined` while it never did. */
  readonly crash: string | undefined;
  /** The end of what it logged, over all its lives. */
  log(): string;
  /** SIGSTOP, and SIGCONT. */
  stop(): void;
  wake(): void;
  /** SIGKILL; resolves when it is gone. */
  kill(): Promise<void>;
  /** Starts it again; resolves when it listens. */
  restart(): Promise<void>;
  /** SIGTERM; resolves with its exit code, or with the signal that ended it. */
  drain(): Promise<number | NodeJS.Signals | null>;
  /** Ends it and its proxy, whatever state they are in. */
  close(): Promise<void>;
}

export interface InstanceOptions {
  readonly name: string;
  /** The real address of the database; its port is reached through the proxy. */
  readonly databaseUrl: string;
  readonly leaseSeconds?: number;
  readonly broken?: readonly BrokenRule[];
  readonly environment?: Readonly<Record<string, string>>;
}

/** Starts an instance of the compiled service (`npm run build` first). */
export async function startInstance(options: InstanceOptions): Promise<Instance> {
  const { name, databaseUrl, leaseSeconds = 1, broken = [], environment = {} } = options;
  let registeredAs: string | undefined;
  const proxy = await startTcpProxy(Number(new URL(databaseUrl).port), (data) => {
    if (data.includes('INSERT INTO instances')) registeredAs = UUID.exec(data.toString('latin1'))?.[0];
  });
  const proxied = new URL(databaseUrl);
  proxied.hostname = '127.0.0.1';
  proxied.port = String(proxy.port);
  let output = '';
  let port = 0;
  let child: ChildProcess;
  let isEnding = false;
  let crash: string | undefined;

  async function start(): Promise<void> {
    const started = spawn(process.execPath, [MAIN, ...broken], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        PATH: process.env.PATH,
        DATABASE_URL: proxied.href,
        KEY_SECRET: TEST_KEY_SECRET,
        LEASE_SECONDS: String(leaseSeconds),
        DATABASE_POOL_SIZE: '6',
        CALLER_RATE_LIMIT: 'off',
        FAILED_AUTH_RATE_LIMIT: 'off',
        LOG_LEVEL: 'warn',
        PORT: String(port),
        ...CHEAP_ARGON2,
        ...environment,
      },
    });
    child = started;
    port = await listening(started);
  }

  /** Collects what it prints; answers its port once that is told. */
  function listening(started: ChildProcess): Promise<number> {
    let hasListened = false;
    isEnding = false;
    return new Promise((resolve, reject) => {
      const fail = (why: string) => reject(new Error(`${name} ${why}: ${output.slice(-2_000)}`));
      const timer = setTimeout(() => fail('does not listen'), START_WITHIN_MS);
      for (const stream of [started.stdout, started.stderr]) {
        stream?.setEncoding('utf8').on('data', (chunk: string) => {
          output = (output + chunk).slice(-KEPT_OUTPUT);
          const told = /listens on http:\/\/[^:]+:(\d+)/.exec(chunk)?.[1];
          if (told === undefined) return;
          clearTimeout(timer);
          hasListened = true;
          resolve(Number(told));
        });
      }
      started.once('exit', (code, signal) => {
        clearTimeout(timer);
        output += `\n-- ended: ${signal ?? code}\n`;
        if (hasListened && !isEnding) crash = `${name} ended of itself (${signal ?? code}):\n${output}`;
        fail('ended');
      });
    });
  }

  async function kill(): Promise<void> {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    isEnding = true;
    child.kill('SIGKILL');
    await ended;
  }

  try {
    await start();
  } catch (error) {
    await proxy.close();
    throw error;
  }
  return {
    name,
    proxy,
    get port() {
      return port;
    },
    get pid() {
      return child.pid ?? 0;
    },
    get registeredAs() {
      return registeredAs;
    },
    get crash() {
      return crash;
    },
    log: () => output,
    stop: () => void child.kill('SIGSTOP'),
    wake: () => void child.kill('SIGCONT'),
    kill,
    restart: start,
    async drain() {
      const ended = once(child, 'exit');
      isEnding = true;
      child.kill('SIGTERM');
      const [code, signal] = await ended;
      return code ?? signal;
    },
    async close() {
      await kill();
      await proxy.close();
    },
  };
}
