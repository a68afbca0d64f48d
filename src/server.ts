import { readFileSync } from 'node:fs';
import { open, rename, rm } from 'node:fs/promises';
import net, { type AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import closeWithGrace from 'close-with-grace';
import type { FastifyInstance } from 'fastify';
import pino from 'pino';
import { z } from 'zod';
import { type AppDependencies, buildApp } from './app.ts';
import { readCertificate, rereadOnHangup } from './certificate.ts';
import type { Config } from './config.ts';
import { type Core, type CoreOptions, openCore, StartError, signalThresholds } from './core.ts';
import { Failure } from './domain/errors.ts';
import { hideTokens } from './domain/token-text.ts';
import { createCursorCodec } from './http/cursor.ts';
import { createGithubKeys, type GithubKeys, readGithubKeys } from './http/github-keys.ts';
import type { KeyLifecycle } from './lifecycle/keys.ts';
import { createMetrics, type Metrics } from './metrics.ts';
import { loggable } from './storage/database.ts';
import { readDatabaseTime } from './storage/keys.ts';
import type { Tracing } from './tracing.ts';
import type { Membership } from './verification/membership.ts';
import type { Quota } from './verification/quota.ts';
import { createQuotaLook } from './verification/quota-look.ts';

/** How long a draining instance still takes connections, so that a load balancer sees `/readyz` turn first. */
const DRAIN_NOTICE_MS = 1_000;
/** How long an idle connection may then stay open for the client's next request, which is told to be its last. */
const DRAIN_IDLE_MS = 1_000;
/** How long requests under way may take from then on; a client that never finishes its request is cut off. */
const DRAIN_ANSWERS_MS = 4_000;
/** How long the last answers may take to leave. */
const DRAIN_LAST_WORDS_MS = 200;
/** SIGTERM to exit, at most (contract §9: 10 s). */
const DRAIN_LIMIT_MS = 9_000;
/** What leaving takes after the recorder has written: the goodbye, the pool. */
const DRAIN_GOODBYE_MS = 1_800;
/** What the recorder has in any case. */
const DRAIN_FLUSH_MS = 500;

export function readVersion(): string {
  const manifest: unknown = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  return z.object({ version: z.string() }).parse(manifest).version;
}

/**
 * Logs are JSON lines on standard error; standard output is for what a person reads, a key among it. A line is made of
 * what is known to hold no token, but for errors, whose text is anybody's.
 */
export function createLogger(
  level: string,
  destination: pino.DestinationStream = pino.destination({ fd: 2, sync: true }),
): pino.Logger {
  return pino({ level, serializers: { err: errorShown } }, destination);
}

/** An error as the log shows it: its type, message, stack and members, without anything that looks like a token. */
function errorShown(error: unknown): unknown {
  const shown = error instanceof Error ? pino.stdSerializers.err(error) : error;
  try {
    return JSON.parse(hideTokens(JSON.stringify(shown)));
  } catch {
    return 'an error that cannot be shown';
  }
}

/** Tells the operator what the core reports. */
export function reporterOf(logger: pino.Logger): CoreOptions['report'] {
  return ({ message, cause }) => logger.warn(cause === undefined ? {} : { err: cause }, message);
}

/** How far the end has come: `/readyz` says no, then answers close their connections. */
export interface Phase {
  draining: boolean;
  closing: boolean;
}

/** What the HTTP service takes from the settings alone. */
export function appSettings(
  config: Config,
): Pick<
  AppDependencies,
  'limits' | 'rotationDueDays' | 'signals' | 'trustedProxies' | 'gateways' | 'version' | 'issuerAt'
> {
  const { ISSUER, HOST, PORT } = config;
  const scheme = schemeOf(config);
  return {
    issuerAt: (port) => ISSUER ?? `${scheme}://${net.isIPv6(HOST) ? `[${HOST}]` : HOST}:${port ?? PORT}`,
    limits: {
      callerPerMinute: config.CALLER_RATE_LIMIT,
      introspectPerMinute: config.INTROSPECT_RATE_LIMIT,
      failedPerMinute: config.FAILED_AUTH_RATE_LIMIT,
    },
    rotationDueDays: config.ROTATION_DUE_DAYS,
    signals: signalThresholds(config),
    trustedProxies: config.TRUSTED_PROXY_CIDRS,
    gateways: {
      source: config.AUTHORIZE_SOURCE,
      forwardedForHops: config.AUTHORIZE_FORWARDED_FOR_HOPS,
      trusted: config.AUTHORIZE_TRUSTED_CIDRS,
    },
    version: readVersion(),
  };
}

/** What the HTTP service needs, from what was opened for it. */
export function appDependencies(
  core: Core,
  config: Config,
  { logger, phase, metrics }: { logger: pino.Logger; phase: Phase; metrics: Metrics },
): AppDependencies {
  return {
    logger,
    database: core.database,
    verifier: core.verifier,
    lifecycle: core.lifecycle,
    scopes: core.scopes,
    recorder: core.recorder,
    workspaces: core.workspaces,
    tokenRevocation: core.tokenRevocation,
    githubKeys: githubKeysOf(config, logger),
    idempotency: core.idempotency,
    accessTokens: core.accessTokens,
    publicKeys: core.signingKeys.publicKeys,
    cursors: createCursorCodec(core.deriveKeys('cursor')),
    lookAtQuota: createQuotaLook(core),
    readiness: {
      async check() {
        if (phase.draining) throw new Failure('unavailable', 'This instance is shutting down.');
        await core.database.read(readDatabaseTime);
        return { leaseAgeMs: core.membership.leaseAgeMs() ?? null };
      },
    },
    ...appSettings(config),
    metrics: config.METRICS_ENABLED ? metrics : undefined,
    traffic: config.METRICS_ENABLED ? metrics.traffic : undefined,
    isClosing: () => phase.closing,
  };
}

/** By which keys GitHub's reports are checked; `undefined` where the settings name none. */
function githubKeysOf(config: Config, logger: pino.Logger): GithubKeys | undefined {
  const { GITHUB_KEYS_FILE: file, GITHUB_KEYS_URL: url } = config;
  if (file === undefined && url === undefined) return undefined;
  return createGithubKeys({ listed: listedKeys(file), url, report: reporterOf(logger) });
}

function listedKeys(file: string | undefined): ReturnType<typeof readGithubKeys> {
  if (file === undefined) return new Map();
  try {
    return readGithubKeys(readFileSync(file, 'utf8'));
  } catch {
    throw new StartError(
      'GITHUB_KEYS_FILE cannot be read as a list of public keys. It takes what GitHub answers at https://api.github.com/meta/public_keys/secret_scanning',
    );
  }
}

/** Runs the service until a signal ends it. */
export async function serve(config: Config, options: Pick<CoreOptions, 'broken'> = {}): Promise<void> {
  const logger = createLogger(config.LOG_LEVEL);
  const { TLS_CERT_FILE: certFile, TLS_KEY_FILE: keyFile } = config;
  const files = certFile === undefined || keyFile === undefined ? undefined : { certFile, keyFile };
  const tls = files && readCertificate(files).context;
  const tracing = await openTracing(config, reporterOf(logger));
  const metrics = createMetrics(readVersion());
  const core = await openCore(config, {
    role: 'service',
    report: reporterOf(logger),
    observers: metrics.observers,
    ...options,
  });
  metrics.watch(core, config);
  const phase: Phase = { draining: false, closing: false };
  let app: FastifyInstance | undefined;
  let connections: ReadonlySet<net.Socket>;
  let firstAdmin: Awaited<ReturnType<typeof makeFirstAdmin>>;
  try {
    // Before the first admin key is made, since what it reads may stop the start, and the key with it.
    const dependencies = appDependencies(core, config, { logger, phase, metrics });
    firstAdmin = await makeFirstAdmin(core.lifecycle, config);
    app = await buildApp({
      ...dependencies,
      ...(tls && { tls }),
      ...(tracing && { tracing: tracing.plugin }),
    });
    connections = watchConnections(app.server);
    metrics.watchConnections(connections);
    await listen(app, config);
  } catch (error) {
    await app?.close();
    await core.close();
    throw error;
  }

  const running = app;
  if (files !== undefined) rereadOnHangup(running.server, files, logger);
  const skip = files === undefined ? [] : ['SIGHUP' as const];
  closeWithGrace({ delay: DRAIN_LIMIT_MS, logger: false, skip }, async ({ signal, err }) => {
    if (err !== undefined) logger.fatal({ err: loggable(err) }, 'stopping after a fault');
    else logger.info({ signal }, 'draining');
    const flushUntil = performance.now() + DRAIN_LIMIT_MS - DRAIN_GOODBYE_MS;
    await drain(running, { phase, connections, membership: core.membership, quota: core.quota });
    await core.close(Math.max(DRAIN_FLUSH_MS, flushUntil - performance.now()));
    await tracing?.stop();
    logger.info('stopped');
  });
  // Only now: who reads that it listens may send a signal at once.
  if (core.movedTo !== undefined) say(`The embedded PostgreSQL keeps its data in ${core.movedTo}`);
  welcome(addressOf(running, config), firstAdmin, config);
}

/** Traces, where they are asked for: else not even what makes them is loaded. */
async function openTracing(
  { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, OTEL_TRACES_SAMPLER_ARG: sample }: Config,
  report: CoreOptions['report'],
): Promise<Tracing | undefined> {
  if (endpoint === undefined) return undefined;
  const { startTracing } = await import('./tracing.ts');
  return startTracing({ endpoint, sample, version: readVersion(), report });
}

/**
 * Lets every request that reaches this instance have its answer. First `/readyz` alone says that the end is near;
 * then nothing new is accepted, and each answer asks its client to close; last, idle connections are closed.
 */
async function drain(
  app: FastifyInstance,
  {
    phase,
    connections,
    membership,
    quota,
  }: { phase: Phase; connections: ReadonlySet<net.Socket>; membership: Membership; quota: Quota },
): Promise<void> {
  phase.draining = true;
  quota.drain();
  await connectionsEnd(connections, DRAIN_NOTICE_MS);
  // Closing resets connections that the kernel has queued. Right after a turn's I/O these are the fewest; who looks
  // at /readyz has sent none for a while.
  await new Promise<void>((resolve) => setImmediate(resolve));
  // http.Server's own close would end idle connections at once, also one whose next request is on its way.
  net.Server.prototype.close.call(app.server);
  phase.closing = true;
  await connectionsEnd(connections, DRAIN_IDLE_MS);
  const closed = app.close();
  // What Node holds to be idle does not include a connection that has never been used.
  for (const socket of connections) if (socket.bytesRead === 0) socket.destroy();
  const limit = setTimeout(() => {
    // A change that still waits for a silent instance is told so, rather than cut off.
    const told = membership.close().then(() => sleep(DRAIN_LAST_WORDS_MS));
    void told.finally(() => {
      for (const socket of connections) socket.destroy();
    });
  }, DRAIN_ANSWERS_MS);
  await closed;
  clearTimeout(limit);
}

async function connectionsEnd(connections: ReadonlySet<net.Socket>, limitMs: number): Promise<void> {
  const deadline = performance.now() + limitMs;
  while (performance.now() < deadline && connections.size > 0) await sleep(20);
}

/** A TLS connection is there twice: as its socket, and as what is read from that once its handshake is over. */
function watchConnections(server: net.Server): ReadonlySet<net.Socket> {
  const connections = new Set<net.Socket>();
  const watch = (socket: net.Socket) => {
    connections.add(socket);
    socket.once('close', () => connections.delete(socket));
  };
  server.on('connection', watch).on('secureConnection', watch);
  return connections;
}

async function listen(app: FastifyInstance, { HOST, PORT }: Config): Promise<void> {
  try {
    await app.listen({ host: HOST, port: PORT });
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined;
    if (code === 'EADDRINUSE')
      throw new StartError(
        `Port ${PORT} on ${HOST} is taken. Set PORT to another one, such as PORT=${PORT + 1}.`,
      );
    if (code === 'EACCES')
      throw new StartError(
        `Port ${PORT} on ${HOST} may not be used by this user. Set PORT to one above 1023.`,
      );
    if (code === 'EADDRNOTAVAIL' || code === 'ENOTFOUND')
      throw new StartError(`HOST ${HOST} is no address of this machine.`);
    throw error;
  }
}

/** Brings the database to this release, and ends. */
export async function migrate(config: Config): Promise<void> {
  const core = await openCore(config, {
    role: 'visitor',
    report: reporterOf(createLogger(config.LOG_LEVEL)),
  });
  await core.close();
}

/** Makes an admin service key and answers its token. */
export async function createAdminKey(config: Config, name: string): Promise<string> {
  const core = await openCore(config, {
    role: 'visitor',
    report: reporterOf(createLogger(config.LOG_LEVEL)),
  });
  try {
    const { token } = await core.lifecycle.createAdmin(name);
    return token;
  } finally {
    await core.close();
  }
}

/** The token of the first admin key, where one was made and is to be shown. */
async function makeFirstAdmin(
  lifecycle: KeyLifecycle,
  config: Config,
): Promise<'present' | 'written' | 'absent' | { token: string }> {
  const { ADMIN_KEY_FILE: file } = config;
  if (file !== undefined) {
    const made = await lifecycle.createFirstAdmin(({ token }) => writeSecretFile(file, `${token}\n`));
    return made ? 'written' : 'present';
  }
  if (config.DATABASE_URL !== undefined) return (await lifecycle.hasServiceKey()) ? 'present' : 'absent';
  let shown = '';
  const made = await lifecycle.createFirstAdmin(async ({ token }) => {
    shown = token;
  });
  return made ? { token: shown } : 'present';
}

/** Whole or not at all, and for its owner's eyes from the first byte on. */
async function writeSecretFile(path: string, content: string): Promise<void> {
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    const file = await open(temporary, 'wx', 0o600);
    try {
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    const code = error instanceof Error && 'code' in error ? ` (${error.code})` : '';
    throw new StartError(
      `ADMIN_KEY_FILE cannot be written${code}. Name a file in a folder that this user can write to.`,
    );
  }
}

function schemeOf({ TLS_CERT_FILE: certFile }: Config): 'http' | 'https' {
  return certFile === undefined ? 'http' : 'https';
}

function addressOf(app: FastifyInstance, config: Config): string {
  const { HOST: host } = config;
  const bound = app.server.address() as AddressInfo;
  const shown = host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host;
  return `${schemeOf(config)}://${net.isIPv6(shown) ? `[${shown}]` : shown}:${bound.port}`;
}

function welcome(address: string, admin: Awaited<ReturnType<typeof makeFirstAdmin>>, config: Config): void {
  say(`Claviger listens on ${address} - its documentation: ${address}/docs`);
  if (admin === 'written') say(`The first admin key is in ${config.ADMIN_KEY_FILE}`);
  if (admin === 'absent')
    say('There is no service key yet. Make one with: claviger create-admin-key --name me');
  if (typeof admin === 'string') return;
  say(`
This is the first start. Keep the admin key: it is shown this once.

  export CLAVIGER_KEY=${admin.token}

Create a key:

  KEY=$(curl -sS ${address}/v1/api-keys -H "Authorization: Bearer $CLAVIGER_KEY" -H 'Content-Type: application/json' \\
    -d '{"workspace_id": "ws_acme", "name": "My first key", "scopes": ["read"]}' | sed 's/.*"key":"\\([^"]*\\)".*/\\1/'); echo "$KEY"

Ask what it may do:

  curl -sS ${address}/v1/introspect -H "Authorization: Bearer $CLAVIGER_KEY" -H 'Content-Type: application/json' \\
    -d "{\\"key\\": \\"$KEY\\", \\"scopes\\": [\\"read\\"]}"
`);
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}
