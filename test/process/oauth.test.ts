import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { accessToken, postForm } from '../oauth/requests.ts';
import { createTestApp } from '../support/app.ts';
import { type Client, createClient, fetchTransport } from '../support/client.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { type Instance, startInstance } from '../support/instances.ts';
import { loadResponseCheck } from '../support/response-check.ts';

/*
 * Access tokens over several real instances on one database: a token that one has issued is good on the others, and
 * what ends it on one has ended it on the others when that has answered.
 */

const COUNT = 3;
const ROUNDS = 10;
const START_MS = 120_000;

let database: TestDatabase;
let instances: Instance[] = [];
let clients: readonly Client[];

beforeAll(async () => {
  database = await createTestDatabase();
  const app = await createTestApp({}, database);
  await app.close();
  // Leases that are long enough for a busy machine.
  instances = await Promise.all(
    Array.from({ length: COUNT }, (_, index) =>
      startInstance({ name: `i${index}`, databaseUrl: database.url, leaseSeconds: 10 }),
    ),
  );
  const check = await loadResponseCheck();
  clients = instances.map(({ port }) =>
    createClient(fetchTransport(`http://127.0.0.1:${port}`), { token: app.adminToken, check }),
  );
}, START_MS);

afterAll(async () => {
  await Promise.all(instances.map((instance) => instance.close()));
  await database.drop();
});

/** Another instance each round, and those after it in turn. */
function inTurn(round: number): readonly [Client, Client, Client] {
  const at = (index: number) => clients[(round + index) % COUNT] as Client;
  return [at(0), at(1), at(2)];
}

async function verdicts(token: string): Promise<string[]> {
  const answers = await Promise.all(clients.map((client) => client.introspect(token)));
  return answers.map(({ body }) => (body.active ? 'active' : body.reason.code));
}

const everywhere = (verdict: string) => Array.from({ length: COUNT }, () => verdict);

describe('what one instance has answered holds on the others', () => {
  test('a token that it issued is good there', async () => {
    for (let round = 0; round < COUNT; round++) {
      const [issuing] = inTurn(round);
      expect(await verdicts(await accessToken(issuing, await issuing.createKey()))).toEqual(
        everywhere('active'),
      );
    }
  });

  test('a revoked key has no token', async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const [issuing, revoking] = inTurn(round);
      const key = await issuing.createKey();
      const tokens = [await accessToken(issuing, key), await accessToken(revoking, key)];
      for (const token of tokens) expect(await verdicts(token)).toEqual(everywhere('active'));
      expect((await revoking.delete(`/v1/api-keys/${key.id}`)).status).toBe(200);
      for (const token of tokens) expect(await verdicts(token)).toEqual(everywhere('revoked'));
    }
  });

  test('a revoked token is one no more, also where others of its key are asked for all the time', async () => {
    const key = await (clients[0] as Client).createKey({ rate_limit: null });
    const kept = await accessToken(clients[0] as Client, key);
    let isOver = false;
    const asking = clients.map(async (client) => {
      while (!isOver) expect((await client.introspect(kept)).body.active).toBe(true);
    });
    for (let round = 0; round < ROUNDS; round++) {
      const [issuing, revoking] = inTurn(round);
      const token = await accessToken(issuing, key);
      expect(await verdicts(token)).toEqual(everywhere('active'));
      expect((await postForm(revoking, '/oauth/revoke', { token })).status).toBe(200);
      expect(await verdicts(token)).toEqual(everywhere('revoked'));
    }
    isOver = true;
    await Promise.all(asking);
  });

  test('a scope that was taken from a key is in no token', async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const [issuing, changing] = inTurn(round);
      const key = await issuing.createKey({ scopes: ['read', 'write'] });
      const token = await accessToken(issuing, key);
      expect(await verdicts(token)).toEqual(everywhere('active'));
      await changing.patch(`/v1/api-keys/${key.id}`, { scopes: ['read'] });
      for (const client of clients) expect((await client.introspect(token)).body.scopes).toEqual(['read']);
    }
  });
});

test('an instance that was stopped while a token was revoked does not take it when it wakes', async () => {
  const [issuing, revoking] = inTurn(0);
  const silent = instances[2] as Instance;
  const key = await issuing.createKey();
  const token = await accessToken(issuing, key);
  expect(await verdicts(token)).toEqual(everywhere('active'));
  silent.stop();
  expect((await postForm(revoking, '/oauth/revoke', { token })).status).toBe(200);
  silent.wake();
  expect(await verdicts(token)).toEqual(everywhere('revoked'));
}, 60_000);
