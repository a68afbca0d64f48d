import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { keyIdFromUuid } from '../../src/domain/key-id.ts';
import { type FaultPostgres, startFaultPostgres } from '../faults/postgres.ts';
import { seededRandom } from '../faults/random.ts';
import { openLine, type Reply, requestText } from '../faults/requests.ts';
import { type Instance, startInstance } from '../support/instances.ts';

/*
 * Introspections are counted exactly, whatever happens to the database and to an instance that is asked to end; one
 * that is killed loses the last second at most. The clients count what they are told, and that is compared.
 */

const INTROSPECTIONS = 100_000;
const LINES_PER_INSTANCE = 6;
/** Long enough for memory to answer while PostgreSQL is away. */
const LEASE_SECONDS = 60;
/** What a machine that is not idle may add to a second. */
const SLACK_MS = 1_000;
const KEYS = 30;

let postgres: FaultPostgres;
let databases = 0;

beforeAll(async () => {
  postgres = await startFaultPostgres();
});
afterAll(() => postgres?.close());

interface Fleet {
  readonly instances: readonly Instance[];
  readonly database: string;
  readonly token: string;
}

async function startInstances(names: readonly string[]): Promise<Fleet> {
  const database = `usage_${++databases}`;
  const databaseUrl = await postgres.createDatabase(database);
  const folder = await mkdtemp(join(tmpdir(), 'claviger-usage-'));
  const adminKeyFile = join(folder, 'admin-key');
  const instances: Instance[] = [];
  onTestFinished(async () => {
    for (const instance of instances) await instance.close();
    await rm(folder, { recursive: true, force: true });
  });
  for (const name of names) {
    instances.push(
      await startInstance({
        name,
        databaseUrl,
        leaseSeconds: LEASE_SECONDS,
        environment: { ADMIN_KEY_FILE: adminKeyFile },
      }),
    );
  }
  return { instances, database, token: (await readFile(adminKeyFile, 'utf8')).trim() };
}

async function ask(instance: Instance, token: string, method: string, path: string, body?: unknown) {
  const line = openLine(instance.port);
  const reply = await line.send(requestText(method, path, { token, body }));
  line.close();
  if (reply.kind !== 'answer' || reply.status >= 300)
    throw new Error(`${method} ${path}: ${JSON.stringify(reply)}`);
  return JSON.parse(reply.text);
}

/** An introspection, and the key that it is counted for; `undefined`: no key. */
interface Case {
  readonly keyId: string | undefined;
  readonly request: string;
}

/** Keys of several workspaces, and questions about them with every kind of answer. */
async function makeCases(instance: Instance, token: string): Promise<Case[]> {
  const cases: Case[] = [];
  const add = (keyId: string | undefined, body: unknown) =>
    cases.push({ keyId, request: requestText('POST', '/v1/introspect', { token, body }) });
  for (let index = 0; index < KEYS; index++) {
    const workspace_id = `ws_${index % 4}`;
    const { data } = await ask(instance, token, 'POST', '/v1/api-keys', {
      workspace_id,
      name: `Key ${index}`,
      scopes: ['read'],
      rate_limit: index === 0 ? { limit: 500, window_seconds: 2_678_400 } : null,
      restrictions: { allowed_ips: ['203.0.113.0/24'] },
    });
    const { id, key } = data;
    const request = { ip: '203.0.113.9' };
    for (let times = 0; times < 4; times++) add(id, { key, scopes: ['read'], request });
    add(id, { key, scopes: ['write'], request });
    add(id, { key, request: { ip: '198.51.100.1' } });
    add(id, { key, workspace_id: 'ws_expected', request });
    add(id, { key, environment: 'test', request });
    if (index % 10 === 9) await ask(instance, token, 'DELETE', `/v1/api-keys/${id}`);
  }
  add(undefined, { key: 'no key at all' });
  return cases;
}

