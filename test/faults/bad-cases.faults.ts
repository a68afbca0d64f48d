import { randomUUID } from 'node:crypto';
import { readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { keyIdFromUuid, keyIdToUuid, uuidFloor } from '../../src/domain/key-id.ts';
import { describeViolation, findViolations } from '../support/history.ts';
import { type Instance, startInstance } from '../support/instances.ts';
import { type Fleet, startFleet, type TestKey } from './fleet.ts';
import { NARROW, revoke, revokeAll, setScopes, WIDE } from './mutator.ts';
import { needPackage } from './packages.ts';
import { type FaultPostgres, startFaultPostgres } from './postgres.ts';

const LEASE_MS = 1_000;
const FENCE_MS = 500 + 1.02 * LEASE_MS;
/** What a busy machine may add. */
const SLACK_MS = 2_000;

let postgres: FaultPostgres;
let fleet: Fleet;
let a: Instance;
let b: Instance;
let c: Instance;

beforeAll(async () => {
  postgres = await startFaultPostgres();
  fleet = await startFleet({ postgres });
  [a, b, c] = fleet.instances as [Instance, Instance, Instance];
});
afterAll(async () => {
  await fleet?.close().finally(() => postgres.close());
});
beforeEach(() => fleet.healthy());
afterEach(() => {
  for (const instance of fleet.instances) {
    instance.wake();
    instance.proxy.deliver();
  }
});

async function violationsOf(keys: readonly TestKey[]): Promise<string> {
  await fleet.settled();
  const history = fleet.takeHistory(keys);
  return findViolations(history)
    .map((violation) => describeViolation(violation, history))
    .join('\n');
}

describe('the database', () => {
  it('cut off: warm keys are answered until the lease is over, then nothing is, and never wrongly', async () => {
    const key = await fleet.createKey(a, 'ws_bad');
    await fleet.look(a, key, 'read');
    const cut = fleet.disturb(a, 'cut off the database');
    const cutAt = performance.now();
    a.proxy.cut('reset');
    const looks = [];
    do {
      looks.push(await fleet.look(a, key, 'read'));
      await sleep(5);
    } while (looks.at(-1)?.verdict.kind === 'active');
    const lastActive = looks.findLast(({ verdict }) => verdict.kind === 'active');
    expect(lastActive?.begin).toBeLessThanOrEqual(cutAt + 0.98 * LEASE_MS);
    expect(looks.at(-1)?.verdict.kind).toBe('unavailable');
    a.proxy.deliver();
    cut.end();
    await fleet.healthy();
    expect((await fleet.look(a, key, 'read')).verdict).toEqual({ kind: 'active', version: 0 });
    expect(await violationsOf([key])).toBe('');
  });

  it('slow: an instance behind a slow network answers, and so does a revocation by way of it', async () => {
    const key = await fleet.createKey(b, 'ws_bad');
    a.proxy.delay(100);
    expect((await fleet.look(a, key, 'read')).verdict).toEqual({ kind: 'active', version: 0 });
    const { propagation } = await revoke(fleet, [a], key);
    expect(propagation).toBeDefined();
    expect(await violationsOf([key])).toBe('');
  });

  it('silent: requests and mutations that need it end with 503 rather than wait for ever', async () => {
    const key = await fleet.createKey(b, 'ws_bad');
    const stalled = fleet.disturb(a, 'stalled');
    a.proxy.stall();
    const [look, mutation] = await Promise.all([
      fleet.look(a, key, 'read'),
      fleet.send(a, 'DELETE', `/v1/api-keys/${key.id}`),
    ]);
    expect(look.verdict.kind).toBe('unavailable');
    expect(mutation).toMatchObject({ kind: 'answer', status: 503 });
    a.proxy.deliver();
    stalled.end();
    await fleet.healthy();
    fleet.takeHistory([key]);
    await revoke(fleet, [a], key);
    expect(await violationsOf([key])).toBe('');
  });

  it('an author that falls silent within its transaction does not keep a key from being revoked elsewhere', async () => {
    const key = await fleet.createKey(b, 'ws_bad');
    const silent = fleet.disturb(a, 'silent within a transaction');
    const locking = a.proxy.holdAnswersTo('for no key update');
    const lost = fleet.send(a, 'DELETE', `/v1/api-keys/${key.id}`);
    await locking;
    a.stop();
    const { propagation } = await revoke(fleet, [b, c], key);
    expect(propagation).toBeDefined();
    await fleet.queue(a, [key]);
    a.wake();
    a.proxy.deliver();
    await lost;
    silent.end();
    expect(await violationsOf([key])).toBe('');
  });
});

describe('the listeners', () => {
  it('flapping everywhere: every revocation is answered all the same, and holds', async () => {
    const keys: TestKey[] = [];
    for (let count = 0; count < 6; count++) {
      const key = await fleet.createKey(a, 'ws_bad');
      for (const instance of fleet.instances) await fleet.look(instance, key, 'read');
      keys.push(key);
    }
    const flapping = fleet.instances.map((instance) => fleet.disturb(instance, 'listener flapping'));
    let going = true;
    const terminating = (async () => {
      while (going) {
        await fleet.query(
          fleet.database,
          `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE application_name = 'claviger listener' AND datname = current_database() AND random() < 0.5`,
        );
        await sleep(150);
      }
    })();
    const confirmed = await Promise.all(
      keys.map((key, index) => revoke(fleet, [a, b, c].slice(index % 3), key)),
    );
    going = false;
    await terminating;
    for (const disturbance of flapping) disturbance.end();
    expect(confirmed.filter(({ propagation }) => propagation === undefined)).toEqual([]);
    expect(await violationsOf(keys)).toBe('');
  });

  it('an instance that never acknowledges costs one fence and one lease, once', async () => {
    const [first, second] = [await fleet.createKey(a, 'ws_bad'), await fleet.createKey(a, 'ws_bad')];
    const mute = randomUUID();
    await fleet.query(fleet.database, 'INSERT INTO instances (id, lease_ms) VALUES ($1, $2)', [
      mute,
      LEASE_MS,
    ]);
    const { propagation } = await revoke(fleet, [a], first);
    expect(propagation?.fenced).toBeGreaterThanOrEqual(1);
    expect(propagation?.waited_ms).toBeGreaterThanOrEqual(Math.floor(FENCE_MS));
    expect(propagation?.waited_ms).toBeLessThan(FENCE_MS + SLACK_MS);
    // Its row is taken away just after the answer, or by the next change.
    await fleet.healthy();
    const next = await revoke(fleet, [b], second);
    expect(next.propagation?.waited_ms).toBeLessThan(FENCE_MS);
    const rows = await fleet.query(fleet.database, 'SELECT FROM instances WHERE id = $1 AND NOT released', [
      mute,
    ]);
    expect(rows).toEqual([]);
    expect(await violationsOf([first, second])).toBe('');
  });
});

describe('many changes', () => {
  it('10,000 keys revoked in one call are one change, waited for once', async () => {
    const workspace = 'ws_many';
    const keys = [await fleet.createKey(a, workspace), await fleet.createKey(b, workspace)];
    const [model] = keys;
    if (model === undefined) throw new Error('no key');
    const made = Date.now() - 86_400_000;
    const ids = Array.from({ length: 9_998 }, (_, index) =>
      keyIdToUuid(keyIdFromUuid(uuidFloor(made + index))),
    );
    await fleet.query(
      fleet.database,
      `INSERT INTO api_keys (id, workspace_id, environment, name, prefix, last_characters, hash, secret_id, scopes, created_at)
       SELECT id, workspace_id, environment, name, prefix, last_characters, hash, secret_id, scopes,
              to_timestamp(($3::bigint + position - 1) / 1000.0)
         FROM unnest($1::uuid[]) WITH ORDINALITY AS new (id, position)
        CROSS JOIN (SELECT workspace_id, environment, name, prefix, last_characters, hash, secret_id, scopes
                      FROM api_keys WHERE id = $2) AS model`,
      [ids, keyIdToUuid(model.id), made],
    );
    for (const key of keys) for (const instance of fleet.instances) await fleet.look(instance, key, 'read');
    const heard: string[] = [];
    const ear = new pg.Client({ connectionString: postgres.url(fleet.database) });
    await ear.connect();
    ear.on('notification', ({ payload = '' }) => heard.push(payload));
    await ear.query('LISTEN claviger_changes');
    const { mutation, propagation } = await revokeAll(fleet, [c], workspace, keys);
    const [row] = await fleet.query<{ count: string }>(
      fleet.database,
      'SELECT count(*) FROM api_keys WHERE workspace_id = $1 AND revoked_at IS NOT NULL',
      [workspace],
    );
    await ear.query('SELECT 1');
    await ear.end();
    expect(row?.count).toBe('10000');
    expect(heard.filter((payload) => payload.includes(`workspace ${workspace}`))).toHaveLength(1);
    expect(propagation?.instances).toBe(3);
    process.stdout.write(
      `10,000 keys in one call: ${Math.round((mutation.answered ?? 0) - mutation.begin)} ms, of which waiting ${propagation?.waited_ms} ms\n`,
    );
    expect(await violationsOf(keys)).toBe('');
  });

  it('a thousand mutations at 200 a second, or as fast as the machine can, are all confirmed, and hold', async () => {
    const perSecond = 200;
    const seconds = 5;
    const keys: TestKey[] = [];
    for (let count = 0; count < 60; count++)
      keys.push(await fleet.createKey(fleet.instances[count % 3] ?? a, 'ws_rate'));
    const workers = fleet.instances.map((instance) => {
      let turn = 0;
      return fleet.work(instance, () => ({ key: keys[turn++ % keys.length] as TestKey, scope: 'read' }));
    });
    const startedAt = performance.now();
    let done = 0;
    let fenced = 0;
    const chains = keys.map(() => Promise.resolve());
    for (let sent = 0; sent < perSecond * seconds; sent++) {
      const lane = sent % keys.length;
      const key = keys[lane] as TestKey;
      const version = Math.floor(sent / keys.length) + 1;
      const instance = fleet.instances[sent % 3] ?? a;
      chains[lane] = (chains[lane] ?? Promise.resolve()).then(async () => {
        const scopes = version % 2 === 1 ? NARROW : WIDE;
        const { propagation } = await setScopes(fleet, [instance], key, { version, scopes });
        fenced += propagation?.fenced ?? 0;
        if (propagation !== undefined) done++;
      });
      await sleep(Math.max(0, startedAt + (sent / perSecond) * 1000 - performance.now()));
    }
    await Promise.all(chains);
    const tookMs = performance.now() - startedAt;
    for (const { end } of workers.map((worker) => ({ end: worker.end() }))) await end;
    process.stdout.write(
      `${done} mutations confirmed in ${(tookMs / 1000).toFixed(1)} s (sent within ${seconds} s), ${fenced} fences\n`,
    );
    expect(done).toBe(perSecond * seconds);
    expect(await violationsOf(keys)).toBe('');
  });
});

describe('the wall clock of an instance', () => {
  const CLOCK_FILE = join(tmpdir(), `claviger-clock-${process.pid}`);
  let odd: Instance;

  beforeAll(async () => {
    await needPackage('faketime', '/usr/bin/faketime');
    const library = await findLibrary('libfaketimeMT.so.1');
    await writeFile(CLOCK_FILE, '+0s\n');
    odd = await startInstance({
      name: 'odd',
      databaseUrl: postgres.url(fleet.database),
      environment: {
        LD_PRELOAD: library,
        FAKETIME_TIMESTAMP_FILE: CLOCK_FILE,
        FAKETIME_NO_CACHE: '1',
        FAKETIME_DONT_FAKE_MONOTONIC: '1',
        DONT_FAKE_MONOTONIC: '1',
      },
    });
  });
  afterAll(async () => {
    await odd?.close();
    await rm(CLOCK_FILE, { force: true });
  });

  async function findLibrary(file: string): Promise<string> {
    for (const folder of await readdir('/usr/lib')) {
      const found = join('/usr/lib', folder, 'faketime', file);
      if (
        await readdir(join('/usr/lib', folder, 'faketime')).then(
          (files) => files.includes(file),
          () => false,
        )
      )
        return found;
    }
    throw new Error(`${file} is not in /usr/lib/*/faketime`);
  }

  /** What the instance believes the time to be, from its `Date` header, in hours from ours. */
  async function hoursAhead(): Promise<number> {
    const response = await fetch(`http://127.0.0.1:${odd.port}/healthz`);
    await response.arrayBuffer();
    return Math.round((Date.parse(response.headers.get('date') ?? '') - Date.now()) / 3_600_000);
  }

  async function ask(key: TestKey): Promise<{ active: boolean; reason?: { code: string } }> {
    const response = await fetch(`http://127.0.0.1:${odd.port}/v1/introspect`, {
      method: 'POST',
      headers: { authorization: `Bearer ${fleet.adminToken}`, 'content-type': 'application/json' },
      body: JSON.stringify({ key: key.token }),
    });
    return (await response.json()) as { active: boolean };
  }

  async function expireIn(key: TestKey, ms: number): Promise<void> {
    const [row] = await fleet.query<{ at: Date }>(
      fleet.database,
      'SELECT clock_timestamp() + make_interval(secs => $1) AS at',
      [ms / 1000],
    );
    const reply = await fleet.send(a, 'PATCH', `/v1/api-keys/${key.id}`, {
      body: { expires_at: row?.at.toISOString() },
    });
    expect(reply).toMatchObject({ kind: 'answer', status: 200 });
  }

  it.each([
    ['ahead', '+3600s', 1],
    ['back', '-3600s', -1],
  ])(
    'jumping an hour %s changes neither expiry nor membership nor revocation',
    async (_way, offset, hours) => {
      const [lasting, short, revoked] = [
        await fleet.createKey(a, 'ws_clock'),
        await fleet.createKey(a, 'ws_clock'),
        await fleet.createKey(a, 'ws_clock'),
      ];
      await expireIn(lasting, 1_800_000);
      for (const key of [lasting, short, revoked]) expect((await ask(key)).active).toBe(true);
      const member = odd.registeredAs;
      await writeFile(CLOCK_FILE, `${offset}\n`);
      // The header is made once a second.
      while ((await hoursAhead()) !== hours) await sleep(50);

      expect((await ask(lasting)).active).toBe(true);
      await expireIn(short, 1_500);
      expect((await ask(short)).active).toBe(true);
      const { propagation } = await revoke(fleet, [b], revoked);
      expect(propagation?.instances).toBe(4);
      expect(await ask(revoked)).toMatchObject({ active: false, reason: { code: 'revoked' } });
      await sleep(1_600);
      expect(await ask(short)).toMatchObject({ active: false, reason: { code: 'expired' } });
      // Three renewals later it is the same member: nothing of its lease is told by a wall clock.
      if (propagation?.fenced === 0) expect(odd.registeredAs).toBe(member);
      await writeFile(CLOCK_FILE, '+0s\n');
      while ((await hoursAhead()) !== 0) await sleep(50);
      expect((await ask(lasting)).active).toBe(true);
      await fleet.settled();
      fleet.takeHistory([lasting, short, revoked]);
    },
  );
});
