import { setTimeout as sleep } from 'node:timers/promises';

/*
 * Answers whose time tells nothing of the work behind them. Each is due a time after its request came that the
 * request's size alone decides, and the sender knows that. Work that takes longer is answered at the next of a few
 * coarse steps: then its time tells that it took long, and little more.
 */

export interface EvenAnswers {
  /** Does the work, and gives what came of it when it is due: a failure too. */
  give<T>(size: number, work: () => Promise<T>): Promise<T>;
}

/** Monotonic time in milliseconds, and waiting for it. */
export interface Clock {
  now(): number;
  wait(ms: number): Promise<unknown>;
}

const MONOTONIC: Clock = { now: () => performance.now(), wait: (ms) => sleep(ms) };

/** What a change takes until every instance has confirmed it, as a rule, and the reads before it. */
const FLOOR_MS = 250;
/** What one argon2 takes, as a rule: a request of `size` strings may have to prove them all. */
const PER_UNIT_MS = 25;
const STEP_MS = 250;

export function createEvenAnswers(clock: Clock = MONOTONIC): EvenAnswers {
  async function waitUntil(due: number): Promise<void> {
    // A timer may fire a little early.
    for (let left = due - clock.now(); left > 0; left = due - clock.now()) await clock.wait(Math.ceil(left));
  }

  return {
    async give(size, work) {
      const due = clock.now() + FLOOR_MS + PER_UNIT_MS * size;
      const [outcome] = await Promise.allSettled([work()]);
      const late = clock.now() - due;
      await waitUntil(late <= 0 ? due : due + STEP_MS * Math.ceil(late / STEP_MS));
      if (outcome.status === 'rejected') throw outcome.reason;
      return outcome.value;
    },
  };
}