interface Load {
  /** What clients were told, by key and outcome. */
  readonly told: ReadonlyMap<string, number>;
  /** Requests that had no answer, which may have been counted or not. */
  readonly lost: string[];
  answered(): number;
  /** Resolves when so many were answered with a verdict. */
  reached(count: number): Promise<void>;
  readonly ended: Promise<void>;
}

/** Asks all instances until there are so many verdicts. A connection that an instance ends goes on at another one. */
function startLoad(instances: readonly Instance[], cases: readonly Case[], count: number): Load {
  const random = seededRandom(8);
  const told = new Map<string, number>();
  const lost: string[] = [];
  const leaving = new Set<Instance>();
  let verdicts = 0;

  function note({ keyId }: Case, reply: Reply): void {
    if (reply.kind === 'lost') {
      lost.push(reply.why);
      return;
    }
    if (reply.status === 503) return;
    const answer = JSON.parse(reply.text);
    verdicts++;
    if (keyId === undefined) return;
    const entry = `${keyId} ${answer.active ? 'active' : answer.reason.code}`;
    told.set(entry, (told.get(entry) ?? 0) + 1);
  }

  async function work(first: Instance): Promise<void> {
    let instance = first;
    let line = openLine(instance.port);
    while (verdicts < count) {
      const chosen = random.pick(cases);
      note(chosen, await line.send(chosen.request));
      if (!line.closed) continue;
      leaving.add(instance);
      instance = random.pick(instances.filter((other) => !leaving.has(other)));
      line = openLine(instance.port);
    }
    line.close();
  }

  const workers = instances.flatMap((instance) =>
    Array.from({ length: LINES_PER_INSTANCE }, () => work(instance)),
  );
  return {
    told,
    lost,
    answered: () => verdicts,
    async reached(wanted) {
      while (verdicts < wanted) await sleep(10);
    },
    ended: Promise.all(workers).then(() => undefined),
  };
}

/** Counts in both of their places. */
const COUNTS = `(SELECT workspace_id, key_id, code, count FROM usage
  UNION ALL SELECT workspace_id, key_id, 'active', hour_count FROM key_uses JOIN api_keys ON id = key_id
    WHERE hour_count > 0) AS counts`;

/** What the tables say, by key and outcome. */
async function countedIn(database: string): Promise<Map<string, number>> {
  const rows = await postgres.query<{ key_id: string; code: string; count: string }>(
    database,
    `SELECT key_id, code, sum(count) AS count FROM ${COUNTS}
     WHERE key_id <> '00000000-0000-0000-0000-000000000000' GROUP BY key_id, code`,
  );
  return new Map(rows.map(({ key_id, code, count }) => [`${keyIdFromUuid(key_id)} ${code}`, Number(count)]));
}

const sorted = (counts: ReadonlyMap<string, number>) => Object.fromEntries([...counts].sort());

/** Lets a flush commit, takes its answer away, and ends its connection. */
async function loseAnswerToFlush(instance: Instance, database: string): Promise<void> {
  const port = await instance.proxy.holdAnswersTo('COMMIT', 'usage_flushes');
  await expect
    .poll(
      () =>
        postgres.query(
          database,
          `SELECT FROM pg_stat_activity WHERE client_port = $1 AND state = 'idle' AND query = 'COMMIT'`,
          [port],
        ),
      { timeout: 10_000, interval: 20 },
    )
    .not.toEqual([]);
  instance.proxy.cut('reset');
  instance.proxy.deliver();
}

async function metricOf(instance: Instance, name: string): Promise<number> {
  const text = await (await fetch(`http://127.0.0.1:${instance.port}/metrics`)).text();
  return Number(new RegExp(`^${name} (.+)$`, 'm').exec(text)?.[1]);
}

