/** Chances that a seed repeats. */
export interface Random {
  /** From 0 up to 1. */
  fraction(): number;
  between(least: number, most: number): number;
  chance(probability: number): boolean;
  pick<T>(from: readonly T[]): T;
  shuffle<T>(from: readonly T[]): T[];
  /** Chances of their own, so that who draws faster changes nothing for the others. */
  fork(): Random;
}

/** mulberry32: 32 bits of state are plenty to tell rounds apart. */
export function seededRandom(seed: number): Random {
  let state = seed >>> 0;
  const fraction = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const random: Random = {
    fraction,
    between: (least, most) => least + fraction() * (most - least),
    chance: (probability) => fraction() < probability,
    pick(from) {
      if (from.length === 0) throw new Error('nothing to pick from');
      return from[Math.floor(fraction() * from.length)] as (typeof from)[number];
    },
    shuffle(from) {
      const left = [...from];
      const shuffled = [];
      while (left.length > 0) shuffled.push(...left.splice(Math.floor(fraction() * left.length), 1));
      return shuffled;
    },
    fork: () => seededRandom(Math.floor(fraction() * 2 ** 32)),
  };
  return random;
}
