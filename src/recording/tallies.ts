import { spellAddress } from '../domain/address.ts';
import { type KeyRecord, OUTCOMES, type Outcome } from '../domain/decision.ts';
import type { Key } from '../domain/key.ts';
import { KEY_ID_BYTES, type KeyId, writeKeyId } from '../domain/key-id.ts';
import { startOf } from '../domain/usage.ts';
import type { KeyUse, UsageBatch } from '../storage/usage.ts';

/** Which of the tallies that gather it is: the first is 0. */
type Slot = number;

/**
 * What keys came to: a tally for each key, hour and outcome. In columns, since most tallies are of a key that is used
 * once before they are written: an object for each would be made, copied twice and collected at more cost than the use.
 * The columns lie in chunks, which are used again: what is made anew for each second lives just long enough for the
 * collector to move it among what is old, whose collection reads all of memory. An id is written down as its bytes at
 * once, while it is at hand: a second later the key has to be fetched anew.
 *
 * A tally is found by what the record of the key says of it, and from there by the chain of those that the key had
 * before; in a Map only where memory does not hold the record, and each use brings another. A key that is read anew
 * meanwhile has two tallies.
 */
export interface Tallies {
  /** Those that gather. */
  size(): number;
  /** The tally of an outcome of a key within the hour that begins at `hourMs`, if there is one. */
  find(record: KeyRecord, hourMs: number, outcome: Outcome): Slot | undefined;
  /** Begins one. */
  open(record: KeyRecord, hourMs: number, outcome: Outcome): Slot;
  count(slot: Slot): void;
  /** Notes a use at `atMs` by a client at this address, as it was told; not one that is older than what is known. */
  use(slot: Slot, atMs: number, ip: string | null | undefined): void;
  /** Begins a tally of a use that is not counted. */
  note(key: Owner, use: KeyUse): void;
  /** How many introspections they have counted. */
  sum(): number;
  /** Hands over all that there are, and begins anew. */
  take(): TallyBatch[];
}

type Owner = Pick<Key, 'id' | 'workspaceId'>;

/** Tallies that are written together. */
export interface TallyBatch {
  readonly size: number;
  sum(): number;
  usage(): UsageBatch;
  /** They are written: their place is for others. */
  release(): void;
}

/** A batch is committed within a fraction of the time that a statement may take, and made without a pause to notice. */
const CHUNK_BITS = 12;
const CHUNK_TALLIES = 1 << CHUNK_BITS;
const CHUNK_MASK = CHUNK_TALLIES - 1;
/** Chunks that wait to be used again: as many as a second of a busy instance fills. */
const MOST_SPARE = 8;
const NONE = -1;

const INDEX_OF = Object.fromEntries(OUTCOMES.map((outcome, index) => [outcome, index])) as Record<
  Outcome,
  number
>;

function createChunk() {
  return {
    length: 0,
    /** Those that memory holds. Each says in `tally` where it is here: it is so if it is found there. */
    records: new Array<KeyRecord | undefined>(CHUNK_TALLIES).fill(undefined),
    /** The tally that the key had before this one. */
    former: new Int32Array(CHUNK_TALLIES),
    ids: new Uint8Array(CHUNK_TALLIES * KEY_ID_BYTES),
    workspaceIds: new Array<string>(CHUNK_TALLIES).fill(''),
    hoursMs: new Float64Array(CHUNK_TALLIES),
    outcomes: new Uint8Array(CHUNK_TALLIES),
    /** No instance is asked 2^32 times within an hour. */
    counts: new Uint32Array(CHUNK_TALLIES),
    /** Database time of the last success; 0: none. */
    usedAt: new Float64Array(CHUNK_TALLIES),
    usedIps: new Array<string | null | undefined>(CHUNK_TALLIES).fill(null),
  };
}

type Chunk = ReturnType<typeof createChunk>;

