import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { MAX_SCOPES } from '../../src/domain/scope.ts';
import {
  type Catalogue,
  catalogueFaults,
  compileCatalogue,
  EMPTY_CATALOGUE,
  MAX_CATALOGUE_ENTRIES,
  MAX_CATALOGUE_GRANTS,
  MAX_GRANTS,
  type ScopeEntry,
  scopeEntryFaults,
} from '../../src/domain/scope-catalogue.ts';
import {
  grantsServed,
  hostilePath,
  matchesModel,
  routePattern,
  segmentsModel,
  servedAs,
} from './route-model.ts';

function entry(name: string, settings: Partial<ScopeEntry> = {}): ScopeEntry {
  return { name, description: null, implies: [], grants: [], ...settings };
}

const READ = entry('read', { grants: [{ methods: ['GET'], path: '/*' }] });
const WRITE = entry('write', {
  implies: ['read'],
  grants: [{ methods: ['POST', 'PATCH', 'DELETE'], path: '/*' }],
});
const refusalOf = (catalogue: Catalogue, held: string[], method: string, path: string) =>
  catalogue.routes?.refuse(held, method, path);

describe('implications', () => {
  const chain = compileCatalogue(
    [
      entry('admin-of-contacts', { implies: ['write', 'audit'] }),
      WRITE,
      entry('read', { implies: ['list'] }),
      entry('unrelated'),
    ],
    'refuse',
  );

  test.each([
    ['one step', ['write'], 'read', true],
    ['two steps', ['write'], 'list', true],
    ['three steps, to a name without an entry', ['admin-of-contacts'], 'list', true],
    ['two at once', ['admin-of-contacts'], 'audit', true],
    ['one of several held', ['unrelated', 'write'], 'read', true],
    ['never backwards', ['read'], 'write', false],
    ['not by others', ['unrelated'], 'read', false],
    ['not from nothing', [], 'read', false],
    ['not to a name that nobody implies', ['admin-of-contacts'], 'delete', false],
    ['not by a name that begins alike', ['writer'], 'read', false],
    ['not by a built-in property', ['constructor'], 'toString', false],
  ])('%s', (_, held, wanted, expected) => {
    expect(chain.implies(held, wanted)).toBe(expected);
  });

  test('are none while there are no entries', () => {
    expect(compileCatalogue([], 'refuse')).toBe(EMPTY_CATALOGUE);
    expect(EMPTY_CATALOGUE.implies(['read'], 'read')).toBe(false);
    expect(EMPTY_CATALOGUE.routes).toBeUndefined();
  });

  test('end also where what is stored has a circle', () => {
    const circle = compileCatalogue(
      [entry('a', { implies: ['b'] }), entry('b', { implies: ['a'] })],
      'refuse',
    );
    expect(circle.implies(['a'], 'b')).toBe(true);
    expect(circle.implies(['c'], 'b')).toBe(false);
  });

  test('are those of a plain search, over any graph', () => {
    const names = ['a', 'b', 'c', 'd', 'e', 'f'];
    const graph = fc.array(fc.tuple(fc.constantFrom(...names), fc.subarray(names)), { maxLength: 6 });
    fc.assert(
      fc.property(graph, fc.subarray(names), fc.constantFrom(...names), (edges, held, wanted) => {
        const implied = new Map(edges);
        const entries = [...implied].map(([name, implies]) => entry(name, { implies }));
        const holds = (scope: string, steps: number): boolean =>
          scope === wanted ||
          (steps > 0 && (implied.get(scope) ?? []).some((next) => holds(next, steps - 1)));
        const catalogue = compileCatalogue(entries, 'refuse');
        expect(held.includes(wanted) || catalogue.implies(held, wanted)).toBe(
          held.some((scope) => holds(scope, names.length)),
        );
      }),
      { numRuns: 5_000 },
    );
  });

  test('of a thousand scopes in a row are followed to the end', () => {
    const entries = Array.from({ length: MAX_CATALOGUE_ENTRIES }, (_, index) =>
      entry(`s${index}`, { implies: [`s${index + 1}`] }),
    );
    const catalogue = compileCatalogue(entries, 'refuse');
    expect(catalogue.implies(['s0'], `s${MAX_CATALOGUE_ENTRIES}`)).toBe(true);
    expect(catalogue.implies([`s${MAX_CATALOGUE_ENTRIES}`], 's0')).toBe(false);
  });
});

