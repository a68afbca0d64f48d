import { expect, test } from 'vitest';
import { appOfTest } from './support/app.ts';
import { databaseOfTest } from './support/database.ts';
import { startService } from './support/service.ts';

test('a key is created, introspected and revoked', async () => {
  const app = await appOfTest();
  const { id, token } = await app.createKey({ scopes: ['read'] });
  expect((await app.introspect(token, { scopes: ['read'] })).body).toMatchObject({
    active: true,
    key_id: id,
  });
  expect((await app.delete(`/v1/api-keys/${id}`)).body).toMatchObject({
    success: true,
    message: 'API key revoked successfully',
  });
  expect((await app.introspect(token)).body).toMatchObject({
    active: false,
    reason: { code: 'revoked', status: 401 },
  });
});
test('over a socket too', async () => {
  const service = await startService({ database: await databaseOfTest() });
  const { token } = await service.createKey({ scopes: ['read'] });
  expect((await service.introspect(token, { scopes: ['read'] })).body).toMatchObject({ active: true });
  expect(await service.end('SIGTERM')).toBe(0);
});
