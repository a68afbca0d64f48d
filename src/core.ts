import { randomBytes } from 'node:crypto';
import type { Config } from './config.ts';
import { Failure } from './domain/errors.ts';
import { type KeyPurpose, type KeySecret, keySecret } from './domain/key-secret.ts';
import type { SignalThresholds } from './domain/signal.ts';
import { createTokenMint } from './domain/token.ts';
import { openEmbeddedPostgres } from './embedded-postgres.ts';
import { type AccessTokenLifecycle, createAccessTokenLifecycle } from './lifecycle/access-tokens.ts';
import {
  createIdempotency,
  type Idempotency,
  type IdempotencyObserver,
  UNOBSERVED_IDEMPOTENCY,
} from './lifecycle/idempotency.ts';
import { createKeyLifecycle, type KeyLifecycle } from './lifecycle/keys.ts';
import { createScopeLifecycle, type ScopeLifecycle } from './lifecycle/scopes.ts';
import { createTokenRevocation, type TokenRevocation } from './lifecycle/token-revocation.ts';
import { createWorkspaceLifecycle, type WorkspaceLifecycle } from './lifecycle/workspaces.ts';
import { createFailureKeeper, createSignalSweep, type FailureKeeper } from './recording/failures.ts';
import { type RecordingObserver, UNOBSERVED_RECORDING } from './recording/observer.ts';
import { createRecorder, type Recorder } from './recording/recorder.ts';
import { createRequestLog, forgetOldAddresses, type RequestLogKeeper } from './recording/request-log.ts';
import { createUpkeep, type KeptTable } from './recording/upkeep.ts';
import { createUsageKeeper, type UsageKeeper } from './recording/usage.ts';
import { type Connection, connectionTo, unreachable } from './storage/connection.ts';
import {
  createDatabase,
  type Database,
  type DatabaseObserver,
  type PooledDatabase,
  StorageError,
  UNOBSERVED_DATABASE,
} from './storage/database.ts';
import { countUncoveredSecrets, storeSecret } from './storage/key-secrets.ts';
import { readDatabaseTime } from './storage/keys.ts';
import { migrateDatabase } from './storage/migrations.ts';
import { PARTITIONED_TABLES } from './storage/partitions.ts';
import { exchangeQuota } from './storage/rate-windows.ts';
import { forgetExpiredTokens } from './storage/revoked-tokens.ts';
import { loadCatalogue } from './storage/scopes.ts';
import { type CatalogueCache, createCatalogueCache } from './verification/catalogue-cache.ts';
import { createCounterSweep } from './verification/counter-sweep.ts';
import {
  type BrokenRule,
  createMembership,
  joinMemories,
  type Membership,
} from './verification/membership.ts';
import { type EngineObserver, UNOBSERVED } from './verification/observer.ts';
import { createQuota, type Quota } from './verification/quota.ts';
import { createRecordCache, type RecordCache } from './verification/record-cache.ts';
import { createSecretHasher, type SecretHasher } from './verification/secret-hasher.ts';
import { createSigningKeys, type SigningKeys } from './verification/signing-keys.ts';
import { createVerifier, type Resolved, type Verifier } from './verification/verifier.ts';

/** How many argon2 computations may wait for a slot (contract §3: at least 256). */
const HASH_QUEUE_LENGTH = 256;

/** The service cannot start; `message` is what the operator has to know, without a stack. */
export class StartError extends Error {
  override readonly name = 'StartError';
}

/** All that stands between the settings and the HTTP service. */
export interface Core {
  readonly database: PooledDatabase;
  readonly membership: Membership;
  readonly cache: RecordCache<Resolved>;
  readonly catalogues: CatalogueCache;
  readonly hasher: SecretHasher;
  readonly verifier: Verifier;
  readonly lifecycle: KeyLifecycle;
  readonly scopes: ScopeLifecycle;
  readonly accessTokens: AccessTokenLifecycle;
  readonly signingKeys: SigningKeys;
  readonly recorder: Recorder;
  readonly workspaces: WorkspaceLifecycle;
  readonly tokenRevocation: TokenRevocation;
  readonly usage: UsageKeeper;
  readonly requestLog: RequestLogKeeper;
  readonly failures: FailureKeeper;
  readonly idempotency: Idempotency;
  readonly quota: Quota;
  /** Keys of one purpose, derived from each secret, newest first. */
  deriveKeys(purpose: KeyPurpose): readonly [Buffer, ...Buffer[]];
  /** Where the embedded database keeps its files, if that is not the folder asked for. */
  readonly movedTo: string | undefined;
  /** @param flushWithinMs how long it may take to write what the recorder still has. */
  close(flushWithinMs?: number): Promise<void>;
}

/** How long the recorder may take at the end, where nobody said otherwise. */
const FLUSH_WITHIN_MS = 2_000;

