import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { canonicalJson } from '../../src/domain/canonical-json.ts';

const normal = (value: unknown): unknown => JSON.parse(JSON.stringify(value));

test.each([
  ['{"b":1,"a":[{"d":2,"c":3}]}', '{"a":[{"c":3,"d":2}],"b":1}'],
  ['{ "a" : 1.0e0 }', '{"a":1}'],
  ['"\\u0041"', '"A"'],
  ['[2,1]', '[2,1]'],
  ['null', 'null'],
])('%s is written as %s', (text, canonical) => {
  expect(canonicalJson(JSON.parse(text))).toBe(canonical);
});

test('two values share a text exactly if they are the same value', () => {
  fc.assert(
    fc.property(fc.jsonValue({ maxDepth: 4 }), fc.jsonValue({ maxDepth: 4 }), (one, other) => {
      expect(canonicalJson(one) === canonicalJson(other)).toBe(isDeepStrictEqual(normal(one), normal(other)));
    }),
  );
});

test('the order of members does not show at any depth, the order of elements does', () => {
  const reversed = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(reversed);
    if (typeof value !== 'object' || value === null) return value;
    return Object.fromEntries(
      Object.entries(value)
        .reverse()
        .map(([name, member]) => [name, reversed(member)]),
    );
  };
  fc.assert(
    fc.property(fc.jsonValue({ maxDepth: 5 }), (value) => {
      expect(canonicalJson(reversed(value))).toBe(canonicalJson(value));
      expect(canonicalJson([value, 1])).not.toBe(canonicalJson([1, value, 1]));
    }),
  );
});
