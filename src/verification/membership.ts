import { randomUUID } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '../domain/errors.ts';
import type { Connection } from '../storage/connection.ts';
import { type Database, type Executor, StorageError } from '../storage/database.ts';
import { type Acknowledgement, type Listener, ListenerError, openListener } from '../storage/listener.ts';
import {
  acknowledgementChannel,
  CHANGES_CHANNEL,
  type Change,
  fenceInstances,
  forgetAcknowledgements,
  listAcknowledged,
  listUnreleased,
  type Member,
  notifyChange,
  notifyProbe,
  readChange,
  releaseInstances,
  type Subject,
} from '../storage/membership.ts';
import { QUOTA_CHANNEL, type QuotaNotice, readQuotaNotice } from '../storage/rate-windows.ts';
import type { EngineObserver } from './observer.ts';

/*
 * Whether this instance may answer from memory, and how a change comes to hold everywhere (docs/revocation.md;
 * test/model/revocation.pml is the same as a model that Spin has searched).
 *
 *   outside     no lease: every request reads the database
 *     │ listen, probe, register under a fresh id
 *   member      leased until the deadline: sending time of the last renewal + 0.98 lease
 *     │ renewal refused (fenced), deadline passed, listener lost and replaced, drain
 *   outside     memory forgotten, the old id released, from the start again
 *
 * A lost listener does not end the membership by itself: memory answers on until the deadline, which is what
 * bounds it. Nothing is asked of any wall clock: not of this machine's, and not of the database's.
 */

/** The rules that a test can switch off, to see that its suite notices. Production has no way to. */
export type BrokenRule = 'deadline' | 'epoch' | 'detach' | 'acknowledgement' | 'fence' | 'repeat';

/** What a change meant to the instances: how many there were, how each came not to know the old state any more. */
export interface Propagation {
  readonly instances: number;
  readonly confirmed: number;
  readonly fenced: number;
  readonly waitedMs: number;
}

/** What the membership guards. */
export interface Memory {
  /** Drops what a change made stale, and detaches the loads under way that may have read it before. */
  invalidate(subject: Subject): void;
  /** Drops every record and detaches every load. */
  forget(): void;
}

/** Several memories, guarded as one. */
export function joinMemories(...memories: readonly Memory[]): Memory {
  return {
    invalidate(subject) {
      for (const memory of memories) memory.invalidate(subject);
    },
    forget() {
      for (const memory of memories) memory.forget();
    },
  };
}

export interface Membership {
  /** Joins; resolves once this instance is leased. Fails where it never could be, with a message for the operator. */
  start(): Promise<void>;
  /** Whether memory may answer at this moment. */
  isLeased(): boolean;
  /** Database time in milliseconds, while memory may answer; `undefined` where it may not. */
  leasedNow(): number | undefined;
  /** Milliseconds since the lease was last renewed; `undefined` outside. */
  leaseAgeMs(): number | undefined;
  /** Changes that are being made or wait for other instances. */
  changesWaiting(): number;
  /**
   * Runs a change in a transaction, and resolves when no instance answers by the old state any more.
   * @param requestId as `Database.transaction` takes it.
   * @throws Failure `unavailable`, `committed; repeat to confirm`, where that cannot be told.
   */
  change<T>(
    run: (executor: Executor) => Promise<Changed<T>>,
    requestId?: string,
  ): Promise<{ result: T; propagation: Propagation }>;
  /** Leaves for good, and tells the others not to wait. Changes that still wait end with `committed; repeat to confirm`. */
  close(): Promise<void>;
}

/** What a change's transaction did. */
export interface Changed<T> {
  readonly result: T;
  readonly subject: Subject;
  /** It found everything as it was to be. It is waited for all the same: who came first may have died half-way. */
  readonly repeated: boolean;
  /** Statements still under way, which the commit waits for: they share a round trip with the change's own. */
  readonly writes?: readonly Promise<unknown>[];
}

