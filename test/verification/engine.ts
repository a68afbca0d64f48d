import { randomBytes, randomUUID } from 'node:crypto';
import { onTestFinished } from 'vitest';
import type { Caller } from '../../src/domain/caller.ts';
import type { Decision } from '../../src/domain/decision.ts';
import { type KeyId, newKeyId } from '../../src/domain/key-id.ts';
import { keySecret } from '../../src/domain/key-secret.ts';
import { createTokenMint } from '../../src/domain/token.ts';
import { type AccessTokenLifecycle, createAccessTokenLifecycle } from '../../src/lifecycle/access-tokens.ts';
import type { CreatedKey } from '../../src/lifecycle/key-maker.ts';
import { createKeyLifecycle, type KeyLifecycle } from '../../src/lifecycle/keys.ts';
import { createWorkspaceLifecycle, type WorkspaceLifecycle } from '../../src/lifecycle/workspaces.ts';
import { connectionTo } from '../../src/storage/connection.ts';
import { createDatabase, type Database } from '../../src/storage/database.ts';
import { storeSecret } from '../../src/storage/key-secrets.ts';
import type { Subject } from '../../src/storage/membership.ts';
import { exchangeQuota } from '../../src/storage/rate-windows.ts';
import { loadCatalogue } from '../../src/storage/scopes.ts';
import { createCatalogueCache } from '../../src/verification/catalogue-cache.ts';
import {
  type BrokenRule,
  createMembership,
  joinMemories,
  type Membership,
  type Propagation,
} from '../../src/verification/membership.ts';
import type { EngineObserver } from '../../src/verification/observer.ts';
import { createQuota } from '../../src/verification/quota.ts';
import { createRecordCache, type RecordCache } from '../../src/verification/record-cache.ts';
import {
  type Argon2Parameters,
  createSecretHasher,
  type SecretHasher,
} from '../../src/verification/secret-hasher.ts';
import { createSigningKeys } from '../../src/verification/signing-keys.ts';
import { createVerifier, type Resolved, type Soon, type Verifier } from '../../src/verification/verifier.ts';
import { TEST_KEY_SECRET } from '../support/app.ts';
import type { TestDatabase } from '../support/database.ts';

/** The engine of one instance, put together as core.ts does it, with what it tells of itself counted. */
export interface Engine {
  readonly database: Database;
  readonly membership: Membership;
  readonly cache: RecordCache<Resolved>;
  readonly hasher: SecretHasher;
  readonly verifier: Verifier;
  readonly lifecycle: KeyLifecycle;
  /** How often the observer was told what, as `lookedUp memory`. */
  count(event: string): number;
  readonly reports: readonly string[];
  /** A key of the workspace `ws_acme`, if nothing else is said. */
  createKey(settings?: { workspaceId?: string; expiresAt?: number | null }): Promise<CreatedKey>;
  verify(token: string): Soon<Decision>;
  /** What an introspection of the token comes to: `active`, or why not. */
  verdict(token: string): Promise<string>;
  revoke(id: KeyId): ReturnType<KeyLifecycle['revoke']>;
  /** An access token of the key. */
  issue(created: CreatedKey): Promise<string>;
  revokeToken(jwt: string): ReturnType<AccessTokenLifecycle['revoke']>;
  revokeWorkspace(id: string): ReturnType<WorkspaceLifecycle['revokeKeys']>;
  /** A successor; the key itself lives on for a day. */
  rotate(id: KeyId): ReturnType<KeyLifecycle['rotate']>;
  /** A change that leaves everything as it is, and makes it stale all the same. */
  touch(subject: Subject): Promise<Propagation>;
}

export interface EngineOptions {
  readonly secret?: string;
  /** What stands behind it in KEY_SECRET: it mints no more, and what it minted is good. */
  readonly formerSecret?: string;
  readonly memo?: boolean;
  readonly capacity?: number;
  readonly leaseMs?: number;
  readonly parameters?: Argon2Parameters;
  readonly slots?: number;
  readonly poolSize?: number;
  /** Rules that are switched off, to see that a test notices. */
  readonly broken?: readonly BrokenRule[];
  /** Wraps what the engine works with, to delay it or to make it fail. */
  readonly wrapDatabase?: (database: Database) => Database;
  readonly wrapHasher?: (hasher: SecretHasher) => SecretHasher;
}

