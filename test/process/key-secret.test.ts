import { hkdfSync } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { CHEAP_ARGON2, createTestApp, type TestApp } from '../support/app.ts';
import { databaseOfTest, type TestDatabase } from '../support/database.ts';
import { runCli } from '../support/service.ts';

const OLD = 'the-former-secret-of-40-characters-alone';
const NEW = 'the-present-secret-of-40-characters-only';

/** Starts with these secrets, does something, and ends. */
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

const serve = (database: TestDatabase, secrets: string) =>
  runCli(['migrate'], { DATABASE_URL: database.url, KEY_SECRET: secrets, ...CHEAP_ARGON2 });

const isActive = async (app: TestApp, token: string) => (await app.introspect(token)).body.active;

describe('a start with secrets that do not cover the stored, unrevoked keys', () => {
  test('fails, and says in one line what to do, without the secret', async () => {
    const database = await databaseOfTest();
    await withSecrets(database, OLD, (app) => app.createKey());
    const { code, stdout, stderr } = await serve(database, NEW);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(/^claviger: KEY_SECRET does not cover 1 of .*KEY_SECRET=new,former\n$/);
    expect(stderr).not.toContain(NEW);
    // A start that fails leaves nothing of its secret.
    expect(await database.query('SELECT id FROM key_secrets')).toHaveLength(1);
  });

  test('counts each that is missing', async () => {
    const database = await databaseOfTest();
    await withSecrets(database, OLD, (app) => app.createKey());
    await withSecrets(database, `${NEW},${OLD}`, (app) => app.createKey());
    const { stderr } = await serve(database, 'a-third-secret-that-is-40-characters-long');
    expect(stderr).toContain('does not cover 2 of the secrets');
  });
});

describe('a rotation of KEY_SECRET', () => {
  test('goes by old,new then new,old, and tokens of both are good on all instances meanwhile', async () => {
    const database = await databaseOfTest();
    const before = await withSecrets(database, OLD, (app) => app.createKey());
    const between = await withSecrets(database, `${OLD},${NEW}`, async (app) => {
      expect(await isActive(app, before.token)).toBe(true);
      return app.createKey();
    });
    const after = await withSecrets(database, `${NEW},${OLD}`, async (app) => {
      for (const { token } of [before, between]) expect(await isActive(app, token)).toBe(true);
      return app.createKey();
    });
    await withSecrets(database, `${OLD},${NEW}`, async (app) => {
      for (const { token } of [before, between, after]) expect(await isActive(app, token)).toBe(true);
    });
    const secrets = await database.query(
      "SELECT key_secrets.id, count(*)::int AS keys FROM api_keys JOIN key_secrets ON secret_id = key_secrets.id WHERE workspace_id = 'ws_acme' GROUP BY 1 ORDER BY 2",
    );
    expect(secrets.map(({ keys }) => keys)).toEqual([1, 2]);
  });

  test('may drop the old one when each key made with it is revoked, and not one key earlier', async () => {
    const database = await databaseOfTest();
    await withSecrets(database, OLD, async (app) => {
      await app.createKey({ name: 'last' });
      await app.createKey({ name: 'first' });
    });
    await withSecrets(database, `${NEW},${OLD}`, async (app) => {
      // The admin key of the first start was made with it as well.
      const { body } = await app.get('/v1/api-keys?limit=100');
      const made = body.data.filter(
        ({ name, workspace_id: workspace }: Record<string, string>) =>
          workspace === 'ws_acme' || name === body.data.at(-1).name,
      );
      for (const { id, name } of made) {
        if (name !== 'last') expect((await app.delete(`/v1/api-keys/${id}`)).status).toBe(200);
      }
    });
    expect((await serve(database, NEW)).code).toBe(1);
    await withSecrets(database, `${NEW},${OLD}`, async (app) => {
      const { body } = await app.get('/v1/api-keys?name=last');
      expect((await app.delete(`/v1/api-keys/${body.data[0].id}`)).status).toBe(200);
    });
    expect(await serve(database, NEW)).toEqual({ code: 0, stdout: '', stderr: '' });
  });

  test('to a secret that was never deployed beside the old one makes old tokens no tokens at all', async () => {
    const database = await databaseOfTest();
    const { token } = await withSecrets(database, OLD, async (app) => {
      const key = await app.createKey();
      await app.delete(`/v1/api-keys/${key.id}`);
      return key;
    });
    await database.query('UPDATE api_keys SET revoked_at = now() WHERE revoked_at IS NULL');
    // A signing key that is sealed with it is in the way as an unrevoked key is.
    expect((await serve(database, NEW)).stderr).toContain('does not cover 1 of the secrets');
    await database.query('DELETE FROM signing_keys');
    await withSecrets(database, NEW, async (app) => {
      expect((await app.introspect(token)).body.reason.code).toBe('invalid');
    });
  });
});

test('the database keeps an HKDF fingerprint of each secret, and nothing else of it', async () => {
  const database = await databaseOfTest();
  await withSecrets(database, `${NEW},${OLD}`, (app) => app.createKey());
  await withSecrets(database, `${NEW},${OLD}`, (app) => app.createKey());
  const rows = await database.query<{ fingerprint: Buffer }>('SELECT fingerprint FROM key_secrets');
  const fingerprint = Buffer.from(hkdfSync('sha256', NEW, '', 'claviger/fingerprint', 16));
  expect(rows.map((row) => row.fingerprint.toString('hex'))).toEqual([fingerprint.toString('hex')]);
});