describe('grants', () => {
  const catalogue = compileCatalogue([READ, WRITE], 'refuse');

  test.each([
    ['what it grants', ['read'], 'GET', '/contacts/17', undefined],
    ['HEAD where it grants GET', ['read'], 'HEAD', '/contacts', undefined],
    ['what an implied scope grants', ['write'], 'GET', '/contacts', undefined],
    ['what another scope grants', ['read'], 'POST', '/contacts', /need the scope "write"/],
    ['anything without a scope', [], 'GET', '/contacts', /need the scope "read"/],
    ['a method that nobody grants', ['read', 'write'], 'PUT', '/contacts', /No scope of the catalogue/],
    ['a method in lower case', ['write'], 'get', '/contacts', /No scope of the catalogue/],
    ['a path that is none', ['write'], 'GET', 'contacts', /not a plain absolute path/],
    ['a path that is read in two ways', ['write'], 'GET', '/a/%2e%2e/b', /not a plain absolute path/],
  ])('answer for %s', (_, held, method, path, expected) => {
    const refusal = refusalOf(catalogue, held, method, path);
    if (expected === undefined) expect(refusal).toBeUndefined();
    else expect(refusal).toMatch(expected);
  });

  test('are not asked for while no entry has any', () => {
    expect(compileCatalogue([entry('read')], 'refuse').routes).toBeUndefined();
  });

  test('that do not compile open nothing, and close what is not granted', () => {
    const stale = compileCatalogue([entry('read', { grants: [{ path: '/a//b' }] })], 'refuse');
    expect(refusalOf(stale, ['read'], 'GET', '/a')).toMatch(/No scope of the catalogue/);
  });

  test('of each scope count, also where another one is closer to the path', () => {
    const overlapping = compileCatalogue(
      [
        entry('all', { grants: [{ path: '/*' }] }),
        entry('one', { grants: [{ path: '/contacts/:id' }] }),
        entry('me', { grants: [{ path: '/contacts/me' }] }),
      ],
      'refuse',
    );
    for (const held of ['all', 'one', 'me']) {
      expect(refusalOf(overlapping, [held], 'GET', '/contacts/me')).toBeUndefined();
    }
    expect(refusalOf(overlapping, ['other'], 'GET', '/contacts/me')).toContain('"all" or "me" or "one"');
  });

  test('name five of the scopes that would do, and say that there are others', () => {
    const many = compileCatalogue(
      Array.from({ length: 7 }, (_, index) => entry(`s${index}`, { grants: [{ path: '/x' }] })),
      'refuse',
    );
    const refusal = refusalOf(many, [], 'GET', '/x');
    expect(refusal).toContain('"s4", or another that grants it');
    expect(refusal).not.toContain('s5');
  });

  test('leave alone what nobody grants where the deployment says so, but no path that is read in two ways', () => {
    const open = compileCatalogue([entry('write', { grants: [{ path: '/contacts/*' }] })], 'allow');
    expect(refusalOf(open, [], 'GET', '/other')).toBeUndefined();
    expect(refusalOf(open, [], 'GET', '/contacts/17')).toMatch(/need the scope "write"/);
    expect(refusalOf(open, [], 'GET', '/other/../contacts/17')).toMatch(/not a plain absolute path/);
    expect(refusalOf(open, [], 'GET', '//contacts/17')).toMatch(/not a plain absolute path/);
  });
});

