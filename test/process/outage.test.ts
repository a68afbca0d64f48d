import { expect, test } from 'vitest';
import type { Answer } from '../support/client.ts';
import { databaseOfTest } from '../support/database.ts';
import { startService } from '../support/service.ts';
import { cuttable } from './cuttable.ts';
import { startLoad } from './load.ts';

const RECOVERY_LIMIT_MS = 20_000;

/** Asks until the answer is the one waited for; what is refused meanwhile must be 503 `unavailable`. */
async function until(ask: () => Promise<Answer>, accept: (answer: Answer) => boolean): Promise<Answer> {
  const deadline = performance.now() + RECOVERY_LIMIT_MS;
  for (;;) {
    const answer = await ask();
    if (accept(answer)) return answer;
    expect(answer, answer.text).toMatchObject({ status: 503, body: { code: 'unavailable' } });
    if (performance.now() > deadline) throw new Error(`still ${answer.status}: ${answer.text}`);
  }
}

test('database connections that are killed under load cost 503s with Retry-After at most, and nothing for long', async () => {
  const database = await databaseOfTest({ empty: true });
  const service = await startService({
    database,
    environment: { CALLER_RATE_LIMIT: 'off', FAILED_AUTH_RATE_LIMIT: 'off' },
  });
  const { token } = await service.createServiceKey(['admin']);
  const { id, token: key } = await service.createKey();
  const load = startLoad({
    url: service.url,
    token,
    clients: 8,
    keepAlive: true,
    request: (index) => {
      switch (index % 5) {
        case 0:
          return {
            method: 'POST',
            path: '/v1/api-keys',
            body: { workspace_id: 'ws_load', name: `Key ${index}` },
          };
        case 1:
          return { method: 'GET', path: '/v1/api-keys' };
        case 2:
          return { method: 'PATCH', path: `/v1/api-keys/${id}`, body: { name: `Name ${index}` } };
        case 3:
          return { method: 'GET', path: '/readyz' };
        default:
          return { method: 'POST', path: '/v1/introspect', body: { key } };
      }
    },
  });
  let killed = 0;
  for (let round = 1; round <= 15; round++) {
    await load.reached(30 * round);
    const rows = await database.query(
      "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'claviger%'",
    );
    killed += rows.length;
  }
  const outcomes = await load.stop();
  expect(killed).toBeGreaterThan(15);

  const statuses = new Set(outcomes.map((outcome) => (outcome.answered ? outcome.status : outcome.code)));
  for (const expected of [200, 201]) expect(statuses).toContain(expected);
  for (const outcome of outcomes) {
    if (!outcome.answered) throw new Error(`cut off: ${outcome.code}`);
    if (outcome.status < 300) continue;
    expect(outcome.status, outcome.text).toBe(503);
    expect(JSON.parse(outcome.text)).toMatchObject({ code: 'unavailable', status: 503 });
    expect(outcome.headers['retry-after']).toMatch(/^[1-9]\d*$/);
  }

  await until(
    () => service.introspect(key),
    ({ status }) => status === 200,
  );
  await until(
    () => service.get('/readyz', { as: null }),
    ({ status }) => status === 200,
  );
  // What was answered as done, is.
  const created = outcomes.flatMap((outcome) =>
    outcome.answered && outcome.status === 201 ? [JSON.parse(outcome.text).data] : [],
  );
  const stored = await database.query<{ id: string }>(
    "SELECT id FROM api_keys WHERE workspace_id = 'ws_load'",
  );
  expect(stored.length).toBeGreaterThanOrEqual(created.length);
  for (const { key: made } of created.slice(-20))
    expect((await service.introspect(made)).body.active).toBe(true);
  expect(service.process.exitCode).toBeNull();
  expect(await service.end('SIGTERM')).toBe(0);
});

test('while the database is away the process lives, is not ready, and recovers without a restart', async () => {
  const database = await databaseOfTest({ empty: true });
  const proxy = await cuttable(database.url);
  const service = await startService({
    database: { ...database, url: proxy.url },
    environment: { LEASE_SECONDS: '1' },
  });
  const { token } = await service.createKey();
  expect((await service.get('/readyz', { as: null })).status).toBe(200);

  await proxy.cut();
  const unready = await until(
    () => service.get('/readyz', { as: null }),
    ({ status }) => status === 503,
  );
  expect(unready.body).toMatchObject({ code: 'unavailable', success: false });
  expect(unready.headers['retry-after']).toMatch(/^[1-9]\d*$/);
  expect((await service.get('/healthz', { as: null })).status).toBe(200);
  const refused = await service.post('/v1/api-keys', { workspace_id: 'ws_acme', name: 'Not now' });
  expect(refused, refused.text).toMatchObject({ status: 503, body: { code: 'unavailable' } });
  expect(refused.headers['retry-after']).toMatch(/^[1-9]\d*$/);
  // Each probe that it fails is no line in the log.
  const lines = service.output().stderr.split('\n').length;
  for (let probe = 0; probe < 20; probe++) await service.get('/readyz', { as: null });
  const failures = service
    .output()
    .stderr.split('\n')
    .slice(lines)
    .filter((line) => line.includes('could not be answered'));
  expect(failures).toEqual([]);

  await proxy.restore();
  await until(
    () => service.get('/readyz', { as: null }),
    ({ status }) => status === 200,
  );
  await until(
    () => service.introspect(token),
    ({ status }) => status === 200,
  );
  expect((await service.introspect(token)).body).toMatchObject({ active: true });
  const made = await until(
    () => service.post('/v1/api-keys', { workspace_id: 'ws_acme', name: 'Now' }),
    ({ status }) => status === 201,
  );
  expect(made.body.data.name).toBe('Now');
  expect(await service.end('SIGTERM')).toBe(0);
});

test('a service ends within 10 s, with 0, while its database is away', async () => {
  const database = await databaseOfTest({ empty: true });
  const proxy = await cuttable(database.url);
  const service = await startService({ database: { ...database, url: proxy.url } });
  await proxy.cut();
  const startedMs = performance.now();
  expect(await service.end('SIGTERM')).toBe(0);
  expect(performance.now() - startedMs).toBeLessThan(10_000);
});