export const CHEAP: Argon2Parameters = { memoryKib: 1024, timeCost: 1, parallelism: 1 };
const LEASE_MS = 10_000;

const ADMIN: Omit<Caller, 'now'> = {
  keyId: newKeyId(Date.now()),
  name: 'A test',
  permissions: ['admin'],
  allowedWorkspaces: null,
  allowedIps: null,
  expiresAt: null,
};
const ORIGIN = { address: '127.0.0.1', requestId: 'req_test' };

/** Not a member yet: call `membership.start()`. Closed when the test ends. */
export async function openEngine(test: TestDatabase, options: EngineOptions = {}): Promise<Engine> {
  const real = createDatabase({
    url: test.url,
    poolSize: options.poolSize ?? 4,
    applicationName: 'engine test',
    onConnectionLost: () => undefined,
  });
  const database = options.wrapDatabase?.(real) ?? real;
  const { observer, count } = createCounter();
  const broken = new Set(options.broken);
  const cache = createRecordCache<Resolved>({ capacity: options.capacity ?? 1000, broken });
  const catalogues = createCatalogueCache({
    readEntries: () => database.read(loadCatalogue),
    unmatched: 'refuse',
    broken,
  });
  const plainHasher = createSecretHasher({
    parameters: options.parameters ?? CHEAP,
    slots: options.slots ?? 1,
    queueLength: 256,
    observer,
  });
  const hasher = options.wrapHasher?.(plainHasher) ?? plainHasher;
  const reports: string[] = [];
  const quota = createQuota({
    exchange: (asks) => database.read((executor) => exchangeQuota(executor, asks)),
    onOutage: 'refuse',
    capacity: options.capacity ?? 1000,
    observer,
    report: ({ message }) => reports.push(message),
  });
  const membership = createMembership({
    database,
    listenTo: connectionTo(test.url),
    leaseMs: options.leaseMs ?? LEASE_MS,
    memory: joinMemories(cache, catalogues, quota),
    hearQuota: quota.hear,
    observer,
    report: ({ message }) => reports.push(message),
    broken,
  });
  const secret = keySecret(options.secret ?? TEST_KEY_SECRET);
  const former = options.formerSecret === undefined ? [] : [keySecret(options.formerSecret)];
  const mint = createTokenMint(
    [secret.derive('mint'), ...former.map((one) => one.derive('mint'))],
    randomBytes,
  );
  const secretId = await real.read((executor) => storeSecret(executor, secret.fingerprint));
  const lifecycle = createKeyLifecycle({
    database,
    membership,
    hasher: plainHasher,
    mint,
    secretId,
    prefix: 'ck',
    environments: new Map([['live', null]]),
  });
  const signingKeys = createSigningKeys({
    database: real,
    secrets: [secret.derive('signing')],
    secretId,
    rotationDays: 30,
    report: ({ message }) => reports.push(message),
  });
  const memoKey = options.memo === false ? undefined : secret.derive('memo');
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
    lifetimeSeconds: 600,
  });
  onTestFinished(async () => {
    signingKeys.stop();
    await quota.close();
    await membership.close();
    // A test may have closed it already.
    await database.close().catch(() => undefined);
  });
  const caller = (): Caller => ({ ...ADMIN, now: Date.now() });
  const verify = (token: string) => verifier.verify(token, { visibleWorkspaces: null });
  return {
    database,
    membership,
    cache,
    hasher,
    verifier,
    lifecycle,
    count,
    reports,
    verify,
    createKey: ({ workspaceId = 'ws_acme', expiresAt = null } = {}) =>
      lifecycle.create(caller(), ORIGIN, {
        workspaceId,
        environment: 'live',
        name: 'A key',
        scopes: ['read'],
        expiresAt,
        restrictions: null,
        rateLimit: null,
        metadata: null,
        createdBy: null,
      }),
    async verdict(token) {
      const decision = await verify(token);
      return decision.active ? 'active' : decision.code;
    },
    revoke: (id) => lifecycle.revoke(caller(), ORIGIN, id, null),
    async issue({ key, token }) {
      await signingKeys.start();
      const client = { id: key.id, token };
      const issuance = await accessTokens.issue({
        client,
        address: '127.0.0.1',
        scopes: undefined,
        issuer: 'https://issuer.test',
      });
      if (!issuance.issued) throw new Error(`no token was issued: ${issuance.because}`);
      return issuance.jwt;
    },
    revokeToken: (jwt) => accessTokens.revoke(jwt, { origin: ORIGIN, clientId: null }),
    revokeWorkspace: (id) =>
      createWorkspaceLifecycle(membership).revokeKeys(caller(), ORIGIN, id, {
        environment: undefined,
        createdBy: undefined,
        reason: null,
      }),
    rotate: (id) => lifecycle.rotate(caller(), ORIGIN, id, 86_400),
    async touch(subject) {
      const run = async () => ({ result: undefined, subject, repeated: false });
      return (await membership.change(run)).propagation;
    },
  };
}

