import { hash as digestOf } from 'node:crypto';
import type { KeyRecord } from '../domain/decision.ts';
import type { KeyId } from '../domain/key-id.ts';
import { idPartOfKey } from '../domain/token.ts';
import type { BrokenRule, Memory } from './membership.ts';
import { createNameCache, type Place } from './name-cache.ts';
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
 * There may be millions: names and digests lie outside of the heap (name-cache.ts), a hash is held as a fingerprint, and
 * records share what they have in common (sharing.ts).
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

/** A record as memory holds it. */
export interface HeldRecord extends KeyRecord {
  /** Of the argon2 hash that was read with it. */
  readonly hash: Fingerprint;
  /** Whether its token is known to match that hash. */
  isProven: boolean;
  readonly handle: WorkspaceHandle;
  readonly epoch: number;
}

/** A load that other requests may join, until it is detached. */
export interface Flight<Outcome> extends Pick<TokenName, 'digest'> {
  readonly keyId: KeyId;
  readonly epoch: number;
  detached: boolean;
  outcome: Promise<Outcome> | undefined;
}

export interface RecordCache<Outcome> extends Memory {
  /** What is known of a token with this id: whether it is the one at hand, its digest says (`isOf`), and nothing else. */
  find(idPart: string): Place | undefined;
  /** Whether what is known is of the token with this digest. */
  isOf(place: Place, digest: string): boolean;
  /** The record of a token, if it may be believed without asking the database. */
  currentRecord(place: Place): HeldRecord | undefined;
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

  /** By place: records, and fingerprints of the argon2 hashes that tokens matched. */
  const records: (HeldRecord | undefined)[] = [];
  const proofs: (Fingerprint | undefined)[] = [];

  const names = createNameCache({
    capacity,
    forgotten(place) {
      evictions++;
      dropRecord(place);
    },
  });

  function dropRecord(place: Place): void {
    const handle = records[place]?.handle;
    records[place] = undefined;
    if (handle !== undefined && --handle.records === 0 && workspaces.get(handle.id) === handle) {
      workspaces.delete(handle.id);
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
   * As it is held: what it has in common with others is theirs too. Member by member: V8 gives objects that are spread from
   * others and then changed a shape each, which costs every look at them and memory.
   */
  function hold(
    { key, workspace, restrictions }: KeyRecord,
    hash: Fingerprint,
    isProven: boolean,
  ): HeldRecord {
    const handle = handleOf(key.workspaceId);
    return {
      key: sharing.compact(key, handle.id),
      workspace,
      restrictions,
      tally: 0,
      hash,
      isProven,
      handle,
      epoch,
    };
  }

  function placeOf({ idPart, digest }: TokenName): Place {
    let place = names.peek(idPart);
    if (place !== undefined && names.isOf(place, digest)) return place;
    if (place === undefined) place = names.add(idPart, digest);
    else names.change(place, digest);
    dropRecord(place);
    proofs[place] = undefined;
    return place;
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
    find: names.find,
    isOf: names.isOf,
    currentRecord(place) {
      const record = records[place];
      return record !== undefined && record.epoch === epoch && record.handle.current ? record : undefined;
    },
    isProven({ idPart, digest }, hash) {
      const place = names.find(idPart);
      return place !== undefined && names.isOf(place, digest) && proofs[place] === fingerprintOf(hash);
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
      const place = placeOf(name);
      if (proven) {
        proofs[place] = fingerprint;
        const held = records[place];
        if (held !== undefined) held.isProven = held.hash === fingerprint;
      }
      if (!keepRecord) return;
      dropRecord(place);
      records[place] = hold(record, fingerprint, proofs[place] === fingerprint);
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
          const place = names.peek(name);
          if (place !== undefined) dropRecord(place);
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
      return names.size;
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
