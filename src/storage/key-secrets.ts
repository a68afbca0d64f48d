import { eq, sql } from 'drizzle-orm';
import type { Executor } from './database.ts';
import { keySecrets } from './schema.ts';

/** The id under which rows name the secret that mints, stored on its first use. Safe to call from many instances at once. */
export async function storeSecret(executor: Executor, fingerprint: Buffer): Promise<number> {
  // Looked up first: an insert that conflicts would still spend a value of the identity column at every start.
  for (;;) {
    const [row] = await executor
      .select({ id: keySecrets.id })
      .from(keySecrets)
      .where(eq(keySecrets.fingerprint, fingerprint));
    if (row !== undefined) return row.id;
    await executor.insert(keySecrets).values({ fingerprint }).onConflictDoNothing();
  }
}

/** How many of the secrets that unrevoked keys were minted with, or signing keys sealed, are not among `fingerprints`. */
export async function countUncoveredSecrets(
  executor: Executor,
  fingerprints: readonly Buffer[],
): Promise<number> {
  const known = sql.join(
    fingerprints.map((fingerprint) => sql`${fingerprint}`),
    sql`, `,
  );
  const uncovered = sql`SELECT id FROM key_secrets WHERE fingerprint NOT IN (${known})`;
  // A union rather than an OR: each half then goes by the index of what it looks for.
  const { rows } = await executor.execute<{ uncovered: string }>(sql`
    SELECT count(*) AS uncovered FROM (
      ${uncovered} AND EXISTS (SELECT FROM api_keys WHERE secret_id = key_secrets.id AND revoked_at IS NULL)
      UNION
      ${uncovered} AND EXISTS (SELECT FROM signing_keys WHERE secret_id = key_secrets.id)
    ) AS secrets`);
  return Number(rows[0]?.uncovered);
}