describe('a route, to any catalogue and on any path,', () => {
  const NAMES = ['a', 'b', 'c', 'd'];
  const METHODS = ['GET', 'HEAD', 'POST'];
  const grant = fc.record({
    methods: fc.option(fc.subarray(METHODS, { minLength: 1 }), { nil: undefined }),
    path: routePattern,
  });
  /** Each name implies later ones alone, so that no circle is among them. */
  const catalogues = fc
    .tuple(
      ...NAMES.map((_, index) =>
        fc.tuple(fc.subarray(NAMES.slice(index + 1)), fc.array(grant, { maxLength: 3 })),
      ),
    )
    .map((settings) =>
      settings.map(([implies, grants], index) => entry(NAMES[index] ?? '', { implies, grants })),
    )
    .filter((entries) => entries.some(({ grants }) => grants.length > 0));
  const requests = fc.record({ method: fc.constantFrom(...METHODS, 'get', 'DELETE', ''), path: hostilePath });

  type Grant = ScopeEntry['grants'][number];
  const takes = ({ methods }: Grant, method: string) =>
    methods == null || methods.includes(method) || (method === 'HEAD' && methods.includes('GET'));
  const grantsOf = (entries: ScopeEntry[], names: readonly string[]) =>
    entries.filter(({ name }) => names.includes(name)).flatMap(({ grants }) => grants);
  /** All that is held: asked for anew until nothing is added. */
  function held(entries: ScopeEntry[], names: readonly string[]): readonly string[] {
    const more = entries.filter(({ name }) => names.includes(name)).flatMap(({ implies }) => implies);
    const all = [...new Set([...names, ...more])];
    return all.length === names.length ? all : held(entries, all);
  }

  test.each(['refuse', 'allow'] as const)(
    'is open as a plain model says, where unmatched means: %s',
    (unmatched) => {
      const seen = { open: 0, missing: 0, unmatched: 0, refused: 0 };
      fc.assert(
        fc.property(catalogues, fc.subarray(NAMES), requests, (entries, names, { method, path }) => {
          const segments = segmentsModel(path);
          const matching = (grants: Grant[]) =>
            grants.some(
              (one) => segments !== undefined && takes(one, method) && matchesModel(one.path, segments),
            );
          const isMatched = matching(grantsOf(entries, NAMES));
          const isHeld = matching(grantsOf(entries, held(entries, names)));
          const isOpen = segments !== undefined && (isHeld || (!isMatched && unmatched === 'allow'));
          seen[segments === undefined ? 'refused' : isHeld ? 'open' : isMatched ? 'missing' : 'unmatched']++;
          const refusal = refusalOf(compileCatalogue(entries, unmatched), names, method, path);
          expect(refusal === undefined).toBe(isOpen);
        }),
        { numRuns: 20_000 },
      );
      for (const count of Object.values(seen)) expect(count).toBeGreaterThan(200);
    },
  );

  test('is opened by no hostile path: what some server would serve is granted too', () => {
    const marks = fc.constantFrom(
      ...[
        '/',
        '//',
        '/./',
        '/../',
        '%2e',
        '%2e%2e/',
        '%2f',
        '%5c',
        '\\',
        ';',
        ';x',
        '%3b',
        '\0',
        '%00',
        '%25',
        '?',
      ],
      ...['#', ' ', '\t', '%', '%c0%ae', 'A', 'a'.repeat(5_000), '/a'.repeat(5_000)],
    );
    const words = fc.array(fc.constantFrom('contacts', 'public', 'a', '17'), { minLength: 1, maxLength: 4 });
    const marked = fc.tuple(words, marks, fc.nat(30)).map(([segments, mark, at]) => {
      const plain = `/${segments.join('/')}`;
      return plain.slice(0, at) + mark + plain.slice(at);
    });
    let open = 0;
    fc.assert(
      fc.property(
        catalogues,
        fc.subarray(NAMES),
        fc.constantFrom(...METHODS),
        fc.oneof(marked, hostilePath),
        (entries, names, method, path) => {
          if (refusalOf(compileCatalogue(entries, 'refuse'), names, method, path) !== undefined) return;
          open++;
          const grants = grantsOf(entries, held(entries, names)).filter((one) => takes(one, method));
          for (const [server, served] of Object.entries(servedAs(path))) {
            const isGranted = grants.some((one) => grantsServed(one.path, served));
            expect(`${server}: ${isGranted}`).toBe(`${server}: true`);
          }
        },
      ),
      { numRuns: 20_000 },
    );
    expect(open).toBeGreaterThan(500);
  });
});

describe('an entry', () => {
  test('is told each of its faults, with its place', () => {
    const faults = scopeEntryFaults(
      entry('keys:read', {
        implies: ['read', 'admin'],
        grants: [{ path: '/ok' }, { methods: ['get'], path: 'x' }, { methods: [], path: '/' }],
      }),
    );
    expect(faults.map(({ path }) => path)).toEqual([
      'name',
      'implies.1',
      'grants.1.methods.0',
      'grants.1.path',
      'grants.2.methods',
    ]);
    expect(scopeEntryFaults(WRITE)).toEqual([]);
  });

  test.each([
    ['itself', entry('a', { implies: ['b', 'a'] }), [], ['implies.1']],
    ['one that implies it', entry('a', { implies: ['b'] }), [entry('b', { implies: ['a'] })], ['implies.0']],
    [
      'one that implies it by others',
      entry('a', { implies: ['x', 'b'] }),
      [entry('b', { implies: ['c'] }), entry('c', { implies: ['d', 'a'] })],
      ['implies.1'],
    ],
  ])('may not imply %s', (_, wanted, others, paths) => {
    expect(catalogueFaults(wanted, others).map(({ path }) => path)).toEqual(paths);
  });

  test('may imply the same scope by two ways, and scopes that have no entry', () => {
    const others = [entry('b', { implies: ['d'] }), entry('c', { implies: ['d'] })];
    expect(catalogueFaults(entry('a', { implies: ['b', 'c', 'nobody'] }), others)).toEqual([]);
  });

  test('finds a place while the catalogue is not full', () => {
    const others = Array.from({ length: MAX_CATALOGUE_ENTRIES - 1 }, (_, index) => entry(`s${index}`));
    expect(catalogueFaults(entry('a'), others)).toEqual([]);
    expect(catalogueFaults(entry('a'), [...others, entry('b')])).toMatchObject([{ path: 'name' }]);
    const grants = Array.from({ length: MAX_GRANTS }, () => ({ path: '/' }));
    const granting = others
      .slice(0, MAX_CATALOGUE_GRANTS / MAX_GRANTS - 1)
      .map(({ name }) => entry(name, { grants }));
    expect(catalogueFaults(entry('a', { grants }), granting)).toEqual([]);
    expect(
      catalogueFaults(entry('a', { grants }), [...granting, entry('b', { grants: [{ path: '/' }] })]),
    ).toMatchObject([{ path: 'grants' }]);
  });

  test('may imply as many scopes as a key may hold', () => {
    const implies = Array.from({ length: MAX_SCOPES }, (_, index) => `s${index}`);
    expect(catalogueFaults(entry('a', { implies }), [])).toEqual([]);
  });
});
