import { LRUCache } from 'lru-cache';
import { Failure } from '../domain/errors.ts';
import {
  type RateLimit,
  type RateLimitState,
  secondsUntil,
  tighter,
  windowEnd,
} from '../domain/rate-limit.ts';
import type { Subject } from '../storage/membership.ts';
import type { Ask, Counter, Grant, QuotaNotice } from '../storage/rate-windows.ts';
import type { Memory } from './membership.ts';
import type { EngineObserver } from './observer.ts';

/*
 * Leases of rate limits (docs/rate-limits.md). An account is what this instance knows of one counter, by one limit:
 *
 *   unknown     nothing is at hand, nothing is known: the next use asks the database
 *     │ a grant
 *   open        until the window ends, by the time of sending + the milliseconds left, on the monotonic clock.
 *     │         Uses spend the stock at hand, in one synchronous step; without stock they wait for a grant.
 *     │ less was granted than waits
 *   short       somebody else holds stock: it is called back, and those who wait ask again, for a while
 *     │ nobody holds any
 *   exhausted   costs above what is left are refused from memory, until the window ends or a return is heard of
 *
 * A change of the subject and the end of an epoch detach the account: nobody finds it any more, what it has at hand goes
 * back, and who waits in it is served by it still, having begun before.
 *
 * One statement is under way at a time, so that each account has one ask in flight at most. What a statement may have
 * done whose answer was lost is never done again: what it granted, or was handed in, is lost until the window ends.
 *
 * The database counts what waiting uses were granted as spent at once; only what is taken ahead of demand, the stock,
 * counts as held. So a window is known to be spent when it is leased and nobody holds stock.
 */

/** What came of charging a use. */
export type Charge =
  | { readonly admitted: true; readonly rateLimit: RateLimitState | undefined }
  | {
      readonly admitted: false;
      readonly rateLimit: RateLimitState;
      readonly retryAfterSeconds: number;
      readonly because: 'spent' | 'outage';
    };

/** One use of a key, or of a service key. */
export interface Use {
  readonly keyId: string;
  readonly keyLimit: RateLimit | null;
  readonly workspaceId: string;
  /** Shared by all keys of the workspace. */
  readonly workspaceLimit: RateLimit | null;
  readonly cost: number;
  /** Whether memory may be believed: without a lease a limit may have changed unheard. */
  readonly leased: boolean;
  /** Database time, in milliseconds. */
  readonly nowMs: number;
}

export interface Quota extends Memory {
  /**
   * Charges a use to the limits that it has, to both or to none. A promise only where quota has to be fetched.
   * @throws Failure `overloaded` where too many wait, `unavailable` where this instance is closing.
   */
  charge(use: Use): Charge | Promise<Charge>;
  /** What another instance, or this one, notified. */
  hear(notice: QuotaNotice): void;
  /** Hands in what is held of a counter, so that the database knows exactly. Resolves when it does, or cannot be told. */
  handIn(counter: Counter): Promise<void>;
  /** From now on nothing is taken ahead of demand, and what was goes back. */
  drain(): void;
  /** Hands in all that is held, for a while at most. */
  close(): Promise<void>;
  /** How many accounts there are, uses that wait, and whether the database is away. */
  load(): { accounts: number; waiting: number; away: boolean };
}

export interface QuotaClock {
  /** Monotonic, in milliseconds. */
  now(): number;
  /** Runs something later; answers how to call that off. */
  after(ms: number, run: () => void): () => void;
  /** Runs something when this turn of the event loop is over: what it brought goes in one statement. */
  soon(run: () => void): void;
}

export interface QuotaOptions {
  /** Asks the database (storage/rate-windows.ts): one answer for each ask, `undefined` where it is to be asked again. */
  exchange(asks: readonly Ask[]): Promise<readonly (Grant | undefined)[]>;
  readonly clock?: QuotaClock;
  readonly onOutage: 'allow' | 'refuse';
  /** How many keys, and how many workspaces, are kept in mind; the least recently used go first. */
  readonly capacity: number;
  readonly observer: EngineObserver;
  report(event: { readonly message: string; readonly cause?: unknown }): void;
}

