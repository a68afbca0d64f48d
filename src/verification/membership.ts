import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '../domain/errors.ts';
import type { Database, Executor } from '../storage/database.ts';
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

export interface Membership {
  /** Joins; resolves once this instance is leased. Fails where it never could be, with a message for the operator. */
  start(): Promise<void>;
  /** Whether memory may answer at this moment. */
  isLeased(): boolean;
  /** Database time in milliseconds; `undefined` before the first registration. */
  now(): number | undefined;
  /** Milliseconds since the lease was last renewed; `undefined` outside. */
  leaseAgeMs(): number | undefined;
  /**
   * Runs a change in a transaction, and resolves when no instance answers by the old state any more.
   * @throws Failure `unavailable`, `committed; repeat to confirm`, where that cannot be told.
   */
  change<T>(
    run: (executor: Executor) => Promise<Changed<T>>,
  ): Promise<{ result: T; propagation: Propagation }>;
  /** Leaves for good, and tells the others not to wait. */
  close(): Promise<void>;
}

/** What a change's transaction did. */
export interface Changed<T> {
  readonly result: T;
  readonly subject: Subject;
  /** It found everything as it was to be. It is waited for all the same: who came first may have died half-way. */
  readonly repeated: boolean;
}

export interface MembershipOptions {
  readonly database: Database;
  /** A direct connection string: a transaction pooler does not pass LISTEN on. */
  readonly listenUrl: string;
  readonly leaseMs: number;
  readonly memory: Memory;
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
/** Stored acknowledgements are read this often, for where a notification of them was lost. */
const POLL_MS = 100;
/** How long the database may stay away after COMMIT before the caller is told to repeat. */
const CONFIRM_PATIENCE_MS = 5_000;
const RENEWALS_PER_LEASE = 3;
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

/** One change that waits. */
interface Waiter {
  readonly acknowledged: Set<string>;
  /** Ends the wait under way, or the next one. */
  wake(): void;
  /** Until it is woken, or for so long. */
  wait(limitMs: number): Promise<void>;
}

function createWaiter(): Waiter {
  let woken = false;
  let end: (() => void) | undefined;
  return {
    acknowledged: new Set(),
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
  /** When this process first saw an instance fenced. A fence never ends, so that one sight serves all later waits. */
  const seenFenced = new Map<string, number>();
  let registration: Registration | undefined;
  let clock: { readonly databaseMs: number; readonly monotonicMs: number } | undefined;
  let server: string | undefined;
  /** After a failover to a server that may not know all instances, changes wait a full lease besides. */
  let distrustUntil = 0;
  let closed = false;
  let running: Promise<void> | undefined;
  let lastForgotten = monotonic();
  const closing = new AbortController();

  // ---- joining, renewing, leaving ----

  async function join(): Promise<Registration> {
    const id = randomUUID();
    const heard: Acknowledgement[] = [];
    const listener = await openListener(options.listenUrl, (channel, payload) => {
      if (channel === CHANGES_CHANNEL) hearChange(payload);
      else hearAcknowledgements(payload);
    });

    function hearChange(payload: string): void {
      const change = readChange(payload);
      if (change === undefined) return;
      memory.invalidate(change.subject);
      observer.changeHeard();
      // A change of this instance's own waits for the others alone.
      if (change.waiter === id) return;
      // Dropped first, acknowledged then; all that one turn of the event loop brought goes in one statement.
      if (heard.length === 0) setImmediate(acknowledge);
      heard.push({ changeId: change.id, waiter: change.waiter });
    }

    function acknowledge(): void {
      const batch = heard.splice(0);
      observer.acknowledged(batch.length);
      // Where it fails, the change's author waits for the fence instead; the renewal notices a lost connection.
      listener.acknowledge(id, batch).catch(() => undefined);
    }

    try {
      await listener.listen([CHANGES_CHANNEL, acknowledgementChannel(id)]);
      await refuseWrongServer(listener);
      await probe(listener);
      ownIds.add(id);
      const sentAt = monotonic();
      const databaseMs = await listener.register(id, leaseMs);
      setClock(databaseMs, sentAt);
      return { id, listener, deadline: sentAt + OWN_SHARE * leaseMs, renewedAt: sentAt };
    } catch (error) {
      await listener.close();
      throw error;
    }
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
    await database.read((executor) => notifyProbe(executor, nonce));
    if (await heard) return;
    throw new ListenerError(
      'A NOTIFY sent through DATABASE_URL does not reach the listener. Behind a transaction pooler set DATABASE_LISTEN_URL to a direct connection to the same server.',
    );
  }

  function enter(joined: Registration): void {
    registration = joined;
    observer.registered();
  }

  /** Ends the epoch: nothing that was held or is being loaded is believed again. */
  function leave(reason: 'fenced' | 'lapsed' | 'listener' | 'drain'): void {
    registration = undefined;
    memory.forget();
    observer.left(reason);
  }

  function setClock(databaseMs: number, sentAt: number): void {
    // The database read its clock between sending and now. Counting from the sending errs early, and expiry with it;
    // an answer that took long says less than the sample before, which has lost nothing but the drift since.
    const tookMs = monotonic() - sentAt;
    if (clock === undefined || tookMs < POLL_MS) clock = { databaseMs, monotonicMs: sentAt };
  }

  /** Renews until the membership has ended; answers why. */
  async function stay(joined: Registration): Promise<'fenced' | 'lapsed' | 'listener'> {
    const { id, listener } = joined;
    for (;;) {
      await Promise.race([pause(leaseMs / RENEWALS_PER_LEASE), listener.lost]);
      if (closed) return 'listener';
      const sentAt = monotonic();
      const renewed = await listener.renew(id, leaseMs / RENEWALS_PER_LEASE).catch(() => 'lost' as const);
      if (renewed === 'lost') return 'listener';
      if (renewed === 'refused') return 'fenced';
      if (monotonic() > joined.deadline && !broken.has('deadline')) return 'lapsed';
      setClock(renewed.databaseMs, sentAt);
      joined.deadline = sentAt + OWN_SHARE * leaseMs;
      joined.renewedAt = sentAt;
      await forgetOldAcknowledgements();
    }
  }

  async function forgetOldAcknowledgements(): Promise<void> {
    if (monotonic() - lastForgotten < FORGET_EVERY_MS) return;
    lastForgotten = monotonic();
    await database
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
      // Memory may have answered until now, by a lease that outlived its listener. What changed meanwhile went unheard.
      if (registration !== undefined) leave(reason);
      await releaseOwn(current.id);
      current = joined;
      enter(joined);
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

  async function releaseOwn(id: string): Promise<void> {
    await database
      .read((executor) => releaseInstances(executor, [id]))
      .then(
        () => ownIds.delete(id),
        // It stays for others to fence and wait out; that costs them time, and nothing else.
        () => undefined,
      );
  }

  function isLeased(): boolean {
    return registration !== undefined && (monotonic() < registration.deadline || broken.has('deadline'));
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
    const unreleased = await patiently(() => database.read(listUnreleased));
    const members = broken.has('fence') ? unreleased.filter((member) => !member.fenced) : unreleased;
    const open = new Map(members.map((member) => [member.id, member]));
    for (const member of members) if (member.fenced) seeFenced(member.id);
    let fenced = 0;
    const close = (id: string, how: 'acknowledged' | 'waitedOut') => {
      if (open.delete(id) && how === 'waitedOut') fenced++;
    };
    for (const id of ownIds) close(id, 'acknowledged');
    if (broken.has('acknowledgement')) open.clear();

    let polledAt = startedAt;
    while (open.size > 0) {
      await waiter.wait(Math.max(1, Math.min(POLL_MS, nextDeadline(open) - monotonic())));
      for (const id of waiter.acknowledged) close(id, 'acknowledged');
      if (monotonic() - polledAt >= POLL_MS && open.size > 0) {
        polledAt = monotonic();
        await patiently(() =>
          lookAfter(change, open, { late: monotonic() - startedAt >= ACKNOWLEDGE_WITHIN_MS }),
        );
      }
      for (const member of waitedOut(open)) {
        close(member.id, 'waitedOut');
        await releaseWaitedOut(member.id);
      }
    }
    await pause(Math.max(0, distrustUntil - monotonic()));
    const waitedMs = Math.round(monotonic() - startedAt);
    observer.confirmed(waitedMs);
    return { instances: members.length, confirmed: members.length - fenced, fenced, waitedMs };
  }

  /** Reads what notifications may have failed to tell: acknowledgements, releases, fences. Sets fences when it is late. */
  async function lookAfter(
    change: Change,
    open: Map<string, Member>,
    { late }: { late: boolean },
  ): Promise<void> {
    for (const id of await database.read((executor) => listAcknowledged(executor, change.id)))
      open.delete(id);
    const silent = [...open.keys()].filter((id) => !seenFenced.has(id));
    if (late && silent.length > 0) {
      await database.read((executor) => fenceInstances(executor, silent));
      observer.fenced(silent.length);
    }
    const unreleased = new Map((await database.read(listUnreleased)).map((member) => [member.id, member]));
    for (const id of [...open.keys()]) {
      const member = unreleased.get(id);
      if (member === undefined) open.delete(id);
      else if (member.fenced) seeFenced(id);
    }
  }

  function seeFenced(id: string): void {
    if (!seenFenced.has(id)) seenFenced.set(id, monotonic());
  }

  function waitedOutAt(member: Member): number {
    const seenAt = seenFenced.get(member.id);
    return seenAt === undefined ? Number.POSITIVE_INFINITY : seenAt + WAITING_SHARE * member.leaseMs;
  }

  function waitedOut(open: ReadonlyMap<string, Member>): Member[] {
    const now = monotonic();
    return [...open.values()].filter((member) => now >= waitedOutAt(member));
  }

  function nextDeadline(open: ReadonlyMap<string, Member>): number {
    return Math.min(...[...open.values()].map(waitedOutAt));
  }

  async function releaseWaitedOut(id: string): Promise<void> {
    // Where it fails the row stays, and the next change finds it waited out at once.
    await database
      .read((executor) => releaseInstances(executor, [id]))
      .then(
        () => seenFenced.delete(id),
        () => undefined,
      );
  }

  /** Repeats what the database's absence makes fail, for a while. */
  async function patiently<T>(read: () => Promise<T>): Promise<T> {
    const patientUntil = monotonic() + CONFIRM_PATIENCE_MS;
    for (;;) {
      try {
        return await read();
      } catch (cause) {
        if (!(cause instanceof Failure)) throw cause;
        if (monotonic() > patientUntil)
          throw new Failure('unavailable', 'committed; repeat to confirm', { cause });
        await pause(POLL_MS);
      }
    }
  }

  async function pause(ms: number): Promise<void> {
    if (ms <= 0) return;
    await sleep(ms, undefined, { signal: closing.signal }).catch(() => undefined);
  }

  return {
    async start() {
      const first = await join();
      enter(first);
      running = run(first);
    },
    isLeased,
    now: () => (clock === undefined ? undefined : clock.databaseMs + (monotonic() - clock.monotonicMs)),
    leaseAgeMs: () => (registration === undefined ? undefined : monotonic() - registration.renewedAt),

    async change(runChange) {
      const changeId = randomUUID();
      const waiter = createWaiter();
      // From before the commit on, so that no acknowledgement comes before somebody waits for it.
      waiters.set(changeId, waiter);
      try {
        const { result, repeated, change } = await database.transaction(async (executor) => {
          const { subject, ...changed } = await runChange(executor);
          const change: Change = { id: changeId, subject, waiter: registration?.id ?? null };
          await notifyChange(executor, change);
          return { ...changed, change };
        });
        if (repeated && broken.has('repeat')) return { result, propagation: NOT_WAITED };
        return { result, propagation: await confirm(change, waiter) };
      } finally {
        waiters.delete(changeId);
      }
    },

    async close() {
      const last = registration;
      closed = true;
      closing.abort();
      leave('drain');
      if (last !== undefined) await releaseOwn(last.id);
      await last?.listener.close();
      await running;
    },
  };
}
