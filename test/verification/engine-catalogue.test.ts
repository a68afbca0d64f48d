import { describe, expect, test, vi } from 'vitest';
import type { Decision, Question } from '../../src/domain/decision.ts';
import type { ScopeEntry } from '../../src/domain/scope-catalogue.ts';
import type { Database } from '../../src/storage/database.ts';
import { loadCatalogue } from '../../src/storage/scopes.ts';
import { createCatalogueCache } from '../../src/verification/catalogue-cache.ts';
import type { BrokenRule } from '../../src/verification/membership.ts';
import { databaseOfTest, type TestDatabase } from '../support/database.ts';
import {
  createGate,
  cutListeners,
  type Engine,
  type EngineOptions,
  type Gate,
  joinedEngine,
  openEngine,
} from './engine.ts';

/* What memory holds of the scope catalogue: as for records, nothing of before a change that has answered. */

const CATALOGUE = { kind: 'catalogue' } as const;

/** Puts an entry into the table, as nobody does beside the API: the engine is told of it by `touch`. */
async function write(test: TestDatabase, name: string, implies: string[]): Promise<void> {
  await test.query(
    `INSERT INTO scopes (name, id, implies, grants, created_at, updated_at)
     VALUES ($1, gen_random_uuid(), $2, '[]', now(), now())
     ON CONFLICT (name) DO UPDATE SET implies = excluded.implies`,
    [name, implies],
  );
}

const wants = (scope: string): Question => ({ visibleWorkspaces: null, scopes: [scope] });
const codeOf = (decision: Decision) => (decision.active ? 'active' : decision.code);

/** Whether a key with the scope `read` alone has this one too. */
async function has(engine: Engine, token: string, scope: string): Promise<boolean> {
  return codeOf(await engine.verifier.verify(token, wants(scope))) === 'active';
}

/** An engine whose reads of the catalogue come back, and then wait before a gate. */
function withGate(gate: Gate): EngineOptions & { reads(): number } {
  let reads = 0;
  const wrapDatabase = (database: Database): Database => ({
    ...database,
    async read(run) {
      const result = await database.read(run);
      if (run.name !== loadCatalogue.name) return result;
      reads++;
      await gate.pass();
      return result;
    },
  });
  return { wrapDatabase, reads: () => reads };
}

describe('the catalogue in memory', () => {
  test('is read once, however many requests need it at once and later', async () => {
    const test = await databaseOfTest();
    const gated = withGate(createGate());
    const engine = await joinedEngine(test, gated);
    await write(test, 'read', ['list']);
    const { token } = await engine.createKey();
    const all = await Promise.all(Array.from({ length: 50 }, () => has(engine, token, 'list')));
    expect(new Set(all)).toEqual(new Set([true]));
    expect(gated.reads()).toBe(1);
    // And then nothing is waited for.
    expect(engine.verifier.verify(token, wants('list'))).toMatchObject({ active: true });
    expect(engine.verifier.verify(token, wants('write'))).toMatchObject({ active: false });
    expect(gated.reads()).toBe(1);
  });

  test('that is empty is remembered as well', async () => {
    const gated = withGate(createGate());
    const engine = await joinedEngine(await databaseOfTest(), gated);
    const { token } = await engine.createKey();
    await engine.verdict(token);
    expect(engine.verifier.verify(token, wants('read'))).toMatchObject({ active: true });
    expect(gated.reads()).toBe(1);
  });

  test('stays when keys and workspaces change, and its change leaves them alone', async () => {
    const test = await databaseOfTest();
    const gated = withGate(createGate());
    const engine = await joinedEngine(test, gated);
    const { key, token } = await engine.createKey();
    await engine.verdict(token);
    await engine.touch({ kind: 'key', id: key.id });
    await engine.touch({ kind: 'workspace', id: key.workspaceId });
    await engine.verdict(token);
    expect(gated.reads()).toBe(1);
    const before = engine.count('lookedUp database');
    await engine.touch(CATALOGUE);
    await engine.verdict(token);
    expect(gated.reads()).toBe(2);
    expect(engine.count('lookedUp database')).toBe(before);
  });

  test('is asked for by no token that is none', async () => {
    const gated = withGate(createGate());
    const engine = await joinedEngine(await databaseOfTest(), gated);
    expect(engine.verify('ck_live_nothing')).toMatchObject({ active: false, code: 'invalid' });
    expect(gated.reads()).toBe(0);
  });

  test('is not there without a lease: every request reads it for itself', async () => {
    const test = await databaseOfTest();
    const gated = withGate(createGate());
    const engine = await openEngine(test, gated);
    const { token } = await engine.createKey();
    await Promise.all([1, 2, 3].map(() => engine.verdict(token)));
    expect(gated.reads()).toBe(3);
    await write(test, 'read', ['list']);
    expect(await has(engine, token, 'list')).toBe(true);
  });

  test('ends with its epoch', async () => {
    const test = await databaseOfTest();
    const engine = await joinedEngine(test);
    const { token } = await engine.createKey();
    expect(await has(engine, token, 'list')).toBe(false);
    await write(test, 'read', ['list']);
    // What changed unheard is in force with the next epoch, and no later.
    expect(await has(engine, token, 'list')).toBe(false);
    await cutListeners(test);
    await vi.waitFor(() => expect(engine.count('registered')).toBe(2), { timeout: 10_000, interval: 20 });
    expect(await has(engine, token, 'list')).toBe(true);
  });
});

