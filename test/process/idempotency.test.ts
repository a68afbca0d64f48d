import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, onTestFinished, test } from 'vitest';
import { createTestApp } from '../support/app.ts';
import { type Answer, type Client, createClient, fetchTransport } from '../support/client.ts';
import { databaseOfTest, type TestDatabase } from '../support/database.ts';
import { type Instance, startInstance } from '../support/instances.ts';
import { loadResponseCheck } from '../support/response-check.ts';

/** Longer than the database lets a transaction be silent. */
const ABANDONED_FOR_AT_MOST_MS = 15_000;
const INSERT_OF_THE_ANSWER = 'insert into "sealed_answers"';

interface Fleet {
  readonly database: TestDatabase;
  readonly adminToken: string;
  readonly instances: readonly (Client & { readonly instance: Instance; readonly url: string })[];
}

/** Instances on one database, each with a way of its own there, that share an admin key. */
async function startFleet(count: number): Promise<Fleet> {
  const database = await databaseOfTest();
  const app = await createTestApp({}, database);
  const { adminToken } = app;
  await app.close();
  const check = await loadResponseCheck();
  const instances = await Promise.all(
    Array.from({ length: count }, async (_, index) => {
      const instance = await startInstance({ name: `instance ${index}`, databaseUrl: database.url });
      onTestFinished(() => instance.close());
      const url = `http://127.0.0.1:${instance.port}`;
      return { ...createClient(fetchTransport(url), { token: adminToken, check }), instance, url };
    }),
  );
  // Known to each by now: what follows holds up no authentication.
  await Promise.all(instances.map((one) => one.get('/v1/me')));
  return { database, adminToken, instances };
}

function create(client: Client, idempotencyKey: string, name: string): Promise<Answer> {
  return client.post(
    '/v1/api-keys',
    { workspace_id: 'ws_acme', name, scopes: ['read'] },
    { headers: { 'idempotency-key': idempotencyKey } },
  );
}

/** As a client should: again, as long as the answer is that it is being worked on. */
async function createPatiently(client: Client, idempotencyKey: string, name: string): Promise<Answer> {
  const deadline = performance.now() + ABANDONED_FOR_AT_MOST_MS;
  for (;;) {
    const answer = await create(client, idempotencyKey, name);
    if (answer.body.code !== 'idempotency_in_flight') return answer;
    expect(answer.status).toBe(409);
    expect(answer.headers['retry-after']).toBe('1');
    if (performance.now() > deadline) throw new Error('still in flight');
    await sleep(100);
  }
}

async function keysNamed(database: TestDatabase, name: string): Promise<{ id: string }[]> {
  return database.query<{ id: string }>('SELECT id FROM api_keys WHERE name = $1', [name]);
}

test('the answer that is lost when an instance is killed after COMMIT is given by another, and by itself when it is back', async () => {
  const { database, instances } = await startFleet(2);
  const [one, other] = instances;
  if (one === undefined || other === undefined) throw new Error('too few instances');
  const name = `Lost ${randomUUID()}`;
  const committed = one.instance.proxy.holdAnswersTo('COMMIT', INSERT_OF_THE_ANSWER);
  const lost = create(one, 'lost-1', name).then(
    () => 'answered',
    () => 'lost',
  );
  await committed;
  await expect.poll(() => keysNamed(database, name)).toHaveLength(1);
  await one.instance.kill();
  expect(await lost).toBe('lost');

  const again = await createPatiently(other, 'lost-1', name);
  expect(again.status, again.text).toBe(201);
  expect(again.headers['idempotent-replayed']).toBe('true');
  expect(await keysNamed(database, name)).toHaveLength(1);
  expect((await other.introspect(again.body.data.key)).body).toMatchObject({
    active: true,
    key_id: again.body.data.id,
  });
  expect((await create(other, 'lost-1', `${name} changed`)).body.code).toBe('idempotency_mismatch');

  one.instance.proxy.deliver();
  await one.instance.restart();
  expect((await create(one, 'lost-1', name)).text).toBe(again.text);
});

test('an instance that is killed before COMMIT leaves nothing to wait for', async () => {
  const { database, instances } = await startFleet(2);
  const [one, other] = instances;
  if (one === undefined || other === undefined) throw new Error('too few instances');
  const name = `Abandoned ${randomUUID()}`;
  // All is written, nothing is committed.
  const written = one.instance.proxy.holdAnswersTo(INSERT_OF_THE_ANSWER);
  const lost = create(one, 'abandoned-1', name).catch(() => 'lost');
  await written;
  expect((await create(other, 'abandoned-1', name)).body.code).toBe('idempotency_in_flight');
  await one.instance.kill();
  expect(await lost).toBe('lost');

  const made = await createPatiently(other, 'abandoned-1', name);
  expect(made.status, made.text).toBe(201);
  expect(made.headers['idempotent-replayed']).toBeUndefined();
  expect(await keysNamed(database, name)).toHaveLength(1);
});

