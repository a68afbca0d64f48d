import { expect, test } from 'vitest';
import { databaseOfTest } from '../support/database.ts';
import { startService } from '../support/service.ts';

test('SIGTERM writes what the request log still holds in memory', async () => {
  const database = await databaseOfTest({ empty: true });
  const service = await startService({ database, environment: { CALLER_RATE_LIMIT: 'off' } });
  const { id, token } = await service.createKey();
  for (let n = 0; n < 100; n++) {
    const answer = await service.introspect(token, { scopes: ['nothing'], request: { ip: `192.0.2.${n}` } });
    expect(answer.body.reason.code).toBe('insufficient_scope');
  }
  expect(await service.end('SIGTERM')).toBe(0);
  const rows = await database.query('SELECT FROM request_logs WHERE ip_first_seen');
  expect(rows).toHaveLength(100);
  expect(service.output().stderr).not.toContain(token.slice(-40));
  expect(id).toMatch(/^key_/);
});

test('a service that starts keeps its partitions: it makes those of the days to come, and drops old ones', async () => {
  const database = await databaseOfTest();
  const days = () =>
    database.query<{ name: string }>(
      "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'request_logs'::regclass ORDER BY 1",
    );
  const [first] = await days();
  for (const { name } of await days()) {
    if (/\d{8}$/.test(name)) await database.query(`DROP TABLE ${name}`);
  }
  // A day of long ago, as if this had been kept for longer until now.
  await database.query(`
    CREATE TABLE partitions.request_logs_20200101 PARTITION OF request_logs
      FOR VALUES FROM ('016f5e66-e800-7000-8000-000000000000') TO ('016f638d-4400-7000-8000-000000000000')`);
  expect(await days()).toHaveLength(2);
  const service = await startService({ database, environment: { REQUEST_LOG_RETENTION_DAYS: '3' } });
  await expect
    .poll(async () => (await days()).map(({ name }) => name), { timeout: 20_000 })
    .not.toContain('partitions.request_logs_20200101');
  expect(first?.name).toMatch(/request_logs_\d{8}$/);
  // Those of the seven days to come, of today, and of the three before: the rest is older than is kept.
  await expect.poll(async () => (await days()).length, { timeout: 20_000 }).toBe(1 + 7 + 1 + 3);
  expect(await service.end('SIGTERM')).toBe(0);
});