describe('a change of the catalogue', () => {
  test('that has answered holds on every instance', async () => {
    const test = await databaseOfTest();
    const [one, two, three] = [await joinedEngine(test), await joinedEngine(test), await joinedEngine(test)];
    const { token } = await one.createKey();
    for (let round = 0; round < 20; round++) {
      // All of them hold the old state when it changes.
      for (const engine of [one, two, three]) expect(await has(engine, token, 'list')).toBe(round % 2 === 1);
      await write(test, 'read', round % 2 === 0 ? ['list'] : []);
      const author = [one, two, three][round % 3] ?? one;
      expect(await author.touch(CATALOGUE)).toMatchObject({ instances: 3, confirmed: 3, fenced: 0 });
      for (const engine of [one, two, three]) expect(await has(engine, token, 'list')).toBe(round % 2 === 0);
    }
  });

  test('leaves nothing in memory that a read began before it brings back, and nobody joins that read', async () => {
    expect(await answersAround([])).toEqual({ before: false, after: true, later: true });
  });

  test('would be missed if reads were not detached: this is what the test above would see', async () => {
    expect(await answersAround(['detach'])).toEqual({ before: false, after: false, later: false });
  });

  /**
   * What three requests are told of one entry: one whose read came back before the change, one that begins right
   * after the change has answered, and one that begins when both are done.
   */
  async function answersAround(broken: readonly BrokenRule[]) {
    const test = await databaseOfTest();
    const gate = createGate();
    const engine = await joinedEngine(test, { ...withGate(gate), broken });
    const other = await joinedEngine(test);
    const { token } = await engine.createKey();
    gate.shut();
    const before = has(engine, token, 'list');
    await gate.reached();
    await write(test, 'read', ['list']);
    expect(await other.touch(CATALOGUE)).toMatchObject({ confirmed: 2, fenced: 0 });
    const after = has(engine, token, 'list');
    gate.open();
    const [told, toldAfter] = [await before, await after];
    return { before: told, after: toldAfter, later: await has(engine, token, 'list') };
  }
});

describe('a read of the catalogue', () => {
  const entryOf = (implies: string[]): ScopeEntry[] => [
    { name: 'read', description: null, implies, grants: [] },
  ];

  /** A cache whose reads are answered by hand, in any order. */
  function byHand(broken: readonly BrokenRule[] = []) {
    const reads: { resolve(entries: ScopeEntry[]): void; reject(error: Error): void }[] = [];
    const cache = createCatalogueCache({
      readEntries: () => new Promise((resolve, reject) => reads.push({ resolve, reject })),
      unmatched: 'refuse',
      broken: new Set(broken),
    });
    return { cache, reads, held: () => cache.held()?.implies(['read'], 'list') };
  }

  test('of an epoch that has ended is not kept, however late it comes', async () => {
    const { cache, reads, held } = byHand();
    const old = cache.load();
    cache.forget();
    const fresh = cache.load();
    expect(reads).toHaveLength(2);
    reads[1]?.resolve(entryOf(['list']));
    await fresh;
    expect(held()).toBe(true);
    reads[0]?.resolve(entryOf([]));
    expect((await old).implies(['read'], 'list')).toBe(false);
    expect(held()).toBe(true);
  });

  test.each([
    ['forget', 'epoch'],
    ['invalidate', 'detach'],
  ] as const)('would be kept past %s if the rule "%s" were broken', async (how, rule) => {
    for (const [broken, kept] of [
      [[], undefined],
      [[rule], false],
    ] as const) {
      const { cache, reads, held } = byHand(broken);
      const old = cache.load();
      if (how === 'forget') cache.forget();
      else cache.invalidate(CATALOGUE);
      reads[0]?.resolve(entryOf([]));
      await old;
      expect(held()).toBe(kept);
    }
  });

  test('that fails fails those who joined it, and the next request reads anew', async () => {
    const { cache, reads, held } = byHand();
    const both = Promise.allSettled([cache.load(), cache.load()]);
    reads[0]?.reject(new Error('no database'));
    expect((await both).map(({ status }) => status)).toEqual(['rejected', 'rejected']);
    const next = cache.load();
    reads[1]?.resolve(entryOf(['list']));
    await next;
    expect(held()).toBe(true);
  });

  test('for a request alone is neither joined nor kept', async () => {
    const { cache, reads, held } = byHand();
    const alone = cache.read();
    const shared = cache.load();
    expect(reads).toHaveLength(2);
    reads[0]?.resolve(entryOf([]));
    await alone;
    expect(held()).toBeUndefined();
    reads[1]?.resolve(entryOf(['list']));
    await shared;
    expect(held()).toBe(true);
  });
});
