import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { onTestFinished } from 'vitest';
import { CHEAP_ARGON2, TEST_KEY_SECRET } from './app.ts';
import { type Client, createClient, fetchTransport, tlsTransport } from './client.ts';
import type { TestDatabase } from './database.ts';
import { loadResponseCheck } from './response-check.ts';

export const ROOT = fileURLToPath(new URL('../..', import.meta.url));
/** The compiled service: `npm test` builds it first. */
export const CLI = join(ROOT, 'dist', 'cli.js');

export interface Service extends Client {
  readonly url: string;
  readonly process: ChildProcess;
  /** What it printed, both streams. */
  output(): { stdout: string; stderr: string };
  /** Sends a signal and waits for the end; answers the exit code, or the signal that ended it. */
  end(signal: NodeJS.Signals): Promise<number | NodeJS.Signals | null>;
}

export interface ServiceOptions {
  readonly database: TestDatabase;
  /** The service key that its client uses; default: the first admin key, which then must not exist yet. */
  readonly token?: string;
  /** Another release's command line. */
  readonly cli?: string;
  /** Whom its client trusts, where it serves HTTPS. */
  readonly ca?: string;
  readonly environment?: Readonly<Record<string, string>>;
}

/** A real process on a free port, killed when the test ends if it still runs then. */
export async function startService(options: ServiceOptions): Promise<Service> {
  const { database, token, cli = CLI, ca, environment = {} } = options;
  const folder = await mkdtemp(join(tmpdir(), 'claviger-service-'));
  const adminKeyFile = join(folder, 'admin-key');
  const child = spawn(process.execPath, [cli, 'serve'], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      PATH: process.env.PATH,
      DATABASE_URL: database.url,
      KEY_SECRET: TEST_KEY_SECRET,
      ADMIN_KEY_FILE: adminKeyFile,
      PORT: '0',
      ...CHEAP_ARGON2,
      ...environment,
    },
  });
  const printed = collectOutput(child);
  onTestFinished(async () => {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGKILL');
      await once(child, 'exit');
    }
    await rm(folder, { recursive: true, force: true });
  });
  const url = await addressOf(child, printed);
  const client = createClient(ca === undefined ? fetchTransport(url) : tlsTransport(url, ca), {
    token: token ?? (await readFile(adminKeyFile, 'utf8')).trim(),
    check: await loadResponseCheck(),
  });
  return {
    ...client,
    url,
    process: child,
    output: () => ({ ...printed }),
    async end(signal) {
      const ended = once(child, 'exit');
      child.kill(signal);
      const [code, by] = await ended;
      return code ?? by;
    },
  };
}

/** Runs the command line to its end. */
export async function runCli(
  args: readonly string[],
  environment: Readonly<Record<string, string>>,
  cli = CLI,
): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const child = spawn(process.execPath, [cli, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { PATH: process.env.PATH, ...environment },
  });
  const printed = collectOutput(child);
  const [code] = await once(child, 'close');
  return { code, ...printed };
}

export function collectOutput(child: ChildProcess): { stdout: string; stderr: string } {
  const printed = { stdout: '', stderr: '' };
  child.stdout?.setEncoding('utf8').on('data', (chunk: string) => {
    printed.stdout += chunk;
  });
  child.stderr?.setEncoding('utf8').on('data', (chunk: string) => {
    printed.stderr += chunk;
  });
  return printed;
}

async function addressOf(child: ChildProcess, printed: { stdout: string; stderr: string }): Promise<string> {
  for (;;) {
    const address = /listens on (https?:\/\/\S+)/.exec(printed.stdout)?.[1];
    if (address !== undefined) return address;
    if (child.exitCode !== null || child.signalCode !== null)
      throw new Error(`the service ended: ${printed.stderr}`);
    await Promise.race([once(child.stdout ?? child, 'data'), once(child, 'exit')]);
  }
}
