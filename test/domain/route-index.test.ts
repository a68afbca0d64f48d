import fc from 'fast-check';
import { expect, test } from 'vitest';
import { createRouteIndex } from '../../src/domain/route-index.ts';
import {
  compileRouteRule,
  matchesRule,
  normalizeRequestPath,
  type RouteRule,
  type RouteRuleText,
} from '../../src/domain/route-pattern.ts';
import { hostilePath, routePattern } from './route-model.ts';

function rule(text: RouteRuleText): RouteRule {
  const compiled = compileRouteRule(text);
  if ('fault' in compiled) throw new Error(compiled.fault);
  return compiled;
}

const indexOf = (...texts: RouteRuleText[]) =>
  createRouteIndex(texts.map((text, index) => ({ rule: rule(text), value: index })));

test('every rule that matches is found, not the closest one alone', () => {
  const index = indexOf(
    { path: '/*' },
    { path: '/contacts/*' },
    { path: '/contacts/:id' },
    { path: '/contacts/me' },
    { methods: ['POST'], path: '/contacts/me' },
    { path: '/:anything/me' },
    { path: '/contacts' },
  );
  expect([...index.find('GET', '/contacts/me')].sort()).toEqual([0, 1, 2, 3, 5]);
  expect([...index.find('GET', '/contacts')].sort()).toEqual([0, 1, 6]);
  expect([...index.find('GET', '/')]).toEqual([0]);
});

test('a rule of the root is found for the root alone', () => {
  const index = indexOf({ path: '/' });
  expect(index.find('GET', '/').size).toBe(1);
  expect(index.find('GET', '/a').size).toBe(0);
});

test('segments are no names of built-in properties', () => {
  const index = indexOf({ path: '/a' });
  for (const path of ['/__proto__', '/constructor', '/a/toString'])
    expect(index.find('GET', path).size).toBe(0);
});

test('any set of rules finds, for any path, what asking one rule after the other finds', () => {
  const rules = fc.array(
    fc.record({
      methods: fc.option(fc.subarray(['GET', 'POST', 'HEAD'], { minLength: 1 })),
      path: routePattern,
    }),
    { maxLength: 12 },
  );
  let found = 0;
  fc.assert(
    fc.property(
      rules,
      fc.constantFrom('GET', 'HEAD', 'POST', 'get', ''),
      hostilePath,
      (texts, method, path) => {
        const normalPath = normalizeRequestPath(path);
        if (normalPath === undefined) return;
        const matching = texts.flatMap((text, index) =>
          matchesRule(rule(text), method, normalPath) ? [index] : [],
        );
        found += matching.length;
        expect([...indexOf(...texts).find(method, normalPath)].sort((a, b) => a - b)).toEqual(matching);
      },
    ),
    { numRuns: 20_000 },
  );
  expect(found).toBeGreaterThan(1_000);
});

test('ten thousand rules that share their beginnings are looked up without a scan of them all', () => {
  const index = createRouteIndex(
    Array.from({ length: 10_000 }, (_, number) => ({
      rule: rule({ path: number % 2 === 0 ? `/v1/things${number}/:id` : `/v1/:kind/parts${number}` }),
      value: number,
    })),
  );
  expect([...index.find('GET', '/v1/things4242/17')]).toEqual([4242]);
  expect([...index.find('GET', '/v1/things4242/parts17')].sort()).toEqual([17, 4242]);
  // A path has no say in how deep the search goes.
  expect(index.find('GET', `/v1${'/x'.repeat(500_000)}`).size).toBe(0);
});
