import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { loggedMethod, loggedPath, MAX_LOGGED_PATH_LENGTH } from '../../src/domain/logged-path.ts';
import { holdsToken } from '../../src/domain/token.ts';

const BODY = '0Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St'.repeat(3).slice(0, 66);
const TOKEN = `ck_live_${BODY}`;
const full = (length: number) => `/${'x'.repeat(length - 1)}`;

describe('a path is logged', () => {
  test.each<[string, string]>([
    ['/contacts/17', '/contacts/17'],
    ['/contacts/17?token=abc', '/contacts/17'],
    ['/contacts#part?x', '/contacts'],
    ['?x', ''],
    ['', ''],
    ['/ä/𝄞', '/ä/𝄞'],
    ['/a%2Fb%20c', '/a%2Fb%20c'],
    ['/%61%62%7E%2d%5f', '/ab~-_'],
    ['/50%/x', '/50%/x'],
    [`/${TOKEN}`, '/…'],
    [`/a/${TOKEN}/b/${TOKEN}`, '/a/…/b/…'],
    [`/x${TOKEN}y/b`, '/…/b'],
    [`/${TOKEN.replace('_', '%5f')}/b`, '/…/b'],
    [`/a_${BODY.slice(1)}`, `/a_${BODY.slice(1)}`],
    [full(MAX_LOGGED_PATH_LENGTH), full(MAX_LOGGED_PATH_LENGTH)],
    [full(MAX_LOGGED_PATH_LENGTH + 1), `${full(MAX_LOGGED_PATH_LENGTH - 1)}…`],
    // What is cut off cannot leave half a token behind.
    [`${full(480)}/${TOKEN}`, `${full(480)}/…`],
  ])('%s as %s', (path, logged) => {
    expect(loggedPath(path)).toBe(logged);
  });

  test.each([null, undefined, 'a\0b', 'a\ud800b'])('%j as nothing', (path) => {
    expect(loggedPath(path)).toBeNull();
  });

  test('never with a token, wherever one stands, and never longer than is kept', () => {
    const piece = fc.oneof(
      fc.constantFrom(TOKEN, '/', '%5F', '_', 'ck', '%', BODY),
      fc.string({ unit: 'binary' }),
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 20 }), (pieces) => {
        const logged = loggedPath(pieces.join('')) ?? '';
        expect(logged).not.toContain(TOKEN);
        expect(holdsToken(logged)).toBe(false);
        expect(logged.length).toBeLessThanOrEqual(MAX_LOGGED_PATH_LENGTH);
        expect(logged.isWellFormed()).toBe(true);
      }),
    );
  });

  test.each([
    ['underscores', '_'.repeat(8192)],
    ['letters', 'a'.repeat(8192)],
    ['nearly a token', 'a_b_'.repeat(2048)],
    ['escapes', '%5'.repeat(4096)],
  ])('in time that grows with its length alone: %s', (_, path) => {
    const startedAt = performance.now();
    for (let n = 0; n < 20; n++) loggedPath(path);
    // A quadratic one takes seconds.
    expect(performance.now() - startedAt).toBeLessThan(2_000);
  });
});

test.each([
  ['GET', 'GET'],
  ['M-SEARCH', 'M-SEARCH'],
  ['X'.repeat(32), 'X'.repeat(32)],
  ['X'.repeat(33), null],
  ['get', null],
  ['GET /', null],
  ['', null],
  [null, null],
  [undefined, null],
])('the method %j is logged as %j', (method, logged) => {
  expect(loggedMethod(method)).toBe(logged);
});
