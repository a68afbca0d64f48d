import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  compileRoutePattern,
  compileRouteRule,
  MAX_METHODS,
  MAX_ROUTE_PATTERN_LENGTH,
  matchesRoute,
  matchesRule,
  normalizeRequestPath,
  type RoutePattern,
  type RouteRule,
  type RouteRuleText,
  routeRuleFaults,
} from '../../src/domain/route-pattern.ts';
import {
  grantsServed,
  hostilePath,
  matchesModel,
  routePattern,
  segmentsModel,
  servedAs,
} from './route-model.ts';

function route(pattern: string): RoutePattern {
  const compiled = compileRoutePattern(pattern);
  if ('fault' in compiled) throw new Error(`${pattern}: ${compiled.fault}`);
  return compiled;
}

function rule(text: RouteRuleText): RouteRule {
  const compiled = compileRouteRule(text);
  if ('fault' in compiled) throw new Error(compiled.fault);
  return compiled;
}

function allows(pattern: string, path: string): boolean {
  const normal = normalizeRequestPath(path);
  return normal !== undefined && matchesRoute(route(pattern), normal);
}

function faultOf(pattern: string): string | undefined {
  const compiled = compileRoutePattern(pattern);
  return 'fault' in compiled ? compiled.fault : undefined;
}

describe('a request path', () => {
  test.each([
    ['the root', '/', '/'],
    ['a plain path', '/contacts/17', '/contacts/17'],
    ['a query is cut', '/contacts?a=/../b#c', '/contacts'],
    ['an empty query is cut', '/contacts?', '/contacts'],
    ['the query of the root is cut', '/?a', '/'],
    ['a trailing slash is ignored', '/contacts/', '/contacts'],
    ['a trailing slash before a query is ignored', '/contacts/?a', '/contacts'],
    ['unreserved escapes are decoded', '/%63ontacts/%7Ea%2db%5fc%2E%31', '/contacts/~a-b_c.1'],
    ['other escapes are kept in upper case', '/a%3ab%c3%a9', '/a%3Ab%C3%A9'],
    ['escapes are decoded once', '/%252e%252E/%2561', '/%252e%252E/%2561'],
    ['non-ASCII characters are escaped', '/\u00e9', '/%C3%A9'],
    ['characters beyond the BMP are escaped', '/\u{1f511}x', '/%F0%9F%94%91x'],
    ['characters that a URL may not hold are escaped', '/"<>[]^`{|}', '/%22%3C%3E%5B%5D%5E%60%7B%7C%7D'],
    ['characters that a path may hold are kept', "/!$&'()*+,=:@-._~a;b", "/!$&'()*+,=:@-._~a;b"],
    ['case is kept', '/Contacts', '/Contacts'],
    ['three dots are a name', '/.../..a/a../.a', '/.../..a/a../.a'],
    ['parameters of a named segment are kept', '/a;v=1/b%3bc', '/a;v=1/b%3Bc'],
    ['an encoded question mark is no query', '/a%3fb', '/a%3Fb'],
    ['an encoded hash is no fragment', '/a%23b', '/a%23b'],
    ['a dot behind a parameter is a name', '/a;..', '/a;..'],
  ])('%s', (_, path, normal) => {
    expect(normalizeRequestPath(path)).toBe(normal);
  });

  test.each([
    ['nothing', ''],
    ['a query alone', '?a'],
    ['no leading slash', 'contacts'],
    ['an asterisk', '*'],
    ['a whole URL', 'http://example.com/contacts'],
    ['an authority', '//example.com/contacts'],
    ['an empty segment', '/a//b'],
    ['two trailing slashes', '/a//'],
    ['two slashes', '//'],
    ['a dot segment', '/a/./b'],
    ['a double dot segment', '/a/../b'],
    ['a dot segment at the end', '/a/.'],
    ['a double dot segment at the end', '/a/..'],
    ['a double dot segment before a query', '/a/..?b'],
    ['a double dot segment before a trailing slash', '/a/../'],
    ['a double dot segment at the start', '/../a'],
    ['an encoded dot segment', '/a/%2e/b'],
    ['an encoded double dot segment', '/a/%2e%2E/b'],
    ['a half-encoded double dot segment', '/a/.%2e/b'],
    ['a double dot segment with a parameter', '/a/..;x/b'],
    ['a double dot segment with an empty parameter', '/a/..;/b'],
    ['a double dot segment with an encoded parameter', '/a/..%3Bx/b'],
    ['an encoded double dot segment with an encoded parameter', '/a/%2e%2e%3bx'],
    ['a dot segment with a parameter', '/a/.;x/b'],
    ['a parameter of nothing', '/a/;x/b'],
    ['an encoded parameter of nothing', '/a/%3B/b'],
    ['an encoded slash', '/a%2Fb'],
    ['an encoded slash in lower case', '/a%2fb'],
    ['an encoded backslash', '/a%5Cb'],
    ['an encoded backslash in lower case', '/a%5cb'],
    ['a backslash', '/a\\b'],
    ['a NUL', '/a\0'],
    ['an encoded NUL', '/a%00'],
    ['a newline', '/a\n'],
    ['a tab', '/a\t'],
    ['a delete', '/a\u007f'],
    ['a C1 control', '/a\u0085'],
    ['a space', '/a b'],
    ['a fragment', '/a#b'],
    ['a percent sign alone', '/a%'],
    ['half an escape', '/a%4'],
    ['an escape that is not hexadecimal', '/a%4g'],
    ['a wide escape', '/a%u0041'],
    ['an escape of full-width digits', '/a%\uff14\uff11'],
    ['a slash in an overlong encoding', '/a/%C0%AF/b'],
    ['a dot in an overlong encoding', '/a/%C0%AE%C0%AE/b'],
    ['a slash in a longer overlong encoding', '/a%E0%80%AF'],
    ['a Latin-1 escape', '/caf%E9'],
    ['an encoded surrogate', '/a%ED%A0%80'],
    ['an unpaired high surrogate', '/a\ud83d'],
    ['an unpaired high surrogate within', '/a\ud83db'],
    ['an unpaired low surrogate', '/a\udd11'],
  ])('is refused: %s', (_, path) => {
    expect(normalizeRequestPath(path)).toBeUndefined();
  });

  test('that is normal is its own normal form', () => {
    fc.assert(
      fc.property(hostilePath, (path) => {
        const normal = normalizeRequestPath(path);
        if (normal !== undefined) expect(normalizeRequestPath(normal)).toBe(normal);
      }),
      { numRuns: 20_000 },
    );
  });

  test('is normalised as by a plain model', () => {
    fc.assert(
      fc.property(hostilePath, (path) => {
        const segments = segmentsModel(path);
        expect(normalizeRequestPath(path)).toBe(segments && `/${segments.join('/')}`);
      }),
      { numRuns: 20_000 },
    );
  });

  test('of a million characters is no trouble', () => {
    expect(allows('/a/*', `/a${'/b'.repeat(500_000)}`)).toBe(true);
    expect(allows('/a/*', `/a${'/%2e'.repeat(500_000)}`)).toBe(false);
    expect(allows('/a/*', `/a/${'%41\u00e9'.repeat(200_000)}`)).toBe(true);
    expect(allows('/a/:id', `/a/${';'.repeat(1_000_000)}`)).toBe(false);
    expect(allows('/a/:id/c', `/a/b${'%3B'.repeat(300_000)}/c`)).toBe(false);
  });
});

