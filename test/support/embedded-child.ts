/**
 * A process with an embedded database, for test/embedded-postgres.test.ts: opens when told `open`, stops when told
 * `stop`, and survives Ctrl-C as a draining service does. Compiled into a checkout of the test's own.
 */
import { Server } from 'node:net';
import type { EmbeddedPostgres } from '../../src/embedded-postgres.ts';
import { openEmbeddedPostgres } from '../../src/embedded-postgres.ts';

export interface ChildOptions {
  readonly dataDir: string;
  readonly role: 'service' | 'visitor';
  readonly umask?: number;
  /** What the machine looks like: without glibc, or with this port taken between finding and using it. */
  readonly pretend?: { readonly musl: true } | { readonly takenPort: number };
}

export type ChildReport =
  | { readonly event: 'ready' | 'interrupted' | 'stopped' }
  | { readonly event: 'opened'; readonly opened: Opened }
  | { readonly event: 'failed'; readonly name: string; readonly message: string };

export type Opened = Omit<EmbeddedPostgres, 'stop'>;

const options: ChildOptions = JSON.parse(process.argv[2] ?? '{}');
if (options.umask !== undefined) process.umask(options.umask);
if (options.pretend) pretend(options.pretend);

let database: EmbeddedPostgres | undefined;
const report = (what: ChildReport): void => void process.send?.(what);

process.on('message', (order) => void obey(order));
process.on('disconnect', () => process.exit());
process.on('SIGINT', () => report({ event: 'interrupted' }));
report({ event: 'ready' });

async function obey(order: unknown): Promise<void> {
  try {
    if (order === 'open') {
      database = await openEmbeddedPostgres(options);
      const { url, folder, moved, keySecret } = database;
      report({ event: 'opened', opened: { url, folder, moved, keySecret } });
    } else {
      await Promise.all([database?.stop(), database?.stop()]);
      report({ event: 'stopped' });
    }
  } catch (error) {
    const { name, message } = error instanceof Error ? error : new Error(String(error));
    report({ event: 'failed', name, message });
  }
}

function pretend(what: NonNullable<ChildOptions['pretend']>): void {
  if ('musl' in what) {
    Object.defineProperty(process.report, 'getReport', { value: () => ({ header: {} }) });
    return;
  }
  const really = Server.prototype.address;
  Server.prototype.address = function once() {
    Server.prototype.address = really;
    const found = really.call(this);
    return found !== null && typeof found === 'object' ? { ...found, port: what.takenPort } : found;
  };
}
