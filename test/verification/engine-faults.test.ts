import { queryObjects } from 'node:v8';
import { sql } from 'drizzle-orm';
import { describe, expect, test, vi } from 'vitest';
import { Failure } from '../../src/domain/errors.ts';
import { createDatabase } from '../../src/storage/database.ts';
import { databaseOfTest } from '../support/database.ts';
import {
  countInstances,
  countListeners,
  createGate,
  cutListeners,
  gated,
  joinedEngine,
  leaveDeadInstance,
  openEngine,
} from './engine.ts';

async function outcomeOf(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => 'answered',
    (error: unknown) => (error instanceof Failure ? `${error.code}: ${error.message}` : error),
  );
}

const RENEWED = { timeout: 10_000, interval: 20 };

describe('a transaction', () => {
  test('whose connection is lost fails as unavailable, and the process lives', async () => {
    const test = await databaseOfTest();
    const database = createDatabase({
      url: test.url,
      poolSize: 2,
      applicationName: 'engine test',
      onConnectionLost: () => undefined,
    });
    const faults: unknown[] = [];
    const tell = (error: unknown) => faults.push(error);
    process.on('uncaughtExceptionMonitor', tell);
    const outcome = await outcomeOf(
      database.transaction(async (executor) => {
        const { rows } = await executor.execute<{ pid: number }>(sql`SELECT pg_backend_pid() AS pid`);
        await test.query('SELECT pg_terminate_backend($1)', [rows[0]?.pid]);
        await vi.waitFor(async () => {
          const alive = await test.query('SELECT FROM pg_stat_activity WHERE pid = $1', [rows[0]?.pid]);
          expect(alive).toHaveLength(0);
        });
        await executor.execute(sql`SELECT 1`);
      }),
    );
    await database.close();
    process.off('uncaughtExceptionMonitor', tell);
    expect(outcome).toBe('unavailable: The database cannot be reached.');
    expect(faults).toEqual([]);
  });
});

describe('closing', () => {
  test('while it joins anew leaves no lease, no listener and no row behind', async () => {
    const test = await databaseOfTest();
    const gate = createGate();
    const engine = await joinedEngine(test, { wrapDatabase: (database) => gated(database, gate) });
    gate.shut();
    await cutListeners(test);
    await gate.reached();
    const closed = engine.membership.close();
    gate.open();
    await closed;
    expect(engine.membership.isLeased()).toBe(false);
    expect(engine.membership.leaseAgeMs()).toBeUndefined();
    await vi.waitFor(async () => expect(await countListeners(test)).toBe(0));
    await vi.waitFor(async () => expect(await countInstances(test)).toBe(0));
  });

  test('ends a change that still waits, and says that it is to be repeated', async () => {
    const test = await databaseOfTest();
    const engine = await joinedEngine(test);
    const { key } = await engine.createKey();
    await leaveDeadInstance(test, 60_000);
    const outcome = outcomeOf(engine.revoke(key.id));
    await vi.waitFor(() => expect(engine.count('fenced')).toBe(1), { timeout: 3_000, interval: 20 });
    const closedAt = performance.now();
    await engine.membership.close();
    await engine.database.close();
    expect(await outcome).toBe('unavailable: committed; repeat to confirm');
    expect(performance.now() - closedAt).toBeLessThan(1_500);
  });

  test('does not wait for a database that gives no answer', async () => {
    const test = await databaseOfTest();
    const gate = createGate();
    const engine = await joinedEngine(test, { wrapDatabase: (database) => gated(database, gate) });
    gate.shut();
    const startedAt = performance.now();
    await engine.membership.close();
    expect(performance.now() - startedAt).toBeLessThan(3_000);
    gate.open();
  });

  test('is safe before the start, and twice', async () => {
    const engine = await openEngine(await databaseOfTest());
    await engine.membership.close();
    await engine.membership.close();
    expect(engine.membership.isLeased()).toBe(false);
  });
});

