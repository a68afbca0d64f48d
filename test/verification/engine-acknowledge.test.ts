import { expect, test } from 'vitest';
import { databaseOfTest } from '../support/database.ts';
import { joinedEngine } from './engine.ts';

test('many changes at once are acknowledged one statement after the other', async () => {
  // pg warns, once in a process, where statements queue up on a connection; its next release refuses them.
  const warnings: string[] = [];
  const listen = (warning: Error) => void warnings.push(warning.message);
  process.on('warning', listen);
  const test = await databaseOfTest();
  await test.query(`CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END $$`);
  await test.query('CREATE TRIGGER stall AFTER INSERT ON acknowledgements EXECUTE FUNCTION stall()');
  const [one, two] = [await joinedEngine(test, { poolSize: 8 }), await joinedEngine(test)];
  const changes = Array.from({ length: 200 }, (_, index) =>
    one.touch({ kind: 'workspace', id: `ws_${index}` }),
  );
  const propagations = await Promise.all(changes);
  // Warnings are emitted in a turn of their own.
  await new Promise((resolve) => setImmediate(resolve));
  process.off('warning', listen);
  expect(propagations.every(({ instances, fenced }) => instances === 2 && fenced === 0)).toBe(true);
  expect(two.count('changeHeard')).toBe(200);
  expect(warnings).toEqual([]);
});