export function createTallies(): Tallies {
  let chunks: Chunk[] = [];
  let size = 0;
  /** The latest tally of each key whose record memory does not hold. */
  const unheld = new Map<KeyId, Slot>();
  const spare: Chunk[] = [];

  /** The latest tally of a key, if there is one. */
  function latestOf(record: KeyRecord): Slot {
    const { tally } = record;
    if (tally === undefined) return unheld.get(record.key.id) ?? NONE;
    return chunks[tally >> CHUNK_BITS]?.records[tally & CHUNK_MASK] === record ? tally : NONE;
  }

  const chunkOf = (slot: Slot) => chunks[slot >> CHUNK_BITS] as Chunk;

  /** Begins a tally of nothing yet, which nothing leads to. */
  function append({ id, workspaceId }: Owner, hourMs: number, outcome: Outcome): Slot {
    if (size >> CHUNK_BITS === chunks.length) chunks.push(spare.pop() ?? createChunk());
    const chunk = chunkOf(size);
    const at = chunk.length;
    writeKeyId(id, chunk.ids, at * KEY_ID_BYTES);
    chunk.former[at] = NONE;
    chunk.workspaceIds[at] = workspaceId;
    chunk.hoursMs[at] = hourMs;
    chunk.outcomes[at] = INDEX_OF[outcome];
    chunk.counts[at] = 0;
    chunk.usedAt[at] = 0;
    chunk.length++;
    return size++;
  }

  function use(slot: Slot, atMs: number, ip: string | null | undefined): void {
    const { usedAt, usedIps } = chunkOf(slot);
    const at = slot & CHUNK_MASK;
    if (atMs < (usedAt[at] ?? 0)) return;
    usedAt[at] = atMs;
    usedIps[at] = ip;
  }

  function release(chunk: Chunk): void {
    if (spare.length === MOST_SPARE) return;
    chunk.length = 0;
    chunk.usedIps.fill(null);
    spare.push(chunk);
  }

  return {
    size: () => size,

    find(record, hourMs, outcome) {
      const index = INDEX_OF[outcome];
      for (let slot = latestOf(record); slot !== NONE; ) {
        const chunk = chunkOf(slot);
        const at = slot & CHUNK_MASK;
        if (chunk.hoursMs[at] === hourMs && chunk.outcomes[at] === index) return slot;
        slot = chunk.former[at] ?? NONE;
      }
      return undefined;
    },

    open(record, hourMs, outcome) {
      const former = latestOf(record);
      const slot = append(record.key, hourMs, outcome);
      const chunk = chunkOf(slot);
      chunk.former[slot & CHUNK_MASK] = former;
      if (record.tally === undefined) {
        unheld.set(record.key.id, slot);
      } else {
        record.tally = slot;
        chunk.records[slot & CHUNK_MASK] = record;
      }
      return slot;
    },

    count(slot) {
      const { counts } = chunkOf(slot);
      counts[slot & CHUNK_MASK] = (counts[slot & CHUNK_MASK] ?? 0) + 1;
    },

    use,

    note(key, { at, ip }) {
      use(append(key, startOf('hour', at), 'active'), at, ip);
    },

    sum: () => chunks.reduce((sum, chunk) => sum + sumOf(chunk), 0),

    take() {
      const taken = chunks;
      chunks = [];
      size = 0;
      unheld.clear();
      // Records are let go, since from now on nothing is found by them.
      for (const { records } of taken) records.fill(undefined);
      return taken.map((chunk) => ({
        size: chunk.length,
        sum: () => sumOf(chunk),
        usage: () => usageOf(chunk),
        release: () => release(chunk),
      }));
    },
  };
}

function sumOf({ counts, length }: Chunk): number {
  return counts.subarray(0, length).reduce((sum, count) => sum + count, 0);
}

function usageOf({
  length,
  ids,
  workspaceIds,
  hoursMs,
  outcomes,
  counts,
  usedAt,
  usedIps,
}: Chunk): UsageBatch {
  return {
    workspaceIds: workspaceIds.slice(0, length),
    keyIds: ids.subarray(0, length * KEY_ID_BYTES),
    hoursMs: hoursMs.subarray(0, length),
    codes: Array.from(outcomes.subarray(0, length), (index) => OUTCOMES[index] ?? ''),
    counts: counts.subarray(0, length),
    usedMs: usedAt.subarray(0, length),
    ips: usedIps.slice(0, length).map(spellAddress),
  };
}