export interface MembershipOptions {
  readonly database: Database;
  /** A direct connection: a transaction pooler does not pass LISTEN on. */
  readonly listenTo: Connection;
  readonly leaseMs: number;
  readonly memory: Memory;
  /** Told of what instances tell each other about quota (quota.ts), on the same connection. */
  readonly hearQuota: (notice: QuotaNotice) => void;
  readonly observer: EngineObserver;
  /** Told of what an operator should know: losses and returns. */
  report(event: { readonly message: string; readonly cause?: unknown }): void;
  readonly broken?: ReadonlySet<BrokenRule>;
}

/** The clocks of two machines may differ in rate by 1 %: each side of a lease leaves twice that. */
const OWN_SHARE = 0.98;
const WAITING_SHARE = 1.02;
/** An instance in good health acknowledges within a few milliseconds. */
const ACKNOWLEDGE_WITHIN_MS = 500;
const ACKNOWLEDGEMENTS_PER_STATEMENT = 1_000;
/** Stored acknowledgements are read this often, for where a notification of them was lost; */
const POLL_MS = 100;
/** ... a change that waits for long asks more rarely: there may be hundreds, and they wait for a fence by then. */
const POLL_SHARE_OF_WAIT = 0.2;
/** How long the database may stay away after COMMIT before the caller is told to repeat. */
const CONFIRM_PATIENCE_MS = 5_000;
/** A goodbye is short, whether or not the database answers: others can fence what was not released. */
const GOODBYE_MS = 1_500;
const RENEWALS_PER_LEASE = 3;
/** A renewal that takes longer has a connection that is half open; with a long lease that would show late. */
const RENEWAL_TIMEOUT_MS = 5_000;
/** How fast two clocks of 1 % each may part. */
const DRIFT = 0.02;
const PROBE_TIMEOUT_MS = 5_000;
const RECONNECT_AFTER_MS = { first: 50, most: 1_000 } as const;
/** Longer than any change can wait: the longest lease is 300 s. */
const ACKNOWLEDGEMENT_LIFE_SECONDS = 900;
const FORGET_EVERY_MS = 60_000;

/** CLOCK_MONOTONIC in milliseconds: it runs on while the process is stopped, and no one sets it. */
const monotonic = () => performance.now();

const NOT_WAITED: Propagation = { instances: 0, confirmed: 0, fenced: 0, waitedMs: 0 };

interface Registration {
  readonly id: string;
  readonly listener: Listener;
  /** Monotonic time until which memory may answer. */
  deadline: number;
  renewedAt: number;
}

interface Alarm {
  /** Ends the wait under way, or the next one. */
  wake(): void;
  /** Until it is woken, or for so long. */
  wait(limitMs: number): Promise<void>;
}

/** One change that waits. */
interface Waiter extends Alarm {
  readonly acknowledged: Set<string>;
}

function createAlarm(): Alarm {
  let woken = false;
  let end: (() => void) | undefined;
  return {
    wake() {
      woken = true;
      end?.();
    },
    async wait(limitMs) {
      if (!woken) {
        await new Promise<void>((resolve) => {
          const timer = setTimeout(resolve, limitMs);
          end = () => {
            clearTimeout(timer);
            resolve();
          };
        });
      }
      woken = false;
    },
  };
}

