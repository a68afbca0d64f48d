import { hash as digestOf } from 'node:crypto';
import type { KeyRecord } from '../domain/decision.ts';
import type { KeyId } from '../domain/key-id.ts';
import { idPartOfKey } from '../domain/token.ts';

import type { BrokenRule, Memory } from './membership.ts';
import { type Cached, createNameCache } from './name-cache.ts';
import { createSharing } from './sharing.ts';

/*
 * What memory holds of the token of each key, found by the part of it that is the key's id; and of a key whose access
 * tokens are shown, found by its id. A string that was made up is told apart there, before anything is computed of it;
 * of one with an id that memory knows, the digest decides.
 *
 *   proof   that the token matched this argon2 hash. Never stale: a hash does not change under a token.
 *   record  the key as it was read. Good while its epoch lasts, its key and its workspace were not invalidated.
 *
 *   flight  a load under way, and the proof behind it, that requests for the same token share.
 *
 * What a flight read is kept only if its epoch lasts and its subject was not invalidated since it began; a request
 * that begins after an invalidation never joins a flight from before it. A load does not know its workspace until
 * it has landed, so that a workspace's invalidation detaches every flight.
 *
 * An invalidation drops records and keeps proofs, so that a changed key costs one read and no argon2. It must
 * take the same few steps whatever is held: a key's record is emptied; a workspace's handle is marked stale, and
 * records compare their handle when they are looked up; an epoch's end only counts the epoch up.
 *
 * There may be millions: a hash is held as a fingerprint, and records share what they have in common (sharing.ts).
 */

/** Stands for an argon2 hash: 128 bits of its SHA-256. Salts are ours, so that nobody has a say in what collides. */
type Fingerprint = string;
const FINGERPRINT_BYTES = 16;

/** Shared by all records of a workspace, so that one mark makes all of them stale. */
interface WorkspaceHandle {
  readonly id: string;
  current: boolean;
  records: number;
}

/** A token as memory knows it. */
export interface TokenName {
  /** The part that is its key's id (domain/token.ts), by which memory is looked up. */
  readonly idPart: string;
  /** Its SHA-256, which is what a proof is of. */
  readonly digest: string;
}

export interface CacheEntry extends Cached<CacheEntry> {
  digest: string;
  /** Of the argon2 hash that the token matched; `undefined` while only an unproved record is known. */
  proven: Fingerprint | undefined;
  /** Of the record's hash. */
  hash: Fingerprint | undefined;
  record: KeyRecord | undefined;
  workspace: WorkspaceHandle | undefined;
  epoch: number;
}

/** A load that other requests may join, until it is detached. */
export interface Flight<Outcome> extends Pick<TokenName, 'digest'> {
  readonly keyId: KeyId;
  readonly epoch: number;
  detached: boolean;
  outcome: Promise<Outcome> | undefined;
}

export interface RecordCache<Outcome> extends Memory {
  /** What is known of a token with this id: whether it is the one at hand, its digest says, and nothing else. */
  find(idPart: string): CacheEntry | undefined;
  /** The record of an entry, if it may be believed without asking the database. */
  currentRecord(entry: CacheEntry): KeyRecord | undefined;
  /** Whether a token is known to match this argon2 hash. */
  isProven(name: TokenName, hash: string): boolean;
  /** The flight of a token that a request may join now. */
  joinable(digest: string): Flight<Outcome> | undefined;
  begin(name: TokenName, keyId: KeyId): Flight<Outcome>;
  end(flight: Flight<Outcome>): void;
  /** Keeps what a read and a proof found: the proof in any case, the record if its flight may leave one. */
  store(name: TokenName, found: Found, flight: Flight<Outcome> | undefined): void;
  readonly size: number;
  /** Loads under way that may be joined. */
  readonly loading: number;
  /** Tokens forgotten for want of room, since the start. */
  readonly evictions: number;
}

export interface Found {
  readonly record: KeyRecord;
  readonly hash: string;
  readonly proven: boolean;
}

export interface RecordCacheOptions {
  /** How many tokens are remembered; those that were not used for long go first. */
  readonly capacity: number;
  readonly broken?: ReadonlySet<BrokenRule>;
}

