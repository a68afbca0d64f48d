import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Failure } from '../../src/domain/errors.ts';
import type { JsonObject, JsonValue } from '../../src/domain/key.ts';
import {
  applyPatch,
  completeRestrictions,
  type KeyPatch,
  type KeySettings,
  MAX_METADATA_BYTES,
  metadataFault,
} from '../../src/domain/key-patch.ts';

const NONE = {
  allowed_ips: null,
  allowed_referrers: null,
  allowed_endpoints: null,
  allowed_workspaces: null,
};

const SETTINGS: KeySettings = {
  name: 'Before',
  scopes: ['read', 'write'],
  expiresAt: 2_000,
  restrictions: { ...NONE, allowed_ips: ['10.0.0.1'], allowed_endpoints: [{ path: '/a' }] },
  rateLimit: { limit: 10, window_seconds: 60 },
  metadata: { team: 'data', nested: { a: 1, b: 2 } },
};

function faultsOf(settings: KeySettings, patch: KeyPatch): readonly { path: string }[] {
  try {
    applyPatch(settings, patch);
  } catch (error) {
    if (error instanceof Failure) return error.options.errors ?? [];
    throw error;
  }
  return [];
}

/** RFC 7396 §2 word by word. */
function mergePatch(target: JsonValue | undefined, patch: JsonValue): JsonValue {
  if (!isObject(patch)) return patch;
  const result: Record<string, JsonValue> = isObject(target) ? { ...target } : {};
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete result[name];
    else result[name] = mergePatch(result[name], value);
  }
  return result;
}

function isObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