describe('a route pattern', () => {
  test.each([
    ['/', '/'],
    ['/', '/?x'],
    ['/*', '/'],
    ['/*', '/a'],
    ['/*', '/a/b/c'],
    ['/contacts', '/contacts'],
    ['/contacts', '/contacts/'],
    ['/contacts/', '/contacts'],
    ['/contacts/*', '/contacts'],
    ['/contacts/*', '/contacts/'],
    ['/contacts/*', '/contacts/17/notes'],
    ['/contacts/*/', '/contacts/17'],
    ['/contacts/:id', '/contacts/17'],
    ['/contacts/:id', '/contacts/17/'],
    ['/contacts/:id', '/contacts/a%20b'],
    ['/contacts/:id', '/contacts/:id'],
    ['/contacts/:id', '/contacts/17;v=2'],
    ['/contacts/:id/*', '/contacts/17'],
    ['/contacts/:id/*', '/contacts/17;v=2/x'],
    ['/:a/:b', '/x/y'],
    ['/v1/:a/notes/:b', '/v1/x/notes/y'],
    ['/v1/things:search', '/v1/things:search'],
    ['/\u00e9', '/%c3%a9'],
    ['/%c3%a9', '/\u00e9'],
    ['/%7euser', '/~user'],
    ['/a%20b', '/a%20b'],
    ['/a%2Ab', '/a%2ab'],
    ['/a%7Bb', '/a{b'],
    ['/a;v=1/b', '/a;v=1/b'],
    ['/:contacts/contacts', '/contacts/contacts'],
  ])('%s allows %s', (pattern, path) => {
    expect(allows(pattern, path)).toBe(true);
  });

  test.each([
    ['/', '/a'],
    ['/contacts', '/'],
    ['/contacts', '/contact'],
    ['/contacts', '/contactss'],
    ['/contacts', '/contacts/17'],
    ['/contacts', '/Contacts'],
    ['/contacts', '/contacts;x'],
    ['/contacts', '/contacts%3Bx'],
    ['/contacts', '/contacts%20'],
    ['/contacts', '/contacts.json'],
    ['/contacts/*', '/contactsx'],
    ['/contacts/*', '/contacts;x/17'],
    ['/contacts/*', '/contacts/../admin'],
    ['/contacts/*', '/contacts/%2e%2e/admin'],
    ['/contacts/*', '/contacts/..;/admin'],
    ['/contacts/*', '/contacts/..%2fadmin'],
    ['/contacts/*', '/contacts/..%5cadmin'],
    ['/contacts/*', '/contacts//admin'],
    ['/contacts/*', '//contacts/17'],
    ['/contacts/*', '/admin?/contacts/'],
    ['/contacts/*', '/admin#/contacts/'],
    ['/contacts/:id', '/contacts'],
    ['/contacts/:id', '/contacts/'],
    ['/contacts/:id', '/contacts/17/notes'],
    ['/contacts/:id', '/contacts/17%2Fnotes'],
    ['/contacts/:id', '/contacts/..'],
    ['/contacts/:id', '/contacts/17\0'],
    ['/contacts/:id', '/contacts/17%00'],
    ['/:id', '/'],
    ['/:a/public', '/;x/public'],
    ['/:a/public', '/admin;/public'],
    ['/:a/public', '/admin;x=1/public'],
    ['/:a/public', '/admin%3b/public'],
    ['/:a/:b', '/admin;/x'],
    ['/a;v=1/b', '/a/b'],
    ['/a%2Ab', '/axb'],
  ])('%s does not allow %s', (pattern, path) => {
    expect(allows(pattern, path)).toBe(false);
  });

  test.each([
    ['without a leading slash', 'contacts', /begins with/],
    ['when it is empty', '', /begins with/],
    ['that is a whole URL', 'https://example.com/*', /begins with/],
    ['with an asterisk before the end', '/*/notes', /`\*`/],
    ['with two asterisks', '/*/*', /`\*`/],
    ['with a doubled asterisk', '/**', /`\*`/],
    ['with an asterisk within a segment', '/contacts*', /`\*`/],
    ['with an asterisk behind a name', '/:id*', /`\*`/],
    ['with a nameless colon', '/:', /name/],
    ['with a name that begins with a digit', '/:1', /name/],
    ['with a name that goes on', '/:id.json', /name/],
    ['with a hyphen in a name', '/:contact-id', /name/],
    ['with two names in a segment', '/:a:b', /name/],
    ['with a name twice', '/:id/notes/:id', /only once/],
    ['with braces', '/contacts/{id}', /`:name`/],
    ['with a query', '/contacts?a', /query/],
    ['with a fragment', '/contacts#a', /fragment/],
    ['with a dot segment', '/a/./b', /`\.`/],
    ['with a double dot segment', '/a/..', /`\.\.`/],
    ['with an encoded dot segment', '/a/%2e%2E/b', /`\.\.`/],
    ['with a dot segment and a parameter', '/a/..;x', /`\.\.`/],
    ['with a parameter of nothing', '/a/;x', /`;`/],
    ['with an empty segment', '/a//b', /empty/],
    ['with two trailing slashes', '/a//', /empty/],
    ['with two slashes', '//', /empty/],
    ['with a backslash', '/a\\b', /backslash/],
    ['with a NUL', '/a\0', /control/],
    ['with a newline', '/a\n', /control/],
    ['with a space', '/a b', /spaces/],
    ['with a C1 control', '/a\u0085', /control/],
    ['with an encoded slash', '/a%2Fb', /encoded/],
    ['with an encoded backslash', '/a%5cb', /encoded/],
    ['with an encoded NUL', '/a%00', /encoded/],
    ['with a malformed escape', '/a%4', /escape/],
    ['with an escape that is not UTF-8', '/a%E9', /escape/],
    ['with an unpaired surrogate', '/a\ud83d', /escape/],
  ])('is refused %s', (_, pattern, message) => {
    expect(faultOf(pattern)).toMatch(message);
  });

  test('is refused beyond its longest length, and not at it', () => {
    expect(faultOf(`/${'a'.repeat(MAX_ROUTE_PATTERN_LENGTH - 1)}`)).toBeUndefined();
    expect(faultOf(`/${'a'.repeat(MAX_ROUTE_PATTERN_LENGTH)}`)).toContain('256');
  });

  test('matches as a plain recursive model does', () => {
    fc.assert(
      fc.property(routePattern, hostilePath, (pattern, path) => {
        const segments = segmentsModel(path);
        expect(allows(pattern, path)).toBe(segments !== undefined && matchesModel(pattern, segments));
      }),
      { numRuns: 20_000 },
    );
  });

  test('allows no path that some server would serve as a route it does not allow', () => {
    let allowed = 0;
    fc.assert(
      fc.property(routePattern, hostilePath, (pattern, path) => {
        if (!allows(pattern, path)) return;
        allowed++;
        for (const [server, segments] of Object.entries(servedAs(path))) {
          expect(`${server}: ${grantsServed(pattern, segments)}`).toBe(`${server}: true`);
        }
      }),
      { numRuns: 50_000 },
    );
    expect(allowed).toBeGreaterThan(1_000);
  });

  test('is not widened by hostile marks in a path', () => {
    const marks = fc.constantFrom(
      ...[
        '/',
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
        '#',
      ],
      ...[' ', '\t', '%', '%c0%ae', 'A', 'a'.repeat(5_000)],
    );
    const words = fc.array(fc.constantFrom('admin', 'contacts', 'public', '17'), {
      minLength: 1,
      maxLength: 4,
    });
    fc.assert(
      fc.property(routePattern, words, marks, fc.nat(30), (pattern, segments, mark, at) => {
        const plain = `/${segments.join('/')}`;
        const marked = plain.slice(0, at) + mark + plain.slice(at);
        if (!allows(pattern, marked)) return;
        for (const served of Object.values(servedAs(marked)))
          expect(grantsServed(pattern, served)).toBe(true);
      }),
      { numRuns: 20_000 },
    );
  });
});