export function createRecordCache<Outcome>({
  capacity,
  broken = new Set(),
}: RecordCacheOptions): RecordCache<Outcome> {
  const workspaces = new Map<string, WorkspaceHandle>();
  const flights = new Map<string, Flight<Outcome>>();
  const sharing = createSharing();
  let epoch = 0;
  let evictions = 0;

  const entries = createNameCache<CacheEntry>({
    capacity,
    forgotten(entry) {
      evictions++;
      dropRecord(entry);
    },
  });

  function dropRecord(entry: CacheEntry): void {
    const { workspace } = entry;
    entry.record = undefined;
    entry.workspace = undefined;
    if (workspace !== undefined && --workspace.records === 0 && workspaces.get(workspace.id) === workspace) {
      workspaces.delete(workspace.id);
    }
  }

  function handleOf(id: string): WorkspaceHandle {
    let handle = workspaces.get(id);
    if (handle === undefined) {
      handle = { id, current: true, records: 0 };
      workspaces.set(id, handle);
    }
    handle.records++;
    return handle;
  }

  /**
   * As it is held: what it has in common with others is theirs too. Member by member, as with an entry: V8 gives objects
   * that are spread from others and then changed a shape each, which costs every look at them and memory.
   */
  function compact(record: KeyRecord, workspace: WorkspaceHandle): KeyRecord {
    return {
      key: sharing.compact(record.key, workspace.id),
      workspace: record.workspace,
      restrictions: record.restrictions,
      tally: 0,
    };
  }

  function entryOf({ idPart, digest }: TokenName): CacheEntry {
    const known = entries.get(idPart);
    if (known === undefined) {
      const entry: CacheEntry = {
        tag: 0,
        isUsed: false,
        next: undefined,
        digest,
        proven: undefined,
        hash: undefined,
        record: undefined,
        workspace: undefined,
        epoch,
      };
      entries.add(idPart, entry);
      return entry;
    }
    if (known.digest !== digest) {
      dropRecord(known);
      known.digest = digest;
      known.proven = known.hash = undefined;
    }
    return known;
  }

  function detach(flight: Flight<Outcome>): void {
    if (broken.has('detach')) return;
    flight.detached = true;
    flights.delete(flight.digest);
  }

  /** Whether what a load read may be kept: not across an epoch's end, and not past an invalidation of its subject. */
  const mayLand = (flight: Flight<Outcome>) =>
    !flight.detached && (flight.epoch === epoch || broken.has('epoch'));

  return {
    find: (idPart) => entries.get(idPart),
    currentRecord: (entry) =>
      entry.epoch === epoch && entry.workspace?.current === true ? entry.record : undefined,
    isProven: ({ idPart, digest }, hash) => {
      const entry = entries.get(idPart);
      return entry?.digest === digest && entry.proven !== undefined && entry.proven === fingerprintOf(hash);
    },
    joinable: (digest) => flights.get(digest),

    begin({ digest }, keyId) {
      const flight: Flight<Outcome> = { digest, keyId, epoch, detached: false, outcome: undefined };
      flights.set(digest, flight);
      return flight;
    },

    end(flight) {
      if (flights.get(flight.digest) === flight) flights.delete(flight.digest);
    },

    store(name, { record, hash, proven }, flight) {
      const keepRecord = flight !== undefined && mayLand(flight);
      if (!proven && !keepRecord) return;
      const fingerprint = fingerprintOf(hash);
      const entry = entryOf(name);
      if (proven) entry.proven = fingerprint;
      if (!keepRecord) return;
      dropRecord(entry);
      entry.workspace = handleOf(record.key.workspaceId);
      entry.record = compact(record, entry.workspace);
      entry.hash = fingerprint;
      entry.epoch = epoch;
    },

    invalidate(subject) {
      // What scopes mean is no part of a record (catalogue-cache.ts).
      if (subject.kind === 'catalogue') return;
      if (subject.kind === 'workspace') {
        const handle = workspaces.get(subject.id);
        if (handle !== undefined) {
          handle.current = false;
          workspaces.delete(subject.id);
        }
        for (const flight of flights.values()) detach(flight);
        return;
      }
      const ids = new Set(subject.kind === 'keys' ? subject.ids : [subject.id]);
      for (const id of ids) {
        for (const name of [idPartOfKey(id), id]) {
          const entry = entries.peek(name);
          if (entry !== undefined) dropRecord(entry);
        }
      }
      for (const flight of flights.values()) if (ids.has(flight.keyId)) detach(flight);
    },

    forget() {
      epoch++;
      if (broken.has('epoch')) return;
      for (const flight of flights.values()) detach(flight);
    },

    get size() {
      return entries.size;
    },
    get loading() {
      return flights.size;
    },
    get evictions() {
      return evictions;
    },
  };
}

function fingerprintOf(hash: string): Fingerprint {
  return digestOf('sha256', hash, 'buffer').toString('latin1', 0, FINGERPRINT_BYTES);
}
