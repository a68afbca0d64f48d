import { hash } from 'node:crypto';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { createNameCache, DIGEST_LENGTH } from '../../src/verification/name-cache.ts';

const digestOf = (name: string) => hash('sha256', name, 'binary');

/** A cache with what each place is of, as whoever uses it keeps it. */
function openCache(capacity: number) {
  const byPlace: (string | undefined)[] = [];
  const forgotten: string[] = [];
  const cache = createNameCache({
    capacity,
    forgotten(place) {
      forgotten.push(byPlace[place] ?? `nothing at ${place}`);
      byPlace[place] = undefined;
    },
  });
  const add = (...names: string[]) => {
    for (const name of names) {
      const place = cache.add(name, digestOf(name));
      expect(byPlace[place]).toBeUndefined();
      byPlace[place] = name;
    }
  };
  const nameAt = (place: number | undefined) => (place === undefined ? undefined : byPlace[place]);
  const get = (name: string) => nameAt(cache.find(name));
  const peek = (name: string) => nameAt(cache.peek(name));
  return { cache, add, get, peek, forgotten };
}

/** Two names of one number: their last six characters are the same. */
const TWINS = ['first-aaaaaa', 'other-aaaaaa'] as const;

test('a name has a place, be it short, empty or another’s ending', () => {
  const { cache, add, get } = openCache(10);
  const names = ['', 'a', 'aaaaaa', 'b-aaaaaa', ...TWINS, `${'é€😀'.repeat(9)}z`];
  add(...names);
  expect(names.map(get)).toEqual(names);
  expect(cache.size).toBe(names.length);
  expect(get('third-aaaaaa')).toBeUndefined();
  expect(get('b')).toBeUndefined();
});

test('the digest of a place is the one that it was given last, to the last bit', () => {
  const { cache } = openCache(2);
  const place = cache.add('a', digestOf('a'));
  cache.add('b', digestOf('b'));
  expect(cache.isOf(place, digestOf('a'))).toBe(true);
  expect(cache.isOf(place, digestOf('b'))).toBe(false);
  for (let at = 0; at < DIGEST_LENGTH; at++) {
    for (let bit = 0; bit < 8; bit++) {
      const bytes = Buffer.from(digestOf('a'), 'latin1');
      bytes[at] = (bytes[at] ?? 0) ^ (1 << bit);
      expect(cache.isOf(place, bytes.toString('latin1'))).toBe(false);
    }
  }
  cache.change(place, digestOf('c'));
  expect(cache.isOf(place, digestOf('c'))).toBe(true);
  expect(cache.isOf(place, digestOf('a'))).toBe(false);
  expect(cache.find('a')).toBe(place);
});

test('what was not used since it came goes first, in the order in which it came', () => {
  const { add, get, peek, forgotten } = openCache(3);
  add('a', 'b', 'c');
  get('a');
  peek('b');
  add('d', 'e');
  expect(forgotten).toEqual(['b', 'c']);
  // The second chance of `a` was used up by being passed; `d` came before `e`.
  get('d');
  add('f', 'g');
  expect(forgotten).toEqual(['b', 'c', 'a', 'e']);
  expect(['d', 'f', 'g'].map(get)).toEqual(['d', 'f', 'g']);
});

test('where all are used, one that comes costs a bounded number of looks, and one of them goes', () => {
  const { cache, add, get, forgotten } = openCache(1_000);
  const names = Array.from({ length: 1_000 }, (_, index) => `name-${index}`);
  add(...names);
  for (const name of names) get(name);
  add('new');
  expect(forgotten).toEqual(['name-16']);
  expect(cache.size).toBe(1_000);
});

test('many names are found while there is room for them, and as many others as there are places afterwards', () => {
  const capacity = 40_000;
  const { cache, add, peek, forgotten } = openCache(capacity);
  // Endings that differ in few characters, as no random id does.
  const namesFrom = (first: number) =>
    Array.from({ length: capacity }, (_, index) => `key-${String(first + index).padStart(9, '0')}`);
  const [old, young] = [namesFrom(0), namesFrom(capacity)];
  add(...old);
  expect(old.filter((name) => peek(name) !== name)).toEqual([]);
  expect(young.filter((name) => peek(name) !== undefined)).toEqual([]);
  add(...young);
  expect(young.filter((name) => peek(name) !== name)).toEqual([]);
  expect(old.filter((name) => peek(name) !== undefined)).toEqual([]);
  expect(forgotten).toEqual(old);
  expect(cache.size).toBe(capacity);
});

test('whatever is done, it holds what a Map would, but for what it was said to have forgotten', () => {
  // Few names, and few different endings, so that they share numbers and stand in each other's way.
  const name = fc
    .tuple(fc.constantFrom('xxxxxx', 'yyyyyy', 'zzzzzz'), fc.constantFrom('aaaaaa', 'bbbbbb', 'cccccc'))
    .map((parts) => parts.join('-'));
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 8 }), fc.array(fc.tuple(fc.boolean(), name)), (capacity, steps) => {
      const { cache, add, get, forgotten } = openCache(capacity);
      const model = new Set<string>();
      for (const [isUse, name] of steps) {
        if (isUse || model.has(name)) {
          expect(get(name)).toBe(model.has(name) ? name : undefined);
          continue;
        }
        add(name);
        for (const gone of forgotten.splice(0)) model.delete(gone);
        model.add(name);
        expect(cache.size).toBe(model.size);
        expect(cache.size).toBeLessThanOrEqual(capacity);
        for (const known of model) {
          const place = cache.peek(known);
          expect(place !== undefined && cache.isOf(place, digestOf(known)), known).toBe(true);
        }
      }
    }),
    { numRuns: 500 },
  );
});

test('more places than a word of the index can tell apart are refused at once', () => {
  expect(() => openCache(2 ** 24)).toThrow(RangeError);
  expect(openCache(2 ** 24 - 1).cache.size).toBe(0);
});
