import { afterAll, beforeAll, expect, test } from 'vitest';
import { CHEAP_ARGON2, TEST_KEY_SECRET } from '../support/app.ts';
import { databaseOfTest, type TestDatabase } from '../support/database.ts';
import { startRollout } from '../support/rollout.ts';
import { runCli, type Service, startService } from '../support/service.ts';
import { buildPreviousRelease, type PreviousRelease } from './previous-release.ts';

let previous: PreviousRelease;

beforeAll(async () => {
  previous = await buildPreviousRelease();
});
afterAll(() => previous.remove());

const migrationsOf = async (database: TestDatabase) =>
  (await database.query('SELECT hash FROM drizzle.__drizzle_migrations')).length;

async function start(database: TestDatabase, options: { token?: string; cli?: string }): Promise<Service> {
  const environment = { CALLER_RATE_LIMIT: 'off', LEASE_SECONDS: '2' };
  return startService({ database, environment, ...options });
}

test('a rolling upgrade from the previous release, with data and under load, fails no request', async () => {
  const database = await databaseOfTest({ empty: true });
  const { cli } = previous;
  const first = await start(database, { cli });
  const { token } = await first.createServiceKey(['admin']);
  const as = { as: token };
  const kept = await first.createKey({ name: 'Kept', rate_limit: null, metadata: { team: 'data' } }, as);
  const revoked = await first.createKey({ name: 'Revoked' }, as);
  await first.delete(`/v1/api-keys/${revoked.id}`, undefined, as);
  await first.introspect(kept.token, {}, as);
  const former = [first, await start(database, { cli, token })];
  const migrationsBefore = await migrationsOf(database);

  const rollout = startRollout({ token, clients: 2 });
  for (const service of former) await rollout.add(service);
  await rollout.lives(4);

  const present: Service[] = [];
  for (const old of former) {
    // The first of them migrates, while two of the previous release work on.
    const service = await start(database, { token });
    present.push(service);
    await rollout.add(service);
    await rollout.lives(4);
    expect(await rollout.end(old)).toBe(0);
    await rollout.lives(2);
  }
  const { faults, requests, tokens } = await rollout.stop();
  expect(faults).toEqual([]);
  expect(requests).toBeGreaterThan(50);
  expect(await migrationsOf(database)).toBeGreaterThan(migrationsBefore);

  for (const service of present) {
    for (const alive of [kept.token, ...tokens])
      expect((await service.introspect(alive)).body).toMatchObject({ active: true });
    expect((await service.introspect(revoked.token)).body.reason.code).toBe('revoked');
    expect((await service.get(`/v1/api-keys/${kept.id}`)).body.data).toMatchObject({
      name: 'Kept',
      metadata: { team: 'data' },
    });
  }
});

test('an instance of the previous release that starts after the migration refuses, and says what to do', async () => {
  const database = await databaseOfTest({ empty: true });
  const environment = { DATABASE_URL: database.url, KEY_SECRET: TEST_KEY_SECRET, ...CHEAP_ARGON2 };
  for (const cli of [previous.cli, undefined])
    expect(await runCli(['migrate'], environment, cli)).toMatchObject({ code: 0, stderr: '' });
  expect(await runCli(['migrate'], environment, previous.cli)).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/^claviger: The database was migrated by a newer release of Claviger\./),
  });
});
