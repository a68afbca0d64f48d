import fc from 'fast-check';
import { expect, test } from 'vitest';
import { float8Array, textArray, uuidArray } from '../../src/storage/arrays.ts';
import { databaseOfTest } from '../support/database.ts';

test('PostgreSQL reads the arrays as what they were made of', async () => {
  const { query } = await databaseOfTest();
  const text = fc.oneof(fc.constant(null), fc.stringMatching(/^[^\0\ud800-\udfff]*$/u), fc.constant('NULL'));
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.uuid()),
      fc.array(fc.double({ noNaN: true })),
      fc.array(text),
      async (uuids, numbers, texts) => {
        const [read] = await query<Record<'uuids' | 'numbers' | 'texts', unknown[]>>(
          'SELECT $1::uuid[]::text[] AS uuids, $2::float8[] AS numbers, $3::text[] AS texts',
          [
            uuidArray(Buffer.from(uuids.join('').replaceAll('-', ''), 'hex')),
            float8Array(numbers),
            textArray(texts),
          ],
        );
        expect(read).toEqual({ uuids, numbers, texts });
      },
    ),
    {
      examples: [
        [[], [], []],
        [[], [2 ** 53, -0, 0.1], [null, '', '{"}', 'é€😀', ',']],
        [[], [], [null, null, 'é€', 'é€', 'é€', '', '', null, 'a', 'a']],
      ],
    },
  );
});

test('counts are exact up to 2^53', async () => {
  const { query } = await databaseOfTest();
  const counts = [0, 1, 2 ** 31, 2 ** 32 + 1, 2 ** 53];
  const rows = await query('SELECT n::bigint::text AS n FROM unnest($1::float8[]) AS each(n)', [
    float8Array(counts),
  ]);
  expect(rows).toEqual(counts.map((n) => ({ n: String(n) })));
});