describe('what introspections came to is counted to the last one', () => {
  test('by four instances, while one is drained, answers of commits are lost, connections are killed and PostgreSQL crashes', async () => {
    const { instances, database, token } = await startInstances(['a', 'b', 'c', 'd']);
    const [a, b, c, d] = instances as [Instance, Instance, Instance, Instance];
    const cases = await makeCases(a, token);
    const load = startLoad(instances, cases, INTROSPECTIONS);

    await load.reached(INTROSPECTIONS * 0.1);
    await loseAnswerToFlush(b, database);
    await load.reached(INTROSPECTIONS * 0.2);
    await loseAnswerToFlush(c, database);

    await load.reached(INTROSPECTIONS * 0.3);
    const drained = d.drain();

    await load.reached(INTROSPECTIONS * 0.45);
    const killed = await postgres.query(
      database,
      `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'claviger%' AND datname = $1`,
      [database],
    );
    expect(killed.length).toBeGreaterThan(0);

    await load.reached(INTROSPECTIONS * 0.6);
    await postgres.restart('crash');
    const port = Number(new URL(postgres.url(database)).port);
    for (const instance of instances) instance.proxy.target(port);

    await load.ended;
    const failures = await Promise.all(
      [a, b, c].map((instance) => metricOf(instance, 'claviger_usage_flush_failures_total')),
    );
    expect(await drained).toBe(0);
    expect(await Promise.all([a, b, c].map((instance) => instance.drain()))).toEqual([0, 0, 0]);

    expect(load.lost).toEqual([]);
    expect(load.answered()).toBeGreaterThanOrEqual(INTROSPECTIONS);
    const outcomes = new Set([...load.told.keys()].map((entry) => entry.split(' ')[1]));
    expect([...outcomes].sort()).toEqual([
      'active',
      'insufficient_scope',
      'ip_not_allowed',
      'rate_limited',
      'revoked',
      'wrong_environment',
      'wrong_workspace',
    ]);
    expect(failures[1]).toBeGreaterThan(0);
    expect(failures[2]).toBeGreaterThan(0);
    const counted = await countedIn(database);
    expect(sorted(counted)).toEqual(sorted(load.told));

    const byWorkspace = `SELECT workspace_id, code, sum(count)::int AS count FROM ${COUNTS}
      WHERE (key_id = '00000000-0000-0000-0000-000000000000') = $1 GROUP BY workspace_id, code ORDER BY 1, 2`;
    expect(await postgres.query(database, byWorkspace, [true])).toEqual(
      await postgres.query(database, byWorkspace, [false]),
    );
    // Who drains leaves nothing behind.
    expect(await postgres.query(database, 'SELECT FROM usage_flushes')).toEqual([]);
    for (const instance of instances) expect(instance.crash).toBeUndefined();
  });
});

describe('an instance that is killed', () => {
  test('loses no introspection that was answered more than a second before', async () => {
    const { instances, database, token } = await startInstances(['a']);
    const [a] = instances as [Instance];
    const { data } = await ask(a, token, 'POST', '/v1/api-keys', {
      workspace_id: 'ws_killed',
      name: 'Key',
      rate_limit: null,
    });
    const request = requestText('POST', '/v1/introspect', { token, body: { key: data.key } });
    const countedNow = async () => (await countedIn(database)).get(`${data.id} active`) ?? 0;
    const ages: number[] = [];
    for (let round = 0; round < 5; round++) {
      const before = await countedNow();
      const line = openLine(a.port);
      const answeredAt: number[] = [];
      const until = performance.now() + 2_000 + round * 170;
      while (performance.now() < until) {
        const reply = await line.send(request);
        if (reply.kind === 'answer' && reply.status === 200) answeredAt.push(reply.endedAt);
        await sleep(2);
      }
      const killedAt = performance.now();
      await a.kill();
      line.close();
      const counted = (await countedNow()) - before;
      expect(answeredAt.length).toBeGreaterThan(100);
      expect(counted).toBeLessThanOrEqual(answeredAt.length);
      const firstLost = answeredAt[counted];
      ages.push(firstLost === undefined ? 0 : killedAt - firstLost);
      await a.restart();
    }
    console.log(`lost by kill -9: the last ${ages.map((age) => Math.round(age)).join(', ')} ms`);
    expect(Math.max(...ages)).toBeLessThanOrEqual(1_000 + SLACK_MS);
  });
});
