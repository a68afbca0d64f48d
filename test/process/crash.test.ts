import { expect, test } from 'vitest';
import { databaseOfTest } from '../support/database.ts';
import { startService } from '../support/service.ts';
import { startLoad } from './load.ts';

test('kill -9 in the middle of concurrent creations loses no key that was answered', async () => {
  const database = await databaseOfTest({ empty: true });
  const service = await startService({ database, environment: { CALLER_RATE_LIMIT: 'off' } });
  const { token } = await service.createServiceKey(['admin']);
  const load = startLoad({
    url: service.url,
    token,
    clients: 16,
    keepAlive: true,
    request: (index) => ({
      method: 'POST',
      path: '/v1/api-keys',
      body: { workspace_id: `ws_${index % 4}`, name: `Key ${index}`, scopes: ['read'] },
    }),
  });
  await load.reached(100);
  expect(await service.end('SIGKILL')).toBe('SIGKILL');
  await load.ended;

  const answers = load.outcomes.flatMap((outcome) => (outcome.answered ? [outcome] : []));
  expect(answers.length).toBeGreaterThanOrEqual(100);
  expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([201]));
  const answered = answers.map(({ text }) => JSON.parse(text).data);
  // It was at work on others when it was killed.
  expect(load.outcomes.filter((outcome) => !outcome.answered).length).toBeGreaterThan(0);

  const again = await startService({ database, token });
  const verdicts = await Promise.all(answered.map(({ key }) => again.introspect(key, { scopes: ['read'] })));
  expect(verdicts.map(({ body }) => ({ active: body.active, id: body.key_id }))).toEqual(
    answered.map(({ id }) => ({ active: true, id })),
  );
  // A key and its audit event are stored together or not at all.
  expect(
    await database.query(
      "SELECT api_keys.id FROM api_keys FULL JOIN audit_events ON key_id = api_keys.id AND action = 'key.created' WHERE api_keys.id IS NULL OR key_id IS NULL",
    ),
  ).toEqual([]);
});
