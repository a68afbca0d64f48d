import { randomUUID } from 'node:crypto';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import type { KeyId } from '../../src/domain/key-id.ts';
import { keySecret } from '../../src/domain/key-secret.ts';
import { lookupMac, openAnswer } from '../../src/domain/sealed-answer.ts';
import { appOfTest, createTestApp, TEST_KEY_SECRET, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';
import { databaseOfTest, type TestDatabase } from '../support/database.ts';

const BODY = { workspace_id: 'ws_acme', name: 'Made once' };
const OLD = 'the-former-secret-of-40-characters-alone';
const NEW = 'the-present-secret-of-40-characters-only';

function create(app: TestApp, idempotencyKey: string, as: string, body: unknown = BODY): Promise<Answer> {
  return app.post('/v1/api-keys', body, { as, headers: { 'idempotency-key': idempotencyKey } });
}

interface Row extends Record<string, unknown> {
  id: string;
  mac: Buffer;
  sealed: Buffer;
}

const rowsOf = (database: TestDatabase) => database.query<Row>('SELECT id, mac, sealed FROM sealed_answers');

async function theOnlyRow(database: TestDatabase): Promise<Row> {
  const [row, ...more] = await rowsOf(database);
  if (row === undefined || more.length > 0) throw new Error('there is not one answer');
  return row;
}

const backdate = (database: TestDatabase, by: string) =>
  database.query('UPDATE sealed_answers SET created_at = created_at - $1::interval', [by]);

describe('after 24 hours by the clock of the database', () => {
  test('an answer is not served any more, and not a minute earlier', async () => {
    const app = await appOfTest();
    const first = await create(app, 'day-1', app.adminToken);
    await backdate(app.database, '23 hours 59 minutes');
    const again = await create(app, 'day-1', app.adminToken);
    expect(again.text).toBe(first.text);
    expect(again.headers['idempotent-replayed']).toBe('true');

    await backdate(app.database, '1 minute');
    const anew = await create(app, 'day-1', app.adminToken);
    expect(anew.status).toBe(201);
    expect(anew.headers['idempotent-replayed']).toBeUndefined();
    expect(anew.body.data.id).not.toBe(first.body.data.id);
    // The new answer stands in the place of the old one.
    await theOnlyRow(app.database);
    expect((await create(app, 'day-1', app.adminToken)).text).toBe(anew.text);
  });

  test('its Idempotency-Key is free for another request', async () => {
    const app = await appOfTest();
    await create(app, 'day-2', app.adminToken);
    expect((await create(app, 'day-2', app.adminToken, { ...BODY, name: 'Other' })).status).toBe(422);
    await backdate(app.database, '24 hours');
    expect((await create(app, 'day-2', app.adminToken, { ...BODY, name: 'Other' })).status).toBe(201);
  });

  test('it is deleted, however many there are, and younger ones are not', async () => {
    const database = await databaseOfTest();
    await database.query(
      `INSERT INTO sealed_answers (id, mac, sealed, created_at)
       SELECT gen_random_uuid(), sha256(number::text::bytea), decode(repeat('00', 60), 'hex'),
         now() - CASE WHEN number <= 1201 THEN interval '24 hours' ELSE interval '23 hours 59 minutes' END
       FROM generate_series(1, 1204) AS number`,
    );
    // Two at once, which must not stand in each other's way.
    const apps = await Promise.all([createTestApp({}, database), createTestApp({}, database)]);
    try {
      await expect.poll(async () => (await rowsOf(database)).length, { timeout: 10_000 }).toBe(3);
    } finally {
      await Promise.all(apps.map((app) => app.close()));
    }
  });

  test('it is deleted within a minute also while the instance runs', async () => {
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] });
    onTestFinished(() => {
      vi.useRealTimers();
    });
    const app = await appOfTest();
    await create(app, 'day-3', app.adminToken);
    const young = await create(app, 'day-4', app.adminToken);
    const [row] = await app.database.query<{ id: string }>(
      'SELECT id FROM sealed_answers ORDER BY created_at',
    );
    await app.database.query(
      "UPDATE sealed_answers SET created_at = created_at - interval '24 hours' WHERE id = $1",
      [row?.id],
    );
    vi.advanceTimersByTime(60_000);
    await expect.poll(async () => (await rowsOf(app.database)).length, { timeout: 10_000 }).toBe(1);
    expect((await create(app, 'day-4', app.adminToken)).text).toBe(young.text);
  });
});

