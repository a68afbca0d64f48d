import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Cached, createNameCache } from '../../src/verification/name-cache.ts';

interface Entry extends Cached<Entry> {
  readonly name: string;
}

const entryOf = (name: string): Entry => ({ tag: 0, isUsed: false, next: undefined, name });
const namesOf = (entries: readonly Entry[]) => entries.map(({ name }) => name);

function openCache(capacity: number) {
  const forgotten: Entry[] = [];
  const cache = createNameCache<Entry>({ capacity, forgotten: (entry) => forgotten.push(entry) });
  const add = (...names: string[]) => {
    for (const name of names) cache.add(name, entryOf(name));
  };
  return { cache, add, forgotten };
}

/** Two names of one number: their last six characters are the same. */
const TWINS = ['first-aaaaaa', 'other-aaaaaa'] as const;

test('an entry is found by its name, be that short, empty or another’s ending', () => {
  const { cache, add } = openCache(10);
  const names = ['', 'a', 'aaaaaa', 'b-aaaaaa', ...TWINS, `${'é€😀'.repeat(9)}z`];
  add(...names);
  expect(names.map((name) => cache.get(name)?.name)).toEqual(names);
  expect(cache.size).toBe(names.length);
  expect(cache.get('third-aaaaaa')).toBeUndefined();
  expect(cache.get('b')).toBeUndefined();
});

test('what was not used since it came goes first, in the order in which it came', () => {
  const { cache, add, forgotten } = openCache(3);
  add('a', 'b', 'c');
  cache.get('a');
  cache.peek('b');
  add('d', 'e');
  expect(namesOf(forgotten)).toEqual(['b', 'c']);
  // The second chance of `a` was used up by being passed; `d` came before `e`.
  cache.get('d');
  add('f', 'g');
  expect(namesOf(forgotten)).toEqual(['b', 'c', 'a', 'e']);
  expect(['d', 'f', 'g'].map((name) => cache.get(name)?.name)).toEqual(['d', 'f', 'g']);
});

test('entries of one number are kept together while one of them is used, and go together', () => {
  const { cache, add, forgotten } = openCache(3);
  add(...TWINS, 'c');
  cache.get(TWINS[0]);
  add('d');
  expect(namesOf(forgotten)).toEqual(['c']);
  add('e');
  expect(namesOf(forgotten).sort()).toEqual(['c', 'first-aaaaaa', 'other-aaaaaa']);
  expect(cache.size).toBe(2);
  expect(TWINS.map((name) => cache.peek(name))).toEqual([undefined, undefined]);
});

test('where all are used, one that comes costs a bounded number of looks, and one of them goes', () => {
  const { cache, add, forgotten } = openCache(1_000);
  const names = Array.from({ length: 1_000 }, (_, index) => `name-${index}`);
  add(...names);
  for (const name of names) cache.get(name);
  add('new');
  expect(forgotten).toHaveLength(1);
  expect(names.filter((name) => cache.peek(name)?.isUsed === false).length).toBeLessThanOrEqual(20);
});

test('whatever is done, it holds what a Map would, but for what it was said to have forgotten', () => {
  // Few names, and few different endings, so that they share numbers.
  const name = fc
    .tuple(fc.constantFrom('x', 'y', 'z'), fc.constantFrom('aaaaaa', 'bbbbbb', 'cccccc'))
    .map((parts) => parts.join('-'));
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 8 }), fc.array(fc.tuple(fc.boolean(), name)), (capacity, steps) => {
      const { cache, forgotten } = openCache(capacity);
      const model = new Map<string, Entry>();
      for (const [isUse, name] of steps) {
        if (isUse || model.has(name)) {
          expect(cache.get(name)).toBe(model.get(name));
          continue;
        }
        const entry = entryOf(name);
        cache.add(name, entry);
        for (const { name: gone } of forgotten.splice(0)) model.delete(gone);
        model.set(name, entry);
        expect(cache.size).toBe(model.size);
        expect(cache.size).toBeLessThanOrEqual(capacity);
      }
    }),
  );
});
