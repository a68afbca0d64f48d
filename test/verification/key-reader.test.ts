import { expect, test } from 'vitest';
import { keyIdToUuid, newKeyId } from '../../src/domain/key-id.ts';
import type { Database, Executor } from '../../src/storage/database.ts';
import { createKeyReader } from '../../src/verification/key-reader.ts';

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

/** A database that answers no statement before it is told to, and knows no key. */
function silentDatabase() {
  const statements: { ids: string[]; answer(): void; fail(): void }[] = [];
  const read: Database['read'] = (run) =>
    new Promise((resolve, reject) => {
      const prepared = {
        execute: ({ ids }: { ids: string[] }) =>
          new Promise((answer) => {
            statements.push({ ids, answer: () => answer([]), fail: () => reject(new Error('lost')) });
          }),
      };
      // Whatever is built on it, it is this statement in the end.
      const builder: object = new Proxy(
        {},
        { get: (_, member) => (member === 'prepare' ? () => prepared : () => builder) },
      );
      run(builder as Executor).then(resolve, reject);
    });
  return { statements, read };
}

const newIds = (count: number) => Array.from({ length: count }, () => newKeyId(1_750_000_000_000));

test('reads of one turn go in one statement', async () => {
  const database = silentDatabase();
  const reader = createKeyReader(database);
  const ids = newIds(3);
  const reads = ids.map((id) => reader.read(id));
  expect(database.statements).toHaveLength(0);
  await turn();
  expect(database.statements.map(({ ids: sent }) => sent)).toEqual([ids.map(keyIdToUuid)]);
  database.statements[0]?.answer();
  expect(await Promise.all(reads)).toEqual([undefined, undefined, undefined]);
});

test('with four statements under way reads wait for one to end, and then go together', async () => {
  const database = silentDatabase();
  const reader = createKeyReader(database);
  for (const id of newIds(4)) {
    void reader.read(id);
    await turn();
  }
  const late = newIds(5);
  for (const id of late) {
    void reader.read(id);
    await turn();
  }
  expect(database.statements).toHaveLength(4);
  database.statements[2]?.answer();
  await turn();
  await turn();
  expect(database.statements[4]?.ids).toEqual(late.map(keyIdToUuid));
});

test('a statement reads at most 200 keys, and the others go in the next', async () => {
  const database = silentDatabase();
  const reader = createKeyReader(database);
  for (const id of newIds(201)) void reader.read(id);
  await turn();
  await turn();
  expect(database.statements.map(({ ids }) => ids.length)).toEqual([200, 1]);
});

test('a statement that fails fails its own reads and no others', async () => {
  const database = silentDatabase();
  const reader = createKeyReader(database);
  const [first = '', second = ''] = newIds(2);
  const failing = reader.read(first);
  await turn();
  const passing = reader.read(second);
  await turn();
  database.statements[0]?.fail();
  database.statements[1]?.answer();
  await expect(failing).rejects.toThrow('lost');
  await expect(passing).resolves.toBeUndefined();
});
