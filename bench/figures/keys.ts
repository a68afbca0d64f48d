import { randomBytes } from 'node:crypto';
import argon2 from 'argon2';
import { type KeyId, keyIdToUuid, newKeyId } from '../../src/domain/key-id.ts';
import { hmacSha256, keySecret } from '../../src/domain/key-secret.ts';
import { createTokenMint } from '../../src/domain/token.ts';
import { type BenchDatabase, KEY_SECRET } from '../harness.ts';

const secret = keySecret(KEY_SECRET);
const mint = createTokenMint([secret.derive('mint')], randomBytes);
const memoKey = secret.derive('memo');

/** A PHC string of the default parameters. It is no token's: a memo vouches for it, or nobody asks. */
export const SOME_HASH = `$argon2id$v=19$m=19456,t=2,p=1$${'A'.repeat(22)}$${'B'.repeat(43)}`;

export interface MintedKey {
  readonly id: KeyId;
  readonly token: string;
}

/** Tokens with the right tag for `KEY_SECRET`. Their keys have no rate limit: what one costs is a figure of its own. */
export function mintKeys(count: number): MintedKey[] {
  return Array.from({ length: count }, () => {
    const id = newKeyId(Date.now());
    return { id, token: mint.mint({ prefix: 'ck', environment: 'live', id }) };
  });
}

/** Stores keys whose tokens really hash to what is stored, with the default parameters. Takes a core 20 ms for each. */
export async function storeHashedKeys(database: BenchDatabase, count: number): Promise<MintedKey[]> {
  const keys = mintKeys(count);
  const hashes: string[] = [];
  for (const { token } of keys) {
    const parameters = { type: argon2.argon2id, memoryCost: 19_456, timeCost: 2, parallelism: 1 } as const;
    hashes.push(await argon2.hash(token, parameters));
  }
  await insertKeys(database, keys, hashes);
  return keys;
}

/** Stores keys that a memo vouches for, so that none of them ever costs an argon2. */
export async function storeKeysWithMemo(database: BenchDatabase, count: number): Promise<MintedKey[]> {
  const keys = mintKeys(count);
  for (const batch of batches(keys)) {
    await insertKeys(
      database,
      batch,
      batch.map(() => SOME_HASH),
    );
    await database.query(
      'INSERT INTO verified_secrets (key_id, mac) SELECT * FROM unnest($1::uuid[], $2::bytea[])',
      [
        batch.map(({ id }) => keyIdToUuid(id)),
        batch.map(({ token }) => hmacSha256(memoKey, token, SOME_HASH)),
      ],
    );
  }
  return keys;
}

const BATCH = 10_000;

function batches<T>(all: readonly T[]): T[][] {
  return Array.from({ length: Math.ceil(all.length / BATCH) }, (_, index) =>
    all.slice(index * BATCH, (index + 1) * BATCH),
  );
}

async function insertKeys(
  database: BenchDatabase,
  keys: readonly MintedKey[],
  hashes: readonly string[],
): Promise<void> {
  await database.query("INSERT INTO workspaces (id) VALUES ('ws_bench') ON CONFLICT DO NOTHING");
  await database.query(
    `INSERT INTO api_keys (id, workspace_id, environment, name, prefix, last_characters, hash, secret_id, scopes, created_at)
     SELECT id, 'ws_bench', 'live', 'Bench', 'ck_live_', last, hash, (SELECT min(id) FROM key_secrets), '{read}',
            ${CREATED_AT_OF_ID}
       FROM unnest($1::uuid[], $2::text[], $3::text[]) AS made (id, last, hash)`,
    [keys.map(({ id }) => keyIdToUuid(id)), keys.map(({ token }) => token.slice(-4)), hashes],
  );
}

/** The time part of a UUIDv7, to the millisecond. */
const CREATED_AT_OF_ID = `timestamptz 'epoch' + ('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint * interval '1 millisecond'`;