/** Who is told of what happens. */
export interface CoreObservers {
  readonly engine: EngineObserver;
  readonly recording: RecordingObserver;
  readonly database: DatabaseObserver;
  readonly idempotency: IdempotencyObserver;
}

const NOBODY: CoreObservers = {
  engine: UNOBSERVED,
  recording: UNOBSERVED_RECORDING,
  database: UNOBSERVED_DATABASE,
  idempotency: UNOBSERVED_IDEMPOTENCY,
};

export interface CoreOptions {
  /**
   * `service` joins the instances that answer from memory. `visitor` is a command that runs beside a service: it
   * uses that service's embedded database, and verifies nothing.
   */
  readonly role: 'service' | 'visitor';
  report(event: { readonly message: string; readonly cause?: unknown }): void;
  readonly observers?: CoreObservers;
  /** Rules that a test switches off, to see that it notices. */
  readonly broken?: ReadonlySet<BrokenRule>;
}

/** Opens and migrates the database, and puts together what works on it. */
export async function openCore(config: Config, options: CoreOptions): Promise<Core> {
  const embedded =
    config.DATABASE_URL === undefined
      ? await openEmbeddedPostgres({ dataDir: config.DATA_DIR, role: options.role })
      : undefined;
  try {
    const url = config.DATABASE_URL ?? embedded?.url;
    const secrets = config.KEY_SECRET ?? (embedded && ([embedded.keySecret] as const));
    if (url === undefined || secrets === undefined)
      throw new StartError('There is no database and no secret.');
    const core = await assemble(config, { url, secrets }, options);
    return {
      ...core,
      movedTo: embedded?.moved === true ? embedded.folder : undefined,
      async close(flushWithinMs) {
        await core.close(flushWithinMs);
        await embedded?.stop();
      },
    };
  } catch (error) {
    await embedded?.stop();
    throw error;
  }
}

