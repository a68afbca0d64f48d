import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { expectProblem } from '../http/problem.ts';
import { createTestApp } from '../support/app.ts';
import { type Answer, type Client, createClient, fetchTransport } from '../support/client.ts';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { type Instance, startInstance } from '../support/instances.ts';
import { loadResponseCheck } from '../support/response-check.ts';

/*
 * Plans, disabled workspaces and rotation over several real instances on one database. What one has answered holds
 * on the others for every request that begins then.
 */

const COUNT = 3;
const ROUNDS = 12;
const START_MS = 120_000;

let database: TestDatabase;
let instances: Instance[] = [];
let clients: [Client, Client, Client];

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
  const [first, second, third] = instances.map(({ port }) =>
    createClient(fetchTransport(`http://127.0.0.1:${port}`), { token: app.adminToken, check }),
  );
  if (first === undefined || second === undefined || third === undefined) throw new Error('three instances');
  clients = [first, second, third];
}, START_MS);

afterAll(async () => {
  await Promise.all(instances.map((instance) => instance.close()));
  await database.drop();
});

/** Another instance each round, and those after it in turn. */
function inTurn(round: number): [Client, Client, Client] {
  const [first, second, third] = clients;
  return [clients, [second, third, first], [third, first, second]][round % COUNT] as typeof clients;
}

function rotate(client: Client, id: string, graceSeconds: number): Promise<Answer> {
  return client.post(`/v1/api-keys/${id}/rotate`, { grace_period_seconds: graceSeconds });
}

async function verdicts(token: string): Promise<string[]> {
  return Promise.all(
    clients.map(async (client) => {
      const { body } = await client.introspect(token);
      return body.active ? 'active' : body.reason.code;
    }),
  );
}

const everywhere = (verdict: string) => Array.from({ length: COUNT }, () => verdict);

async function put(client: Client, id: string, body: object): Promise<void> {
  const { status, text } = await client.put(`/v1/workspaces/${id}`, body);
  expect(status, text).toBe(200);
}

describe('a change of a workspace holds on the other instances when it has answered', () => {
  test('disabled and enabled again', async () => {
    const workspace_id = 'ws_disabled';
    const { token } = await clients[0].createKey({ workspace_id });
    for (let round = 0; round < ROUNDS; round++) {
      const [here] = inTurn(round);
      expect(await verdicts(token)).toEqual(everywhere('active'));
      await put(here, workspace_id, { disabled: true });
      expect(await verdicts(token)).toEqual(everywhere('workspace_disabled'));
      await put(here, workspace_id, {});
    }
  });

  test('its plan', async () => {
    const workspace_id = 'ws_plan';
    const create = (client: Client, scopes: string[]) =>
      client.post('/v1/api-keys', { workspace_id, name: 'A key', scopes });
    for (let round = 0; round < ROUNDS; round++) {
      const [here, there, elsewhere] = inTurn(round);
      await put(here, workspace_id, { limits: { max_active_keys: 0 } });
      expectProblem(await create(there, []), 'limit_reached');
      await put(elsewhere, workspace_id, { limits: { allowed_scopes: ['read'] } });
      expectProblem(await create(there, ['write']), 'limit_reached');
      expect((await create(here, ['read'])).status).toBe(201);
    }
  });
});

test('max_active_keys holds under fifty creations at once, over all instances', async () => {
  for (const allowed of [1, 7]) {
    const workspace_id = `ws_fifty_${allowed}`;
    await put(clients[0], workspace_id, { limits: { max_active_keys: allowed } });
    const answers = await Promise.all(
      Array.from({ length: 50 }, (_, index) =>
        inTurn(index)[0].post('/v1/api-keys', { workspace_id, name: `Key ${index}` }),
      ),
    );
    expect(answers.filter(({ status }) => status === 201)).toHaveLength(allowed);
    for (const answer of answers) if (answer.status !== 201) expectProblem(answer, 'limit_reached');
    const { body } = await clients[1].get(`/v1/api-keys?workspace_id=${workspace_id}&limit=100`);
    expect(body.data).toHaveLength(allowed);
  }
});