/** Below this limit nothing is taken ahead of demand: there is too little of it to have it lie about. */
const LEAST_STOCKED_LIMIT = 1_000;
/** Demand that is slower than this many a second is not worth a stock. */
const LEAST_STOCK = 3;
/** A stock is what a second took; with a quarter of it left, the next is fetched. */
const SLOT_MS = 1_000;
const REFILL_SHARE = 0.25;
const IDLE_MS = 2_000;
const IDLE_LOOK_MS = 500;
/** Where somebody else holds what is asked for: how often to look, to call again, and for how long. */
const POLL_MS = 25;
const CALL_AGAIN_MS = 250;
const PATIENCE_MS = 1_000;
/** After that, the holder being dead or cut off, a look is believed for so long. */
const LOOK_LIFE_MS = 100;
/** A statement that takes longer has a database that is away. Nothing of it is done again. */
const ANSWER_WITHIN_MS = 3_000;
const PROBE_EVERY_MS = 250;
const OUTAGE_RETRY_SECONDS = 1;
const ACCOUNTS_PER_STATEMENT = 1_000;
/**
 * Behind a statement for so many accounts the next begins no sooner than so long after it: what comes meanwhile goes with
 * it. In a rush statements would cost this process and PostgreSQL more than the few uses that each carries.
 */
const CROWD = 8;
const CROWD_EVERY_MS = 10;
const MAX_WAITING = 100_000;
const GOODBYE_MS = 1_500;

const REAL_CLOCK: QuotaClock = {
  now: () => performance.now(),
  after(ms, run) {
    const timer = setTimeout(run, ms);
    timer.unref();
    return () => clearTimeout(timer);
  },
  soon: (run) => void setImmediate(run),
};

/** The epoch of accounts that nothing is kept in. */
const UNLEASED = -1;

interface Account extends Counter {
  readonly limit: number;
  readonly epoch: number;
  /** Nobody finds it any more. */
  detached: boolean;
  windowStart: number;
  /** Monotonic time at which all that follows is void. */
  diesAt: number;
  /** What may be spent at once. */
  stock: number;
  /** What was given to uses that wait for another account, which may refuse them. */
  held: number;
  /** What of both the database believes to be here. */
  told: number;
  /** What nobody has leased, when last heard of. */
  left: number;
  /** Somebody fell short in this window: nothing more is taken into stock. */
  wanted: boolean;
  /** Costs above it are refused from memory, until then. */
  refuseAbove: number;
  refuseUntil: number;
  /** With less stock than this, more is fetched. */
  refillBelow: number;
  handsIn: boolean;
  calledAt: number;
  queued: boolean;
  asking: boolean;
  waiting: Waiter[];
  /** Those who wait for others' stock. */
  stalled: Waiter[];
  shortSince: number | undefined;
  lastCallAt: number;
  cancelPoll: (() => void) | undefined;
  /** What was spent in the slot under way, and what the one before came to in a second. */
  used: number;
  usedBefore: number;
  slotAt: number;
  usedAt: number;
}

interface Waiter {
  readonly use: Use;
  /** What is to be taken from in this order, the same for all, so that no two hold what the other waits for. */
  readonly accounts: readonly Account[];
  readonly settle: (charge: Charge) => void;
  readonly fail: (failure: Failure) => void;
  /** How many of the accounts it has been given quota of, and in which window. */
  held: number;
  heldOf: number;
}

/** An ask as it was sent. */
interface Sent {
  readonly account: Account;
  readonly ask: Ask;
  readonly served: readonly Waiter[];
  /** What stays at hand meanwhile. */
  readonly kept: number;
  readonly at: number;
}

