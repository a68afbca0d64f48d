import type { RateLimit } from '../../src/domain/rate-limit.ts';
import type { Ask, Counter, Grant, QuotaNotice } from '../../src/storage/rate-windows.ts';
import { UNOBSERVED } from '../../src/verification/observer.ts';
import { type Charge, createQuota, type Quota, type QuotaClock } from '../../src/verification/quota.ts';
import { type CounterRow, exchangeOf, NEW_COUNTER } from '../support/counter-model.ts';

/** What becomes of a statement on its way. */
export type Fate = 'arrives' | 'never sent' | 'answer lost' | 'answer late';

export interface Use {
  readonly instance: number;
  readonly keyId: string;
  readonly cost: number;
}

/** A use and what came of it; `charge` is undefined while it waits, or where its instance died first. */
export interface Outcome extends Use {
  charge: Charge | undefined;
  /** Database time, in milliseconds. */
  readonly begunMs: number;
}

export interface World {
  /** Lets so much time pass, with all that happens in it. */
  pass(ms: number): Promise<void>;
  use(use: Use): void;
  /** Changes the limits: every leased instance drops what it knows before anybody may ask by the new one. */
  change(limits: Limits): void;
  /** Loses the lease of an instance, and gives it back. */
  setLeased(instance: number, leased: boolean): void;
  crash(instance: number): void;
  drain(instance: number): void;
  /** Ends all instances in good order; resolves when they are. */
  close(): Promise<void>;
  isAlive(instance: number): boolean;
  readonly outcomes: readonly Outcome[];
  rows(): ReadonlyMap<string, CounterRow>;
  /** How many statements there were that did something or could have. */
  readonly statements: number;
}

export interface Limits {
  readonly key: RateLimit | null;
  readonly workspace: RateLimit | null;
}

export interface WorldOptions {
  readonly instances: number;
  readonly limits: Limits;
  /** From 0 to 1, the same for the same seed. */
  random(): number;
  /** How long each way of a statement or a notification takes at most. */
  readonly delayMs: number;
  fate(): Fate;
}

export const WORKSPACE = 'ws_model';
/** The clock of the database, at a moment that is in the midst of nothing. */
const EPOCH_MS = 1_790_000_000_000;

/**
 * Several instances' quota over one database, in a time of its own. Statements and notifications take random times
 * and overtake each other; rows are what the model of the SQL says (counter-model.ts).
 */
export function createWorld({ instances: count, limits: first, random, delayMs, fate }: WorldOptions): World {
  const rows = new Map<string, CounterRow>();
  const outcomes: Outcome[] = [];
  const events: { at: number; order: number; run: () => void }[] = [];
  let time = 0;
  let order = 0;
  let limits = first;
  let statements = 0;
  const instances = Array.from({ length: count }, (_, index) => createInstance(index));

  function at(ms: number, run: () => void): () => void {
    const event = { at: time + Math.max(0, ms), order: order++, run };
    const place = events.findIndex((other) => other.at > event.at);
    if (place === -1) events.push(event);
    else events.splice(place, 0, event);
    return () => {
      event.run = () => undefined;
    };
  }
  const travel = () => random() * delayMs;

  function createInstance(index: number) {
    // Each has a monotonic clock that began at some time of its own.
    const offset = index * 1_234_567;
    const instance = { alive: true, leased: true, quota: undefined as unknown as Quota };
    const whileAlive = (run: () => void) => () => {
      if (instance.alive) run();
    };
    const clock: QuotaClock = {
      now: () => time + offset,
      after: (ms, run) => at(ms, whileAlive(run)),
      soon: (run) => void at(0, whileAlive(run)),
    };
    const send = <T>(work: () => T): Promise<T> =>
      new Promise((resolve, reject) => {
        const fated = fate();
        const fail = whileAlive(() => reject(new Error('the database is away')));
        if (fated === 'never sent') {
          at(travel(), fail);
          return;
        }
        at(travel(), () => {
          const answer = work();
          if (fated === 'answer lost') at(travel(), fail);
          else
            at(
              travel() + (fated === 'answer late' ? 4_000 : 0),
              whileAlive(() => resolve(answer)),
            );
        });
      });
    instance.quota = createQuota({
      exchange: (asks) => send(() => exchangeRows(asks)),
      clock,
      onOutage: 'refuse',
      capacity: 100,
      observer: UNOBSERVED,
      report: () => undefined,
    });
    return instance;
  }

  function exchangeRows(asks: readonly Ask[]): (Grant | undefined)[] {
    if (new Set(asks.map(nameOf)).size !== asks.length) throw new Error('a row was named twice');
    if (asks.length > 0) statements++;
    return asks.map((ask) => {
      const row = rows.get(nameOf(ask));
      if (row === undefined) {
        rows.set(nameOf(ask), NEW_COUNTER);
        return undefined;
      }
      const done = exchangeOf(row, ask, EPOCH_MS + time);
      rows.set(nameOf(ask), done.row);
      for (const notice of done.notices) broadcast(notice);
      return done.grant;
    });
  }

  function broadcast(notice: QuotaNotice): void {
    for (const instance of instances) {
      at(travel(), () => {
        if (instance.alive) instance.quota.hear(notice);
      });
    }
  }

  async function pass(ms: number): Promise<void> {
    const until = time + ms;
    for (let next = events[0]; next !== undefined && next.at <= until; next = events[0]) {
      events.shift();
      time = next.at;
      next.run();
      await new Promise((resolve) => setImmediate(resolve));
    }
    time = until;
  }

  return {
    pass,

    use(use) {
      const instance = instances[use.instance];
      if (instance === undefined || !instance.alive) return;
      const outcome: Outcome = { ...use, charge: undefined, begunMs: EPOCH_MS + time };
      outcomes.push(outcome);
      const charge = instance.quota.charge({
        keyId: use.keyId,
        keyLimit: limits.key,
        workspaceId: WORKSPACE,
        workspaceLimit: limits.workspace,
        cost: use.cost,
        leased: instance.leased,
        nowMs: EPOCH_MS + time,
      });
      if (charge instanceof Promise) {
        charge.then((done) => {
          outcome.charge = done;
        });
      } else outcome.charge = charge;
    },

    change(next) {
      for (const { alive, leased, quota } of instances) {
        // Nobody waits for one without a lease, and it may not have heard.
        if (!alive || !leased) continue;
        for (const keyId of ['key_0', 'key_1']) quota.invalidate({ kind: 'key', id: keyId });
        quota.invalidate({ kind: 'workspace', id: WORKSPACE });
      }
      limits = next;
    },

    setLeased(index, leased) {
      const instance = instances[index];
      if (instance === undefined) return;
      // The memory of an epoch that has ended is forgotten before the next begins.
      if (leased && !instance.leased) instance.quota.forget();
      instance.leased = leased;
    },

    crash(index) {
      const instance = instances[index];
      if (instance !== undefined) instance.alive = false;
    },
    drain: (index) => instances[index]?.quota.drain(),

    async close() {
      const closing = instances.filter(({ alive }) => alive).map(({ quota }) => quota.close());
      let closed = false;
      void Promise.all(closing).then(() => {
        closed = true;
      });
      while (!closed) await pass(100);
    },
    isAlive: (index) => instances[index]?.alive === true,
    outcomes,
    rows: () => rows,
    get statements() {
      return statements;
    },
  };
}

function nameOf({ subject, windowSeconds }: Counter): string {
  return `${subject} ${windowSeconds}`;
}
