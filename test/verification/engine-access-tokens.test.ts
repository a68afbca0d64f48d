import { expect, test } from 'vitest';
import type { CreatedKey } from '../../src/lifecycle/key-maker.ts';
import type { Database } from '../../src/storage/database.ts';
import { databaseOfTest } from '../support/database.ts';
import { createGate, type Engine, type Gate, joinedEngine } from './engine.ts';

/*
 * An access token whose state one instance reads while another makes it stale. What the first then holds of it must not
 * answer anybody who asks after the change was confirmed.
 */

/** Has whoever reads that a token is not revoked wait for that before the gate. */
function slowToTell(database: Database, gate: Gate): Database {
  return {
    ...database,
    async read(run) {
      const result = await database.read(run);
      if (result === false) await gate.pass();
      return result;
    },
  };
}

const changes: [string, (other: Engine, token: { jwt: string; created: CreatedKey }) => Promise<unknown>][] =
  [
    ['is revoked by itself', (other, { jwt }) => other.revokeToken(jwt)],
    ['loses its key', (other, { created }) => other.revoke(created.key.id)],
  ];

async function readWhile(
  change: (other: Engine, token: { jwt: string; created: CreatedKey }) => Promise<unknown>,
) {
  const test = await databaseOfTest();
  const gate = createGate();
  const engine = await joinedEngine(test, { wrapDatabase: (database) => slowToTell(database, gate) });
  const other = await joinedEngine(test);
  const created = await engine.createKey();
  const jwt = await other.issue(created);
  gate.shut();
  // It asks before the change, so that either answer is right.
  const before = engine.verdict(jwt);
  await gate.reached();
  await change(other, { jwt, created });
  return { engine, jwt, before, open: gate.open };
}

test.each(changes)('a token that %s while it is read is not remembered as it was', async (_name, change) => {
  const { engine, jwt, before, open } = await readWhile(change);
  open();
  expect(await before).toBe('active');
  expect(await engine.verdict(jwt)).toBe('revoked');
});

test('a token that is revoked while it is read is not remembered beside a record of its key that is newer', async () => {
  const { engine, jwt, before, open } = await readWhile((other, token) => other.revokeToken(token.jwt));
  expect(await engine.verdict(jwt)).toBe('revoked');
  open();
  expect(await before).toBe('active');
  expect(await engine.verdict(jwt)).toBe('revoked');
});

test('a token is read once, and again after each change of its key', async () => {
  const test = await databaseOfTest();
  const engine = await joinedEngine(test);
  const created = await engine.createKey();
  const jwt = await engine.issue(created);
  expect(await engine.verdict(jwt)).toBe('active');
  const reads = engine.count('lookedUp database');
  expect(await engine.verdict(jwt)).toBe('active');
  expect(engine.count('lookedUp database')).toBe(reads);
  await engine.touch({ kind: 'key', id: created.key.id });
  expect(await engine.verdict(jwt)).toBe('active');
  expect(engine.count('lookedUp database')).toBe(reads + 1);
});