/** The same, leased. */
export async function joinedEngine(test: TestDatabase, options?: EngineOptions): Promise<Engine> {
  const engine = await openEngine(test, options);
  await engine.membership.start();
  return engine;
}

function createCounter(): { observer: EngineObserver; count(event: string): number } {
  const counts = new Map<string, number>();
  const add = (event: string) => void counts.set(event, (counts.get(event) ?? 0) + 1);
  const observer: EngineObserver = {
    lookedUp: (way) => add(`lookedUp ${way}`),
    proved: (by) => add(`proved ${by}`),
    hashed: () => add('hashed'),
    overloaded: () => add('overloaded'),
    changeHeard: () => add('changeHeard'),
    acknowledged: () => add('acknowledged'),
    fenced: () => add('fenced'),
    confirmed: () => add('confirmed'),
    renewed: () => add('renewed'),
    registered: () => add('registered'),
    charged: (way) => add(`charged ${way}`),
    exchanged: () => add('exchanged'),
    left: (reason) => add(`left ${reason}`),
  };
  return { observer, count: (event) => counts.get(event) ?? 0 };
}

/** A way through that can be shut. */
export interface Gate {
  /** From now on everybody waits before it. */
  shut(): void;
  open(): void;
  /** Passes, once it is open. */
  pass(): Promise<void>;
  /** Resolves when somebody waits before it. */
  reached(): Promise<void>;
}

export function createGate(): Gate {
  let opened: Signal | undefined;
  let arrived = createSignal();
  return {
    shut() {
      opened = createSignal();
      arrived = createSignal();
    },
    open() {
      opened?.raise();
      opened = undefined;
    },
    async pass() {
      if (opened === undefined) return;
      arrived.raise();
      await opened.raised;
    },
    reached: () => arrived.raised,
  };
}

interface Signal {
  raise(): void;
  readonly raised: Promise<void>;
}

function createSignal(): Signal {
  let raise: (() => void) | undefined;
  const raised = new Promise<void>((resolve) => {
    raise = resolve;
  });
  return { raise: () => raise?.(), raised };
}

/** Lets single statements of a database through a gate; transactions pass beside it. */
export function gated(database: Database, gate: Gate): Database {
  return {
    ...database,
    async read(run) {
      await gate.pass();
      return database.read(run);
    },
  };
}

/** An instance that is registered and will never be heard of: what a killed one leaves behind. */
export async function leaveDeadInstance(test: TestDatabase, leaseMs: number): Promise<string> {
  const id = randomUUID();
  await test.query('INSERT INTO instances (id, lease_ms) VALUES ($1, $2)', [id, leaseMs]);
  return id;
}

/** Ends the listener's connection from the server's side. */
export async function cutListeners(test: TestDatabase): Promise<void> {
  await test.query(
    `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
     WHERE datname = current_database() AND application_name = 'claviger listener'`,
  );
}

export async function countListeners(test: TestDatabase): Promise<number> {
  const rows = await test.query(
    `SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'claviger listener'`,
  );
  return rows.length;
}

export async function countInstances(test: TestDatabase): Promise<number> {
  return (await test.query('SELECT FROM instances')).length;
}
