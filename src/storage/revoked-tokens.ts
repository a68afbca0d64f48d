import { eq, sql } from 'drizzle-orm';
import type { Executor } from './database.ts';
import { revokedTokens } from './schema.ts';

/** Whether this access token was revoked by itself. */
export async function isTokenRevoked(executor: Executor, jti: string): Promise<boolean> {
  const rows = await executor
    .select({ jti: revokedTokens.jti })
    .from(revokedTokens)
    .where(eq(revokedTokens.jti, jti));
  return rows.length > 0;
}

/** Notes that an access token is revoked; answers whether it was not so before. @param expiresAt seconds since the epoch. */
export async function insertRevokedToken(
  executor: Executor,
  { jti, expiresAt }: { readonly jti: string; readonly expiresAt: number },
): Promise<boolean> {
  const { rowCount } = await executor
    .insert(revokedTokens)
    .values({ jti, expiresAt: new Date(expiresAt * 1000) })
    .onConflictDoNothing();
  return rowCount === 1;
}

/** So many go with one statement: a revocation waits for it no longer than that takes. */
const FORGOTTEN_AT_ONCE = 10_000;

/** Forgets those that have expired a while ago by now, which is all that is left to say of them. */
export async function forgetExpiredTokens(executor: Executor, nowMs: number): Promise<void> {
  await executor.execute(sql`
    DELETE FROM revoked_tokens WHERE jti IN (
      SELECT jti FROM revoked_tokens WHERE expires_at < ${new Date(nowMs - KEPT_AFTER_EXPIRY_MS).toISOString()}::timestamptz
      LIMIT ${FORGOTTEN_AT_ONCE})`);
}

/** Instances judge expiry by estimates of the database's time. */
const KEPT_AFTER_EXPIRY_MS = 60_000;
