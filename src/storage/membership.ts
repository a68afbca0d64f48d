import { and, eq, inArray, lt, sql } from 'drizzle-orm';
import { type Executor, once, UNNAMED } from './database.ts';
import { acknowledgements, instances } from './schema.ts';

/** What a change made stale: a key, several, all of a workspace, or the scope catalogue, of which there is one. */
export type Subject =
  | { readonly kind: 'key'; readonly id: string }
  /** `MAX_KEYS_PER_CHANGE` at most. */
  | { readonly kind: 'keys'; readonly ids: readonly string[] }
  | { readonly kind: 'workspace'; readonly id: string }
  | { readonly kind: 'catalogue' };

/** A change as it is notified, once its transaction commits. */
export interface Change {
  readonly id: string;
  readonly subject: Subject;
  /** The instance that waits for acknowledgements, where it can be notified of them. */
  readonly waiter: string | null;
}

export interface Member {
  readonly id: string;
  readonly leaseMs: number;
  readonly fenced: boolean;
}

export const CHANGES_CHANNEL = 'claviger_changes';
/** Each instance hears of the acknowledgements that it waits for, and of no others. */
export const acknowledgementChannel = (instanceId: string) => `claviger_ack_${instanceId}`;

/** A notification holds less than 8,000 bytes, and an id takes 31 of them. */
export const MAX_KEYS_PER_CHANGE = 200;

const NONE = '-';
const BETWEEN_IDS = ',';

export function writeChange({ id, subject, waiter }: Change): string {
  return `${id} ${waiter ?? NONE} ${subject.kind} ${nameOf(subject)}`;
}

function nameOf(subject: Subject): string {
  switch (subject.kind) {
    case 'catalogue':
      return NONE;
    case 'keys':
      return subject.ids.join(BETWEEN_IDS);
    default:
      return subject.id;
  }
}

/** The change that a notification tells of; `undefined` for what is none, such as a probe. */
export function readChange(payload: string): Change | undefined {
  const [id, waiter, kind, named] = payload.split(' ');
  if (id === undefined || waiter === undefined || named === undefined) return undefined;
  const subject = subjectOf(kind, named);
  return subject && { id, subject, waiter: waiter === NONE ? null : waiter };
}

function subjectOf(kind: string | undefined, name: string): Subject | undefined {
  switch (kind) {
    case 'key':
    case 'workspace':
      return { kind, id: name };
    case 'keys':
      return { kind, ids: name.split(BETWEEN_IDS) };
    case 'catalogue':
      return { kind };
    default:
      return undefined;
  }
}

/** Within the transaction of the change itself: it is delivered if and when that commits. */
export async function notifyChange(executor: Executor, change: Change): Promise<void> {
  await executor.execute(sql`SELECT pg_notify(${CHANGES_CHANNEL}, ${writeChange(change)})`);
}

/** Sends what no instance takes for a change, to see whether the listener hears it. */
export async function notifyProbe(executor: Executor, nonce: string): Promise<void> {
  await executor.execute(sql`SELECT pg_notify(${CHANGES_CHANNEL}, ${nonce})`);
}

/** All instances whose memory may still answer, fenced ones too. */
export async function listUnreleased(executor: Executor): Promise<Member[]> {
  return unreleased(executor).execute();
}

const unreleased = once((executor) =>
  executor
    .select({ id: instances.id, leaseMs: instances.leaseMs, fenced: instances.fenced })
    .from(instances)
    .where(eq(instances.released, false))
    .prepare(UNNAMED),
);

/** Which instances have acknowledged this very change. */
export async function listAcknowledged(executor: Executor, changeId: string): Promise<string[]> {
  const rows = await executor
    .select({ id: acknowledgements.instanceId })
    .from(acknowledgements)
    .where(eq(acknowledgements.changeId, changeId));
  return rows.map((row) => row.id);
}

/** Fences instances: none of them can renew its lease any more. */
export async function fenceInstances(executor: Executor, ids: readonly string[]): Promise<void> {
  await executor
    .update(instances)
    .set({ fenced: true })
    .where(and(inArray(instances.id, [...ids]), eq(instances.released, false), eq(instances.fenced, false)));
}

/**
 * Releases instances that were fenced and waited out, or that are the caller's own and have dropped their memory.
 * All released rows go, so that none stays for ever where somebody stopped between the two statements.
 */
export async function releaseInstances(executor: Executor, ids: readonly string[]): Promise<void> {
  await executor
    .update(instances)
    .set({ released: true })
    .where(inArray(instances.id, [...ids]));
  await executor.delete(instances).where(eq(instances.released, true));
}

/** Forgets acknowledgements that nobody can be waiting for any more. */
export async function forgetAcknowledgements(executor: Executor, olderThanSeconds: number): Promise<void> {
  await executor
    .delete(acknowledgements)
    .where(lt(acknowledgements.at, sql`now() - make_interval(secs => ${olderThanSeconds})`));
}