describe('a patch', () => {
  test('changes nothing that it does not name', () => {
    expect(applyPatch(SETTINGS, {})).toEqual(SETTINGS);
    expect(applyPatch(SETTINGS, { name: 'After' })).toEqual({ ...SETTINGS, name: 'After' });
  });

  test('clears with null: no scopes, no expiry, no restriction, no limit, no metadata', () => {
    const cleared = applyPatch(SETTINGS, {
      scopes: null,
      expiresAt: null,
      restrictions: null,
      rateLimit: null,
      metadata: null,
    });
    expect(cleared).toEqual({
      name: 'Before',
      scopes: [],
      expiresAt: null,
      restrictions: null,
      rateLimit: null,
      metadata: null,
    });
  });

  test('names each scope once', () => {
    expect(applyPatch(SETTINGS, { scopes: ['b', 'a', 'b'] }).scopes).toEqual(['b', 'a']);
  });

  test('replaces a list of restrictions whole, and leaves the other lists', () => {
    expect(applyPatch(SETTINGS, { restrictions: { allowed_ips: ['10.0.0.2'] } }).restrictions).toEqual({
      ...NONE,
      allowed_ips: ['10.0.0.2'],
      allowed_endpoints: [{ path: '/a' }],
    });
    expect(applyPatch(SETTINGS, { restrictions: { allowed_ips: null } }).restrictions).toEqual({
      ...NONE,
      allowed_endpoints: [{ path: '/a' }],
    });
    expect(applyPatch(SETTINGS, { restrictions: {} })).toEqual(SETTINGS);
  });

  test('that clears the last restriction leaves a key without restrictions', () => {
    const patch = { restrictions: { allowed_ips: null, allowed_endpoints: null } };
    expect(applyPatch(SETTINGS, patch).restrictions).toBeNull();
  });

  test('changes one half of a limit and keeps the other', () => {
    expect(applyPatch(SETTINGS, { rateLimit: { limit: 11 } }).rateLimit).toEqual({
      limit: 11,
      window_seconds: 60,
    });
    expect(applyPatch(SETTINGS, { rateLimit: { window_seconds: 61 } }).rateLimit).toEqual({
      limit: 10,
      window_seconds: 61,
    });
    expect(applyPatch(SETTINGS, { rateLimit: {} }).rateLimit).toEqual(SETTINGS.rateLimit);
  });

  test('cannot give one half of a limit to a key that has none', () => {
    const unlimited = { ...SETTINGS, rateLimit: null };
    for (const rateLimit of [{}, { limit: 1 }, { window_seconds: 1 }]) {
      expect(faultsOf(unlimited, { rateLimit })).toMatchObject([{ path: 'rate_limit' }]);
    }
    expect(applyPatch(unlimited, { rateLimit: { limit: 1, window_seconds: 2 } }).rateLimit).toEqual({
      limit: 1,
      window_seconds: 2,
    });
  });

  // The table of RFC 7396, appendix A, where target and patch are objects.
  test.each<[JsonObject, JsonObject, JsonObject]>([
    [{ a: 'b' }, { a: 'c' }, { a: 'c' }],
    [{ a: 'b' }, { b: 'c' }, { a: 'b', b: 'c' }],
    [{ a: 'b' }, { a: null }, {}],
    [{ a: 'b', b: 'c' }, { a: null }, { b: 'c' }],
    [{ a: ['b'] }, { a: 'c' }, { a: 'c' }],
    [{ a: 'c' }, { a: ['b'] }, { a: ['b'] }],
    [{ a: { b: 'c' } }, { a: { b: 'd', c: null } }, { a: { b: 'd' } }],
    [{ a: [{ b: 'c' }] }, { a: [1] }, { a: [1] }],
    [{ e: null }, { a: 1 }, { e: null, a: 1 }],
    [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }],
  ])('merges metadata as RFC 7396 says: %j and %j make %j', (target, patch, result) => {
    expect(applyPatch({ ...SETTINGS, metadata: target }, { metadata: patch }).metadata).toEqual(result);
  });

  test('merges any metadata as RFC 7396 says', () => {
    const names = fc.constantFrom('a', 'b', 'c', 'constructor', 'toString', 'length');
    const value: fc.Arbitrary<JsonValue> = fc.letrec<{ value: JsonValue; object: JsonObject }>((tie) => ({
      value: fc.oneof(
        { maxDepth: 3 },
        fc.constantFrom(null, true, 0, 'x', ''),
        fc.array(tie('value'), { maxLength: 2 }),
        tie('object'),
      ),
      object: fc.dictionary(names, tie('value'), { maxKeys: 4, noNullPrototype: true }),
    })).value;
    const objects = fc.dictionary(names, value, { maxKeys: 4, noNullPrototype: true });
    fc.assert(
      fc.property(objects, objects, (target, patch) => {
        const { metadata } = applyPatch({ ...SETTINGS, metadata: target }, { metadata: patch });
        expect(metadata).toEqual(mergePatch(target, patch));
      }),
    );
  });

  test('gives metadata to a key that had none, without the members it clears', () => {
    const bare = { ...SETTINGS, metadata: null };
    expect(applyPatch(bare, { metadata: { a: 1, b: null, c: { d: null } } }).metadata).toEqual({
      a: 1,
      c: {},
    });
    expect(applyPatch(bare, { metadata: {} }).metadata).toEqual({});
  });

  test('is measured by the metadata that comes of it, 4 KiB at most', () => {
    const metadata = { filled: '' };
    const room = MAX_METADATA_BYTES - JSON.stringify({ filled: '', more: '' }).length;
    const before = { ...SETTINGS, metadata };
    expect(faultsOf(before, { metadata: { more: 'x'.repeat(room) } })).toEqual([]);
    expect(faultsOf(before, { metadata: { more: 'x'.repeat(room + 1) } })).toMatchObject([
      { path: 'metadata' },
    ]);
    // Nothing is too large that makes the whole smaller.
    expect(faultsOf(before, { metadata: { filled: null, more: 'x'.repeat(room + 12) } })).toEqual([]);
  });

  test('leaves the settings it is applied to as they were', () => {
    const before = structuredClone(SETTINGS);
    applyPatch(SETTINGS, { metadata: { nested: { a: null } }, scopes: ['x'], rateLimit: { limit: 1 } });
    expect(SETTINGS).toEqual(before);
  });
});

describe('metadata', () => {
  test('has 4096 bytes at most, in UTF-8', () => {
    const wrapped = (text: string) => ({ a: text });
    const empty = JSON.stringify(wrapped('')).length;
    expect(MAX_METADATA_BYTES).toBe(4096);
    expect(metadataFault(null)).toBeUndefined();
    expect(metadataFault(wrapped('x'.repeat(4096 - empty)))).toBeUndefined();
    expect(metadataFault(wrapped('x'.repeat(4097 - empty)))).toMatchObject({ path: 'metadata' });
    expect(metadataFault(wrapped('é'.repeat((4096 - empty) / 2)))).toBeUndefined();
    expect(metadataFault(wrapped(`${'é'.repeat((4096 - empty) / 2)}x`))).toMatchObject({ path: 'metadata' });
  });
});

describe('restrictions', () => {
  test('are stored with every list, or not at all', () => {
    expect(completeRestrictions({ allowed_ips: ['::1'] })).toEqual({ ...NONE, allowed_ips: ['::1'] });
    for (const empty of [null, {}, NONE, { allowed_ips: undefined }]) {
      expect(completeRestrictions(empty)).toBeNull();
    }
  });
});