describe('a dump of the database', () => {
  const IDEMPOTENCY_KEY = 'order-1';

  /** Every value of every row that could be a secret or a part of one. */
  async function valuesIn(database: TestDatabase): Promise<(string | Buffer)[]> {
    const tables = await database.query<{ name: string }>(
      "SELECT format('%I', tablename) AS name FROM pg_tables WHERE schemaname = 'public'",
    );
    const values: (string | Buffer)[] = [];
    for (const { name } of tables) {
      for (const row of await database.query<Record<string, unknown>>(`SELECT * FROM ${name}`)) {
        for (const value of Object.values(row)) {
          if (Buffer.isBuffer(value)) values.push(value, value.toString('hex'), value.toString('base64'));
          else if (value !== null) values.push(typeof value === 'string' ? value : JSON.stringify(value));
        }
      }
    }
    return values;
  }

  test('opens nothing without KEY_SECRET, with the Idempotency-Key and even the token of the caller known', async () => {
    const app = await appOfTest();
    const { id, token } = await app.createServiceKey(['keys:write']);
    const { body } = await create(app, IDEMPOTENCY_KEY, token);
    const { id: rowId, mac, sealed } = await theOnlyRow(app.database);
    const seal = { callerToken: token, idempotencyKey: IDEMPOTENCY_KEY, rowId };
    const values = await valuesIn(app.database);
    expect(values.length).toBeGreaterThan(50);
    for (const value of ['', 'a-secret-for-tests', ...values]) {
      const guesses = [Buffer.from(value), keySecret(value.toString()).derive('answer')];
      for (const secret of guesses) {
        expect(() => openAnswer(sealed, { ...seal, secret })).toThrow();
        // Nor is it told which Idempotency-Key stands there.
        const lookup = { callerId: id as KeyId, idempotencyKey: IDEMPOTENCY_KEY };
        expect(lookupMac(secret, lookup).equals(mac)).toBe(false);
      }
    }
    // With it the answer opens: the test knows how to.
    const secret = keySecret(TEST_KEY_SECRET).derive('answer');
    expect(openAnswer(sealed, { ...seal, secret })).toContain(body.data.key);
  });

  test('opens nothing with KEY_SECRET but without the token of the caller', async () => {
    const app = await appOfTest();
    const { token } = await app.createServiceKey(['keys:write']);
    await create(app, IDEMPOTENCY_KEY, token);
    const { id: rowId, sealed } = await theOnlyRow(app.database);
    const secret = keySecret(TEST_KEY_SECRET).derive('answer');
    const open = (callerToken: string) =>
      openAnswer(sealed, { secret, callerToken, idempotencyKey: IDEMPOTENCY_KEY, rowId });
    for (const guess of ['', app.adminToken, ...(await valuesIn(app.database))]) {
      expect(() => open(guess.toString())).toThrow();
    }
    expect(open(token)).toContain('"key":"ck_live_');
  });

  test('that somebody wrote into gives no caller the answer of another: that fails, and makes no key either', async () => {
    const app = await appOfTest();
    const [one, other] = [
      await app.createServiceKey(['keys:write']),
      await app.createServiceKey(['keys:write']),
    ];
    await create(app, IDEMPOTENCY_KEY, one.token);
    const before = await app.database.query('SELECT id FROM api_keys');
    // Moved to where the other caller will look.
    const mac = lookupMac(keySecret(TEST_KEY_SECRET).derive('idempotency'), {
      callerId: other.id as KeyId,
      idempotencyKey: IDEMPOTENCY_KEY,
    });
    await app.database.query('UPDATE sealed_answers SET mac = $1', [mac]);
    const answer = await create(app, IDEMPOTENCY_KEY, other.token);
    expect(answer).toMatchObject({ status: 503, body: { code: 'unavailable' } });
    expect(await app.database.query('SELECT id FROM api_keys')).toHaveLength(before.length);
  });
});

