import { describe, expect, test } from 'vitest';
import { type Clock, createEvenAnswers } from '../../src/http/even-answers.ts';

/** A clock that stands still but for the work and the waits it is told of. Timers may fire early, as Node's do. */
function fakeClock(earlyBy = 0): Clock & { spend(ms: number): void; readonly waits: number[] } {
  let time = 1_000.25;
  const waits: number[] = [];
  return {
    waits,
    now: () => time,
    spend(ms) {
      time += ms;
    },
    async wait(ms) {
      waits.push(ms);
      time += waits.length === 1 ? ms - earlyBy : ms;
    },
  };
}

/** When the answer came, after the request, and what it was. */
async function answerOf(size: number, workMs: number, { fails = false, earlyBy = 0 } = {}) {
  const clock = fakeClock(earlyBy);
  const startedAt = clock.now();
  const answered = createEvenAnswers(clock).give(size, async () => {
    clock.spend(workMs);
    if (fails) throw new TypeError('of the work');
    return 'done';
  });
  const outcome = await answered.catch((error: unknown) => error);
  return { after: Math.floor(clock.now() - startedAt), outcome };
}

describe('an even answer', () => {
  test.each([
    [1, 275],
    [2, 300],
    [100, 2_750],
  ])('to a request of %i strings comes after %i ms, whatever the work took until then', async (size, due) => {
    for (const workMs of [0, 0.01, 1, 20, due / 2, due - 1, due]) {
      expect(await answerOf(size, workMs)).toEqual({ after: due, outcome: 'done' });
    }
  });

  test.each([
    [275.5, 525],
    [280, 525],
    [525, 525],
    [526, 775],
    [10_700, 10_775],
  ])('comes at the next step where the work took %d ms', async (workMs, due) => {
    const { after } = await answerOf(1, workMs);
    expect(after).toBe(due);
  });

  test('is as late for a failure', async () => {
    for (const workMs of [0, 200, 300]) {
      const { after } = await answerOf(1, workMs);
      expect(await answerOf(1, workMs, { fails: true })).toEqual({
        after,
        outcome: new TypeError('of the work'),
      });
    }
  });

  test('is not given before it is due where a timer fires early', async () => {
    const { after } = await answerOf(1, 10, { earlyBy: 3 });
    expect(after).toBeGreaterThanOrEqual(275);
    expect(after).toBeLessThan(277);
  });

  test('does not wait for another', async () => {
    const clock = fakeClock();
    const answers = createEvenAnswers(clock);
    const stuck = answers.give(1, () => new Promise(() => undefined));
    expect(await answers.give(1, async () => 'mine')).toBe('mine');
    expect(await Promise.race([stuck, 'still waiting'])).toBe('still waiting');
  });
});