export interface Crowd {
  readonly count: number;
  /** The keys are spread over so many workspaces, in turn. */
  readonly workspaces: number;
  /** How long ago the last of them was made; absent: now. */
  readonly madeDaysAgo?: number;
  /** Whether each third key expires, within thirty days from now. */
  readonly expiring?: boolean;
  /** `false`: nobody is going to list them, so that their own indexes are not built again. */
  readonly listed?: boolean;
}

/**
 * Fills a database with keys that nobody has the tokens of, a millisecond between each. The rules that a row
 * has to pass are put back for later rows without a look at these, and indexes are built afterwards: this is a
 * database of the bench, and ten million rows are to be there within minutes.
 */
export async function fillWithKeys(
  database: BenchDatabase,
  { count, workspaces, madeDaysAgo = 0, expiring = false, listed = true }: Crowd,
): Promise<void> {
  const { query } = database;
  const checks = await query<{ name: string; definition: string }>(
    `SELECT conname AS name, pg_get_constraintdef(oid) AS definition FROM pg_constraint
      WHERE conrelid = 'api_keys'::regclass AND contype IN ('c', 'f')`,
  );
  const indexes = await query<{ table: string; name: string; definition: string }>(
    `SELECT tablename AS table, indexname AS name, indexdef AS definition FROM pg_indexes
      WHERE tablename IN ('api_keys', 'key_uses', 'watched_keys') AND indexname NOT LIKE '%pkey'`,
  );
  for (const { name } of checks) await query(`ALTER TABLE api_keys DROP CONSTRAINT "${name}"`);
  for (const { name } of indexes) await query(`DROP INDEX "${name}"`);
  await query(
    "SET synchronous_commit = off; SET maintenance_work_mem = '1GB'; SET max_parallel_maintenance_workers = 2",
  );
  await query(
    `INSERT INTO workspaces (id) SELECT 'ws_' || n FROM generate_series(0, ${workspaces - 1}) AS n ON CONFLICT DO NOTHING`,
  );
  await query(
    `WITH first AS (SELECT (extract(epoch FROM now() - interval '${madeDaysAgo} days') * 1000)::bigint - ${count} AS ms)
     INSERT INTO api_keys (id, workspace_id, environment, name, prefix, last_characters, hash, secret_id, scopes, created_at, expires_at)
     SELECT (lpad(to_hex(ms + n), 12, '0') || '7' || left(random, 3) || '8' || right(random, 15))::uuid,
            'ws_' || n % ${workspaces}, 'live', 'Key ' || n, 'ck_live_', 'AAAA', '${SOME_HASH}',
            (SELECT min(id) FROM key_secrets), '{read}', timestamptz 'epoch' + (ms + n) * interval '1 millisecond',
            CASE WHEN ${expiring} AND n % 3 = 0 THEN now() + (1 + n % 30) * interval '1 day' END
       FROM first, generate_series(1, ${count}) AS n, md5(n::text) AS random`,
  );
  for (const { table, definition } of indexes) if (listed || table !== 'api_keys') await query(definition);
  for (const { name, definition } of checks)
    await query(`ALTER TABLE api_keys ADD CONSTRAINT "${name}" ${definition} NOT VALID`);
  await query('VACUUM ANALYZE api_keys, key_uses, watched_keys');
  await query('CHECKPOINT');
}

/** Strings with a good tag that name these keys, and have another secret than their tokens. */
export function forgedTokens(keys: readonly MintedKey[]): string[] {
  return keys.map(({ id }) => mint.mint({ prefix: 'ck', environment: 'live', id }));
}

/** Tokens of the right form and checksum that another deployment minted. */
export function unmintedTokens(count: number): string[] {
  const other = createTokenMint(
    [keySecret('the-secret-of-quite-another-deployment').derive('mint')],
    randomBytes,
  );
  return Array.from({ length: count }, () =>
    other.mint({ prefix: 'ck', environment: 'live', id: newKeyId(Date.now()) }),
  );
}