describe('a rotation of KEY_SECRET', () => {
  async function withSecrets<T>(
    database: TestDatabase,
    secrets: string,
    use: (app: TestApp) => Promise<T>,
  ): Promise<T> {
    const app = await createTestApp({ KEY_SECRET: secrets }, database);
    try {
      return await use(app);
    } finally {
      await app.close();
    }
  }

  test('by old,new and new,old leaves each retry its first answer', async () => {
    const database = await databaseOfTest();
    const { token, before } = await withSecrets(database, OLD, async (app) => {
      const service = await app.createServiceKey(['keys:write']);
      return { token: service.token, before: await create(app, 'before', service.token) };
    });
    const between = await withSecrets(database, `${OLD},${NEW}`, async (app) => {
      expect((await create(app, 'before', token)).text).toBe(before.text);
      return create(app, 'between', token);
    });
    const after = await withSecrets(database, `${NEW},${OLD}`, async (app) => {
      expect((await create(app, 'before', token)).text).toBe(before.text);
      expect((await create(app, 'between', token)).text).toBe(between.text);
      expect((await create(app, 'between', token, { ...BODY, name: 'Other' })).status).toBe(422);
      return create(app, 'after', token);
    });
    // An instance that is not there yet still knows what one that is has sealed.
    await withSecrets(database, `${OLD},${NEW}`, async (app) => {
      for (const [name, first] of Object.entries({ before, between, after })) {
        const again = await create(app, name, token);
        expect(again.text).toBe(first.text);
        expect(again.headers['idempotent-replayed']).toBe('true');
      }
    });
    expect(await rowsOf(database)).toHaveLength(3);
  });

  test('makes no second key of concurrent requests to instances of either order', async () => {
    const database = await databaseOfTest();
    const one = await createTestApp({ KEY_SECRET: `${OLD},${NEW}` }, database);
    const other = await createTestApp({ KEY_SECRET: `${NEW},${OLD}` }, database);
    try {
      for (let round = 0; round < 10; round++) {
        const idempotencyKey = randomUUID();
        const answers = await Promise.all(
          Array.from({ length: 8 }, (_, index) =>
            create(index % 2 === 0 ? one : other, idempotencyKey, one.adminToken),
          ),
        );
        const made = answers.filter(({ status }) => status === 201);
        expect(new Set(made.map(({ text }) => text)).size).toBe(1);
        for (const { status, body } of answers) {
          if (status !== 201) expect(body.code).toBe('idempotency_in_flight');
        }
      }
      expect(await database.query('SELECT 1 FROM api_keys WHERE name = $1', [BODY.name])).toHaveLength(10);
    } finally {
      await one.close();
      await other.close();
    }
  });
});

test('the table takes no answer without an end, and no place for two', async () => {
  const database = await databaseOfTest();
  const insert = (macBytes: number, sealedBytes: number) =>
    database.query(
      "INSERT INTO sealed_answers VALUES (gen_random_uuid(), decode(repeat('07', $1), 'hex'), decode(repeat('00', $2), 'hex'), now())",
      [macBytes, sealedBytes],
    );
  const refusal = { code: '23514' };
  await expect(insert(31, 60)).rejects.toMatchObject(refusal);
  await expect(insert(33, 60)).rejects.toMatchObject(refusal);
  await expect(insert(32, 59)).rejects.toMatchObject(refusal);
  await expect(insert(32, 131_073)).rejects.toMatchObject(refusal);
  await insert(32, 131_072);
  await expect(insert(32, 60)).rejects.toMatchObject({ code: '23505' });
});
