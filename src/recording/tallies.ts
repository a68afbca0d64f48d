import { spellAddress } from '../domain/address.ts';
import { OUTCOMES, type Outcome } from '../domain/decision.ts';
import type { Key } from '../domain/key.ts';
import type { KeyId } from '../domain/key-id.ts';
import { HOUR_MS } from '../domain/usage.ts';
import type { NotedUse, UsageCounts } from '../storage/usage.ts';

/** Which of the tallies it is: the first is 0. */
type Slot = number;

/**
 * What keys came to: a tally for each key and hour. In columns, since most tallies are of a key that is used once
 * before they are written: an object for each would be made, copied twice and collected at more cost than the use.
 */
export interface Tallies {
  size(): number;
  /** The tally of a key for an hour (hours since the epoch), if there is one. */
  find(keyId: KeyId, hour: number): Slot | undefined;
  /** Begins one that there is not. */
  open(key: Key, hour: number): Slot;
  count(slot: Slot, outcome: Outcome): void;
  /** Notes a use at `atMs` by a client at this address, as it was told; not one that is older than what is known. */
  use(slot: Slot, atMs: number, ip: string | null | undefined): void;
  /** No more is to be found or opened: what that took is let go. */
  seal(): void;
  /** The counts of the tallies from `from` up to `to`. */
  counts(from: Slot, to: Slot): UsageCounts;
  /** The last uses of the same. */
  uses(from: Slot, to: Slot): NotedUse[];
  /** How many introspections the tallies from `from` on have counted. */
  sum(from: Slot): number;
}

const INDEX_OF = Object.fromEntries(OUTCOMES.map((outcome, index) => [outcome, index])) as Record<
  Outcome,
  number
>;

export function createTallies(): Tallies {
  const keyIds: KeyId[] = [];
  const workspaceIds: string[] = [];
  const hours: number[] = [];
  /** Database time of the last success; 0: none. */
  const usedAt: number[] = [];
  const usedIps: (string | null | undefined)[] = [];
  /** By outcome, then by slot: as far as that outcome was counted. */
  const counted: number[][] = OUTCOMES.map(() => []);
  const slots = new Map<number, Map<KeyId, Slot>>();
  let current = new Map<KeyId, Slot>();
  let currentHour = Number.NaN;

  function turnTo(hour: number): void {
    currentHour = hour;
    current = slots.get(hour) ?? new Map();
    slots.set(hour, current);
  }

  return {
    size: () => keyIds.length,

    find(keyId, hour) {
      if (hour !== currentHour) turnTo(hour);
      return current.get(keyId);
    },

    open({ id, workspaceId }, hour) {
      if (hour !== currentHour) turnTo(hour);
      const slot = keyIds.length;
      current.set(id, slot);
      keyIds.push(id);
      workspaceIds.push(workspaceId);
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
      slots.clear();
      current = new Map();
      currentHour = Number.NaN;
    },

    counts(from, to) {
      const found = { workspaceIds: [], keyIds: [], hoursMs: [], codes: [], counts: [] } as {
        workspaceIds: string[];
        keyIds: KeyId[];
        hoursMs: number[];
        codes: string[];
        counts: number[];
      };
      for (const [index, outcome] of OUTCOMES.entries()) {
        const counts = counted[index] ?? [];
        for (let slot = from; slot < Math.min(to, counts.length); slot++) {
          const count = counts[slot] ?? 0;
          if (count === 0) continue;
          found.workspaceIds.push(workspaceIds[slot] ?? '');
          found.keyIds.push(keyIds[slot] ?? '');
          found.hoursMs.push((hours[slot] ?? 0) * HOUR_MS);
          found.codes.push(outcome);
          found.counts.push(count);
        }
      }
      return found;
    },

    uses(from, to) {
      const found: NotedUse[] = [];
      for (let slot = from; slot < to; slot++) {
        const at = usedAt[slot] ?? 0;
        if (at > 0) found.push({ keyId: keyIds[slot] ?? '', at, ip: spellAddress(usedIps[slot]) });
      }
      return found;
    },

    sum: (from) => counted.flatMap((counts) => counts.slice(from)).reduce((sum, count) => sum + count, 0),
  };
}
