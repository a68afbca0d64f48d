import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { BrokenRule } from '../../src/verification/membership.ts';
import type { Disturbance, History, Look, Mutation, Verdict } from '../support/history.ts';
import { type Instance, startInstance } from '../support/instances.ts';
import type { FaultPostgres } from './postgres.ts';
import { type Line, openLine, type Reply, type RequestContent, requestText } from './requests.ts';

export interface TestKey {
  readonly id: string;
  readonly token: string;
  readonly workspace: string;
  /** An access token of the key, for all its scopes: every other look shows that, and has to find the same. */
  readonly accessToken?: string | undefined;
}

/** Several instances on one database, and the recorded history of what they were asked and told. */
export interface Fleet {
  readonly instances: readonly Instance[];
  readonly database: string;
  readonly adminToken: string;
  /** Creates a key with both scopes, by way of this instance. */
  createKey(instance: Instance, workspace: string): Promise<TestKey>;
  /** Takes a key with both scopes that was made otherwise for one of the fleet's. */
  adopt(key: TestKey): TestKey;
  /** Asks on a line of its own whether a key holds a scope, and records what it hears. */
  look(instance: Instance, key: TestKey, scope: Scope): Promise<Look>;
  /** The same of all instances at once, without waiting: whoever is stopped finds it when it wakes. */
  probe(key: TestKey): void;
  /** Writes requests for these keys to an instance; resolves when they wait in its sockets. */
  queue(instance: Instance, keys: readonly TestKey[]): Promise<void>;
  /** Asks without pause until it is told to end. */
  work(instance: Instance, pick: () => { key: TestKey; scope: Scope }): { end(): Promise<void> };
  /** One attempt at a management request. */
  send(instance: Instance, method: string, path: string, content?: RequestContent): Promise<Reply>;
  record(mutation: Mutation): Mutation;
  /** Records that an instance is disturbed from now on; `end` when it should be well again. */
  disturb(instance: Instance, what: string): { end(): void };
  query: FaultPostgres['query'];
  /** Starts a killed instance again, as its supervisor would: until it starts, since PostgreSQL may be away. */
  revive(instance: Instance): Promise<void>;
  /** Restarts PostgreSQL under the instances, which find the new one behind their proxies. */
  restartPostgres(how: 'clean' | 'crash'): Promise<void>;
  /** Resolves when every instance is registered, not fenced, and renews its lease. */
  healthy(): Promise<void>;
  /** What everyone is waiting for, for a person to read. */
  diagnose(): Promise<string>;
  /** Resolves when every request that was written is answered or lost. */
  settled(): Promise<void>;
  /** Takes what was recorded of these keys out of the record. */
  takeHistory(keys: readonly TestKey[]): History;
  close(): Promise<void>;
}

export type Scope = 'read' | 'write';
export const ALL_SCOPES: readonly Scope[] = ['read', 'write'];

/** After a disturbance has ended, an instance may need so long to have its connections again. */
const RECOVERY_MS = 1_500;
const HEALTHY_WITHIN_MS = 60_000;
const REVIVED_WITHIN_ATTEMPTS = 20;
const KEPT_DISTURBANCES_MS = 60_000;

export interface FleetOptions {
  readonly postgres: FaultPostgres;
  readonly broken?: readonly BrokenRule[];
  readonly leaseSeconds?: number;
  readonly count?: number;
  /** More settings, for the database of this name. */
  readonly environment?: (database: string) => Readonly<Record<string, string>>;
  /** The address that instances are given for the database of this name; default: PostgreSQL's own. */
  readonly databaseUrl?: (database: string) => string;
}

let databases = 0;