describe('a server that is set to answer before a commit is on disk', () => {
  test('makes an exception for registrations, renewals and fences', async () => {
    const test = await databaseOfTest();
    await test.query('CREATE TABLE seen (what text, synchronous_commit text)');
    await test.query(`CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN
        INSERT INTO seen VALUES (TG_OP || CASE WHEN NEW.fenced THEN ' fenced' ELSE '' END, current_setting('synchronous_commit'));
        RETURN NEW;
      END $$`);
    await test.query(
      'CREATE TRIGGER see AFTER INSERT OR UPDATE ON instances FOR EACH ROW WHEN (NOT NEW.released) EXECUTE FUNCTION see()',
    );
    const { name } = (await test.query<{ name: string }>('SELECT current_database() AS name'))[0] ?? {};
    await test.query(`ALTER DATABASE ${name} SET synchronous_commit = off`);
    const engine = await joinedEngine(test, { leaseMs: 1_000 });
    await leaveDeadInstance(test, 10);
    const { key } = await engine.createKey();
    await engine.revoke(key.id);
    await vi.waitFor(async () => {
      // The dead instance's INSERT is this test's own.
      const rows = await test.query<{ what: string; synchronous_commit: string }>(
        'SELECT DISTINCT what, synchronous_commit FROM seen ORDER BY what, synchronous_commit',
      );
      const names = new Set(rows.map(({ what }) => what));
      expect([...names]).toEqual(expect.arrayContaining(['INSERT', 'UPDATE', 'UPDATE fenced']));
    }, RENEWED);
    const rows = await test.query<{ what: string }>(
      `SELECT DISTINCT what FROM seen WHERE synchronous_commit = 'on' ORDER BY what`,
    );
    expect(rows.map(({ what }) => what)).toEqual(['INSERT', 'UPDATE', 'UPDATE fenced']);
  });
});

describe('database time', () => {
  test('recovers from a registration that was answered late, though every renewal takes long', async () => {
    const test = await databaseOfTest();
    await test.query(`CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN PERFORM pg_sleep(CASE TG_OP WHEN 'INSERT' THEN 1.5 ELSE 0.15 END); RETURN NEW; END $$`);
    await test.query(
      'CREATE TRIGGER stall BEFORE INSERT OR UPDATE ON instances FOR EACH ROW EXECUTE FUNCTION stall()',
    );
    const engine = await joinedEngine(test, { leaseMs: 3_000 });
    await vi.waitFor(() => expect(engine.membership.leaseAgeMs()).toBeLessThan(1_000), RENEWED);
    const aheadMs = await aheadOf(test, engine);
    expect(aheadMs).toBeLessThan(600);
  });

  async function aheadOf(
    test: Awaited<ReturnType<typeof databaseOfTest>>,
    engine: Awaited<ReturnType<typeof joinedEngine>>,
  ): Promise<number> {
    const [row] = await test.query<{ now: number }>(
      'SELECT (extract(epoch FROM clock_timestamp()) * 1000)::float8 AS now',
    );
    return (engine.membership.leasedNow() ?? Number.NaN) - (row?.now ?? Number.NaN);
  }

  test('is the time of the verdict, however long argon2 took', async () => {
    const test = await databaseOfTest();
    const gate = createGate();
    const engine = await joinedEngine(test, {
      wrapHasher: (hasher) => ({
        ...hasher,
        async verify(token, hash) {
          await gate.pass();
          return hasher.verify(token, hash);
        },
      }),
    });
    const { token } = await engine.createKey({ expiresAt: Date.now() + 700 });
    gate.shut();
    const first = engine.verdict(token);
    await gate.reached();
    await vi.waitFor(async () => {
      const over = await test.query('SELECT FROM api_keys WHERE expires_at < clock_timestamp()');
      expect(over).toHaveLength(1);
    });
    // It begins when the key is over, and joins the load that found it active.
    const second = engine.verdict(token);
    gate.open();
    expect(await second).toBe('expired');
    expect(await first).toBe('expired');
  });
});

