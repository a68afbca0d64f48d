import { expect, test } from 'vitest';
import { CHEAP_ARGON2 } from '../support/app.ts';
import { databaseOfTest } from '../support/database.ts';
import { startRollout } from '../support/rollout.ts';
import { runCli, startService } from '../support/service.ts';

const OLD = 'the-former-secret-of-40-characters-alone';
const NEW = 'the-present-secret-of-40-characters-only';

test('KEY_SECRET is rotated in two deploys of running instances, and no request fails', {
  timeout: 240_000,
}, async () => {
  const database = await databaseOfTest({ empty: true });
  let token = '';
  const start = async (secrets: string) => {
    const service = await startService({
      database,
      ...(token === '' ? {} : { token }),
      environment: { KEY_SECRET: secrets, CALLER_RATE_LIMIT: 'off', LEASE_SECONDS: '2' },
    });
    if (token === '') ({ token } = await service.createServiceKey(['admin']));
    return service;
  };
  const mintedWith = async () =>
    (
      await database.query<{ keys: number }>(
        `SELECT count(*)::int AS keys FROM api_keys WHERE workspace_id = 'ws_rollout' GROUP BY secret_id ORDER BY min(created_at)`,
      )
    ).map(({ keys }) => keys);

  let services = [await start(OLD), await start(OLD)];
  const rollout = startRollout({ token, clients: 2 });
  for (const service of services) await rollout.add(service);
  await rollout.lives(2);
  // An answer that is sealed under the first secret, for a retry that comes after both deploys.
  const retried = {
    body: { workspace_id: 'ws_retry', name: 'Retried' },
    options: { headers: { 'idempotency-key': 'across-the-rotation' } },
  };
  const [first] = services;
  const created = await first?.post('/v1/api-keys', retried.body, { ...retried.options, as: token });

  for (const secrets of [`${OLD},${NEW}`, `${NEW},${OLD}`]) {
    const replaced = services;
    services = [];
    for (const former of replaced) {
      const service = await start(secrets);
      await rollout.add(service);
      services.push(service);
      await rollout.lives(2);
      expect(await rollout.end(former)).toBe(0);
    }
    await rollout.lives(2);
  }
  const { faults, requests, tokens } = await rollout.stop();
  expect(faults).toEqual([]);
  expect(requests).toBeGreaterThan(50);
  // Of both secrets, the old one first.
  expect(await mintedWith()).toEqual([expect.any(Number), expect.any(Number)]);

  const [last] = services;
  if (last === undefined) throw new Error('there is no instance');
  for (const kept of tokens) expect((await last.introspect(kept)).body).toMatchObject({ active: true });
  const again = await last.post('/v1/api-keys', retried.body, { ...retried.options, as: token });
  expect(again.headers['idempotent-replayed']).toBe('true');
  expect(again.body.data.key).toBe(created?.body.data.key);

  // The last step of the rotation: with keys of the old secret it refuses, and without them it starts.
  const migrate = () => runCli(['migrate'], { DATABASE_URL: database.url, KEY_SECRET: NEW, ...CHEAP_ARGON2 });
  expect(await migrate()).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('KEY_SECRET=new,former'),
  });
});
