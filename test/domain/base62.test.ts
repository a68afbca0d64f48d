import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { decodeBase62, decodeWords, encodeBase62, randomBase62 } from '../../src/domain/base62.ts';

const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';

/** The same by BigInt, from the alphabet alone. */
function base62(value: bigint, length: number): string {
  let text = '';
  for (let rest = value; rest > 0n; rest /= 62n) text = (ALPHABET[Number(rest % 62n)] ?? '') + text;
  return text.padStart(length, '0');
}

function bytesOf(value: bigint, length: number): Buffer {
  return Buffer.from(value.toString(16).padStart(length * 2, '0'), 'hex');
}

describe('base62', () => {
  test.each([
    [0n, '000000'],
    [1n, '000001'],
    [9n, '000009'],
    [10n, '00000A'],
    [35n, '00000Z'],
    [36n, '00000a'],
    [61n, '00000z'],
    [62n, '000010'],
    [0xffff_ffffn, '4gfFC3'],
  ])('writes %s as %s, digits before capitals before small letters', (value, text) => {
    expect(encodeBase62(bytesOf(value, 4), 6)).toBe(text);
    expect(decodeBase62(text, 4)).toEqual(new Uint8Array(bytesOf(value, 4)));
  });

  test('agrees with arithmetic on every 128-bit number, and reads back what it wrote', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: 2n ** 128n - 1n }), (value) => {
        const text = encodeBase62(bytesOf(value, 16), 22);
        expect(text).toBe(base62(value, 22));
        expect(decodeBase62(text, 16)).toEqual(new Uint8Array(bytesOf(value, 16)));
      }),
    );
  });

  test('reads the largest value that fits the bytes, and none beyond it', () => {
    const most = 2n ** 128n - 1n;
    expect(decodeBase62(base62(most, 22), 16)).toEqual(new Uint8Array(16).fill(255));
    expect(decodeBase62(base62(most + 1n, 22), 16)).toBeUndefined();
    expect(decodeBase62('z'.repeat(22), 16)).toBeUndefined();
  });

  test('reads two words as arithmetic does, from none to more than they hold', () => {
    const words = new Uint32Array(2);
    const mostOf = (length: number) => 62n ** BigInt(length) - 1n;
    const lengths = fc.integer({ min: 0, max: 14 });
    fc.assert(
      fc.property(
        lengths.chain((length) => fc.tuple(fc.constant(length), fc.bigInt({ min: 0n, max: mostOf(length) }))),
        ([length, value]) => {
          expect(decodeWords(base62(value, length), words)).toBe(value < 2n ** 64n);
          if (value < 2n ** 64n)
            expect([...words]).toEqual([Number(value >> 32n), Number(value % 2n ** 32n)]);
        },
      ),
    );
    expect(decodeWords(base62(2n ** 64n - 1n, 11), words)).toBe(true);
    expect([...words]).toEqual([0xffff_ffff, 0xffff_ffff]);
    expect(decodeWords(base62(2n ** 64n, 11), words)).toBe(false);
    expect(decodeWords('z'.repeat(14), words)).toBe(false);
  });

  test.each(['-', '_', ' ', '+', '/', '@', '[', '`', '{', 'é', '\u0130', '\uffff'])(
    'does not read %j',
    (character) => {
      expect(decodeBase62(`00000${character}`, 4)).toBeUndefined();
      expect(decodeWords(`00000${character}`, new Uint32Array(2))).toBe(false);
    },
  );

  test('leaves the bytes it is given as they were', () => {
    const bytes = Uint8Array.of(1, 2, 3, 4);
    encodeBase62(bytes, 6);
    expect(bytes).toEqual(Uint8Array.of(1, 2, 3, 4));
  });
});

describe('random base62', () => {
  test('throws away bytes of 248 and more, which would favour some characters', () => {
    const draws = [Buffer.from([248, 255, 247, 0]), Buffer.from([62, 250]), Buffer.from([61])];
    const text = randomBase62(4, () => draws.shift() ?? Buffer.alloc(0));
    // 247 = 3 × 62 + 61, 0, 62 = 62 + 0, 61
    expect(text).toBe('z00z');
  });

  test('gives each byte that it keeps to one character, four bytes to each of the 62', () => {
    const all = Buffer.from(Array.from({ length: 248 }, (_, byte) => byte));
    const counts = new Map<string, number>();
    for (const character of randomBase62(248, () => all)) {
      counts.set(character, (counts.get(character) ?? 0) + 1);
    }
    expect([...counts.keys()].sort()).toEqual([...ALPHABET].sort());
    expect(new Set(counts.values())).toEqual(new Set([4]));
  });

  test('has as many characters as were asked for, whatever is thrown away', () => {
    for (let length = 0; length <= 64; length++) {
      expect(randomBase62(length, randomBytes)).toMatch(new RegExp(`^[0-9A-Za-z]{${length}}$`));
    }
  });
});