describe('a change', () => {
  test('finds an instance that joined between its commit and its look at the members, and fences it not', async () => {
    const test = await databaseOfTest();
    const gate = createGate();
    const engine = await joinedEngine(test, { wrapDatabase: (database) => gated(database, gate) });
    const { key } = await engine.createKey();
    gate.shut();
    const revokedAt = performance.now();
    const revoked = engine.revoke(key.id);
    await gate.reached();
    const other = await joinedEngine(test);
    // As long as one that hears of a change has to acknowledge it.
    await vi.waitFor(() => expect(performance.now() - revokedAt).toBeGreaterThan(600), RENEWED);
    gate.open();
    expect((await revoked).propagation).toMatchObject({ instances: 2, confirmed: 2, fenced: 0 });
    expect(engine.count('fenced')).toBe(0);
    expect(other.count('left fenced')).toBe(0);
  });

  test('that waits for a silent instance asks the database ever more rarely', async () => {
    const test = await databaseOfTest();
    let reads = 0;
    const engine = await joinedEngine(test, {
      wrapDatabase: (database) => ({
        ...database,
        read(run) {
          reads++;
          return database.read(run);
        },
      }),
    });
    const { key } = await engine.createKey();
    await leaveDeadInstance(test, 4_000);
    reads = 0;
    const { propagation } = await engine.revoke(key.id);
    expect(propagation).toMatchObject({ instances: 2, confirmed: 1, fenced: 1 });
    expect(propagation.waitedMs).toBeGreaterThanOrEqual(4_080);
    expect(propagation.waitedMs).toBeLessThan(500 + 4_080 + 1_000);
    expect(reads).toBeLessThan(50);
  });

  test('tells a fenced instance that another one waited out from one that acknowledged', async () => {
    const test = await databaseOfTest();
    const [one, two] = [await joinedEngine(test), await joinedEngine(test)];
    const [first, second] = [await one.createKey(), await one.createKey()];
    await leaveDeadInstance(test, 1_500);
    const firstAnswer = one.revoke(first.key.id);
    await vi.waitFor(() => expect(one.count('fenced')).toBe(1), { timeout: 3_000, interval: 10 });
    const [a, b] = await Promise.all([firstAnswer, two.revoke(second.key.id)]);
    expect(a.propagation).toMatchObject({ instances: 3, confirmed: 2, fenced: 1 });
    expect(b.propagation).toMatchObject({ instances: 3, confirmed: 2, fenced: 1 });
    await vi.waitFor(async () => expect(await countInstances(test)).toBe(2));
  });

  test('whose look at the members the database refuses is committed, and says so', async () => {
    const test = await databaseOfTest();
    const engine = await joinedEngine(test);
    const { key, token } = await engine.createKey();
    await test.query('ALTER TABLE instances RENAME TO instances_away');
    expect(await outcomeOf(engine.revoke(key.id))).toBe('unavailable: committed; repeat to confirm');
    await test.query('ALTER TABLE instances_away RENAME TO instances');
    expect(await engine.verdict(token)).toBe('revoked');
    expect((await engine.revoke(key.id)).propagation.fenced).toBe(0);
  });
});

describe('a membership', () => {
  test('that renews for long holds on to no more than one that has just begun', async () => {
    const test = await databaseOfTest();
    const engine = await joinedEngine(test, { leaseMs: 900 });
    const renewals = async (count: number) => {
      for (let seen = 0, age = 0; seen < count; ) {
        await new Promise((resolve) => setTimeout(resolve, 10));
        const now = engine.membership.leaseAgeMs() ?? 0;
        if (now < age) seen++;
        age = now;
      }
    };
    await renewals(3);
    const before = queryObjects(Promise, { format: 'count' });
    await renewals(20);
    const after = queryObjects(Promise, { format: 'count' });
    // A race with a promise that stays would leave two behind each time.
    expect(after - before).toBeLessThan(20);
  });

  test('whose registration is refused tries again, and leaves one row', async () => {
    const test = await databaseOfTest();
    const engine = await joinedEngine(test, { leaseMs: 2_000 });
    await test.query(`CREATE FUNCTION hang_up() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN RAISE EXCEPTION 'not now'; END $$`);
    await test.query(
      'CREATE TRIGGER hang_up BEFORE INSERT ON instances FOR EACH ROW EXECUTE FUNCTION hang_up()',
    );
    await cutListeners(test);
    await vi.waitFor(() => expect(engine.reports).toContain('the listener cannot connect'), RENEWED);
    await test.query('DROP TRIGGER hang_up ON instances');
    await vi.waitFor(() => expect(engine.count('registered')).toBe(2), RENEWED);
    await vi.waitFor(async () => expect(await countInstances(test)).toBe(1), RENEWED);
  });

  test('joins anew though the statement that releases its old row hangs', async () => {
    const test = await databaseOfTest();
    const gate = createGate();
    let isLeaving = () => false;
    const engine = await joinedEngine(test, {
      leaseMs: 1_500,
      wrapDatabase: (database) => ({
        ...database,
        async read(run) {
          if (isLeaving()) await gate.pass();
          return database.read(run);
        },
      }),
    });
    isLeaving = () => engine.count('left listener') > 0;
    gate.shut();
    await cutListeners(test);
    await gate.reached();
    await vi.waitFor(() => expect(engine.count('registered')).toBe(2), RENEWED);
    expect(engine.membership.isLeased()).toBe(true);
    gate.open();
  });
});