test('an instance that stops in the middle of its transaction is not waited for for long, and makes no second key', async () => {
  const { database, instances } = await startFleet(2);
  const [one, other] = instances;
  if (one === undefined || other === undefined) throw new Error('too few instances');
  const name = `Stopped ${randomUUID()}`;
  const written = one.instance.proxy.holdAnswersTo(INSERT_OF_THE_ANSWER);
  const first = create(one, 'stopped-1', name);
  await written;
  one.instance.stop();
  const made = await createPatiently(other, 'stopped-1', name);
  expect(made.status, made.text).toBe(201);

  // It goes on where it was: its transaction is over.
  one.instance.proxy.deliver();
  one.instance.wake();
  expect((await first).status).toBe(503);
  expect(await keysNamed(database, name)).toHaveLength(1);
  expect((await createPatiently(one, 'stopped-1', name)).text).toBe(made.text);
});

test('a client whose connection breaks is given the answer that it missed, by any instance', async () => {
  const { database, adminToken, instances } = await startFleet(2);
  const [one, other] = instances;
  if (one === undefined || other === undefined) throw new Error('too few instances');
  const name = `Hung up ${randomUUID()}`;
  const held = one.instance.proxy.holdAnswersTo(INSERT_OF_THE_ANSWER);
  const hangUp = new AbortController();
  const hungUp = fetch(`${one.url}/v1/api-keys`, {
    method: 'POST',
    headers: {
      authorization: `Bearer ${adminToken}`,
      'content-type': 'application/json',
      'idempotency-key': 'hung-up-1',
    },
    body: JSON.stringify({ workspace_id: 'ws_acme', name, scopes: ['read'] }),
    signal: hangUp.signal,
  });
  await held;
  hangUp.abort();
  await expect(hungUp).rejects.toThrow('aborted');
  // While the first attempt still runs, its retry is told so wherever it comes.
  for (const instance of instances) {
    expect((await create(instance, 'hung-up-1', name)).body.code).toBe('idempotency_in_flight');
  }
  one.instance.proxy.deliver();
  const again = await createPatiently(other, 'hung-up-1', name);
  expect(again.headers['idempotent-replayed']).toBe('true');
  expect((await createPatiently(one, 'hung-up-1', name)).text).toBe(again.text);
  expect(await keysNamed(database, name)).toHaveLength(1);
});

test('50 concurrent equal requests to three instances make one key, and each ends with the same answer', async () => {
  const { database, instances } = await startFleet(3);
  for (const idempotencyKey of ['fifty-1', 'fifty-2', 'fifty-3']) {
    const name = `Fifty ${idempotencyKey}`;
    const clients = Array.from({ length: 50 }, (_, index) => instances[index % instances.length]);
    const at = async (client: Client | undefined, send: typeof create) => {
      if (client === undefined) throw new Error('there is no instance');
      return send(client, idempotencyKey, name);
    };
    const answers = await Promise.all(clients.map((client) => at(client, create)));
    const made = answers.filter(({ status }) => status === 201);
    for (const { status, body } of answers) {
      if (status !== 201)
        expect({ status, code: body.code }).toEqual({ status: 409, code: 'idempotency_in_flight' });
    }
    expect(made.length).toBeGreaterThan(0);
    expect(new Set(made.map(({ text }) => text)).size).toBe(1);
    expect(made.filter(({ headers }) => headers['idempotent-replayed'] === undefined)).toHaveLength(1);
    const after = await Promise.all(clients.map((client) => at(client, createPatiently)));
    expect(new Set(after.map(({ text }) => text))).toEqual(new Set([made[0]?.text]));
    expect(await keysNamed(database, name)).toHaveLength(1);
  }
});

test('a retry of a rotation whose author died after COMMIT waits for an instance that heard nothing of it', async () => {
  const { database, instances } = await startFleet(3);
  const [one, other, deaf] = instances;
  if (one === undefined || other === undefined || deaf === undefined) throw new Error('too few instances');
  const { id, token } = await other.createKey();
  for (const instance of instances) expect((await instance.introspect(token)).body.active).toBe(true);
  const rotate = (client: Client) =>
    client.post(
      `/v1/api-keys/${id}/rotate`,
      { grace_period_seconds: 0 },
      { headers: { 'idempotency-key': 'rotated-1' } },
    );

  deaf.instance.proxy.stall({ kind: 'listener' });
  const committed = one.instance.proxy.holdAnswersTo('COMMIT', INSERT_OF_THE_ANSWER);
  const lost = rotate(one).catch(() => 'lost');
  await committed;
  await expect
    .poll(() => database.query('SELECT 1 FROM api_keys WHERE rotated_from IS NOT NULL'))
    .toHaveLength(1);
  await one.instance.kill();
  expect(await lost).toBe('lost');

  const again = await rotate(other);
  expect(again.status, again.text).toBe(201);
  expect(again.headers['idempotent-replayed']).toBe('true');
  expect(again.body.propagation.fenced).toBeGreaterThanOrEqual(1);
  expect((await deaf.introspect(token)).body).toMatchObject({ active: false, reason: { code: 'revoked' } });
  expect((await deaf.introspect(again.body.data.key)).body).toMatchObject({
    active: true,
    key_id: again.body.data.id,
  });
  deaf.instance.proxy.deliver();
});