test('max_active_keys holds where keys are rotated and revoked beside the creations', async () => {
  const workspace_id = 'ws_beside';
  const allowed = 4;
  await put(clients[0], workspace_id, { limits: { max_active_keys: allowed } });
  const ids: string[] = [];
  for (let index = 0; index < allowed; index++) ids.push((await clients[0].createKey({ workspace_id })).id);
  await Promise.all([
    ...ids.map((id, index) => rotate(inTurn(index)[0], id, 600)),
    ...ids.slice(0, 2).map((id, index) => inTurn(index)[1].delete(`/v1/api-keys/${id}`)),
    ...Array.from({ length: 30 }, (_, index) =>
      inTurn(index)[2].post('/v1/api-keys', { workspace_id, name: `Key ${index}` }),
    ),
  ]);
  const { body } = await clients[0].get(`/v1/api-keys?workspace_id=${workspace_id}&status=active&limit=100`);
  const active: { id: string; rotated_to: string | null }[] = body.data;
  const counted = active.filter(({ rotated_to }) => !active.some(({ id }) => id === rotated_to));
  expect(counted).toHaveLength(allowed);
});

describe('a rotation', () => {
  test('without grace is a revocation on the other instances when it has answered', async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const [here] = inTurn(round);
      const { id, token } = await here.createKey();
      expect(await verdicts(token)).toEqual(everywhere('active'));
      const { body } = await rotate(here, id, 0);
      expect(await verdicts(token)).toEqual(everywhere('revoked'));
      expect(await verdicts(body.data.key)).toEqual(everywhere('active'));
    }
  });

  test('with grace ends the old token on every instance when that is over', async () => {
    const { id, token } = await clients[0].createKey();
    expect(await verdicts(token)).toEqual(everywhere('active'));
    const { body } = await rotate(clients[1], id, 2);
    await expect.poll(() => verdicts(token), { timeout: 20_000 }).toEqual(everywhere('expired'));
    expect(await verdicts(body.data.key)).toEqual(everywhere('active'));
  });

  test('of one key on every instance at once makes one successor', async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const workspace_id = `ws_once_${round}`;
      const { id } = await clients[0].createKey({ workspace_id });
      const answers = await Promise.all(inTurn(round).map((client, index) => rotate(client, id, index * 60)));
      expect(answers.filter(({ status }) => status === 201)).toHaveLength(1);
      for (const answer of answers) if (answer.status !== 201) expectProblem(answer, 'key_not_active');
      const { body } = await clients[0].get(`/v1/api-keys?workspace_id=${workspace_id}`);
      expect(body.data).toHaveLength(2);
    }
  });

  test('beside a bulk revocation on another instance leaves no active key', async () => {
    for (let round = 0; round < 3 * ROUNDS; round++) {
      const workspace_id = `ws_swept_${round}`;
      const [here, there] = inTurn(round);
      const { id, token } = await here.createKey({ workspace_id });
      // The rotation hashes before its transaction: the revocation begins now before that, now after.
      const later = new Promise((resolve) => setTimeout(resolve, round % 20));
      const [rotation, bulk] = await Promise.all([
        rotate(here, id, 600),
        later.then(() => there.post(`/v1/workspaces/${workspace_id}/revoke-keys`, {})),
      ]);
      expect(bulk.status, bulk.text).toBe(200);
      expect([`201 of 2`, `409 of 1`]).toContain(`${rotation.status} of ${bulk.body.data.revoked}`);
      expect(await verdicts(token)).toEqual(everywhere('revoked'));
      if (rotation.status === 201) {
        expect(await verdicts(rotation.body.data.key)).toEqual(everywhere('revoked'));
      }
    }
  });
});
