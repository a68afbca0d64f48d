import { describe, expect, test } from 'vitest';
import { isPermission, PERMISSIONS, permits, SCOPE_PATTERN } from '../../src/domain/scope.ts';

describe('a scope', () => {
  test.each(['read', 'r', '0', 'validate:offers', 'a:b:c', 'a_b.c-d', 'a:_', 'a:.', 'a:-b', 'a..b', '9:9'])(
    'may be %j',
    (text) => {
      expect(SCOPE_PATTERN.test(text)).toBe(true);
    },
  );

  test.each([
    '',
    ':',
    'a:',
    ':a',
    'a::b',
    '_a',
    '.a',
    '-a',
    'Read',
    'a:B',
    'a*',
    '*',
    'a:*',
    'a b',
    ' a',
    'a\n',
    'a/b',
    'é',
  ])('may not be %j', (text) => {
    expect(SCOPE_PATTERN.test(text)).toBe(false);
  });
});

describe('permissions', () => {
  test('are the closed list of the contract', () => {
    expect([...PERMISSIONS].sort()).toEqual([
      'admin',
      'audit:read',
      'introspect',
      'keys:read',
      'keys:write',
      'scopes:write',
      'workspaces:write',
    ]);
    for (const name of PERMISSIONS) expect(isPermission(name)).toBe(true);
    for (const name of ['read', 'keys', 'keys:*', 'Admin', '', 'toString', '__proto__']) {
      expect(isPermission(name)).toBe(false);
    }
  });

  test('are each their own, and admin is all of them', () => {
    for (const held of PERMISSIONS) {
      for (const wanted of PERMISSIONS) {
        expect(permits([held], wanted)).toBe(held === wanted || held === 'admin');
      }
    }
    for (const wanted of PERMISSIONS) expect(permits([], wanted)).toBe(false);
  });

  test('are not implied by a common beginning', () => {
    expect(permits(['keys', 'keys:writer', 'admins'], 'keys:write')).toBe(false);
  });
});