export function createMembership(options: MembershipOptions): Membership {
  const { database, leaseMs, memory, observer, report } = options;
  const broken = options.broken ?? new Set<BrokenRule>();
  const waiters = new Map<string, Waiter>();
  /** Ids of this process whose rows may still stand; its memory is one, whichever of them it answers under. */
  const ownIds = new Set<string>();
  /**
   * When this process first saw an instance fenced. A fence never ends, so that one sight serves all later waits;
   * what is released is forgotten at the next look.
   */
  const seenFenced = new Map<string, number>();
  /**
   * Changes of this instance's own that it has dropped and not heard of yet, or the other way round: who comes second
   * takes the entry away, and what was loaded since a change was dropped is not thrown away for having heard of it.
   */
  const own = new Map<string, 'dropped' | 'heard'>();
  let registration: Registration | undefined;
  let clock:
    | { readonly databaseMs: number; readonly monotonicMs: number; readonly tookMs: number }
    | undefined;
  let server: string | undefined;
  /** After a failover to a server that may not know all instances, changes wait a full lease besides. */
  let distrustUntil = 0;
  let closed = false;
  let running: Promise<void> | undefined;
  let ending: Promise<void> | undefined;
  let lastForgotten = monotonic();
  const closing = new AbortController();
  // As many may pause as there are changes that wait for the database.
  setMaxListeners(0, closing.signal);

  // ---- joining, renewing, leaving ----

  async function join(): Promise<Registration> {
    const id = randomUUID();
    const heard: Acknowledgement[] = [];
    let acknowledging = false;
    const listener = await openListener(options.listenTo, (channel, payload) => {
      if (channel === CHANGES_CHANNEL) hearChange(payload);
      else if (channel === QUOTA_CHANNEL) hearQuota(payload);
      else hearAcknowledgements(payload);
    });

    function hearChange(payload: string): void {
      const change = readChange(payload);
      if (change === undefined) return;
      observer.changeHeard();
      // Dropped already, right after its COMMIT: what was loaded since is new, and stays.
      if (own.get(change.id) === 'dropped') {
        own.delete(change.id);
        return;
      }
      memory.invalidate(change.subject);
      if (waiters.has(change.id)) own.set(change.id, 'heard');
      // A change of this instance's own waits for the others alone.
      if (change.waiter === id) return;
      // Dropped first, acknowledged then; what one turn of the event loop brought, or the time of the statement
      // before it, goes in one statement: a renewal then never stands behind more than one.
      heard.push({ changeId: change.id, waiter: change.waiter });
      if (!acknowledging) setImmediate(acknowledge);
      acknowledging = true;
    }

    async function acknowledge(): Promise<void> {
      while (heard.length > 0) {
        const batch = heard.splice(0, ACKNOWLEDGEMENTS_PER_STATEMENT);
        observer.acknowledged(batch.length);
        // Where it fails, the change's author waits for the fence instead; the renewal notices a lost connection.
        await listener.acknowledge(id, batch).catch(() => undefined);
      }
      acknowledging = false;
    }

    try {
      await listener.listen([CHANGES_CHANNEL, QUOTA_CHANNEL, acknowledgementChannel(id)]);
      await refuseWrongServer(listener);
      await probe(listener);
      ownIds.add(id);
      const sentAt = monotonic();
      const databaseMs = await listener.register(id, leaseMs);
      setClock(databaseMs, sentAt);
      return { id, listener, deadline: sentAt + OWN_SHARE * leaseMs, renewedAt: sentAt };
    } catch (error) {
      await abandon(id, listener);
      throw error;
    }
  }

  /** Gives up a registration that memory never answered under. The server may know of it, even where it did not say so. */
  async function abandon(id: string, listener: Listener): Promise<void> {
    ownIds.add(id);
    await listener.close();
    await releaseFormer();
  }

  async function refuseWrongServer(listener: Listener): Promise<void> {
    const found = await listener.identify();
    if (found.inRecovery)
      throw new ListenerError('The database is a standby: Claviger works on the primary.');
    if (server !== undefined && server !== found.identity) {
      report({
        message: 'the database is another server or timeline than before: changes wait one full lease',
      });
      distrustUntil = monotonic() + WAITING_SHARE * leaseMs;
    }
    server = found.identity;
  }

  /** What is notified through the pool must reach the listener, or changes would go unheard. */
  async function probe(listener: Listener): Promise<void> {
    const nonce = randomUUID();
    const heard = listener.hear(nonce, PROBE_TIMEOUT_MS);
    const sent = database.read((executor) => notifyProbe(executor, nonce));
    await Promise.race([sent, heard]);
    if (await heard) return;
    throw new ListenerError(
      'A NOTIFY sent through DATABASE_URL does not reach the listener. Behind a transaction pooler set DATABASE_LISTEN_URL to a direct connection to the same server.',
    );
  }

  function enter(joined: Registration): void {
    registration = joined;
    own.clear();
    observer.registered();
  }

  /** Ends the epoch: nothing that was held or is being loaded is believed again. */
  function leave(reason: 'fenced' | 'lapsed' | 'listener' | 'drain'): void {
    registration = undefined;
    memory.forget();
    own.clear();
    observer.left(reason);
  }

  function setClock(databaseMs: number, sentAt: number): void {
    // The database read its clock between sending and now. Counting from the sending errs early, and expiry with it,
    // by no more than the answer took. So a slow answer is worth less than the sample before, until drift is worse.
    const tookMs = monotonic() - sentAt;
    const doubtMs =
      clock === undefined ? Number.POSITIVE_INFINITY : clock.tookMs + DRIFT * (sentAt - clock.monotonicMs);
    if (tookMs <= doubtMs) clock = { databaseMs, monotonicMs: sentAt, tookMs };
  }

  /** Renews until the membership has ended; answers why. */
  async function stay(joined: Registration): Promise<'fenced' | 'lapsed' | 'listener'> {
    const { id, listener } = joined;
    // Told once: a race with `lost` at each renewal would leave something behind in it each time.
    const alarm = createAlarm();
    void listener.lost.then(alarm.wake);
    for (;;) {
      await alarm.wait(leaseMs / RENEWALS_PER_LEASE);
      if (closed) return 'listener';
      const sentAt = monotonic();
      const renewed = await listener
        .renew(id, Math.min(leaseMs / RENEWALS_PER_LEASE, RENEWAL_TIMEOUT_MS))
        .catch(() => 'lost' as const);
      if (renewed === 'lost') return 'listener';
      if (renewed === 'refused') return 'fenced';
      if (monotonic() > joined.deadline && !broken.has('deadline')) return 'lapsed';
      setClock(renewed.databaseMs, sentAt);
      joined.deadline = sentAt + OWN_SHARE * leaseMs;
      joined.renewedAt = sentAt;
      observer.renewed(monotonic() - sentAt);
      forgetOldAcknowledgements();
    }
  }

  /** Beside the renewals, which must not wait for the pool. */
  function forgetOldAcknowledgements(): void {
    if (monotonic() - lastForgotten < FORGET_EVERY_MS) return;
    lastForgotten = monotonic();
    database
      .read((executor) => forgetAcknowledgements(executor, ACKNOWLEDGEMENT_LIFE_SECONDS))
      .catch(() => undefined);
  }

  async function run(first: Registration): Promise<void> {
    let current = first;
    while (!closed) {
      const reason = await stay(current);
      await current.listener.close();
      if (closed) return;
      if (reason !== 'listener') leave(reason);
      report({ message: `this instance lost its membership (${reason}); it joins anew` });
      const joined = await rejoin();
      if (joined === undefined) return;
      if (closed) return abandon(joined.id, joined.listener);
      // Memory may have answered until now, by a lease that outlived its listener. What changed meanwhile went unheard.
      if (registration !== undefined) leave(reason);
      current = joined;
      enter(joined);
      // The new lease does not wait for it: the pool may still hold connections to a server that is gone.
      void releaseFormer();
    }
  }

  async function rejoin(): Promise<Registration | undefined> {
    for (
      let waitMs: number = RECONNECT_AFTER_MS.first;
      !closed;
      waitMs = Math.min(waitMs * 2, RECONNECT_AFTER_MS.most)
    ) {
      try {
        return await join();
      } catch (cause) {
        report({ message: 'the listener cannot connect', cause });
        await pause(waitMs * (0.5 + Math.random() / 2));
      }
    }
    return undefined;
  }

  /** Releases this process's rows, but for the one that its memory answers under. Never fails. */
  async function releaseFormer(): Promise<void> {
    const former = [...ownIds].filter((id) => id !== registration?.id);
    if (former.length === 0) return;
    await database
      .read((executor) => releaseInstances(executor, former))
      .then(
        () => {
          for (const id of former) ownIds.delete(id);
        },
        // They stay for others to fence and wait out; that costs them time, and nothing else.
        () => undefined,
      );
  }

  function isLeasedAt(now: number): boolean {
    return registration !== undefined && (now < registration.deadline || broken.has('deadline'));
  }

  function hearQuota(payload: string): void {
    const notice = readQuotaNotice(payload);
    if (notice !== undefined) options.hearQuota(notice);
  }

  // ---- changing, and waiting for the others ----

  function hearAcknowledgements(payload: string): void {
    const [instanceId, ...changeIds] = payload.split(' ');
    for (const changeId of changeIds) {
      const waiter = waiters.get(changeId);
      if (waiter === undefined || instanceId === undefined) continue;
      waiter.acknowledged.add(instanceId);
      waiter.wake();
    }
  }

  /** Waits until no instance can answer by what was true before the change, which has committed. */
  async function confirm(change: Change, waiter: Waiter): Promise<Propagation> {
    const startedAt = monotonic();
    memory.invalidate(change.subject);
    if (own.get(change.id) === 'heard') own.delete(change.id);
    else own.set(change.id, 'dropped');
    const unreleased = await patiently(() => database.read(listUnreleased));
    seeFences(unreleased);
    const members = broken.has('fence') ? unreleased.filter((member) => !member.fenced) : unreleased;
    const open = new Map(members.map((member) => [member.id, member]));
    for (const id of ownIds) open.delete(id);
    if (broken.has('acknowledgement')) open.clear();

    let fenced = 0;
    let looks = 0;
    // Who is to acknowledge has its time from here on: the database may have been away since the commit.
    const askedAt = monotonic();
    let nextLookAt = askedAt + POLL_MS;
    while (open.size > 0) {
      if (closed) throw unconfirmed();
      await waiter.wait(Math.max(1, Math.min(nextLookAt, nextDeadline(open)) - monotonic()));
      for (const id of waiter.acknowledged) open.delete(id);
      if (monotonic() >= nextLookAt && open.size > 0) {
        const late = monotonic() - askedAt >= ACKNOWLEDGE_WITHIN_MS;
        const repeat = looks++ === 0;
        fenced += await patiently(() => lookAfter(change, open, { late, repeat }));
        nextLookAt = monotonic() + Math.max(POLL_MS, POLL_SHARE_OF_WAIT * (monotonic() - askedAt));
      }
      fenced += closeWaitedOut(open);
    }
    await trustServer();
    const waitedMs = Math.round(monotonic() - startedAt);
    observer.confirmed(waitedMs);
    return { instances: members.length, confirmed: members.length - fenced, fenced, waitedMs };
  }

  async function trustServer(): Promise<void> {
    while (monotonic() < distrustUntil) {
      if (closed) throw unconfirmed();
      await pause(Math.max(1, distrustUntil - monotonic()));
    }
  }

  /**
   * Reads what notifications may have failed to tell: acknowledgements, releases, fences. Sets fences when it is late.
   * @returns how many had been fenced and were released since.
   */
  async function lookAfter(
    change: Change,
    open: Map<string, Member>,
    { late, repeat }: { late: boolean; repeat: boolean },
  ): Promise<number> {
    for (const id of await database.read((executor) => listAcknowledged(executor, change.id)))
      open.delete(id);
    const silent = [...open.keys()].filter((id) => !seenFenced.has(id));
    if (silent.length > 0) {
      if (late) await fence(silent);
      // Who registered after the commit but before it was looked for listens, and has not heard of it.
      else if (repeat) await database.read((executor) => notifyChange(executor, change));
    }
    const unreleased = await database.read(listUnreleased);
    const released = new Set(open.keys());
    for (const { id } of unreleased) released.delete(id);
    const fenced = [...released].filter((id) => seenFenced.has(id)).length;
    for (const id of released) open.delete(id);
    seeFences(unreleased);
    return fenced;
  }

  async function fence(ids: readonly string[]): Promise<void> {
    await database.transaction((executor) => fenceInstances(executor, ids));
    observer.fenced(ids.length);
  }

  /** Notes when a fence was first seen, and forgets those of instances that are released. */
  function seeFences(unreleased: readonly Member[]): void {
    const ids = new Set(unreleased.map((member) => member.id));
    for (const id of seenFenced.keys()) if (!ids.has(id)) seenFenced.delete(id);
    for (const { id, fenced } of unreleased)
      if (fenced && !seenFenced.has(id)) seenFenced.set(id, monotonic());
  }

  function waitedOutAt(member: Member): number {
    const seenAt = seenFenced.get(member.id);
    return seenAt === undefined ? Number.POSITIVE_INFINITY : seenAt + WAITING_SHARE * member.leaseMs;
  }

  /** Answers how many can no longer answer, since their fence was waited out. */
  function closeWaitedOut(open: Map<string, Member>): number {
    const now = monotonic();
    const over = [...open.values()].filter((member) => now >= waitedOutAt(member)).map(({ id }) => id);
    if (over.length === 0) return 0;
    for (const id of over) open.delete(id);
    // The change's answer does not wait for it. Where it fails the rows stay, and the next change finds them waited out.
    database.read((executor) => releaseInstances(executor, over)).catch(() => undefined);
    return over.length;
  }

  function nextDeadline(open: ReadonlyMap<string, Member>): number {
    return Math.min(...[...open.values()].map(waitedOutAt));
  }

  /** Repeats what the database makes fail, for a while. The change has committed, whatever the fault is. */
  async function patiently<T>(read: () => Promise<T>): Promise<T> {
    const patientUntil = monotonic() + CONFIRM_PATIENCE_MS;
    for (;;) {
      try {
        return await read();
      } catch (cause) {
        if (!(cause instanceof Failure || cause instanceof StorageError)) throw cause;
        // After the close a pause ends at once, and so must this.
        if (closed || monotonic() > patientUntil) throw unconfirmed(cause);
        await pause(POLL_MS);
      }
    }
  }

  function unconfirmed(cause?: unknown): Failure {
    return new Failure('unavailable', 'committed; repeat to confirm', { cause });
  }

  /** Waits for work that never fails, but not for longer than this. */
  async function atMost(limitMs: number, work: Promise<void> | undefined): Promise<void> {
    const alarm = createAlarm();
    void Promise.resolve(work).then(alarm.wake);
    await alarm.wait(limitMs);
  }

  async function pause(ms: number): Promise<void> {
    if (ms <= 0) return;
    await sleep(ms, undefined, { signal: closing.signal }).catch(() => undefined);
  }

  async function end(): Promise<void> {
    const last = registration;
    closed = true;
    closing.abort();
    leave('drain');
    for (const waiter of waiters.values()) waiter.wake();
    await atMost(GOODBYE_MS, releaseFormer());
    await last?.listener.close();
    await atMost(GOODBYE_MS, running);
  }

  return {
    async start() {
      const first = await join();
      if (closed) return abandon(first.id, first.listener);
      enter(first);
      running = run(first);
    },
    isLeased: () => isLeasedAt(monotonic()),
    leasedNow() {
      const now = monotonic();
      if (clock === undefined || !isLeasedAt(now)) return undefined;
      return clock.databaseMs + (now - clock.monotonicMs);
    },
    leaseAgeMs: () => (registration === undefined ? undefined : monotonic() - registration.renewedAt),
    changesWaiting: () => waiters.size,

    async change(runChange, requestId) {
      const changeId = randomUUID();
      const waiter: Waiter = { acknowledged: new Set(), ...createAlarm() };
      // From before the commit on, so that no acknowledgement comes before somebody waits for it.
      waiters.set(changeId, waiter);
      try {
        const { result, repeated, change } = await database.transaction(async (executor) => {
          const { subject, writes = [], ...changed } = await runChange(executor);
          const change: Change = { id: changeId, subject, waiter: registration?.id ?? null };
          await Promise.all([...writes, notifyChange(executor, change)]);
          return { ...changed, change };
        }, requestId);
        if (repeated && broken.has('repeat')) return { result, propagation: NOT_WAITED };
        return { result, propagation: await confirm(change, waiter) };
      } finally {
        waiters.delete(changeId);
        // Heard of, but not committed; or notified a second time while it waited.
        if (own.get(changeId) === 'heard') own.delete(changeId);
      }
    },

    close() {
      ending ??= end();
      return ending;
    },
  };
}