export async function startFleet({
  postgres,
  broken = [],
  leaseSeconds = 1,
  count = 3,
  environment = () => ({}),
  databaseUrl = postgres.url,
}: FleetOptions): Promise<Fleet> {
  const database = `fleet_${++databases}`;
  await postgres.createDatabase(database);
  const folder = await mkdtemp(join(tmpdir(), 'claviger-fleet-'));
  const adminKeyFile = join(folder, 'admin-key');
  const start = (name: string) =>
    startInstance({
      name,
      databaseUrl: databaseUrl(database),
      leaseSeconds,
      broken,
      environment: { ADMIN_KEY_FILE: adminKeyFile, ...environment(database) },
    });
  // The first migrates and makes the admin key; the others then only join.
  const first = await start('a');
  const others = await Promise.all(['b', 'c', 'd', 'e'].slice(0, count - 1).map(start));
  const instances = [first, ...others];
  const adminToken = (await readFile(adminKeyFile, 'utf8')).trim();

  let looks: Look[] = [];
  let mutations: Mutation[] = [];
  let disturbances: Disturbance[] = [];
  const keys = new Map<string, readonly string[]>();
  const lines = new Map<Instance, Line[]>(instances.map((instance) => [instance, []]));
  const pending = new Map<Promise<unknown>, string>();

  /** A line that carries nothing now: a kept one, or a fresh one. */
  function freeLine(instance: Instance): Line {
    const kept = (lines.get(instance) ?? []).filter((line) => !line.closed);
    let line = kept.find((candidate) => !candidate.busy);
    if (line === undefined) {
      line = openLine(instance.port);
      kept.push(line);
    }
    lines.set(instance, kept);
    return line;
  }

  function track<T>(promise: Promise<T>, what: string): Promise<T> {
    pending.set(promise, `${what}, since ${Math.round(performance.now())}`);
    void promise.finally(() => pending.delete(promise));
    return promise;
  }

  function introspection(key: TestKey, scope: Scope): string {
    return requestText('POST', '/v1/introspect', {
      token: adminToken,
      body: { key: (looks.length % 2 === 0 && key.accessToken) || key.token, scopes: [scope] },
    });
  }

  async function lookOn(line: Line, instance: Instance, key: TestKey, scope: Scope, onWritten?: () => void) {
    const text = introspection(key, scope);
    const begin = performance.now();
    const reply = await line.send(text, onWritten);
    const look: Look = {
      key: key.id,
      instance: instance.name,
      scope,
      begin,
      end: reply.endedAt,
      verdict: verdictOf(reply),
    };
    looks.push(look);
    return look;
  }

  const look = (instance: Instance, key: TestKey, scope: Scope) =>
    track(lookOn(freeLine(instance), instance, key, scope), `look at ${instance.name}`);

  const send: Fleet['send'] = (instance, method, path, { body, idempotencyKey } = {}) =>
    track(
      freeLine(instance).send(requestText(method, path, { token: adminToken, body, idempotencyKey })),
      `${method} ${path} at ${instance.name}`,
    );

  function adopt(key: TestKey): TestKey {
    keys.set(key.id, ALL_SCOPES);
    return key;
  }

  return {
    instances,
    database,
    adminToken,
    query: postgres.query,
    look,
    adopt,

    async createKey(instance, workspace) {
      const body = { workspace_id: workspace, name: 'Fault test', scopes: ALL_SCOPES, rate_limit: null };
      for (;;) {
        const reply = await send(instance, 'POST', '/v1/api-keys', {
          body: { ...body, metadata: { version: 0 } },
        });
        if (reply.kind === 'answer' && reply.status === 201) {
          const { data } = JSON.parse(reply.text);
          return adopt({ id: data.id, token: data.key, workspace });
        }
        if (instance.crash !== undefined) throw new Error(instance.crash);
        if (reply.kind === 'answer' && reply.status !== 503)
          throw new Error(`no key: ${reply.status} ${reply.text}`);
        await sleep(50);
      }
    },

    probe(key) {
      for (const instance of instances) for (const scope of ALL_SCOPES) void look(instance, key, scope);
    },

    async queue(instance, wanted) {
      await Promise.all(
        wanted.flatMap((key) =>
          ALL_SCOPES.map(
            (scope) =>
              new Promise<void>((written) => {
                void track(
                  lookOn(freeLine(instance), instance, key, scope, written),
                  `queued look at ${instance.name}`,
                ).then(() => written());
              }),
          ),
        ),
      );
    },

    work(instance, pick) {
      let working = true;
      const done = (async () => {
        let line = openLine(instance.port);
        while (working) {
          const { key, scope } = pick();
          if (line.closed) line = openLine(instance.port);
          const { verdict } = await lookOn(line, instance, key, scope);
          if (verdict.kind === 'lost') await sleep(20);
        }
        line.close();
      })();
      return {
        end() {
          working = false;
          return done;
        },
      };
    },

    send,

    record(mutation) {
      mutations.push(mutation);
      return mutation;
    },

    disturb(instance, what) {
      const disturbance: Disturbance = {
        instance: instance.name,
        what,
        begin: performance.now(),
        end: undefined,
      };
      disturbances.push(disturbance);
      return {
        end() {
          disturbance.end = performance.now() + RECOVERY_MS;
        },
      };
    },

    async revive(instance) {
      for (let attempts = 1; ; attempts++) {
        try {
          return await instance.restart();
        } catch (cause) {
          if (attempts >= REVIVED_WITHIN_ATTEMPTS) throw cause;
        }
      }
    },

    async restartPostgres(how) {
      await postgres.restart(how);
      const port = Number(new URL(postgres.url()).port);
      for (const { proxy } of instances) proxy.target(port);
    },

    async healthy() {
      const deadline = performance.now() + HEALTHY_WITHIN_MS;
      for (;;) {
        const rows = await postgres.query<{ id: string }>(
          database,
          `SELECT id FROM instances WHERE NOT fenced AND NOT released AND renewed_at > now() - make_interval(secs => $1)`,
          [leaseSeconds / 2],
        );
        const fresh = new Set(rows.map(({ id }) => id));
        const missing = instances.filter(({ registeredAs }) => !fresh.has(registeredAs ?? ''));
        if (missing.length === 0) return;
        if (performance.now() > deadline)
          throw new Error(missing.map((one) => `${one.name} has no lease:\n${one.log()}`).join('\n'));
        await sleep(20);
      }
    },

    async diagnose() {
      const activity = await postgres
        .query(
          database,
          `SELECT pid, application_name, client_port, state, wait_event, now() - xact_start AS xact, left(query, 90) AS query
             FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`,
        )
        .catch(String);
      const rows = await postgres.query(database, 'SELECT * FROM instances').catch(String);
      return [
        `now ${Math.round(performance.now())}`,
        ...pending.values(),
        ...disturbances
          .filter(({ end }) => end === undefined)
          .map(({ instance, what }) => `${instance}: ${what}`),
        JSON.stringify(activity, null, 1),
        JSON.stringify(rows, null, 1),
        ...instances.map(
          ({ name, pid, registeredAs, log }) =>
            `${name} pid ${pid} registered as ${registeredAs}\n${log().slice(-1_500)}`,
        ),
      ].join('\n');
    },

    async settled() {
      while (pending.size > 0) await Promise.all(pending.keys());
    },

    takeHistory(wanted) {
      const ids = new Set(wanted.map(({ id }) => id));
      const [ownLooks, otherLooks] = split(looks, ({ key }) => ids.has(key));
      const [ownMutations, otherMutations] = split(mutations, ({ key }) => ids.has(key));
      looks = otherLooks;
      mutations = otherMutations;
      const history: History = {
        looks: ownLooks,
        mutations: ownMutations,
        disturbances: [...disturbances],
        keys: new Map([...keys].filter(([id]) => ids.has(id))),
      };
      const recent = performance.now() - KEPT_DISTURBANCES_MS;
      disturbances = disturbances.filter(({ end }) => end === undefined || end > recent);
      return history;
    },

    async close() {
      for (const kept of lines.values()) for (const line of kept) line.close();
      await Promise.all(instances.map((instance) => instance.close()));
      await rm(folder, { recursive: true, force: true });
      await postgres.query('claviger', `DROP DATABASE ${database} WITH (FORCE)`);
    },
  };
}

/** An access token for all scopes of a key; `undefined` where a fault is in the way. */
export async function accessTokenOf(instance: Instance, { id, token }: TestKey): Promise<string | undefined> {
  const response = await fetch(`http://127.0.0.1:${instance.port}/oauth/token`, {
    method: 'POST',
    body: new URLSearchParams({ grant_type: 'client_credentials', client_id: id, client_secret: token }),
    signal: AbortSignal.timeout(5_000),
  }).catch(() => undefined);
  if (response?.ok !== true) return undefined;
  return JSON.parse(await response.text()).access_token;
}

function verdictOf(reply: Reply): Verdict {
  if (reply.kind === 'lost') return { kind: 'lost' };
  const { status, text } = reply;
  if (status === 503) return { kind: 'unavailable' };
  if (status !== 200) return { kind: 'other', status, text };
  const body = JSON.parse(text);
  if (body.active === true) return { kind: 'active', version: body.metadata?.version ?? -1 };
  return { kind: 'denied', code: body.reason?.code ?? text };
}

function split<T>(all: readonly T[], belongs: (one: T) => boolean): [T[], T[]] {
  const own: T[] = [];
  const others: T[] = [];
  for (const one of all) (belongs(one) ? own : others).push(one);
  return [own, others];
}
