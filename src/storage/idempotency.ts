import { and, inArray, sql } from 'drizzle-orm';
import type { Executor } from './database.ts';
import { sealedAnswers } from './schema.ts';

/** The first answer to a request with an Idempotency-Key, as it is stored. */
export interface SealedAnswer {
  readonly id: string;
  /** Where it is found: one of the MACs that were asked for. */
  readonly mac: Buffer;
  readonly sealed: Buffer;
}

/** How long an answer is kept (contract §4), by the database's clock. */
const KEPT = sql`interval '24 hours'`;
const isKept = sql`${sealedAnswers.createdAt} > clock_timestamp() - ${KEPT}`;

/** Finds the answer under one of these MACs, one for each value of KEY_SECRET. */
export async function findSealedAnswer(
  executor: Executor,
  macs: readonly Buffer[],
): Promise<SealedAnswer | undefined> {
  const [row] = await executor
    .select({ id: sealedAnswers.id, mac: sealedAnswers.mac, sealed: sealedAnswers.sealed })
    .from(sealedAnswers)
    .where(and(inArray(sealedAnswers.mac, [...macs]), isKept))
    .limit(1);
  return row;
}

/**
 * Whether this transaction alone may answer what these MACs stand for, until it ends. It waits for nobody. All MACs
 * are locked, not the newest alone: instances list the values of KEY_SECRET in different order while it is rotated.
 * The number that is locked is the first 8 bytes of a MAC; another that shares them would be asked to come again.
 */
export async function tryLockAnswer(executor: Executor, macs: readonly Buffer[]): Promise<boolean> {
  // In one order, and none behind one that is taken: of two that come at once, one has them all.
  const inOrder = macs.toSorted(Buffer.compare).map((mac) => mac.readBigInt64BE(0).toString());
  const all = inOrder.reduceRight(
    (rest, number) => sql`CASE WHEN pg_try_advisory_xact_lock(${number}::bigint) THEN ${rest} ELSE false END`,
    sql`true`,
  );
  const { rows } = await executor.execute<{ locked: boolean }>(sql`SELECT ${all} AS locked`);
  return rows[0]?.locked === true;
}

/** Stores an answer. What stood there before is older than it may be served: the caller holds the lock, and has looked. */
export async function storeSealedAnswer(executor: Executor, answer: SealedAnswer): Promise<void> {
  await executor
    .insert(sealedAnswers)
    .values({ ...answer, createdAt: sql`clock_timestamp()` })
    .onConflictDoUpdate({
      target: sealedAnswers.mac,
      set: { id: sql`excluded.id`, sealed: sql`excluded.sealed`, createdAt: sql`excluded.created_at` },
    });
}

/** Deletes answers that are no longer served, at most so many; answers how many. Several instances may do so at once. */
export async function deleteOldAnswers(executor: Executor, most: number): Promise<number> {
  const { rowCount } = await executor.execute(sql`
    DELETE FROM sealed_answers WHERE id IN (
      SELECT id FROM sealed_answers WHERE created_at <= clock_timestamp() - ${KEPT}
      ORDER BY created_at LIMIT ${most} FOR UPDATE SKIP LOCKED)`);
  return rowCount ?? 0;
}
