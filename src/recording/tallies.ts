import { spellAddress } from '../domain/address.ts';
import { type KeyRecord, OUTCOMES, type Outcome } from '../domain/decision.ts';
import type { KeyId } from '../domain/key-id.ts';
import { HOUR_MS } from '../domain/usage.ts';
import type { UsageBatch } from '../storage/usage.ts';

/** Which of the tallies it is: the first is 0. */
type Slot = number;

/**
 * What keys came to: a tally for each key and hour. In columns, since most tallies are of a key that is used once
 * before they are written: an object for each would be made, copied twice and collected at more cost than the use. And
 * found by what the record of the key says of it, for the same reason; in a Map only where memory does not hold the
 * record, and each use brings another. A key that is read anew meanwhile has two tallies.
 */
export interface Tallies {
  size(): number;
  /** The tally of a key for an hour (hours since the epoch), if there is one. */
  find(record: KeyRecord, hour: number): Slot | undefined;
  /** Begins one. */
  open(record: KeyRecord, hour: number): Slot;
  count(slot: Slot, outcome: Outcome): void;
  /** Notes a use at `atMs` by a client at this address, as it was told; not one that is older than what is known. */
  use(slot: Slot, atMs: number, ip: string | null | undefined): void;
  /** No more is to be found or opened: what that took is let go. */
  seal(): void;
  /** What the tallies from `from` up to `to` have come to. */
  batch(from: Slot, to: Slot): UsageBatch;
  /** How many introspections the tallies from `from` on have counted. */
  sum(from: Slot): number;
}

const INDEX_OF = Object.fromEntries(OUTCOMES.map((outcome, index) => [outcome, index])) as Record<
  Outcome,
  number
>;

export function createTallies(): Tallies {
  /** Those that memory holds. Each says in `tally` where it is here: it is so if it is found there. */
  let records: (KeyRecord | undefined)[] = [];
  /** The latest tally of each key whose record memory does not hold. */
  const unheld = new Map<KeyId, Slot>();
  const keyIds: KeyId[] = [];
  const workspaceIds: string[] = [];
  const hours: number[] = [];
  /** Database time of the last success; 0: none. */
  const usedAt: number[] = [];
  const usedIps: (string | null | undefined)[] = [];
  /** By outcome, then by slot: as far as that outcome was counted. */
  const counted: number[][] = OUTCOMES.map(() => []);

  return {
    size: () => keyIds.length,

    find(record, hour) {
      const { tally } = record;
      const slot = tally ?? unheld.get(record.key.id);
      if (slot === undefined || hours[slot] !== hour) return undefined;
      return tally === undefined || records[slot] === record ? slot : undefined;
    },

    open(record, hour) {
      const slot = keyIds.length;
      const isHeld = record.tally !== undefined;
      if (isHeld) record.tally = slot;
      else unheld.set(record.key.id, slot);
      records.push(isHeld ? record : undefined);
      keyIds.push(record.key.id);
      workspaceIds.push(record.key.workspaceId);
      hours.push(hour);
      usedAt.push(0);
      usedIps.push(null);
      return slot;
    },

    count(slot, outcome) {
      const counts = counted[INDEX_OF[outcome]] ?? [];
      while (counts.length <= slot) counts.push(0);
      counts[slot] = (counts[slot] ?? 0) + 1;
    },

    use(slot, atMs, ip) {
      if (atMs < (usedAt[slot] ?? 0)) return;
      usedAt[slot] = atMs;
      usedIps[slot] = ip;
    },

    seal() {
      records = [];
      unheld.clear();
    },

    batch(from, to) {
      const found = emptyBatch();
      for (const [index, outcome] of OUTCOMES.entries()) {
        const counts = counted[index] ?? [];
        const isUse = outcome === 'active';
        for (let slot = from; slot < Math.min(to, counts.length); slot++) {
          const count = counts[slot] ?? 0;
          if (count === 0) continue;
          found.workspaceIds.push(workspaceIds[slot] ?? '');
          found.keyIds.push(keyIds[slot] ?? '');
          found.hoursMs.push((hours[slot] ?? 0) * HOUR_MS);
          found.codes.push(outcome);
          found.counts.push(count);
          found.usedMs.push(isUse ? (usedAt[slot] ?? 0) : 0);
          found.ips.push(isUse ? spellAddress(usedIps[slot]) : null);
        }
      }
      return found;
    },

    sum: (from) => counted.flatMap((counts) => counts.slice(from)).reduce((sum, count) => sum + count, 0),
  };
}

function emptyBatch() {
  return { workspaceIds: [], keyIds: [], hoursMs: [], codes: [], counts: [], usedMs: [], ips: [] } as {
    [column in keyof UsageBatch]: UsageBatch[column][number][];
  };
}
