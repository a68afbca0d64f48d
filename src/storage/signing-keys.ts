import { asc, eq, sql } from 'drizzle-orm';
import type { Executor } from './database.ts';
import { signingKeys } from './schema.ts';

/** A key that access tokens are signed with, as it is stored. */
export interface StoredSigningKey {
  readonly kid: string;
  readonly sealed: Buffer;
  /** The value of KEY_SECRET that it was sealed with. */
  readonly secretId: number;
  /** Milliseconds since the epoch. */
  readonly signsFrom: number;
}

/** An arbitrary number that no other advisory lock of ours has. */
const SIGNING_KEYS_LOCK = 7_165_218_361;

/** Waits until no other instance is at the keys, and keeps them until the transaction ends. */
export async function lockSigningKeys(executor: Executor): Promise<void> {
  await executor.execute(sql`SELECT pg_advisory_xact_lock(${SIGNING_KEYS_LOCK})`);
}

/** All keys, in the order of their turns. */
export async function listSigningKeys(executor: Executor): Promise<StoredSigningKey[]> {
  const rows = await executor
    .select()
    .from(signingKeys)
    .orderBy(asc(signingKeys.signsFrom), asc(signingKeys.kid));
  return rows.map((row) => ({ ...row, signsFrom: row.signsFrom.getTime() }));
}

export async function insertSigningKey(executor: Executor, key: StoredSigningKey): Promise<void> {
  await executor.insert(signingKeys).values({ ...key, signsFrom: new Date(key.signsFrom) });
}

/** Stores the same key, sealed anew. */
export async function replaceSeal(
  executor: Executor,
  { kid, sealed, secretId }: Omit<StoredSigningKey, 'signsFrom'>,
): Promise<void> {
  await executor.update(signingKeys).set({ sealed, secretId }).where(eq(signingKeys.kid, kid));
}

export async function deleteSigningKey(executor: Executor, kid: string): Promise<void> {
  await executor.delete(signingKeys).where(eq(signingKeys.kid, kid));
}
