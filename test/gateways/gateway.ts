import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ROOT } from '../support/service.ts';

export const RECIPES = join(ROOT, 'examples', 'gateways');

/** What a gateway stands between, by ports of the loopback. */
export interface Around {
  readonly claviger: number;
  readonly service: number;
  /** With `introspect`. */
  readonly serviceKey: string;
  /** What a key must hold: options of /v1/authorize. */
  readonly options?: Readonly<Partial<Record<'scope' | 'workspace_id' | 'environment', string>>>;
}

export interface Gateway {
  readonly port: number;
  /** What it logged. */
  log(): string;
  stop(): Promise<void>;
}

/** A recipe, and how it is run. */
export interface Recipe {
  readonly name: string;
  /** What Claviger has to be set to, as the recipe says. */
  readonly settings: Readonly<Record<string, string>>;
  /** What a client is told while Claviger cannot be asked. */
  readonly statusWithoutClaviger: number;
  /** Whether Claviger's problem is the answer, or one of the gateway's own. */
  readonly passesProblems: boolean;
  /** Whether a client that was let in is told its limits. */
  readonly tellsLimits: boolean;
  start(around: Around): Promise<Gateway>;
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** Starts a program that listens on the port; resolves once it does. */
export async function startProgram(
  command: string,
  args: readonly string[],
  { port, environment = {} }: { port: number; environment?: Readonly<Record<string, string>> },
): Promise<Gateway> {
  const child = spawn(command, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { PATH: process.env.PATH, ...environment },
  });
  let printed = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk: string) => {
      printed += chunk;
    });
  }
  let fault: Error | undefined;
  child.once('error', (error) => {
    fault = error;
  });
  while (!(await accepts(port))) {
    if (fault !== undefined) throw fault;
    if (child.exitCode !== null) throw new Error(`${command} ended: ${printed}`);
    await sleep(20);
  }
  return { port, log: () => printed, stop: () => end(child) };
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGTERM');
  await ended;
}

async function accepts(port: number): Promise<boolean> {
  const socket = connect({ host: '127.0.0.1', port });
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}