describe('a route rule', () => {
  const get = rule({ methods: ['GET'], path: '/contacts/:id' });

  test.each([
    ['a method it names', get, 'GET', true],
    ['HEAD where it names GET', get, 'HEAD', true],
    ['another method', get, 'POST', false],
    ['a method in lower case', get, 'get', false],
    ['a method with a space', get, 'GET ', false],
    ['no method', get, undefined, false],
    ['an empty method', get, '', false],
    ['GET where it names HEAD alone', rule({ methods: ['HEAD'], path: '/*' }), 'GET', false],
    ['a method of its own', rule({ methods: ['M-SEARCH'], path: '/*' }), 'M-SEARCH', true],
    ['any method where it names none', rule({ path: '/*' }), 'brew', true],
    ['no method where it names none', rule({ methods: null, path: '/*' }), undefined, true],
    ['a name of a built-in property', get, 'constructor', false],
  ])('answers for %s', (_, compiled, method, expected) => {
    expect(matchesRule(compiled, method, '/contacts/17')).toBe(expected);
  });

  test('is bound to its path', () => {
    expect(matchesRule(get, 'GET', '/contacts')).toBe(false);
  });

  test.each([
    ['lower case', ['get']],
    ['a leading hyphen', ['-GET']],
    ['a digit', ['GET1']],
    ['a newline', ['GET\n']],
    ['nothing', ['']],
    ['33 characters', ['A'.repeat(33)]],
  ])('refuses a method of %s', (_, methods) => {
    expect(routeRuleFaults({ methods, path: '/' })).toEqual([
      { path: ['methods', 0], message: expect.any(String) },
    ]);
  });

  test('refuses no methods, and more than its most', () => {
    const methods = Array.from({ length: MAX_METHODS + 1 }, () => 'GET');
    expect(routeRuleFaults({ methods: [], path: '/' })).toMatchObject([{ path: ['methods'] }]);
    expect(routeRuleFaults({ methods, path: '/' })).toMatchObject([{ path: ['methods'] }]);
    expect(routeRuleFaults({ methods: methods.slice(1), path: '/' })).toEqual([]);
    expect(routeRuleFaults({ methods: ['A'.repeat(32)], path: '/' })).toEqual([]);
  });

  test('tells of every fault at once', () => {
    expect(routeRuleFaults({ methods: ['GET', 'get'], path: 'x' })).toMatchObject([
      { path: ['methods', 1] },
      { path: ['path'] },
    ]);
    expect(compileRouteRule({ methods: ['get'], path: '/' })).toHaveProperty('fault');
  });
});
