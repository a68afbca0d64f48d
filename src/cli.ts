#!/usr/bin/env node
/*
 * Nothing but Node's own modules is imported before the version of Node is known: what is imported later may not
 * even parse on an old one. And these as a whole, since an old one fails at once on a name that they lack.
 */
import util from 'node:util';

const OLDEST_NODE = [20, 19] as const;

const USAGE = `Usage: claviger <command>

  serve                       run the service
  migrate                     bring the database of DATABASE_URL to this release
  create-admin-key --name N   make an admin service key and print it
  openapi                     print the OpenAPI document
  scanner-rules --format F    print rules that find tokens, for gitleaks, trufflehog or github

Settings are environment variables; the README lists them.`;

/** Failures whose message is all that an operator needs. */
const EXPECTED = new Set([
  'ConfigError',
  'ConnectionError',
  'MigrationError',
  'EmbeddedPostgresError',
  'ListenerError',
  'StartError',
  'Failure',
]);

/** Why this Node cannot run Claviger, or `undefined`. */
function nodeFault(version: string): string | undefined {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  const [oldestMajor, oldestMinor] = OLDEST_NODE;
  if (major > oldestMajor || (major === oldestMajor && minor >= oldestMinor)) return undefined;
  return `Node ${version} is too old: Claviger needs Node ${OLDEST_NODE.join('.')} or newer.`;
}

async function run(): Promise<void> {
  const { command, help, name, format } = readArguments();
  if (help) {
    process.stdout.write(`${USAGE}\n`);
    return;
  }
  if (name !== undefined && command !== 'create-admin-key') throw usageError();
  if (format !== undefined && command !== 'scanner-rules') throw usageError();
  const server = await import('./server.ts');
  const { readConfig } = await import('./config.ts');
  switch (command) {
    case 'serve':
      return server.serve(readConfig(process.env));
    case 'migrate':
      return server.migrate(readConfig(process.env));
    case 'create-admin-key':
      if (name === undefined) throw usageError();
      process.stdout.write(`${await server.createAdminKey(readConfig(process.env), name)}\n`);
      return;
    case 'openapi': {
      const { writeDocument } = await import('./openapi.ts');
      process.stdout.write(await writeDocument());
      return;
    }
    case 'scanner-rules': {
      const { RULE_FORMATS, scannerRules } = await import('./domain/scanner-rules.ts');
      const known = RULE_FORMATS.find((one) => one === format);
      if (known === undefined) throw usageError();
      const { KEY_PREFIX: prefix, KEY_ENVIRONMENTS: environments } = readConfig(process.env);
      process.stdout.write(scannerRules(known, { prefix, environments }));
      return;
    }
    default:
      throw usageError();
  }
}

function readArguments(): {
  command: string | undefined;
  help: boolean;
  name: string | undefined;
  format: string | undefined;
} {
  try {
    const { positionals, values } = util.parseArgs({
      allowPositionals: true,
      options: {
        name: { type: 'string' },
        format: { type: 'string' },
        help: { type: 'boolean', short: 'h' },
      },
    });
    if (positionals.length > 1) throw usageError();
    const { name, format, help = false } = values;
    return { command: positionals[0], help, name, format };
  } catch {
    // An option that it does not know, or one without its value.
    throw usageError();
  }
}

function usageError(): Error {
  return Object.assign(new Error(USAGE), { name: 'UsageError' });
}

function report(error: unknown): void {
  process.exitCode = 1;
  if (error instanceof Error && error.name === 'UsageError') {
    process.stderr.write(`${error.message}\n`);
    return;
  }
  const known = error instanceof Error && (EXPECTED.has(error.name) || 'code' in error);
  const message =
    error instanceof Error ? ((known ? error.message : error.stack) ?? error.message) : String(error);
  for (const line of message.split('\n')) process.stderr.write(`claviger: ${line}\n`);
}

// `claviger openapi | head`: whoever has read enough is no fault.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
  process.exit();
});

const fault = nodeFault(process.versions.node);
if (fault === undefined) await run().catch(report);
else report(Object.assign(new Error(fault), { name: 'StartError' }));
