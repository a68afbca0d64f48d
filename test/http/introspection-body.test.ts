import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { parseJson } from '../../src/http/body.ts';
import { introspectionBody, MAX_PLAIN_BYTES, readPlainBody } from '../../src/http/introspection-body.ts';
import { parseInput } from '../../src/http/validation.ts';

const TOKEN = `ck_live_${'a1B2c3D4e5F'.repeat(6)}`;

/** What the schema makes of the same bytes; throws where it finds a fault. */
const readBySchema = (bytes: Buffer) => parseInput(introspectionBody, parseJson(bytes));

const read = (text: string) => readPlainBody(Buffer.from(text));

const printable = fc.string({
  unit: fc.constantFrom(...Array.from({ length: 95 }, (_, index) => String.fromCharCode(32 + index))),
});
/** Mostly what keeps the rules. */
const mostly = <T, U>(right: fc.Arbitrary<T>, wrong: fc.Arbitrary<U>) =>
  fc.oneof({ weight: 15, arbitrary: right }, { weight: 1, arbitrary: wrong });
const fact = (right: fc.Arbitrary<string>, ...wrong: readonly unknown[]) =>
  mostly(fc.option(right), fc.oneof(fc.string(), fc.constantFrom(...wrong)));
const members = {
  key: mostly(fc.oneof(fc.constant(TOKEN), printable), fc.oneof(fc.string(), fc.constant(1))),
  scopes: mostly(
    fc.array(fc.constantFrom('read', 'validate:offers', 'a.b-c_d', 'x'.repeat(64))),
    fc.oneof(
      fc.array(fc.oneof(printable, fc.constantFrom('Read', ':', 'x'.repeat(65), ''))),
      fc.constantFrom(null, 'read', [1], [['read']], new Array(65).fill('read')),
    ),
  ),
  workspace_id: mostly(
    fc.constantFrom('ws_acme', 'a.b:c-d', '...'),
    fc.constantFrom('.', '..', '', 'a b', 'w'.repeat(101), TOKEN, null),
  ),
  environment: mostly(fc.constantFrom('live', 'test'), fc.constantFrom('Live', '', 'e'.repeat(17), 7)),
  cost: mostly(fc.nat(10_000), fc.oneof(fc.integer(), fc.double(), fc.constantFrom(null, '1', 10_001))),
  request: mostly(
    fc.record(
      {
        ip: fact(fc.constantFrom('203.0.113.9', '2001:db8::1'), 'i'.repeat(65)),
        method: fact(fc.constant('GET'), 'm'.repeat(33), 3),
        path: fact(fc.oneof(fc.webPath(), printable), 7),
        referrer: fact(fc.oneof(fc.webUrl(), printable), true),
      },
      { requiredKeys: [] },
    ),
    fc.constantFrom(null, [], 'GET /', {}, { more: 'x' }),
  ),
};
const bodies = fc
  .tuple(
    fc.record(members, { requiredKeys: ['key'] }),
    mostly(fc.constant({}), fc.constantFrom({ token: TOKEN }, { more: true })),
  )
  .map(([body, more]) => ({ ...body, ...more }));

/** The ways in which clients write JSON. */
const written = fc
  .tuple(bodies, fc.constantFrom('dense', 'dense', 'spaced', 'lines', 'escaped'))
  .map(([body, style]) => {
    const dense = JSON.stringify(body);
    if (style === 'lines') return JSON.stringify(body, undefined, 2);
    if (style === 'spaced') return ` ${dense.replaceAll('":', '" : ').replaceAll(',"', ' , "')} `;
    return style === 'escaped' ? dense.replaceAll('e', '\\u0065') : dense;
  });

/** The same with one character changed, left out, or put in. */
const disturbed = fc
  .tuple(
    written,
    fc.nat(),
    fc.constantFrom('change', 'drop', 'add'),
    fc.constantFrom(...'{}[]",:\\ 0-.\n\t\0é"ek'),
  )
  .map(([text, seed, how, character]) => {
    const at = seed % (text.length + 1);
    return text.slice(0, at) + (how === 'drop' ? '' : character) + text.slice(how === 'add' ? at : at + 1);
  });

describe('a plain body of an introspection', () => {
  test('is read to the value that the schema reads, or left to it', () => {
    let plain = 0;
    fc.assert(
      fc.property(fc.oneof(written, disturbed), (text) => {
        const bytes = Buffer.from(text);
        const value = readPlainBody(bytes);
        if (value === undefined) return;
        plain++;
        expect(value).toEqual(readBySchema(bytes));
      }),
      { numRuns: 3_000 },
    );
    // Half of the texts are disturbed, and two styles of five are not plain.
    expect(plain).toBeGreaterThan(500);
  });

  test('is what usual clients send', () => {
    const question = {
      key: TOKEN,
      scopes: ['read', 'write'],
      workspace_id: 'ws_acme',
      environment: 'live',
      cost: 3,
      request: { ip: '203.0.113.9', method: 'GET', path: '/contacts/17?q=1', referrer: null },
    };
    expect(read(JSON.stringify(question))).toEqual(question);
    // As Python writes it.
    expect(read(`{"token": "${TOKEN}", "scopes": [], "cost": 0}`)).toEqual({
      token: TOKEN,
      scopes: [],
      cost: 0,
    });
  });

  test.each([
    ['a member twice', '{"key":"a","key":"b"}'],
    ['a member of the request twice', '{"key":"a","request":{"ip":null,"ip":"1.2.3.4"}}'],
    ['an escape', '{"key":"\\u0041"}'],
    ['another script', '{"key":"é"}'],
    ['a NUL', '{"key":"\0"}'],
    ['more behind it', '{"key":"a"} {}'],
    ['nothing', '{}'],
    ['a comma too many', '{"key":"a",}'],
    ['no end', '{"key":"a"'],
    ['a cost written as a fraction', '{"key":"a","cost":1.0}'],
    ['a cost with a zero before it', '{"key":"a","cost":01}'],
    ['a cost too high', '{"key":"a","cost":10001}'],
    ['a scope that is none', '{"key":"a","scopes":["Read"]}'],
    ['a workspace that is none', '{"key":"a","workspace_id":".."}'],
    ['a token for a workspace', `{"key":"a","workspace_id":"${TOKEN}"}`],
  ])('is none with %s', (_what, text) => {
    expect(read(text)).toBeUndefined();
  });

  test('is none from a length on', () => {
    const body = (length: number) => `{"key":"${'k'.repeat(length - '{"key":""}'.length)}"}`;
    expect(read(body(MAX_PLAIN_BYTES))).toBeDefined();
    expect(read(body(MAX_PLAIN_BYTES + 1))).toBeUndefined();
  });
});
