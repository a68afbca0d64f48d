import { keySecret } from '../../src/domain/key-secret.ts';
import { TEST_KEY_SECRET } from '../support/app.ts';
import type { TestDatabase } from '../support/database.ts';

const DAY_MS = 86_400_000;
/** The keys were made one after the other over this time, the last of them now. */
const SPREAD_DAYS = 400;
export const BIG_WORKSPACE = 'ws_big';
/** A tenth of the keys was minted with this one, the rest with the secret of all tests. */
export const FORMER_SECRET = 'the-secret-of-years-ago-of-40-characters';

/**
 * Fills a migrated database with `count` keys such as a few years of use leave behind: one workspace with a fifth
 * of them and thousands of small ones, service keys, common and rare scopes, creators, names and environments,
 * expiries to come and past, and a quarter revoked. The hashes are of no token.
 *
 * Things end, and statistics know nothing of that: the big workspace made its last key long ago, as did one common
 * creator and one environment, and most revoked keys are old. A list that is read in the order of all keys would
 * have to pass all that were made since.
 */
export async function fillWithKeys(
  database: TestDatabase,
  count: number,
  nowMs: number,
  { serviceKeys = true } = {},
): Promise<void> {
  const fingerprintOf = (secret: string) => `'\\x${keySecret(secret).fingerprint.toString('hex')}'::bytea`;
  const [current, former] = [fingerprintOf(TEST_KEY_SECRET), fingerprintOf(FORMER_SECRET)];
  const workspace = `CASE
    WHEN i % 5000 = 7 AND ${serviceKeys} THEN 'system'
    WHEN i % 3 = 0 AND i < ${count} * 0.6 THEN '${BIG_WORKSPACE}'
    ELSE 'ws_' || (hashint4(i) & 4095) END`;
  await database.query(`
    INSERT INTO key_secrets (fingerprint) VALUES (${current}), (${former}) ON CONFLICT DO NOTHING;
    INSERT INTO workspaces (id) SELECT DISTINCT ${workspace} FROM generate_series(1, ${count}) i
      ON CONFLICT DO NOTHING;
    INSERT INTO api_keys (id, workspace_id, environment, name, prefix, last_characters, hash, secret_id, scopes,
      restrictions, rate_limit, rate_limit_window_seconds, metadata, created_by, created_at, expires_at, revoked_at)
    SELECT
      (lpad(to_hex(made), 12, '0') || '7' || substr(noise, 1, 3) || 'a' || substr(noise, 4, 15))::uuid,
      workspace,
      environment,
      (ARRAY['Production', 'Staging', 'Zapier', 'Data warehouse', 'Partner', 'CI', 'Mobile app'])[1 + chance % 7]
        || ' ' || (ARRAY['import', 'export', 'sync', 'reports', 'webhooks'])[1 + chance / 7 % 5] || ' ' || i % 977,
      'ck_' || environment || '_',
      substr(noise, 20, 4),
      '$argon2id$v=19$m=19456,t=2,p=1$' || substr(noise, 1, 22) || '$' || noise || substr(noise, 1, 11),
      (SELECT id FROM key_secrets WHERE fingerprint = CASE WHEN i % 10 = 0 THEN ${former} ELSE ${current} END),
      CASE WHEN workspace = 'system' THEN ARRAY[(ARRAY['admin', 'introspect', 'keys:read'])[1 + chance % 3]]
        WHEN i % 2000 = 1 THEN ARRAY['read', 'export:everything']
        WHEN i % 10 = 1 THEN ARRAY['read', 'write', 'validate:offers']
        WHEN i % 10 < 5 THEN ARRAY['read', 'write']
        WHEN i % 10 = 9 THEN '{}'
        ELSE ARRAY['read', 'contacts.' || chance % 300 || ':read'] END,
      CASE WHEN i % 8 = 0 THEN '{"allowed_ips": ["203.0.113.0/24"], "allowed_referrers": null, "allowed_endpoints": null, "allowed_workspaces": null}'::jsonb END,
      1000, 3600,
      CASE WHEN i % 4 = 0 THEN jsonb_build_object('team', 'team ' || chance % 50) END,
      CASE WHEN i % 10 < 3 THEN NULL WHEN i % 10 = 3 AND i < ${count} / 2 THEN 'ci' ELSE 'usr_' || chance % 2000 END,
      to_timestamp(made / 1000.0),
      -- From 300 days ago to 300 days ahead for old and young keys alike, but never before the creation.
      CASE WHEN chance % 10 < 3 THEN to_timestamp(greatest(made + ${DAY_MS}, ${nowMs} + (chance % 601 - 300) * ${DAY_MS}::bigint) / 1000.0) END,
      CASE WHEN hashint4(i + 1) % 4 = 0 THEN to_timestamp((made + ${nowMs}) / 2000.0) END
    FROM generate_series(1, ${count}) i,
      LATERAL (SELECT
        (${nowMs} - ((${count} - i)::float8 / ${count} * ${SPREAD_DAYS * DAY_MS}))::bigint AS made,
        md5(i::text) AS noise,
        hashint4(i + 2) & 1048575 AS chance,
        ${workspace} AS workspace) AS key,
      LATERAL (SELECT CASE WHEN workspace = 'system' THEN 'svc' WHEN i % 5 < 2 AND i < ${count} / 2 THEN 'test' ELSE 'live' END AS environment) AS place;
  `);
  await database.query('ANALYZE');
}