async function assemble(
  config: Config,
  { url, secrets: [newest, ...older] }: { url: string; secrets: readonly [string, ...string[]] },
  { role, report, observers = NOBODY, broken = new Set() }: CoreOptions,
): Promise<Omit<Core, 'movedTo'>> {
  const observer = observers.engine;
  const listenUrl = config.DATABASE_LISTEN_URL ?? url;
  const listenSetting = config.DATABASE_LISTEN_URL === undefined ? 'DATABASE_URL' : 'DATABASE_LISTEN_URL';
  await migrateDatabase(listenUrl, listenSetting);
  const database = createDatabase({
    url,
    poolSize: config.DATABASE_POOL_SIZE,
    applicationName: 'claviger',
    onConnectionLost: (cause) => report({ message: 'an idle database connection was lost', cause }),
    observer: observers.database,
  });
  const cache = createRecordCache<Resolved>({ capacity: config.CACHED_KEYS, broken });
  const catalogues = createCatalogueCache({
    readEntries: () => database.read(loadCatalogue),
    unmatched: config.CATALOGUE_UNMATCHED,
    broken,
  });
  const quota = createQuota({
    exchange: (asks) => database.read((executor) => exchangeQuota(executor, asks)),
    onOutage: config.RATE_LIMIT_ON_OUTAGE,
    capacity: config.CACHED_KEYS,
    observer,
    report,
  });
  const leaseMs = config.LEASE_SECONDS * 1000;
  const membership = createMembership({
    database,
    listenTo: connectionTo(listenUrl, listenSetting),
    leaseMs,
    memory: joinMemories(cache, catalogues, quota),
    hearQuota: quota.hear,
    observer,
    report,
    broken,
  });
  const thresholds = signalThresholds(config);
  const usage = createUsageKeeper({
    database,
    growth: thresholds.growth,
    observer: observers.recording,
    report,
  });
  const upkeep = createUpkeep({
    database,
    tables: keptTables(config),
    chores: [createCounterSweep(), forgetOldAddresses, createSignalSweep(thresholds), forgetExpiredTokens],
    observer: observers.recording,
    report,
  });
  const requestLog = createRequestLog({
    database,
    sample: config.REQUEST_LOG_SAMPLE,
    perSecond: config.REQUEST_LOG_PER_SECOND,
    observer: observers.recording,
    report,
    wrote: upkeep.wrote,
  });
  const failures = createFailureKeeper({ database, threshold: thresholds.burst });
  const recorder = createRecorder({
    database,
    keepers: [usage, requestLog, failures],
    isOn: config.RECORDING,
  });
  let idempotency: Idempotency | undefined;
  let signingKeys: SigningKeys | undefined;
  const close = async (flushWithinMs = FLUSH_WITHIN_MS) => {
    idempotency?.stop();
    signingKeys?.stop();
    await upkeep.close();
    // Before the lease goes: as long as others count on this instance, it has told what it did.
    await recorder.close(flushWithinMs);
    await quota.close();
    await membership.close();
    await database.close();
  };
  try {
    const secrets: readonly [KeySecret, ...KeySecret[]] = [keySecret(newest), ...older.map(keySecret)];
    const [minting, ...former] = secrets;
    const deriveKeys = (purpose: KeyPurpose): readonly [Buffer, ...Buffer[]] => [
      minting.derive(purpose),
      ...former.map((secret) => secret.derive(purpose)),
    ];
    await reach(database, connectionTo(url));
    await refuseUncoveredSecrets(database, secrets);
    const mint = createTokenMint(deriveKeys('mint'), randomBytes);
    const hasher = createSecretHasher({
      parameters: {
        memoryKib: config.ARGON2_MEMORY_KIB,
        timeCost: config.ARGON2_TIME_COST,
        parallelism: config.ARGON2_PARALLELISM,
      },
      slots: config.argon2Slots,
      queueLength: HASH_QUEUE_LENGTH,
      observer,
    });
    const secretId = await database.read((executor) => storeSecret(executor, minting.fingerprint));
    const lifecycle = createKeyLifecycle({
      database,
      membership,
      hasher,
      mint,
      secretId,
      prefix: config.KEY_PREFIX,
      environments: config.environmentLimits,
    });
    const workspaces = createWorkspaceLifecycle(membership);
    const scopes = createScopeLifecycle(membership);
    signingKeys = createSigningKeys({
      database,
      secrets: deriveKeys('signing'),
      secretId,
      rotationDays: config.OAUTH_KEY_ROTATION_DAYS,
      report,
    });
    const memoKey = config.VERIFICATION_MEMO ? minting.derive('memo') : undefined;
    const verifier = createVerifier({
      database,
      mint,
      hasher,
      cache,
      catalogues,
      quota,
      signingKeys,
      lease: membership,
      memoKey,
      observer,
    });
    const accessTokens = createAccessTokenLifecycle({
      database,
      membership,
      verifier,
      signingKeys,
      lifetimeSeconds: config.OAUTH_TOKEN_SECONDS,
    });
    const answerSecret = (secret: KeySecret) => ({
      lookup: secret.derive('idempotency'),
      seal: secret.derive('answer'),
    });
    idempotency = createIdempotency({
      database,
      secrets: [answerSecret(minting), ...former.map(answerSecret)],
      observer: observers.idempotency,
    });
    if (role === 'service') {
      await signingKeys.start();
      await membership.start();
      idempotency.start();
      upkeep.start();
    }
    return {
      database,
      membership,
      cache,
      catalogues,
      hasher,
      verifier,
      lifecycle,
      workspaces,
      tokenRevocation: createTokenRevocation({ verifier, membership, hasher, database }),
      idempotency,
      scopes,
      accessTokens,
      signingKeys,
      recorder,
      usage,
      requestLog,
      failures,
      quota,
      deriveKeys,
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** From when on something is a signal. */
export function signalThresholds(config: Config): SignalThresholds {
  return {
    unusedDays: config.RECORDING ? config.SIGNAL_UNUSED_DAYS : null,
    rotationDueDays: config.ROTATION_DUE_DAYS,
    expiringDays: config.SIGNAL_EXPIRING_DAYS,
    growth: { factor: config.SIGNAL_GROWTH_FACTOR, minimum: config.SIGNAL_GROWTH_MINIMUM },
    burst: { failures: config.SIGNAL_BURST_FAILURES, windowMinutes: config.SIGNAL_BURST_MINUTES },
    recentDays: config.SIGNAL_RECENT_DAYS,
  };
}

/** All tables that grow with time, each with how long it is kept. */
function keptTables(config: Config): readonly KeptTable[] {
  const retentionDays: Record<keyof typeof PARTITIONED_TABLES, number | null> = {
    request_logs: config.REQUEST_LOG_RETENTION_DAYS,
    audit_events: config.AUDIT_RETENTION_DAYS,
    usage: config.USAGE_RETENTION_DAYS,
    usage_durations: config.USAGE_RETENTION_DAYS,
  };
  return Object.values(PARTITIONED_TABLES).map((table) => ({
    table,
    retentionDays: retentionDays[table.name],
  }));
}

/** The first statement through `DATABASE_URL`; the migration may have gone another way. */
async function reach(database: Database, connection: Connection): Promise<void> {
  await database.read(readDatabaseTime).catch((error: unknown) => {
    const fault = error instanceof Failure ? error.cause : error;
    throw fault instanceof StorageError ? unreachable(connection, fault.code) : error;
  });
}

async function refuseUncoveredSecrets(database: Database, secrets: readonly KeySecret[]): Promise<void> {
  const fingerprints = secrets.map((secret) => secret.fingerprint);
  const uncovered = await database.read((executor) => countUncoveredSecrets(executor, fingerprints));
  if (uncovered === 0) return;
  throw new StartError(
    `KEY_SECRET does not cover ${uncovered} of the secrets that unrevoked keys, or signing keys, were made with. ` +
      'Add the former secret behind the new one: KEY_SECRET=new,former',
  );
}