export function createQuota(options: QuotaOptions): Quota {
  const { onOutage, capacity, observer, report } = options;
  const clock = options.clock ?? REAL_CLOCK;
  const keys = new LRUCache<string, Account>({ max: capacity, dispose: detach });
  const workspaces = new LRUCache<string, Account>({ max: capacity, dispose: detach });
  /** Those with something to ask, or to hand in. */
  const queue = new Set<Account>();
  /** Those that hold stock, or whose stock the database has not heard the end of. */
  const stocked = new Set<Account>();
  let epoch = 0;
  let waitingCount = 0;
  let running: Promise<void> | undefined;
  let away: { readonly since: number; decided: number } | undefined;
  let draining = false;
  let closed = false;
  /** The last words are spoken: who still has something to hand in keeps it. */
  let ended = false;
  const idleLook = lookForIdle();

  // ---- charging ----

  function charge(use: Use): Charge | Promise<Charge> {
    const { keyLimit, workspaceLimit, cost } = use;
    const key = keyLimit === null ? undefined : accountOf(keys, use.keyId, keyLimit, use);
    const workspace =
      workspaceLimit === null ? undefined : accountOf(workspaces, use.workspaceId, workspaceLimit, use);
    const now = clock.now();
    if (
      (key === undefined || has(key, cost, now)) &&
      (workspace === undefined || has(workspace, cost, now))
    ) {
      if (key !== undefined) spend(key, cost, now);
      if (workspace !== undefined) spend(workspace, cost, now);
      observer.charged('memory');
      return { admitted: true, rateLimit: stateOf(key, workspace) };
    }
    const refusing = refuses(key, cost, now) ? key : refuses(workspace, cost, now) ? workspace : undefined;
    if (refusing !== undefined) {
      observer.charged('refused');
      return refusal(refusing, use);
    }
    return chargeLater(use, key === undefined ? [] : [key], workspace);
  }

  function chargeLater(
    use: Use,
    accounts: Account[],
    workspace: Account | undefined,
  ): Charge | Promise<Charge> {
    if (workspace !== undefined) accounts.push(workspace);
    if (closed) throw new Failure('unavailable', 'This instance is shutting down.');
    if (away !== undefined) return outageCharge(accounts, use);
    if (waitingCount >= MAX_WAITING) throw new Failure('overloaded', 'Too many requests wait for quota.');
    waitingCount++;
    return new Promise((resolve, reject) => {
      const settle = (charge: Charge) => {
        waitingCount--;
        resolve(charge);
      };
      const fail = (failure: Failure) => {
        waitingCount--;
        reject(failure);
      };
      advance({ use, accounts, settle, fail, held: 0, heldOf: 0 });
    });
  }

  function accountOf(
    accounts: LRUCache<string, Account>,
    id: string,
    limit: RateLimit,
    { leased }: Use,
  ): Account {
    const asOf = leased ? epoch : UNLEASED;
    const found = accounts.get(id);
    if (
      found !== undefined &&
      found.epoch === asOf &&
      found.limit === limit.limit &&
      found.windowSeconds === limit.window_seconds
    )
      return found;
    const made = newAccount(subjectOf(accounts === keys ? 'key' : 'workspace', id), limit, asOf);
    accounts.set(id, made);
    return made;
  }

  function has(account: Account, cost: number, now: number): boolean {
    return account.stock >= cost && now < account.diesAt && account.epoch !== UNLEASED;
  }

  function refuses(account: Account | undefined, cost: number, now: number): boolean {
    return (
      account !== undefined && cost > account.refuseAbove && now < account.refuseUntil && now < account.diesAt
    );
  }

  function spend(account: Account, cost: number, now: number): void {
    account.stock -= cost;
    account.used += cost;
    account.usedAt = now;
    if (account.stock < account.refillBelow) enqueue(account);
  }

  /** Takes the next quota that a waiting use needs, or has it wait for that; settles it when it has all. */
  function advance(waiter: Waiter): void {
    const { accounts, use } = waiter;
    const now = clock.now();
    for (;;) {
      const account = accounts[waiter.held];
      if (account === undefined) {
        if (waiter.held > 1) letGo(waiter);
        observer.charged('fetched');
        waiter.settle({ admitted: true, rateLimit: stateOf(accounts[0], accounts[1]) });
        return;
      }
      if (!has(account, use.cost, now)) {
        if (refuses(account, use.cost, now)) refuse(waiter, account);
        else if (away !== undefined) decideByOutage(waiter);
        else {
          account.waiting.push(waiter);
          enqueue(account);
        }
        return;
      }
      take(waiter, account, now);
    }
  }

  function take(waiter: Waiter, account: Account, now: number): void {
    spend(account, waiter.use.cost, now);
    if (waiter.held === 0 && waiter.accounts.length > 1) {
      waiter.heldOf = account.windowStart;
      account.held += waiter.use.cost;
    }
    waiter.held++;
  }

  /** What a use was given of its first account is spent now, or given back; answers the account if it is of its window. */
  function letGo({ accounts, use, heldOf }: Waiter): Account | undefined {
    const [first] = accounts;
    if (first === undefined || first.windowStart !== heldOf || clock.now() >= first.diesAt) return undefined;
    first.held -= use.cost;
    // Somebody waits to hear of it.
    if (first.wanted) handInSoon(first);
    if (first.held === 0) resume(first);
    return first;
  }

  /** A refusal spends nothing: what the use was given already goes back. */
  function refuse(waiter: Waiter, account: Account): void {
    if (waiter.held > 0) putBack(waiter);
    observer.charged('refused');
    waiter.settle(refusal(account, waiter.use));
  }

  function putBack(waiter: Waiter): void {
    const account = letGo(waiter);
    if (account === undefined || waiter.use.cost === 0) return;
    account.stock += waiter.use.cost;
    account.used -= waiter.use.cost;
    stocked.add(account);
    if (!mayStock(account)) handInSoon(account);
  }

  // ---- what a charge says ----

  function stateOf(first: Account | undefined, second: Account | undefined): RateLimitState | undefined {
    if (first === undefined) return second === undefined ? undefined : standing(second);
    return second === undefined ? standing(first) : tighter(standing(first), standing(second));
  }

  function standing({ limit, left, stock, windowStart, windowSeconds }: Account): RateLimitState {
    return {
      limit,
      remaining: Math.min(limit, left + stock),
      reset: windowStart + windowSeconds,
      window_seconds: windowSeconds,
    };
  }

  function refusal(account: Account, use: Use): Charge {
    const rateLimit = standing(account);
    return {
      admitted: false,
      rateLimit,
      retryAfterSeconds: secondsUntil(rateLimit.reset, use.nowMs),
      because: 'spent',
    };
  }

  function outageCharge(accounts: readonly Account[], use: Use): Charge {
    const [first, second] = accounts.map((account): RateLimitState => {
      const known = clock.now() < account.diesAt;
      const { limit, windowSeconds } = account;
      const reset = known ? account.windowStart + windowSeconds : windowEnd(use.nowMs, windowSeconds);
      return { limit, remaining: known ? account.stock : 0, reset, window_seconds: windowSeconds };
    });
    const rateLimit = first === undefined ? undefined : second === undefined ? first : tighter(first, second);
    if (away !== undefined) away.decided++;
    if (onOutage === 'allow' || rateLimit === undefined) {
      observer.charged('outage_allowed');
      return { admitted: true, rateLimit };
    }
    observer.charged('outage_refused');
    return { admitted: false, rateLimit, retryAfterSeconds: OUTAGE_RETRY_SECONDS, because: 'outage' };
  }

  // ---- asking ----

  function enqueue(account: Account): void {
    if (account.queued || account.asking) return;
    account.queued = true;
    queue.add(account);
    begin();
  }

  function handInSoon(account: Account): void {
    account.handsIn = true;
    enqueue(account);
  }

  function begin(): void {
    if (running !== undefined || away !== undefined || ended) return;
    running = new Promise<void>((resolve) => clock.soon(resolve)).then(run).finally(() => {
      running = undefined;
      if (queue.size > 0) begin();
    });
  }

  async function run(): Promise<void> {
    while (queue.size > 0 && away === undefined) {
      const batch = nextBatch();
      if (batch.length === 0) continue;
      const crowded = batch.length >= CROWD ? pause(CROWD_EVERY_MS) : undefined;
      await exchange(batch);
      await crowded;
    }
  }

  function pause(ms: number): Promise<void> {
    return new Promise((resolve) => void clock.after(ms, resolve));
  }

  /** Those who have waited longest; each subject once, since a statement can change a row once. */
  function nextBatch(): Account[] {
    const batch = new Map<string, Account>();
    for (const account of queue) {
      if (batch.has(account.subject)) continue;
      queue.delete(account);
      account.queued = false;
      if (needs(account)) batch.set(account.subject, account);
      if (batch.size === ACCOUNTS_PER_STATEMENT) break;
    }
    return [...batch.values()];
  }

  function needs(account: Account): boolean {
    if (account.waiting.length > 0) return true;
    if (clock.now() >= account.diesAt) return false;
    return (
      (account.handsIn && (account.stock > 0 || account.told > account.held)) ||
      account.stock < account.refillBelow
    );
  }

  async function exchange(batch: readonly Account[]): Promise<void> {
    const startedAt = clock.now();
    let sent: readonly Sent[] = [];
    try {
      sent = batch.map(compose);
      const asked = sent;
      const answer = options.exchange(asked.map(({ ask }) => ask));
      const grants = await within(answer, (late) => handInLate(asked, late));
      observer.exchanged({ counters: batch.length, tookMs: clock.now() - startedAt });
      for (const [place, one] of sent.entries()) receive(one, grants[place]);
    } catch (cause) {
      lose(batch, sent, cause);
    }
  }

  async function within<T>(answer: Promise<T>, late?: (value: T) => void): Promise<T> {
    let isLate = false;
    let cancel = () => {};
    const timeout = new Promise<never>((_, reject) => {
      cancel = clock.after(ANSWER_WITHIN_MS, () => {
        isLate = true;
        reject(new Failure('unavailable', 'The database does not answer in time.'));
      });
    });
    const arrived = answer.then((value) => {
      if (isLate) late?.(value);
      return value;
    });
    return Promise.race([arrived, timeout]).finally(cancel);
  }

  function compose(account: Account): Sent {
    const now = clock.now();
    if (now >= account.diesAt) voidStock(account);
    rollSlot(account, now);
    const [head] = account.waiting;
    // One cost at a time, so that what is granted is spent to the last.
    const cost = head?.use.cost ?? 1;
    const served = account.waiting.filter((waiter) => waiter.use.cost === cost);
    const uses = cost === 0 ? 0 : served.length;
    const handsIn = account.handsIn || head !== undefined;
    const ask: Ask = {
      subject: account.subject,
      windowSeconds: account.windowSeconds,
      limit: account.limit,
      uses,
      cost: Math.max(1, cost),
      holds: served.some(({ accounts }) => accounts.length > 1 && accounts[0] === account),
      stock: stockFor(account, uses * cost, handsIn ? 0 : account.stock, now),
      windowStart: account.windowStart,
      handedIn: handsIn ? account.stock : 0,
      unstocked: account.told - account.held - (handsIn ? 0 : account.stock),
      callAgain: account.shortSince !== undefined && now - account.lastCallAt >= CALL_AGAIN_MS,
    };
    if (ask.callAgain) account.lastCallAt = now;
    if (handsIn) account.stock = 0;
    account.told = account.stock + account.held;
    account.handsIn = false;
    account.asking = true;
    return { account, ask, served, kept: account.told, at: now };
  }

  function voidStock(account: Account): void {
    account.stock = 0;
    account.held = 0;
    account.told = 0;
    stocked.delete(account);
  }

  function rollSlot(account: Account, now: number): void {
    const elapsed = now - account.slotAt;
    if (elapsed < SLOT_MS) return;
    account.usedBefore = (account.used * SLOT_MS) / elapsed;
    account.used = 0;
    account.slotAt = now;
  }

  /** How much more to take: what a second takes, or the rest of the window where that is shorter. */
  function stockFor(account: Account, demand: number, kept: number, now: number): number {
    if (!mayStock(account) || account.handsIn) return 0;
    const aSecond = Math.max(account.usedBefore, account.used + demand);
    if (aSecond < LEAST_STOCK) return 0;
    const msLeft = now < account.diesAt ? account.diesAt - now : account.windowSeconds * 1000;
    return Math.max(0, Math.ceil(aSecond * Math.min(1, msLeft / SLOT_MS)) - kept);
  }

  function mayStock({ limit, epoch: ofEpoch, detached, wanted, diesAt }: Account): boolean {
    return (
      limit >= LEAST_STOCKED_LIMIT &&
      ofEpoch === epoch &&
      !detached &&
      !draining &&
      !(wanted && clock.now() < diesAt)
    );
  }

  // ---- being answered ----

  function receive({ account, ask, served, kept, at }: Sent, grant: Grant | undefined): void {
    account.asking = false;
    if (grant === undefined) {
      // Its counter was new, or had been deleted since. It is there now.
      enqueue(account);
      return;
    }
    const isKept = grant.windowStart === account.windowStart;
    if (!isKept) {
      account.stock = 0;
      account.held = 0;
      account.shortSince = undefined;
      account.refuseAbove = Number.POSITIVE_INFINITY;
    }
    account.windowStart = grant.windowStart;
    account.diesAt = at + grant.msLeft;
    account.stock += grant.uses * ask.cost + grant.stock;
    account.told = (isKept ? kept : 0) + grant.stock + (ask.holds ? grant.uses * ask.cost : 0);
    account.left = grant.left;
    account.wanted = grant.wanted;
    account.refillBelow =
      ask.stock > 0 && grant.stock > 0 ? REFILL_SHARE * (account.stock - grant.uses * ask.cost) : 0;
    const refused = serve(account, served, ask.cost, grant.uses);
    if (refused.length > 0) fallShort(account, refused, grant.stocked - account.told);
    else if (ask.uses > 0) account.shortSince = undefined;

    if (account.stock > 0 || account.told > 0) stocked.add(account);
    if (account.stock > 0 && (!mayStock(account) || account.calledAt >= at)) account.handsIn = true;
    if (needs(account)) enqueue(account);
  }

  /** Gives those who were asked for what they were granted, whatever the time is by now; answers who went empty. */
  function serve(account: Account, served: readonly Waiter[], cost: number, uses: number): readonly Waiter[] {
    const asked = new Set(served);
    account.waiting = account.waiting.filter((waiter) => !asked.has(waiter));
    const now = clock.now();
    const granted = served[0]?.use.cost === 0 ? served.length : uses;
    for (const waiter of served.slice(0, granted)) {
      take(waiter, account, now);
      advance(waiter);
    }
    // What was put back meanwhile may do for some of the rest.
    const empty = served.slice(granted).filter((waiter) => {
      if (account.stock < cost) return true;
      take(waiter, account, now);
      advance(waiter);
      return false;
    });
    // Stock came as well: there may be enough for others.
    if (account.stock >= cost && account.waiting.length > 0) {
      const others = account.waiting;
      account.waiting = [];
      for (const waiter of others) advance(waiter);
    }
    return empty;
  }

  /** @param elsewhere what other instances hold in stock. */
  function fallShort(account: Account, short: readonly Waiter[], elsewhere: number): void {
    const now = clock.now();
    const cost = short[0]?.use.cost ?? 0;
    const mayCome =
      cost <= account.limit &&
      elsewhere + account.held + account.stock > 0 &&
      account.left + elsewhere + account.held + account.stock >= cost;
    if (mayCome) {
      if (account.shortSince === undefined) {
        account.shortSince = now;
        account.lastCallAt = now;
      }
      // Its own uses that wait for another account are waited for as long as they wait.
      if (now - account.shortSince < PATIENCE_MS || account.held > 0) {
        account.stalled.push(...short);
        account.cancelPoll ??= clock.after(POLL_MS, () => resume(account));
        return;
      }
    }
    if (account.epoch !== UNLEASED) {
      // Nobody is told of a return for the sake of a cost that is above the limit.
      account.refuseAbove =
        cost > account.limit ? Math.min(account.refuseAbove, account.limit) : account.left;
      account.refuseUntil = mayCome ? now + LOOK_LIFE_MS : account.diesAt;
    }
    for (const waiter of short) refuse(waiter, account);
  }

  function resume(account: Account): void {
    account.cancelPoll?.();
    account.cancelPoll = undefined;
    if (account.stalled.length === 0) return;
    account.waiting.unshift(...account.stalled);
    account.stalled = [];
    if (away === undefined) enqueue(account);
    else decideWaiting(account);
  }

  // ---- the database away ----

  /** What was sent may have been done, and is not done again: what it handed in or was granted is lost to the window. */
  function lose(batch: readonly Account[], sent: readonly Sent[], cause: unknown): void {
    for (const { account } of sent) if (!account.detached) account.refillBelow = 0;
    for (const account of batch) account.asking = false;
    if (away === undefined) {
      away = { since: clock.now(), decided: 0 };
      report({ message: `the database is away: rate limits follow RATE_LIMIT_ON_OUTAGE=${onOutage}`, cause });
      clock.after(PROBE_EVERY_MS, () => void probe());
    }
    for (const account of new Set([...batch, ...queue])) decideWaiting(account);
  }

  function decideWaiting(account: Account): void {
    const waiting = account.waiting;
    account.waiting = [];
    for (const waiter of waiting) decideByOutage(waiter);
  }

  function decideByOutage(waiter: Waiter): void {
    const charge = outageCharge(waiter.accounts, waiter.use);
    if (waiter.held > 0) {
      if (charge.admitted) letGo(waiter);
      else putBack(waiter);
    }
    waiter.settle(charge);
  }

  async function probe(): Promise<void> {
    if (away === undefined || closed) return;
    try {
      await within(options.exchange([]));
    } catch {
      clock.after(PROBE_EVERY_MS, () => void probe());
      return;
    }
    const { decided } = away;
    away = undefined;
    report({ message: `the database is back: ${decided} requests were decided by RATE_LIMIT_ON_OUTAGE` });
    if (queue.size > 0) begin();
  }

  /** An answer that nobody waited for any more. What it granted is nobody's, and goes back. */
  function handInLate(sent: readonly Sent[], grants: readonly (Grant | undefined)[]): void {
    const now = clock.now();
    for (const [place, { ask }] of sent.entries()) {
      const grant = grants[place];
      if (grant === undefined) continue;
      const limit = { limit: Number.MAX_SAFE_INTEGER, window_seconds: ask.windowSeconds };
      const ghost = newAccount(ask.subject, limit, UNLEASED);
      ghost.detached = true;
      ghost.windowStart = grant.windowStart;
      ghost.diesAt = now + grant.msLeft;
      ghost.told = grant.stock;
      ghost.stock = grant.stock + grant.uses * ask.cost;
      handInSoon(ghost);
    }
  }

  // ---- letting go ----

  function detach(account: Account): void {
    account.detached = true;
    account.refillBelow = 0;
    if ((account.stock > 0 || account.told > 0) && clock.now() < account.diesAt) handInSoon(account);
    else stocked.delete(account);
  }

  function lookForIdle(): () => void {
    let cancel = () => {};
    const look = () => {
      const now = clock.now();
      for (const account of stocked) {
        if (now >= account.diesAt) voidStock(account);
        else if (now - account.usedAt >= IDLE_MS) handInSoon(account);
      }
      cancel = clock.after(IDLE_LOOK_MS, look);
    };
    cancel = clock.after(IDLE_LOOK_MS, look);
    return () => cancel();
  }

  function findAccount({ subject, windowSeconds }: Counter): Account | undefined {
    const { kind, id } = subjectNamed(subject);
    const account = (kind === 'key' ? keys : workspaces).peek(id);
    return account?.windowSeconds === windowSeconds ? account : undefined;
  }

  return {
    charge,

    hear({ kind, ...counter }) {
      const account = findAccount(counter);
      if (account === undefined) return;
      if (kind === 'call') {
        account.calledAt = clock.now();
        if (account.stock > 0 || account.told > account.held) handInSoon(account);
        return;
      }
      account.refuseAbove = Number.POSITIVE_INFINITY;
      resume(account);
    },

    async handIn(counter) {
      const account = findAccount(counter);
      if (account === undefined) return;
      if (account.stock > 0 || account.told > 0) handInSoon(account);
      while (running !== undefined && (account.queued || account.asking)) await running;
    },

    invalidate(subject: Subject) {
      if (subject.kind === 'key') keys.delete(subject.id);
      if (subject.kind === 'keys') for (const id of subject.ids) keys.delete(id);
      if (subject.kind === 'workspace') workspaces.delete(subject.id);
    },

    forget() {
      epoch++;
      for (const account of stocked) detach(account);
    },

    drain() {
      draining = true;
      for (const account of stocked) handInSoon(account);
    },

    async close() {
      if (closed) return;
      closed = true;
      draining = true;
      idleLook();
      for (const account of stocked) handInSoon(account);
      const gone = pause(GOODBYE_MS);
      while (running !== undefined) {
        const isGone = await Promise.race([running.then(() => false), gone.then(() => true)]);
        if (isGone) break;
      }
      ended = true;
      for (const account of [...keys.values(), ...workspaces.values()]) {
        for (const waiter of [...account.waiting, ...account.stalled])
          waiter.fail(new Failure('unavailable', 'This instance is shutting down.'));
      }
    },

    load: () => ({ accounts: keys.size + workspaces.size, waiting: waitingCount, away: away !== undefined }),
  };
}

