import { importJWK, SignJWT } from 'jose';
import { onTestFinished } from 'vitest';
import { keySecret } from '../../src/domain/key-secret.ts';
import { unseal } from '../../src/domain/sealing.ts';
import { createDatabase } from '../../src/storage/database.ts';
import { storeSecret } from '../../src/storage/key-secrets.ts';
import { createSigningKeys, type SigningKeys } from '../../src/verification/signing-keys.ts';
import { TEST_KEY_SECRET } from '../support/app.ts';
import type { TestDatabase } from '../support/database.ts';

export interface KeysOptions {
  /** KEY_SECRET: the first seals, all open. */
  readonly secrets?: readonly [string, ...string[]];
  /** The time that the schedule goes by. */
  readonly now?: () => number;
  readonly rotationDays?: number;
}

/** The signing keys as another instance would hold them, for one test. */
export async function signingKeysOf(
  test: TestDatabase,
  { secrets = [TEST_KEY_SECRET], now = Date.now, rotationDays = 30 }: KeysOptions = {},
): Promise<SigningKeys & { readonly reports: readonly string[] }> {
  const database = createDatabase({
    url: test.url,
    poolSize: 2,
    applicationName: 'signing keys of a test',
    onConnectionLost: () => undefined,
  });
  onTestFinished(() => database.close());
  const [newest, ...former] = secrets;
  const reports: string[] = [];
  const keys = createSigningKeys({
    database,
    secrets: [keySecret(newest).derive('signing'), ...former.map((one) => keySecret(one).derive('signing'))],
    secretId: await database.read((executor) => storeSecret(executor, keySecret(newest).fingerprint)),
    rotationDays,
    readTime: async () => now(),
    report: ({ message }) => reports.push(message),
  });
  return { ...keys, reports };
}

/** Signs whatever is wanted with the private key that the service has. */
export async function signAsService(
  test: TestDatabase,
  claims: Record<string, unknown>,
  { typ = 'at+jwt' }: { readonly typ?: string } = {},
): Promise<string> {
  const rows = await test.query<{ kid: string; sealed: Buffer }>(
    'SELECT kid, sealed FROM signing_keys ORDER BY signs_from LIMIT 1',
  );
  const [{ kid, sealed } = { kid: '', sealed: Buffer.alloc(0) }] = rows;
  const key = keySecret(TEST_KEY_SECRET).derive('signing');
  const jwk = JSON.parse(unseal(sealed, { key, context: kid }));
  return new SignJWT(claims)
    .setProtectedHeader({ alg: 'ES256', typ, kid })
    .sign(await importJWK(jwk, 'ES256'));
}