const WORKSPACE = 'workspace:';

/** How a counter names a key or a workspace. No id of a key holds a colon. */
export function subjectOf(kind: 'key' | 'workspace', id: string): string {
  return kind === 'key' ? id : WORKSPACE + id;
}

function subjectNamed(subject: string): { kind: 'key' | 'workspace'; id: string } {
  return subject.startsWith(WORKSPACE)
    ? { kind: 'workspace', id: subject.slice(WORKSPACE.length) }
    : { kind: 'key', id: subject };
}

function newAccount(subject: string, limit: RateLimit, epoch: number): Account {
  return {
    subject,
    limit: limit.limit,
    windowSeconds: limit.window_seconds,
    epoch,
    detached: false,
    windowStart: 0,
    diesAt: 0,
    stock: 0,
    held: 0,
    told: 0,
    left: 0,
    wanted: false,
    refuseAbove: Number.POSITIVE_INFINITY,
    refuseUntil: 0,
    refillBelow: 0,
    handsIn: false,
    calledAt: Number.NEGATIVE_INFINITY,
    queued: false,
    asking: false,
    waiting: [],
    stalled: [],
    shortSince: undefined,
    lastCallAt: Number.NEGATIVE_INFINITY,
    cancelPoll: undefined,
    used: 0,
    usedBefore: 0,
    slotAt: Number.NEGATIVE_INFINITY,
    usedAt: 0,
  };
}
